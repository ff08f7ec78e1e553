"""Token shards: the files between a tokenizer and a model.

    SPLIT/part-UNIT-K.tok   raw little-endian tokens: uint16 where the vocabulary fits, else uint32
    SPLIT/part-UNIT-K.idx   raw little-endian uint64: where each document ends in the .tok, in tokens
    shards.json             dtype, vocab_size, tokenizer, eos_id, and per split the shards (`Shard`)

Every document is followed by <eos>, which belongs to it. A shard ends at a document's end. A unit of work
writes shards of its own, named by the unit, so that new sources never touch old shards.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARDS_FILE = "shards.json"
SHARD_BYTES = 512 * 2**20

_DOCUMENT_END = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest little-endian dtype that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class Shard:
    """One .tok file, as `shards.json` records it."""

    file: str
    """Path below the artifact, "train/part-00000-0.tok"."""
    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the documents' text: what bits per byte divides by."""
    sha256: str
    """Of the .tok file."""


class ShardWriter:
    """Writes the shards of one unit in one split. Files appear under their names when they are complete.

    Use it as a context manager; `shards` is complete after the block. Left by an exception, it leaves no file
    of the shard it was writing.
    """

    def __init__(
        self, root: Path, split: str, unit: str, vocab_size: int, eos_id: int, shard_bytes: int = SHARD_BYTES
    ):
        self.shards: list[Shard] = []
        self._root, self._prefix = root, f"{split}/part-{unit}"
        self._dtype, self._eos = token_dtype(vocab_size), np.array([eos_id], dtype=token_dtype(vocab_size))
        self._shard_tokens = max(1, shard_bytes // self._dtype.itemsize)
        (root / split).mkdir(parents=True, exist_ok=True)
        self._open()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None and self._ends:
            self._finish()
        else:
            self._discard()

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        """Append one document of `text_bytes` UTF-8 bytes, and <eos>."""
        if self._ends and self._tokens + len(ids) + 1 > self._shard_tokens:
            self._finish()
            self._open()
        data = np.concatenate([ids.astype(self._dtype), self._eos]).tobytes()
        self._stream.write(data)
        self._digest.update(data)
        self._tokens += len(ids) + 1
        self._bytes += text_bytes
        self._ends.append(self._tokens)

    def _open(self) -> None:
        self._path = self._root / f"{self._prefix}-{len(self.shards)}.tok"
        self._stream = open(_partial(self._path), "wb")  # noqa: SIM115 closed by _finish or _discard
        self._digest = hashlib.sha256()
        self._tokens = self._bytes = 0
        self._ends: list[int] = []

    def _finish(self) -> None:
        _sync_and_close(self._stream)
        index = self._path.with_suffix(".idx")
        with open(_partial(index), "wb") as stream:
            stream.write(np.array(self._ends, dtype=_DOCUMENT_END).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(_partial(index), index)
        os.replace(_partial(self._path), self._path)
        file = str(self._path.relative_to(self._root))
        self.shards.append(Shard(file, self._tokens, len(self._ends), self._bytes, self._digest.hexdigest()))

    def _discard(self) -> None:
        self._stream.close()
        _partial(self._path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _sync_and_close(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def shards_json(
    vocab_size: int, tokenizer_fingerprint: str, eos_id: int, splits: dict[str, list[Shard]]
) -> bytes:
    """The content of `shards.json`."""
    content = {
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer_fingerprint,
        "eos_id": eos_id,
        "splits": {split: [asdict(shard) for shard in shards] for split, shards in splits.items()},
    }
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


class TokenShards:
    """The shards of one split, read through memory maps."""

    def __init__(self, root: Path, vocab_size: int, tokenizer: str, eos_id: int, shards: list[Shard]):
        self.root, self.vocab_size, self.tokenizer, self.eos_id = root, vocab_size, tokenizer, eos_id
        self.shards = shards
        self.dtype = token_dtype(vocab_size)
        self._maps: dict[int, np.ndarray] = {}

    @classmethod
    def open(cls, root: str | Path, split: str) -> "TokenShards":
        """Open a tokens artifact; checks that each file is as long as recorded (not its checksum).

        Raises FileNotFoundError without `shards.json`, ValueError on an unknown split or a damaged file.
        """
        root = Path(root)
        if not (root / SHARDS_FILE).is_file():
            raise FileNotFoundError(f"no {SHARDS_FILE} in {root}; make tokens with `manta tokens`")
        content = json.loads((root / SHARDS_FILE).read_bytes())
        if split not in content["splits"]:
            raise ValueError(f"no split {split!r} in {root}; there is {', '.join(content['splits'])}")
        shards = [Shard(**shard) for shard in content["splits"][split]]
        opened = cls(root, content["vocab_size"], content["tokenizer"], content["eos_id"], shards)
        for shard in shards:
            expected, found = shard.tokens * opened.dtype.itemsize, (root / shard.file).stat().st_size
            if expected != found:
                raise ValueError(f"{root / shard.file} has {found} bytes, {SHARDS_FILE} says {expected}")
        return opened

    @property
    def shard_tokens(self) -> list[int]:
        return [shard.tokens for shard in self.shards]

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over dtype and the shards' contents in order; not over where they lie."""
        content = [self.dtype.name, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def read(self, shard: int, offset: int, length: int) -> np.ndarray:
        """`length` tokens of a shard from `offset`: a view of the memory map, no copy."""
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.root / self.shards[shard].file, dtype=self.dtype, mode="r")
        return self._maps[shard][offset : offset + length]

    def document_ends(self, shard: int) -> np.ndarray:
        """(documents,) uint64: where each document (its <eos> included) ends in the shard."""
        return np.fromfile((self.root / self.shards[shard].file).with_suffix(".idx"), dtype=_DOCUMENT_END)

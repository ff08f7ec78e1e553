"""Token shards: the files between a tokenizer and a model.

    SPLIT/part-UNIT-K.tok   raw little-endian tokens: uint16 where the vocabulary fits, else uint32
    SPLIT/part-UNIT-K.idx   raw little-endian uint64: where each document ends in the .tok, in tokens
    shards.json             dtype, vocab_size, tokenizer, eos_id; per split a fingerprint and, in columns, all
                            that `Shard` says but the checksums, which are in the artifact's manifest

Every document is followed by <eos>, which belongs to it. A shard ends at a document's end. A unit of work
writes shards of its own, named by the unit, so that new sources never touch old shards.
"""

import bisect
import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.shard_files import MappedFiles, ShardFiles

SHARDS_FILE = "shards.json"
SHARD_BYTES = 512 * 2**20

_DOCUMENT_END = np.dtype("<u8")
_COUNTS = ("tokens", "documents", "bytes")


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
    """Writes the shards of one unit in one split. Files appear under their names when they are complete; to
    make them survive a crash of the machine is left to who publishes them.

    Use it as a context manager; `shards` is complete after the block. Left by an exception, it leaves no file
    of the shard it was writing.
    """

    def __init__(
        self, root: Path, split: str, unit: str, vocab_size: int, eos_id: int, shard_bytes: int = SHARD_BYTES
    ):
        self.shards: list[Shard] = []
        self._root, self._prefix = root, f"{split}/part-{unit}"
        self._dtype, self._eos = token_dtype(vocab_size), eos_id
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
        ids = np.append(ids.astype(self._dtype), self._eos)
        self.add_documents(ids, np.array([len(ids)]), np.array([text_bytes]))

    def add_documents(self, ids: np.ndarray, ends: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append documents that lie one after the other in `ids`, each with its <eos>.

        ends, text_bytes: (documents,) int64: where each ends in `ids`, and UTF-8 bytes of each.
        """
        first = begin = 0
        while first < len(ends):
            room = self._shard_tokens - self._tokens
            last = int(np.searchsorted(ends, begin + room, side="right"))
            if last <= first and self._ends:
                self._finish()
                self._open()
                continue
            last = max(last, first + 1)  # a document longer than a shard has one to itself
            end = int(ends[last - 1])
            data = ids[begin:end].astype(self._dtype, copy=False).data
            self._stream.write(data)
            self._digest.update(data)
            self._ends.append(ends[first:last] - begin + self._tokens)
            self._tokens += end - begin
            self._bytes += int(text_bytes[first:last].sum())
            first, begin = last, end

    def _open(self) -> None:
        self._path = self._root / f"{self._prefix}-{len(self.shards)}.tok"
        self._stream = open(_partial(self._path), "wb")  # noqa: SIM115 closed by _finish or _discard
        self._digest = hashlib.sha256()
        self._tokens = self._bytes = 0
        self._ends: list[np.ndarray] = []

    def _finish(self) -> None:
        self._stream.close()
        index, ends = self._path.with_suffix(".idx"), np.concatenate(self._ends).astype(_DOCUMENT_END)
        _partial(index).write_bytes(ends.tobytes())
        os.replace(_partial(index), index)
        os.replace(_partial(self._path), self._path)
        file = str(self._path.relative_to(self._root))
        self.shards.append(Shard(file, self._tokens, len(ends), self._bytes, self._digest.hexdigest()))

    def _discard(self) -> None:
        self._stream.close()
        _partial(self._path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def shards_json(
    vocab_size: int, tokenizer_fingerprint: str, eos_id: int, splits: dict[str, list[Shard]]
) -> bytes:
    """The content of `shards.json`. It stays small at any size of corpus: 100 bytes a shard."""
    content = {
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer_fingerprint,
        "eos_id": eos_id,
        "splits": {split: _columns(shards, token_dtype(vocab_size)) for split, shards in splits.items()},
    }
    return json.dumps(content, sort_keys=True).encode() + b"\n"


def _columns(shards: list[Shard], dtype: np.dtype) -> dict[str, Any]:
    contents = [dtype.name, *(shard.sha256 for shard in shards)]
    return {
        "fingerprint": hashlib.sha256("\n".join(contents).encode()).hexdigest(),
        **{column: [getattr(shard, column) for shard in shards] for column in ("file", *_COUNTS)},
    }


def columns_of(content: dict[str, Any], split: str) -> dict[str, Any]:
    """What `shards.json` says of a split. Raises ValueError if there is none, or it is of an old form."""
    if split not in content["splits"]:
        raise ValueError(f"there is no split {split!r}, but {', '.join(content['splits'])}")
    columns = content["splits"][split]
    if not isinstance(columns, dict):
        raise ValueError("these tokens are of an older version; make them again with `manta tokens`")
    return columns


def shards_of(content: dict[str, Any], split: str, sha256: dict[str, str]) -> list[Shard]:
    """The shards of a split in `shards.json`, with the checksums of files by name. Raises ValueError if there
    is no such split, or it is of an old form.
    """
    columns = columns_of(content, split)
    return [
        Shard(file, tokens, documents, size, sha256[file])
        for file, tokens, documents, size in zip(
            columns["file"], columns["tokens"], columns["documents"], columns["bytes"], strict=True
        )
    ]


class TokenShards:
    """The shards of one split, of one tokens artifact or of several."""

    def __init__(self, content: dict[str, Any], split: str, files: ShardFiles):
        """content: that of `shards.json`; files: what its names stand for.

        Raises ValueError if it has no such split, or is of an old form.
        """
        columns = columns_of(content, split)
        self.vocab_size: int = content["vocab_size"]
        self.tokenizer: str = content["tokenizer"]
        self.eos_id: int = content["eos_id"]
        self.dtype = token_dtype(self.vocab_size)
        self.fingerprint: str = columns["fingerprint"]
        """SHA-256 over dtype and the shards' checksums in order; not over where they lie."""
        self.names: list[str] = columns["file"]
        """Of the files, "train/part-00000-0.tok"."""
        self.shard_tokens, self._documents, self._bytes = (
            np.array(columns[column], dtype=np.int64) for column in _COUNTS
        )
        self._files = [(0, files)]

    @classmethod
    def open(cls, root: str | Path, split: str) -> "TokenShards":
        """Open a tokens artifact on a disk. No shard is looked at yet: see `check_files`.

        Raises FileNotFoundError without `shards.json`, ValueError on an unknown split.
        """
        root = Path(root)
        if not (root / SHARDS_FILE).is_file():
            raise FileNotFoundError(f"no {SHARDS_FILE} in {root}; make tokens with `manta tokens`")
        content = json.loads((root / SHARDS_FILE).read_bytes())
        try:
            return cls(content, split, MappedFiles(root, token_dtype(content["vocab_size"])))
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from None

    @classmethod
    def join(cls, parts: Sequence["TokenShards"]) -> "TokenShards":
        """The shards of several, one after the other. Raises ValueError unless one tokenizer made them."""
        joined = copy.copy(parts[0])
        if any(part.tokenizer != joined.tokenizer for part in parts):
            raise ValueError("tokens of different tokenizers cannot be joined")
        if len(parts) > 1:
            contents = "\n".join(part.fingerprint for part in parts)
            joined.fingerprint = hashlib.sha256(contents.encode()).hexdigest()
        joined.names = [name for part in parts for name in part.names]
        joined.shard_tokens = np.concatenate([part.shard_tokens for part in parts])
        joined._documents = np.concatenate([part._documents for part in parts])
        joined._bytes = np.concatenate([part._bytes for part in parts])
        firsts = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
        joined._files = [
            (first + offset, files)
            for first, part in zip(firsts, parts, strict=True)
            for offset, files in part._files
        ]
        return joined

    def check_files(self) -> "TokenShards":
        """Raises ValueError if a file on a disk is not as long as recorded (checksums are not compared)."""
        for shard in range(len(self.names)):
            files = self._files_of(shard)
            if isinstance(files, MappedFiles):
                files.check(self.names[shard], int(self.shard_tokens[shard]))
        return self

    def __len__(self) -> int:
        """Shards."""
        return len(self.names)

    @property
    def tokens(self) -> int:
        return int(self.shard_tokens.sum())

    @property
    def documents(self) -> int:
        return int(self._documents.sum())

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self._bytes.sum())

    def read(self, shard: int, offset: int, length: int) -> np.ndarray:
        """(length,) tokens of a shard from `offset`. Raises ValueError if its file is not as recorded."""
        place = (self.names[shard], offset, length)
        return self._files_of(shard).read(place, int(self.shard_tokens[shard]))

    def expect(self, places: Iterable[tuple[int, int]], length: int) -> None:
        """So many tokens at each (shard, offset) will be read soon."""
        for shard, offset in places:
            self._files_of(shard).expect([(self.names[shard], offset, length)])

    def _files_of(self, shard: int) -> ShardFiles:
        if len(self._files) == 1:
            return self._files[0][1]
        return self._files[bisect.bisect_right(self._files, shard, key=itemgetter(0)) - 1][1]


def document_ends(root: Path, name: str) -> np.ndarray:
    """(documents,) uint64: where each document (its <eos> included) ends in the shard of this name."""
    return np.fromfile((root / name).with_suffix(".idx"), dtype=_DOCUMENT_END)

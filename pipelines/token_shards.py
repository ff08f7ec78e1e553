"""Token shards of an artifact: copied to this machine's disk, or read where they lie."""

import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cluster.artifacts.cache import damaged_file
from cluster.artifacts.manifest import Artifact
from cluster.errors import StorageError, UserError
from llm.data.shard_files import RangedFiles
from llm.data.shards import SHARDS_FILE, TokenShards, columns_of, token_dtype

_REQUESTS = ThreadPoolExecutor(32, thread_name_prefix="ranges")
"""Of all sources together: as many as the client has connections."""
_MOST_OPENED = 4096


def copied_shards(tokens: Artifact, split: str) -> TokenShards:
    """The shards of a split on this machine's disk."""
    if tokens.folder.local is not None:
        return _opened(tokens, split)
    columns = columns_of(json.loads(tokens.read(SHARDS_FILE)), split)
    tokens.fetch(SHARDS_FILE, *columns["file"])
    return _opened(tokens, split)


def _opened(tokens: Artifact, split: str) -> TokenShards:
    try:
        return TokenShards.open(tokens.fetch(SHARDS_FILE), split).check_files()
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{tokens.ref}: {error}") from None


def ranged_shards(tokens: Artifact, split: str) -> TokenShards:
    """The shards of a split wherever they lie: nothing but `shards.json` is read until a sample is.

    Raises UserError if the artifact has no such split.
    """
    content = json.loads(tokens.read(SHARDS_FILE))
    try:
        files = RangedFiles(Ranges(tokens).read, token_dtype(content["vocab_size"]), _REQUESTS)
        return TokenShards(content, split, files)
    except ValueError as error:
        raise UserError(f"{tokens.ref}: {error}") from None


class Ranges:
    """Parts of an artifact's files. For any number of threads.

    In object storage a file is opened once: pyarrow's client takes a fifth of the processor time of boto3's,
    and lets the interpreter go meanwhile. Where it fails, the storage is asked: it has patience, and says
    what is wrong. An opened file must not become shorter, which no file of an artifact does: pyarrow would
    give what lies in memory for what is missing.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact, self._folder = artifact, artifact.folder
        self._opened: dict[str, pa.NativeFile] = {}

    def read(self, name: str, first: int, count: int) -> bytes:
        """`count` bytes from byte `first`. Raises StorageError if they are not there."""
        if self._folder.local is None:
            try:
                found: bytes = self._open(name).read_at(count, first)
                return found
            except UserError as error:
                raise StorageError(str(error)) from None
            except OSError:
                self._opened.pop(name, None)  # its credentials may have expired
        try:
            found = self._folder.storage.read_range(self._folder.key(name), first, count)
        except FileNotFoundError:
            raise StorageError(str(damaged_file(self._folder, name, "it is missing"))) from None
        if len(found) != count:
            raise StorageError(str(damaged_file(self._folder, name, "it ends too early")))
        return found

    def _open(self, name: str) -> pa.NativeFile:
        """Raises UserError if it has not the size that the manifest says."""
        file = self._opened.get(name)
        if file is None:
            if len(self._opened) >= _MOST_OPENED:
                self._opened.clear()
            file = self._opened[name] = self._artifact.peek(name)
        return file

"""Token shards of an artifact: copied to this machine's disk, or read where they lie."""

import json
from concurrent.futures import ThreadPoolExecutor

from cluster.artifacts.cache import damaged_file
from cluster.artifacts.manifest import Artifact
from cluster.errors import StorageError, UserError
from llm.data.shard_files import RangedFiles
from llm.data.shards import SHARDS_FILE, TokenShards, columns_of, token_dtype

_REQUESTS = ThreadPoolExecutor(32, thread_name_prefix="ranges")
"""Of all sources together: as many as the client has connections."""


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

    def read_range(file: str, first: int, count: int) -> bytes:
        try:
            found = tokens.folder.storage.read_range(tokens.folder.key(file), first, count)
        except FileNotFoundError:
            raise StorageError(str(damaged_file(tokens.folder, file, "it is missing"))) from None
        if len(found) != count:
            raise StorageError(str(damaged_file(tokens.folder, file, "it ends too early")))
        return found

    try:
        files = RangedFiles(read_range, token_dtype(content["vocab_size"]), _REQUESTS)
        return TokenShards(content, split, files)
    except ValueError as error:
        raise UserError(f"{tokens.ref}: {error}") from None

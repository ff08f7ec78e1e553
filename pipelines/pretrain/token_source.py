"""The stream that a pre-training run reads: shards of one tokens artifact, or of several that are mixed."""

import json
from dataclasses import dataclass

from cluster.artifacts.cache import damaged_file
from cluster.artifacts.manifest import Artifact
from cluster.errors import StorageError, UserError
from llm.data.loader import TokenLoader
from llm.data.mixed_order import MixedOrder
from llm.data.order import Order
from llm.data.shard_files import RangedFiles
from llm.data.shards import SHARDS_FILE, TokenShards, columns_of, token_dtype
from pipelines.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class TokenSource:
    """What a worker reads from."""

    loader: TokenLoader
    heldout: dict[str, TokenShards]
    """By the name of the artifact; only of those that have some."""


def open_source(config: PretrainConfig, inputs: dict[str, Artifact]) -> TokenSource:
    """Open what `config.tokens` names; `inputs` has the artifacts by role.

    Raises UserError if what is on this machine's disk is not as recorded.
    """
    train, heldout = [], {}
    for role, name in config.sources.roles.items():
        tokens = inputs[role]
        copied = tokens.folder.local is not None or tokens.bytes <= config.copy_tokens_up_to
        train.append(copied_shards(tokens, "train") if copied else ranged_shards(tokens, "train"))
        shards = copied_shards(tokens, "heldout")
        if shards.tokens:
            heldout[name] = shards
    return TokenSource(TokenLoader(TokenShards.join(train), order_of(config, train)), heldout)


def order_of(config: PretrainConfig, sources: list[TokenShards]) -> Order | MixedOrder:
    """The order of the stream over the shards of each source in turn.

    Raises ValueError if a source has no shard of `config.seq_len` tokens.
    """
    seq_len, seed = config.seq_len, config.seed
    if not config.sources.stages:
        return Order(sources[0].shard_tokens, seq_len, seed)
    orders = [Order(each.shard_tokens, seq_len, seed, source=each.fingerprint) for each in sources]
    return MixedOrder(orders, [len(each) for each in sources], config.sources.mixture(seq_len))


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
        found = tokens.folder.storage.read_range(tokens.folder.key(file), first, count)
        if len(found) < count:
            raise StorageError(str(damaged_file(tokens.folder, file, "it ends too early")))
        return found

    try:
        return TokenShards(content, split, RangedFiles(read_range, token_dtype(content["vocab_size"])))
    except ValueError as error:
        raise UserError(f"{tokens.ref}: {error}") from None

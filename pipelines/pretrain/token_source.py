"""The stream that a pre-training run reads: shards of one tokens artifact, or of several that are mixed."""

from dataclasses import dataclass

from cluster.artifacts.manifest import Artifact
from llm.data.loader import TokenLoader
from llm.data.mixed_order import MixedOrder
from llm.data.order import Order
from llm.data.shards import TokenShards
from pipelines.pretrain.config import PretrainConfig
from pipelines.token_shards import copied_shards, ranged_shards


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

    Raises ValueError if a source has no shard of `config.window` tokens.
    """
    window, seed = config.window, config.seed
    if not config.sources.stages:
        return Order(sources[0].shard_tokens, window, seed)
    orders = [Order(each.shard_tokens, window, seed, source=each.fingerprint) for each in sources]
    return MixedOrder(orders, [len(each) for each in sources], config.sources.mixture(window))

"""Divide a model over the ranks of a layout."""

from llm.models.decoder import Trunk
from llm.models.encoder_decoder import EncoderDecoder
from llm.training.parallel.expert import divide_experts
from llm.training.parallel.fsdp import shard
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.tensor import divide_heads
from llm.training.precision import Precision


def parallelize(model: Trunk | EncoderDecoder, ranks: Ranks, precision: Precision) -> None:
    """Divide `model`, built on the meta device, in place. Follow with `to_empty` and weights."""
    layout, experts = ranks.layout, None
    if layout.tensor > 1:
        divide_heads(model, ranks)
    if model.config.n_experts:
        assert isinstance(model, Trunk)
        divide_experts(model, ranks)
        # Else experts are sharded with their block.
        experts = ranks.experts if layout.expert * layout.tensor > 1 else None
    shard(model, ranks.blocks, precision, rest=ranks.rest, experts=experts)

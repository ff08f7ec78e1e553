"""Divide a model over the ranks of a layout."""

from llm.models.decoder import Trunk
from llm.models.encoder_decoder import EncoderDecoder
from llm.training.parallel.fsdp import shard
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.tensor import divide_heads
from llm.training.precision import Precision


def parallelize(model: Trunk | EncoderDecoder, ranks: Ranks, precision: Precision) -> None:
    """Divide `model`, built on the meta device, in place. Follow with `to_empty` and weights."""
    if ranks.layout.tensor > 1:
        assert isinstance(model, Trunk)
        divide_heads(model, ranks)
    shard(model, ranks.blocks, precision, rest=ranks.rest)

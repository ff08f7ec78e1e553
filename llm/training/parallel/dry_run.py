"""What each rank of a layout would hold, without the ranks: one process, no memory.

The process group is fake and the model on the meta device. It is divided by the very code that trains, so
that a layout which cannot be built fails here. Activations are counted as autograd keeps them on a GPU, on a
pass through one block of each stack. Where `llm/planning/memory.py` estimates the same, without any layout
but shards, tests compare the two.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm.models.config import ModelConfig
from llm.models.decoder import Trunk
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.loss_chunks import loss_bytes
from llm.training.parallel.block_activations import BlockActivations, block_activations
from llm.training.parallel.layout import ParallelLayout
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.pipeline import stage_of
from llm.training.parallel.ranks import Ranks, arrange
from llm.training.precision import Precision
from llm.training.recipe import Activations

_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, besides what a step needs for a moment."""

    rank: int
    parameters: int
    """fp32 weights, this rank's shards."""
    gradients: int
    """Likewise."""
    optimizer: int
    """AdamW's two moments."""
    gathered: int
    """The largest block and the tables and head, whole or as far as tensor parallelism divides them, as FSDP
    holds them for a matmul.
    """
    activations: int
    """What is kept of all blocks for backward passes: of one micro-batch, in a pipeline of as many as stages
    are left.
    """
    recomputed: int
    """With activation checkpointing, what the largest block computes again when its backward pass comes."""
    loss: int
    """A chunk of logits, or the gradients of hidden states and head that the loss takes ahead."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) - self.rank


def dry_run(
    config: ModelConfig,
    layout: ParallelLayout,
    *,
    rank: int = 0,
    micro_batch: int = 1,
    seq_len: int | None = None,
    precision: Precision = "bf16",
    activation_checkpointing: Activations = "none",
) -> RankMemory:
    """Build the model as `rank` of the layout would, and count.

    Args:
        micro_batch: rows in one pass.
        seq_len: tokens of a row, and of what an encoder reads for it; by default as many as the model takes.

    Raises:
        LayoutError: the model does not fit the layout.
        ValueError: there is no such rank, or no such row.
    """
    seq_len = seq_len or config.max_seq_len
    _check(config, layout, rank, micro_batch, seq_len)
    layout.check_model(config, seq_len)
    width = _BYTES[precision]
    with as_rank(rank, layout.ranks):
        ranks = arrange(layout, torch.device("cpu"))
        with torch.device("meta"):
            model = stage_of(config, ranks) if layout.pipeline > 1 else build(config)
        assert isinstance(model, Trunk | EncoderDecoder)
        parallelize(model, ranks, precision)
        shards = sum(4 * _own(parameter).numel() for parameter in model.parameters())
        blocks = list(model.blocks)
        largest = max(sum(_held(p, layout) for p in block.parameters()) for block in blocks)
        in_blocks = sum(p.numel() for block in blocks for p in block.parameters())
        outside = sum(p.numel() for p in model.parameters()) - in_blocks
        stacks = _stacks(config, len(blocks), ranks, micro_batch, seq_len, precision)
        under_way = layout.pipeline - ranks.place.pipeline
    tokens, last = micro_batch * seq_len // layout.context // layout.tensor, under_way == 1
    in_all = sum(number * block.kept(activation_checkpointing) for number, block in stacks)
    around = _around_blocks(config) * width * tokens * config.d_model
    return RankMemory(
        rank=rank,
        parameters=shards,
        gradients=shards,
        optimizer=2 * shards,
        gathered=width * (largest + outside),
        activations=under_way * (in_all + around),
        recomputed=max(block.everything - block.kept(activation_checkpointing) for _, block in stacks),
        loss=loss_bytes(tokens, config.d_model, config.padded_vocab_size, width, on_gpu=True) if last else 0,
    )


def _check(config: ModelConfig, layout: ParallelLayout, rank: int, micro_batch: int, seq_len: int) -> None:
    if not 0 <= rank < layout.ranks:
        raise ValueError(f"rank {rank}: the layout has ranks 0 to {layout.ranks - 1}")
    if micro_batch < 1:
        raise ValueError(f"micro_batch {micro_batch}: at least 1 is needed")
    if not 1 <= seq_len <= config.max_seq_len:
        raise ValueError(f"seq_len {seq_len}: the model has a context of {config.max_seq_len} tokens")


def _stacks(
    config: ModelConfig, blocks: int, ranks: Ranks, micro_batch: int, seq_len: int, precision: Precision
) -> list[tuple[int, BlockActivations]]:
    """How many blocks each stack has, and what one of them keeps."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    crosses = config.family == "encoder-decoder"
    numbers = {False: blocks - config.n_layers, True: config.n_layers} if crosses else {False: blocks}
    return [
        (number, block_activations(config, ranks, micro_batch, seq_len, dtype, cross))
        for cross, number in numbers.items()
    ]


def _around_blocks(config: ModelConfig) -> int:
    """Tensors like the hidden states that are kept outside the blocks: what the norm at the end of each stack
    takes and gives; of an encoder what the head's transform, activation and norm take, and the head itself.
    """
    stacks = 2 if config.family == "encoder-decoder" else 1
    return (2 * stacks if config.pre_norm else 0) + (4 if config.family == "encoder" else 0)


def _own(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _held(parameter: Tensor, layout: ParallelLayout) -> int:
    """Numbers of a block's parameter that this rank gathers: matrices, or stacks of experts', are divided."""
    parts = {1: 1, 2: layout.tensor, 3: layout.expert}[parameter.ndim]
    return parameter.numel() // parts


@contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[None]:
    """Be one of so many ranks, of which the others are not there: collectives return at once."""
    if dist.is_initialized():
        raise RuntimeError("a dry run takes the place of the process group: run it in a process without one")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # which knows the groups that were


def main() -> None:
    """python -m llm.training.parallel.dry_run PRESET --tensor 8 --shard 128"""
    parser = argparse.ArgumentParser(
        prog="python -m llm.training.parallel.dry_run",
        description="What a rank of a layout would hold, in bf16 with AdamW (docs/parallelism.md).",
    )
    parser.add_argument("preset", help="one of `manta models`")
    for field in fields(ParallelLayout):
        parser.add_argument(f"--{field.name}", type=int, default=1, metavar="N")
    parser.add_argument("--rank", type=int, default=0, help="which one; the last has the loss of a pipeline")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows in one pass (default: 1)")
    parser.add_argument("--seq-len", type=int, help="tokens of a row; by default as many as the model takes")
    parser.add_argument(
        "--activation-checkpointing",
        choices=get_args(Activations),
        default="none",
        help="what a backward pass computes again (default: none)",
    )
    told = vars(parser.parse_args())
    preset, layout = (
        told.pop("preset"),
        {field.name: told.pop(field.name) for field in fields(ParallelLayout)},
    )
    try:
        divided = ParallelLayout(**layout)
        memory = dry_run(model_config(preset), divided, **told)
    except ValueError as error:
        print(f"dry_run: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{preset}, rank {memory.rank} of {divided.ranks}: {divided}")
    for name, count in [*asdict(memory).items(), ("total", memory.total)]:
        if name != "rank":
            print(f"{name:12}{count / 2**30:10.2f} GiB")


if __name__ == "__main__":
    main()

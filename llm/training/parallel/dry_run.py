"""What each rank of a layout would hold, without the ranks: one process, no memory.

The process group is fake and the model on the meta device. It is divided by the very code that trains, so
that a layout which cannot be built fails here. Activations are counted as autograd keeps them, on a pass
through one block, with norms that are not fused: a GPU's keep less. Experts are taken to be chosen equally
often.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm.models.config import ModelConfig
from llm.models.decoder import Trunk
from llm.models.experts import Experts, Networks
from llm.models.layers import Block
from llm.models.load import build
from llm.models.positions.rope import rotation
from llm.models.presets import model_config
from llm.training.loss_chunks import rows_at_a_time
from llm.training.parallel.layout import ParallelLayout
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.pipeline import DecoderStage
from llm.training.parallel.ranks import Ranks, arrange
from llm.training.parallel.tensor import divide_block
from llm.training.precision import Precision

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
    """A block and the tables and head, whole or as far as tensor parallelism divides them, as FSDP holds them
    for a matmul.
    """
    activations: int
    """What backward passes need of all blocks, without recomputation: of one micro-batch, in a pipeline of as
    many as stages are left.
    """
    loss: int
    """A chunk of logits, and the gradients of hidden states and head that the loss takes ahead."""

    @property
    def total(self) -> int:
        return (
            self.parameters + self.gradients + self.optimizer + self.gathered + self.activations + self.loss
        )


def dry_run(
    config: ModelConfig,
    layout: ParallelLayout,
    *,
    rank: int = 0,
    micro_batch: int = 1,
    seq_len: int | None = None,
    precision: Precision = "bf16",
) -> RankMemory:
    """Build the model as `rank` of the layout would, and count.

    Args:
        micro_batch: rows in one pass.
        seq_len: tokens of a row; by default as many as the model takes.

    Raises:
        LayoutError: the model does not fit the layout.
    """
    seq_len = seq_len or config.max_seq_len
    layout.check_model(config, seq_len)
    with as_rank(rank, layout.ranks):
        ranks = arrange(layout, torch.device("cpu"))
        with torch.device("meta"):
            model = DecoderStage(config, ranks) if layout.pipeline > 1 else build(config)
        assert isinstance(model, Trunk)
        parallelize(model, ranks, precision)
        shards = sum(4 * _own(parameter).numel() for parameter in model.parameters())
        blocks = list(model.blocks)
        width = _BYTES[precision]
        in_blocks = sum(p.numel() // _parts(p, layout) for p in blocks[0].parameters() if p.ndim > 1)
        outside = sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in model.blocks.parameters()
        )
        one = _block_activations(config, ranks, micro_batch, seq_len, precision)
        under_way = layout.pipeline - ranks.place.pipeline
    rows = micro_batch * seq_len // layout.context // layout.tensor
    vocab = config.padded_vocab_size
    chunk = min(rows, rows_at_a_time(rows, vocab, on_gpu=True)) * vocab
    cast = width if precision == "bf16" else 0
    loss = (4 + cast) * chunk + width * rows * config.d_model + 4 * vocab * config.d_model
    last = ranks.place.pipeline == layout.pipeline - 1
    return RankMemory(
        rank=rank,
        parameters=shards,
        gradients=shards,
        optimizer=2 * shards,
        gathered=width * (in_blocks + outside),
        activations=under_way * (one * len(blocks) + width * rows * config.d_model),
        loss=loss if last else 0,
    )


def _own(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _parts(parameter: Tensor, layout: ParallelLayout) -> int:
    """Into how many a matrix, or a stack of experts' matrices, is divided."""
    return layout.tensor if parameter.ndim == 2 else layout.expert


def _evenly(networks: Networks, x: Tensor, counts: Tensor) -> Tensor:
    """What experts make of x when all are chosen equally often."""
    return networks(x, torch.tensor([len(part) for part in x.tensor_split(len(counts))], device="cpu"))


def _block_activations(
    config: ModelConfig, ranks: Ranks, micro_batch: int, seq_len: int, precision: Precision
) -> int:
    """Bytes that autograd keeps of one block, its weights not among them."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = seq_len // ranks.layout.context
    with torch.device("meta"):
        block = Block(config, layer=0).to(dtype)
        if ranks.layout.tensor > 1:
            divide_block(block, ranks.tensor)
        if isinstance(block.mlp, Experts):
            block.mlp.exchange = _evenly
        x = torch.empty(micro_batch, tokens // ranks.layout.tensor, config.d_model, dtype=dtype)
        turned = rotation(torch.zeros(1, tokens), config) if config.position == "rope" else None
    kept = {_storage(parameter): 0 for parameter in block.parameters()}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)  # lest another come to lie where it was
        kept.setdefault(_storage(tensor), _own(tensor).untyped_storage().nbytes())
        return tensor

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if ranks.layout.context > 1:
            k, v = (each.repeat(1, ranks.layout.context, 1, 1) for each in (k, v))
        out: Tensor = _Attend.apply(q, k, v)
        return out

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x.requires_grad_(), turned, attend)
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return _own(tensor).untyped_storage()._cdata


class _Attend(torch.autograd.Function):
    """Keeps what fused attention does (Dao, 2023, arXiv:2307.08691): its inputs and output, and the
    normaliser of each query in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, normaliser = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, normaliser)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        raise NotImplementedError("only counted")


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
    parser = argparse.ArgumentParser(description="What each rank of a layout would hold.")
    parser.add_argument("preset")
    for field in fields(ParallelLayout):
        parser.add_argument(f"--{field.name}", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--seq-len", type=int)
    told = vars(parser.parse_args())
    preset, micro_batch, seq_len = (told.pop(name) for name in ("preset", "micro_batch", "seq_len"))
    try:
        layout = ParallelLayout(**told)
        memory = dry_run(model_config(preset), layout, micro_batch=micro_batch, seq_len=seq_len)
    except ValueError as error:
        parser.error(str(error))
    print(f"{preset} on {layout.ranks} ranks: {layout}")
    for name, count in [*asdict(memory).items(), ("total", memory.total)]:
        if name != "rank":
            print(f"{name:12}{count / 2**30:10.2f} GiB")


if __name__ == "__main__":
    main()

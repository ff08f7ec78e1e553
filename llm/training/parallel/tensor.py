"""Tensor parallelism with sequence parallelism (Korthikanti et al., 2022, arXiv:2205.05198).

Heads and feed-forward columns are divided among ranks. Everything else of a block works on this rank's part
of each row, so that no activation is held twice:

    part of rows ─ norm ─ gather rows ─► qkv ► attend ► out ─ sum and scatter rows ─► + ─ norm ─ … ─► mlp
                                        └── own heads ───┘

Tables, final norm and head are not divided but sharded (`Ranks.rest`): each rank takes its own part of a row
through the whole head, as if it were one more data rank. So the chunked loss is what it is on one rank,
without a sum over ranks in each chunk, a tied head needs nothing of its own, and no vocabulary has to be
divisible. The price is to gather the head's weight where a divided head would gather hidden states; the
larger the micro-batch, the better the bargain.

An encoder and the decoder that attends to it are divided alike: each rank keeps its part of what was read
too, and gathers that for the keys and values of its own heads. Of a bias by distance it takes its heads'.

qkv and gate_up hold several matrices in their rows. They stay one matrix, whose rows are in the order of
ranks (`llm.models.fused`); whoever reads or writes whole tensors puts them back.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm.models.attention import Attention
from llm.models.decoder import Trunk
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.experts import Experts
from llm.training.parallel.ranks import Ranks

# What a post-norm block gives is a view of a DTensor. Nothing writes into it in place.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")


def divide_heads(model: Trunk | EncoderDecoder, ranks: Ranks) -> None:
    """Divide each block of `model` in place over the tensor ranks. Call it before sharding.

    With gradients the model makes hidden states of this rank's part of each row (`own_rows`). Without, as in
    an evaluation, all ranks get all of them; the last stage of a pipeline gathers them itself.
    """
    mesh = ranks.tensor
    stacks = [model] if isinstance(model, Trunk) else [model.encoder, model.decoder]
    for stack in stacks:
        heads = model.config.n_heads // mesh.size()
        stack.own_heads = slice(mesh.get_local_rank() * heads, (mesh.get_local_rank() + 1) * heads)
        for block in stack.blocks:
            divide_block(block, mesh)
        if ranks.place.pipeline == 0:
            stack.blocks[0].register_forward_pre_hook(lambda _, args: (own_rows(args[0], mesh), *args[1:]))
    if ranks.layout.pipeline == 1:
        (stacks[-1].norm or stacks[-1].blocks[-1]).register_forward_hook(
            lambda _, args, hidden: hidden if torch.is_grad_enabled() else whole_rows(hidden, mesh)
        )


def divide_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Divide one block in place: it then takes and gives this rank's part of each row."""
    attention = block.attention
    assert isinstance(attention, Attention)
    norm, into = SequenceParallel(use_local_output=True), ColwiseParallel(input_layouts=Shard(1))
    back = RowwiseParallel(output_layouts=Shard(1))
    plan: dict[str, Any] = {
        "attention_norm": norm,
        "attention.qkv": into,
        "attention.out": back,
        "cross_norm": norm,
        "cross.q": into,
        "cross.kv": into,
        "cross.out": back,
        "mlp_norm": norm,
        "mlp.gate_up": into,
        "mlp.up": into,
        "mlp.down": back,
    }
    if attention.q_norm is not None:  # over (batch, seq, heads, head_dim): each rank has heads of its own
        heads = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan |= {"attention.q_norm": heads, "attention.k_norm": heads}
    if isinstance(
        block.mlp, Experts
    ):  # whose matrices are not divided: each rank has tokens of its own there
        plan = {name: style for name, style in plan.items() if not name.startswith("mlp.")}
        plan["mlp.router"] = norm
    names = {name for name, _ in block.named_modules()}
    parallelize_module(block, mesh, {name: style for name, style in plan.items() if name in names})
    for each in (attention, block.cross):
        if each is not None:
            each.n_heads //= mesh.size()
            each.n_kv_heads //= mesh.size()


def own_rows(rows: Tensor, mesh: DeviceMesh) -> Tensor:
    """rows (batch, seq, …) -> this rank's part of them, (batch, seq / ranks, …).

    Contiguous, as what goes into every later block: for two kinds of strides torch.compile would make them
    symbols, which DTensor cannot have.
    """
    return rows.chunk(mesh.size(), dim=1)[mesh.get_local_rank()].contiguous()


def whole_rows(rows: Tensor, mesh: DeviceMesh) -> Tensor:
    """The way back, without a gradient."""
    return all_gather_single(rows, gather_dim=1, group=mesh)

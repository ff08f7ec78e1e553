"""What autograd keeps of one block for its backward pass, counted on a pass over the meta device.

Norms and attention keep what fused kernels of a GPU do, and attention with a learned bias what torch's
unfused one does, since fused ones have no gradient for it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm.models.config import ModelConfig
from llm.models.experts import Experts, Networks
from llm.models.layers import Block
from llm.models.positions.rope import rotation
from llm.training.activation_checkpointing import DEAR
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.tensor import divide_block
from llm.training.recipe import Activations


@dataclass(frozen=True)
class BlockActivations:
    """Bytes of one block, its weights and what an encoder has read not among them."""

    everything: int
    """What a backward pass needs."""
    inputs: int
    """What goes into the block."""
    dear: int
    """That, and results of matrix products and attention: what selective checkpointing keeps."""

    def kept(self, checkpointing: Activations) -> int:
        """Between the forward and the backward pass."""
        return {"none": self.everything, "selective": self.dear, "full": self.inputs}[checkpointing]


def block_activations(
    config: ModelConfig, ranks: Ranks, micro_batch: int, seq_len: int, dtype: torch.dtype, cross: bool = False
) -> BlockActivations:
    """Of a block as a rank has it, or of one that attends to an encoder of as many tokens too.

    Experts are taken to be chosen equally often.
    """
    layout = ranks.layout
    tokens, kept, dear = seq_len // layout.context, _Bytes(), _Bytes()
    with torch.device("meta"):
        block = Block(config, layer=0, cross=cross).to(dtype)
        if layout.tensor > 1:
            divide_block(block, ranks.tensor)
        x = torch.empty(micro_batch, tokens // layout.tensor, config.d_model, dtype=dtype)
        memory = torch.empty_like(x) if cross else None
        turned = rotation(torch.zeros(1, tokens), config) if config.position == "rope" else None
    for module in block.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = _Norm.apply  # type: ignore[method-assign]
        elif isinstance(module, Experts):
            module.exchange = _evenly

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, biased: bool = False) -> Tensor:
        if layout.context > 1:
            k, v = (each.repeat(1, layout.context, 1, 1) for each in (k, v))
        out, normaliser = _Attend.apply(q, k, v, biased)
        dear.add(out)
        dear.add(normaliser)
        return out

    def attend_itself(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(layer, q, k, v, biased=config.position == "relative")

    kept.leave_out(*block.parameters(), *([] if memory is None else [memory]))
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor), _Dear(dear):
        block(x.requires_grad_(), turned, attend_itself, memory, attend)
    inputs = _own(x).untyped_storage().nbytes()
    return BlockActivations(kept.total, inputs, inputs + dear.total)


class _Bytes:
    """Adds up the storages of tensors, each once."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}
        self._held: list[Tensor] = []  # lest another come to lie where it was

    def add(self, tensor: Tensor) -> Tensor:
        storage = _own(tensor).untyped_storage()
        self._held.append(tensor)
        self._bytes.setdefault(storage._cdata, storage.nbytes())
        return tensor

    def leave_out(self, *tensors: Tensor) -> None:
        self._bytes |= {_own(tensor).untyped_storage()._cdata: 0 for tensor in tensors}

    @property
    def total(self) -> int:
        return sum(self._bytes.values())


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _Dear(TorchDispatchMode):
    """Adds what matrix products give, as selective checkpointing does."""

    def __init__(self, dear: _Bytes) -> None:
        super().__init__()
        self._dear = dear

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._dear.add(result) if func in DEAR else result


class _Attend(torch.autograd.Function):
    """Keeps what fused attention does (Dao, 2023, arXiv:2307.08691): its inputs and output, and the
    normaliser of each query in fp32. With a bias also the probabilities, and the queries scaled.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, biased: bool) -> tuple[Tensor, Tensor]:
        out, normaliser = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        unfused = [q.new_empty(*q.shape[:3], k.shape[1]), torch.empty_like(q)] if biased else []
        ctx.save_for_backward(q, k, v, out, normaliser, *unfused)
        return out, normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        raise NotImplementedError("only counted")


class _Norm(torch.autograd.Function):
    """Keeps what torch's fused RMSNorm does: its input, and of each token the inverse root in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, torch.empty_like(x[..., 0], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]
        raise NotImplementedError("only counted")


def _evenly(networks: Networks, x: Tensor, counts: Tensor) -> Tensor:
    """What experts make of x when all are chosen equally often."""
    return networks(x, torch.tensor([len(part) for part in x.tensor_split(len(counts))], device="cpu"))

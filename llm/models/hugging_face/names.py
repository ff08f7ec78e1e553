"""One declaration of how our parameters and theirs correspond, used in both directions.

Ours are fused (q, k and v in one matrix, gate and up in one) and have a padded vocabulary; theirs are apart
and end with the last token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models.config import ModelConfig

Read = Callable[[str], Tensor]
"""A tensor by its name."""


@dataclass(frozen=True)
class Pair:
    """One parameter of ours, and the tensors that it is made of there."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """Rows of ours that each of several of theirs takes, in order."""
    vocabulary: int | None = None
    """Of a parameter with a row a token: the tokens, after which ours is padded."""
    transposed: bool = False
    """Whether theirs is (in, out), a `Conv1D`."""
    stacked: bool = False
    """Whether ours is a stack of matrices, (experts, rows, columns); `rows` then go through all of them."""

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Ours as their tensors, which are views."""
        tensor = tensor.flatten(0, 1) if self.stacked else tensor[: self.vocabulary]
        parts = torch.split(tensor, self.rows) if self.rows else (tensor,)
        return {
            name: part.T if self.transposed else part for name, part in zip(self.theirs, parts, strict=True)
        }

    def from_theirs(self, read: Read, shape: torch.Size) -> Tensor:
        """Theirs as our tensor of this shape, in fp32, with zero rows for the padding of the vocabulary.

        Raises ValueError, naming the tensor, if one of theirs has another shape than it should.
        """
        parts = []
        for name, expected in self._shapes(shape).items():
            part = read(name)
            if tuple(part.shape) != expected:
                raise ValueError(
                    f"{name} has the shape {list(part.shape)}; by its config.json it must be {list(expected)}"
                )
            parts.append(part.float().T if self.transposed else part.float())
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.stacked:
            return tensor.view(shape)
        padding = [0, 0] * (tensor.ndim - 1) + [0, shape[0] - tensor.shape[0]]
        return F.pad(tensor, padding).contiguous()

    def _shapes(self, shape: torch.Size) -> dict[str, tuple[int, ...]]:
        rows: Sequence[int] = self.rows or (self.vocabulary or shape[0],)
        columns = shape[2:] if self.stacked else shape[1:]
        shapes = ((each, *columns) for each in rows)
        return {
            name: part[::-1] if self.transposed else part
            for name, part in zip(self.theirs, shapes, strict=True)
        }


def linear(ours: str, *theirs: str, bias: bool, rows: tuple[int, ...] = (), conv: bool = False) -> list[Pair]:
    """The weight of a linear layer, and its bias if it has one."""
    pairs = [Pair(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), rows, transposed=conv)]
    if bias:
        pairs.append(Pair(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), rows))
    return pairs


def qkv_rows(config: ModelConfig) -> tuple[int, int, int]:
    """Rows of q, k and v in our fused projection."""
    kv = config.n_kv_heads * config.head_dim
    return config.n_heads * config.head_dim, kv, kv

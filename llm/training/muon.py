"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks.

    M ← μ · M + (1 − μ) · G                         momentum of the gradient
    U = μ · M + (1 − μ) · G                         once more (Nesterov)
    O = newton_schulz(U)                            U with all singular values near 1
    W ← (1 − η · λ) · W − η · 0.2 · √max(rows, columns) · O

The factor 0.2 · √max(rows, columns) makes the update as large as AdamW's usually is (root mean square 0.2),
so that learning rate and weight decay carry over from AdamW (Moonlight: Liu et al., 2025, arXiv:2502.16982).

Where one parameter holds several matrices, below each other as queries, keys and values do or stacked as
experts are, each is orthogonalised by itself: what stands beside a matrix in memory is no business of its
singular values.

torch.optim.Muon knows no such parts, iterates in bf16 only, and on sharded matrices makes every one of its
multiplications a collective. Here a matrix travels once: each rank sends its rows of it to the one rank that
orthogonalises it, and gets them back. Of a stack whose matrices are cut likewise, each rank gets some whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

MOMENTUM = "momentum"
"""Key of a parameter's state: its momentum, sharded as it is."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5

Rows = tuple[int, ...]
"""Rows of each matrix that a parameter, or each matrix of a stack, holds, from top to bottom."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimizer.

    Args:
        muon: groups of parameters that are matrices or stacks of them, each with `lr` and `weight_decay`.
        rows: what each of those holds.
        adamw: moves the others.
        momentum: μ above.
        dtype: what is multiplied in, bf16 or fp32. Singular values come out between about 0.7 and 1.2 in
            either; bf16 is faster where the hardware has it.
    """

    def __init__(
        self,
        muon: list[dict[str, Any]],
        rows: dict[Tensor, Rows],
        adamw: torch.optim.AdamW,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(muon, {"momentum": momentum})
        self._muon, self._rows, self._adamw, self._dtype = list(self.param_groups), rows, adamw, dtype
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self._muon:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = [self._momentum(parameter, group["momentum"]).to(self._dtype) for parameter in moved]
            rows = [self._rows[parameter] for parameter in moved]
            for parameter, update in zip(moved, orthogonalised(updates, rows), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.to(parameter.dtype), alpha=group["lr"])
        self._adamw.step()

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(parameter)
        state[MOMENTUM].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state[MOMENTUM], momentum)


def orthogonalised(updates: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
    """Each update (Σ rows, columns), or stack of such (n, Σ rows, columns), orthogonalised and scaled part by
    part, in its own dtype, sharded as it came.
    """
    places = [place for place, update in enumerate(updates) if update.ndim == 2]
    matrices = _matrices([updates[place] for place in places], [rows[place] for place in places])
    found = dict(zip(places, matrices, strict=True))
    return [
        found[place] if place in found else _stack(update, rows[place])
        for place, update in enumerate(updates)
    ]


def _matrices(updates: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
    """Updates that are split by rows over N ranks go round N at a time, one to each rank. Any other layout is
    gathered on all ranks, which then all do the same work.
    """
    result: list[Tensor] = []
    while len(result) < len(updates):
        first = updates[len(result)]
        if isinstance(first, DTensor) and _split_by_rows(first):
            count = first.device_mesh.size(first.placements.index(Shard(0)))
            some = slice(len(result), len(result) + count)
            result += _one_to_each_rank(updates[some], rows[some])
        elif isinstance(first, DTensor):
            whole = _by_parts(first.full_tensor(), rows[len(result)])
            result.append(distribute_tensor(whole, first.device_mesh, first.placements, src_data_rank=None))
        else:
            result.append(_by_parts(first, rows[len(result)]))
    return result


def newton_schulz(matrix: Tensor) -> Tensor:
    """matrix (m, n) = U S Vᵀ -> about U Vᵀ, in its own dtype; or each of a stack (k, m, n).

        X ← matrix / ‖matrix‖
        X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X              5 times

    The quintic takes every singular value from (0, 1] to near 1; its coefficients are chosen for speed at 0
    and do not converge to 1 exactly.
    """
    a, b, c = COEFFICIENTS
    multiply_add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _by_parts(update: Tensor, rows: Rows) -> Tensor:
    parts = update.split(list(rows), dim=-2)
    return torch.cat([0.2 * max(part.shape[-2:]) ** 0.5 * newton_schulz(part) for part in parts], dim=-2)


def _stack(update: Tensor, rows: Rows) -> Tensor:
    """A stack of matrices, of which a rank has some, or a part of each, or a part of each of some."""
    if not isinstance(update, DTensor):
        return _by_parts(update, rows)
    own, cut = update.to_local(), [dim for dim, each in enumerate(update.placements) if each == Shard(1)]
    assert len(cut) <= 1, f"experts' matrices are cut once, by rows: {update.placements}"
    if not cut:
        return _sharded_like(update, _by_parts(own, rows))
    group, world = update.device_mesh.get_group(cut[0]), update.device_mesh.size(cut[0])
    shares = [_rows_of(len(own), world, each) for each in range(world)]
    mine, (height, width) = shares[update.device_mesh.get_local_rank(cut[0])], own.shape[1:]
    sent, received = [share * height * width for share in shares], [mine * height * width] * world
    pieces = own.new_empty(world, mine, height, width)
    dist.all_to_all_single(pieces.view(-1), own.flatten(), received, sent, group)
    whole = _by_parts(pieces.transpose(0, 1).reshape(mine, world * height, width), rows)
    pieces, back = whole.view(mine, world, height, width).transpose(0, 1), torch.empty_like(own)
    dist.all_to_all_single(back.view(-1), pieces.flatten(), sent, received, group)
    return _sharded_like(update, back)


def _split_by_rows(update: DTensor) -> bool:
    """Whether ranks hold rows, and nothing else divides the matrix."""
    return [each for each in update.placements if not each.is_replicate()] == [Shard(0)]


def _one_to_each_rank(updates: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
    """Rank r orthogonalises updates[r], if there are so many: each matrix travels there and back."""
    shards = [update.to_local() for update in updates]  # type: ignore[attr-defined]
    mesh, placements = updates[0].device_mesh, updates[0].placements  # type: ignore[attr-defined]
    dim = placements.index(Shard(0))
    group, world, rank = mesh.get_group(dim), mesh.size(dim), mesh.get_local_rank(dim)

    sent = [shard.numel() for shard in shards] + [0] * (world - len(shards))
    received, mine = [0] * world, rank < len(updates)
    if mine:
        height, width = updates[rank].shape
        received = [_rows_of(height, world, each) * width for each in range(world)]
    whole = shards[0].new_empty(sum(received))
    dist.all_to_all_single(whole, torch.cat([shard.flatten() for shard in shards]), received, sent, group)
    if mine:
        whole = _by_parts(whole.view(height, width), rows[rank]).flatten()
    back = shards[0].new_empty(sum(sent))
    dist.all_to_all_single(back, whole, sent, received, group)
    pieces = zip(back.split(sent), shards, updates, strict=False)
    return [_sharded_like(update, piece.view_as(shard)) for piece, shard, update in pieces]


def _sharded_like(update: DTensor, shard: Tensor) -> DTensor:
    mesh, placements = update.device_mesh, update.placements
    shape, stride = update.shape, update.stride()
    return DTensor.from_local(shard, mesh, placements, run_check=False, shape=shape, stride=stride)


def _rows_of(height: int, world: int, rank: int) -> int:
    """Rows of a matrix that DTensor gives to a rank: equal chunks, the last ones shorter or empty."""
    chunk = -(-height // world)
    return max(0, min(chunk, height - rank * chunk))

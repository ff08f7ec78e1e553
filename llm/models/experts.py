"""A mixture of experts: several feed-forward networks in a block, and a router that chooses for each token.

    p = softmax(router x)                              over all experts
    y = Σ_{e among the k largest p} p_e / Σ p · FFN_e(x)

The chosen probabilities are divided by their sum, as in Mixtral (Jiang et al., 2024, arXiv:2401.04088) and
Qwen3-MoE (arXiv:2505.09388). No token is dropped: an expert takes as many as are sent to it.

Two losses keep the router from sending all to a few. Each belongs to a row of T tokens:

    balance   E · Σ_e f_e · P_e          f_e of the row's k · T choices are e, P_e is the row's mean p_e;
                                         1 where all experts are chosen equally often
                                         (Fedus et al., 2021, arXiv:2101.03961, eq. 4)
    z         mean over T of logsumexp(router x)²            (Zoph et al., 2022, arXiv:2202.08906, eq. 5)

A product of two means is not a sum over tokens, so the loss of a batch would depend on how the batch is cut.
A row's does not (DeepSeek-AI, 2024, arXiv:2412.19437, eq. 17): no row is ever cut. The price is that every
text, not the batch alone, is asked to use all experts alike.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.activations import ACTIVATIONS
from llm.models.config import ModelConfig

Networks = Callable[[Tensor, Tensor], Tensor]
"""(rows (rows, d_model), the first counts[0] of them for the first expert, and so on) -> what their experts
make of them, (rows, d_model).
"""


class ExpertLinear(nn.Module):
    """A matrix for each expert, stacked; of some experts, where ranks divide them."""

    def __init__(self, n_experts: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_outputs, n_inputs))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x (rows, n_inputs), the first counts[0] of them for expert 0, and so on -> (rows, n_outputs)."""
        own = self.weight.to_local() if hasattr(self.weight, "placements") else self.weight
        if x.is_cuda and x.dtype == torch.bfloat16:
            ends = counts.cumsum(0, dtype=torch.int32)
            return F.grouped_mm(x, own.transpose(1, 2), offs=ends)
        parts = x.split(counts.tolist())
        return torch.cat([F.linear(part, weight) for part, weight in zip(parts, own, strict=True)])


class Experts(nn.Module):
    """The router and its experts, in place of a `FeedForward`.

    Ranks may divide the experts, or rows, between them: `exchange` and `sum_over_row` are then theirs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.exchange: Callable[[Networks, Tensor, Tensor], Tensor] = _all_here
        """(this rank's experts, copies of tokens sorted by expert, how many of each of all experts) -> what
        their experts make of the copies.
        """
        self.row_parts = 1
        """Equally long parts of a row, of which x is one."""
        self.sum_over_row: Callable[[Tensor], Tensor] = _whole
        """Adds up a tensor over these parts."""
        self.counts: Tensor | None = None
        """(n_experts,) int64: how many tokens chose each in passes with gradients, since it was None;
        not those of rows that weigh nothing in the loss."""
        n, d, hidden = config.n_experts, config.d_model, config.d_ff
        self.n_experts, self.chosen = n, config.experts_per_token
        self.balance, self.z = config.balance_coefficient, config.router_z_coefficient
        self.activation, self.gated = ACTIVATIONS[config.activation], config.gated
        self.router = nn.Linear(d, n, bias=False)
        if config.gated:
            self.gate_up = ExpertLinear(n, d, 2 * hidden)
        else:
            self.up = ExpertLinear(n, d, hidden)
        self.down = ExpertLinear(n, hidden, d)

    def forward(self, x: Tensor, row_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (batch, seq, d_model) -> the same shape, and each row's losses of the router, (batch,) fp32; of
        parts of rows, the parts of their losses.

        row_weights (batch,): 0 for rows that only fill up a batch, whose choices are not counted.
        """
        logits = self.router(x).float()
        probabilities = logits.softmax(-1)
        weights, experts = probabilities.topk(self.chosen)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        choices = F.one_hot(experts.flatten(1), self.n_experts).sum(1)  # (batch, n_experts)
        counts = choices.sum(0)
        if torch.is_grad_enabled():
            meant = counts if row_weights is None else choices.mul((row_weights > 0).unsqueeze(1)).sum(0)
            self.counts = meant if self.counts is None else self.counts + meant
        y = self._compute(x.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1), counts)
        return y.view_as(x), self._row_losses(logits, probabilities, choices)

    def _compute(self, x: Tensor, experts: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """x (tokens, d_model), experts and their weights (tokens, k), how many chose each (n_experts,)
        -> Σ weights · FFN_experts(x), like x.

        Copies of the tokens are sorted by expert, and go back to their places to be added up: always in the
        same order, which a scatter on a GPU would not keep.
        """
        order = experts.flatten().argsort(stable=True)
        y = self.exchange(self._networks, x[order // self.chosen], counts)
        back = order.argsort().view_as(experts)
        return (y[back] * weights.unsqueeze(-1)).sum(1)

    def _networks(self, x: Tensor, counts: Tensor) -> Tensor:
        if not self.gated:
            return self.down(self.activation(self.up(x, counts)), counts)
        gate, up = self.gate_up(x, counts).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up, counts)

    def _row_losses(self, logits: Tensor, probabilities: Tensor, choices: Tensor) -> Tensor:
        """logits and probabilities (batch, seq, n_experts), choices (batch, n_experts) -> (batch,).

        f has no gradient, and P is a mean over tokens: so the parts of a row, given the whole row's f, make
        losses that add up to the row's, each with the gradient of its own tokens.
        """
        frequencies = self.sum_over_row(choices) / (self.row_parts * self.chosen * logits.shape[1])
        losses = self.balance * self.n_experts * (frequencies * probabilities.mean(1)).sum(-1)
        if self.z:
            losses = losses + self.z * logits.logsumexp(-1).square().mean(-1)
        return losses / self.row_parts


def _all_here(networks: Networks, x: Tensor, counts: Tensor) -> Tensor:
    return networks(x, counts)


def _whole(of_rows: Tensor) -> Tensor:
    return of_rows


def expert_matrices(block: nn.Module) -> list[ExpertLinear]:
    """Those of all experts of a block, in the order in which they are used."""
    return [module for module in block.modules() if isinstance(module, ExpertLinear)]


def with_router_losses(loss: Tensor, losses: list[Tensor], row_weights: Tensor) -> Tensor:
    """A summed loss whose value is left as it is, and whose gradient is that of

    loss + Σ_blocks Σ_rows row_weights · losses

    So what is reported, and held-out loss, are of the text alone. Whatever divides the sum, such as the
    number of tokens of the global batch, divides both.

    Args:
        losses: of each block, (batch,).
        row_weights: (batch,), each row's tokens in the sum.
    """
    extra = torch.stack(losses).sum(0) @ row_weights.float()
    return loss + (extra - extra.detach())

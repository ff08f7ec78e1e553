"""Responses sampled from a policy, and the padded batch that all of PPO works on.

- `Rollout`: one response and where it came from
- `Batch`, `pad`: many of them as tensors, aligned on what is *predicted*
- `Scored`: what the reward model and the reference say of them
- `response_log_probs`, `response_values`: a model's view of the response tokens

Token ids are never decoded and encoded again: the ids that were sampled are the ids that are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.alignment.ppo import token_log_probs
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar


@dataclass(frozen=True)
class Rollout:
    """One sampled response; `logprobs` are those of the distribution sampled from, one a response token."""

    prompt_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    weights_version: int
    finish_reason: str
    seed: int

    @property
    def finished(self) -> bool:
        """Whether the policy ended the response itself, with a stop token as its last."""
        return self.finish_reason == "stop"


@dataclass(frozen=True)
class Batch:
    """Right-padded rollouts. Column t of `targets` and `mask` is what the model predicts at position t."""

    tokens: Tensor
    """(batch, seq) int64: prompt and response, then padding."""
    lengths: Tensor
    """(batch,) int64: tokens that are not padding."""
    mask: Tensor
    """(batch, seq − 1) bool: true where the predicted token belongs to the response."""

    @property
    def targets(self) -> Tensor:
        """(batch, seq − 1): the tokens that are predicted."""
        return self.tokens[:, 1:]

    def rows(self, index: Tensor) -> Batch:
        """The rollouts at `index`, cut to the longest of them."""
        longest = int(self.lengths[index].max())
        return Batch(self.tokens[index, :longest], self.lengths[index], self.mask[index, : longest - 1])


@dataclass(frozen=True)
class Scored:
    """What frozen models say of rollouts, in their order and padded as `pad` pads them."""

    scores: Tensor
    """(batch,) float32: the reward model's score at the last token."""
    reference_log_probs: Tensor
    """(batch, seq − 1) float32: of the chat model that the policy is to stay near."""


def pad(rollouts: Sequence[Rollout], pad_id: int) -> Batch:
    """Rollouts as one batch, in their order."""
    lengths = torch.tensor([len(r.prompt_ids) + len(r.response_ids) for r in rollouts])
    tokens = torch.full((len(rollouts), int(lengths.max())), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rollouts), tokens.shape[1] - 1, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        tokens[row, : lengths[row]] = torch.tensor(rollout.prompt_ids + rollout.response_ids)
        mask[row, len(rollout.prompt_ids) - 1 : lengths[row] - 1] = True
    return Batch(tokens, lengths, mask)


def response_log_probs(
    policy: Decoder, batch: Batch, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """(log π, entropy) of each response token, both (batch, seq − 1) float32 and 0 outside `batch.mask`.

    Logits are computed for response tokens alone: those of the prompt would be most of the work of the head.
    """

    def logits_of_responses(hidden: Tensor, head_weight: Tensor, _: Tensor | None) -> Tensor:
        return F.linear(hidden[batch.mask], head_weight[:vocab_size])

    logits = policy(batch.tokens[:, :-1], readout=logits_of_responses)
    chosen, entropy = token_log_probs(logits, batch.targets[batch.mask], temperature)
    return _scatter(chosen, batch.mask), _scatter(entropy, batch.mask)


def response_values(critic: DecoderWithScalar, batch: Batch) -> Tensor:
    """The critic's value before each response token, (batch, seq − 1) float32, 0 outside `batch.mask`."""
    return torch.where(batch.mask, critic(batch.tokens[:, :-1]).float(), 0.0)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (valid,) at the true positions of `mask`, 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

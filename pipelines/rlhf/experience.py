"""What the policy and critic make of this rank's rollouts before they learn from them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llm.alignment.advantages import masked_moments
from llm.alignment.experience import Experience, explained_variance, raw_experience, whitened
from llm.alignment.kl import kl_estimate
from llm.alignment.rollouts import Batch, Rollout, response_log_probs, response_values
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.models import ActorCritic, sum_over_ranks, summed


class View(NamedTuple):
    """(batch, seq − 1) each, 0 where no response token is predicted."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


@torch.no_grad()
def view(models: ActorCritic, batch: Batch, config: RLHFConfig) -> View:
    """One pass of both models over all rollouts."""
    seen = View(*(torch.zeros(batch.mask.shape) for _ in View._fields))
    # Rollouts of similar length share a forward pass, so that little of it is padding.
    for index in batch.lengths.argsort(stable=True).split(config.micro_batch):
        some = batch.rows(index)
        width = some.mask.shape[1]
        seen.log_probs[index, :width], seen.entropy[index, :width] = response_log_probs(
            models.policy, some, config.temperature, models.policy.config.vocab_size
        )
        seen.values[index, :width] = response_values(models.critic, some)
    return seen


def make_experience(
    seen: View,
    batch: Batch,
    rollouts: Sequence[Rollout],
    scores: Tensor,
    reference_log_probs: Tensor,
    beta: float,
    config: RLHFConfig,
) -> tuple[Experience, dict[str, float]]:
    """Experience with globally whitened advantages, and metrics of the iteration's rollouts."""
    cut = torch.tensor([not rollout.finished for rollout in rollouts])
    raw = raw_experience(
        scores=scores - config.missing_end_penalty * cut,
        log_probs=seen.log_probs,
        reference_log_probs=reference_log_probs,
        values=seen.values,
        mask=batch.mask,
        beta=beta,
        gamma=config.ppo.gamma,
        lam=config.ppo.lam,
    )
    moments = sum_over_ranks(masked_moments(raw.advantages, batch.mask))
    metrics = rollout_metrics(seen, batch, rollouts, scores, reference_log_probs, cut)
    metrics["explained_variance"] = explained_variance(seen.values, raw.returns, batch.mask)
    return whitened(raw, batch.mask, moments), metrics


def rollout_metrics(
    seen: View,
    batch: Batch,
    rollouts: Sequence[Rollout],
    scores: Tensor,
    reference_log_probs: Tensor,
    cut: Tensor,
) -> dict[str, float]:
    """Means over all learners' rollouts: of a response score, kl, length, cut; of a token the others."""
    mask = batch.mask
    sampled = torch.tensor([p for rollout in rollouts for p in rollout.logprobs])
    total = summed(
        {
            "responses": torch.tensor(len(rollouts)),
            "tokens": mask.sum(),
            "score": scores.sum(),
            "kl": kl_estimate(seen.log_probs, reference_log_probs, "k1")[mask].sum(),
            "cut": cut.sum(),
            "kl_token": kl_estimate(seen.log_probs, reference_log_probs, "k3")[mask].sum(),
            "entropy": seen.entropy[mask].sum(),
            "engine_difference": (sampled - seen.log_probs[mask]).abs().sum(),
        }
    )
    responses, tokens = total.pop("responses"), total.pop("tokens")
    per_response = {name: total.pop(name) / responses for name in ("score", "kl", "cut")}
    return {**per_response, "length": tokens / responses} | {n: v / tokens for n, v in total.items()}

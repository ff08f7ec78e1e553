"""What the policy and critic make of all rollouts before they learn from them; equal on every rank."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llm.alignment.experience import Experience, explained_variance, raw_experience, whitened
from llm.alignment.kl import kl_estimate
from llm.alignment.rollouts import Batch, Rollout, Scored, response_log_probs, response_values
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.models import ActorCritic, sum_over_ranks


class View(NamedTuple):
    """(batch, seq − 1) each, 0 where no response token is predicted."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


@torch.no_grad()
def view(models: ActorCritic, batch: Batch, config: RLHFConfig) -> View:
    """One pass of both models over all rollouts, of which each rank takes equally many."""
    seen = View(*(torch.zeros(batch.mask.shape) for _ in View._fields))
    # Rollouts of similar length share a forward pass, so that little of it is padding.
    by_length = batch.lengths.argsort(stable=True)
    for index in by_length[dist.get_rank() :: dist.get_world_size()].split(config.micro_batch):
        some = batch.rows(index)
        width = some.mask.shape[1]
        seen.log_probs[index, :width], seen.entropy[index, :width] = response_log_probs(
            models.policy, some, config.temperature, models.policy.config.vocab_size
        )
        seen.values[index, :width] = response_values(models.critic, some)
    # Each row is 0 on all ranks but one, so that the sum is exact.
    return View(*sum_over_ranks(torch.stack(seen)))


def make_experience(
    seen: View, batch: Batch, rollouts: Sequence[Rollout], scored: Scored, beta: float, config: RLHFConfig
) -> tuple[Experience, dict[str, float]]:
    """Experience with whitened advantages, and metrics of the iteration's rollouts."""
    cut = torch.tensor([not rollout.finished for rollout in rollouts])
    raw = raw_experience(
        scores=scored.scores - config.missing_end_penalty * cut,
        log_probs=seen.log_probs,
        reference_log_probs=scored.reference_log_probs,
        values=seen.values,
        mask=batch.mask,
        beta=beta,
        gamma=config.ppo.gamma,
        lam=config.ppo.lam,
    )
    metrics = rollout_metrics(seen, batch, rollouts, scored)
    metrics["explained_variance"] = explained_variance(seen.values, raw.returns, batch.mask)
    return whitened(raw, batch.mask), metrics


def rollout_metrics(
    seen: View, batch: Batch, rollouts: Sequence[Rollout], scored: Scored
) -> dict[str, float]:
    """Means over all rollouts: of a response score, kl, length, cut; of a token the others."""
    mask, reference = batch.mask, scored.reference_log_probs
    sampled = torch.tensor([p for rollout in rollouts for p in rollout.logprobs])
    of_response = {
        "score": scored.scores,
        "kl": torch.where(mask, kl_estimate(seen.log_probs, reference, "k1"), 0.0).sum(1),
        "cut": torch.tensor([not rollout.finished for rollout in rollouts]),
        "length": mask.sum(1),
    }
    of_token = {
        "kl_token": kl_estimate(seen.log_probs, reference, "k3")[mask],
        "entropy": seen.entropy[mask],
        "engine_difference": (sampled - seen.log_probs[mask]).abs(),
    }
    return {name: values.double().mean().item() for name, values in (of_response | of_token).items()}

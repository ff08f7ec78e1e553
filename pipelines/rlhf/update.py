"""PPO's optimizer steps on this rank's share of an iteration."""

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llm.alignment.experience import Experience
from llm.alignment.ppo import policy_loss, value_loss
from llm.alignment.rollouts import Batch, response_log_probs, response_values
from llm.training.step import clip_gradients
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.models import ActorCritic, sum_over_ranks, summed


def take_steps(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    experience: Experience,
    iteration: int,
    rank: int,
    config: RLHFConfig,
) -> dict[str, float]:
    """`epochs` passes in `minibatches` steps each; returns means over all of them, equal on every rank."""
    totals: list[dict[str, float]] = []
    for epoch in range(config.ppo.epochs):
        order = np.random.default_rng((config.seed, iteration, epoch, rank)).permutation(len(batch.tokens))
        totals += [
            take_step(models, optimizer, batch, experience, index, iteration, config)
            for index in torch.from_numpy(order).chunk(config.ppo.minibatches)
        ]
    return {name: sum(total[name] for total in totals) / len(totals) for name in totals[0]}


def take_step(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    experience: Experience,
    index: Tensor,
    iteration: int,
    config: RLHFConfig,
) -> dict[str, float]:
    """One optimizer step on the rollouts at `index` of every rank.

    Raises NonFiniteError, before the step is taken, if a loss or gradient is NaN or infinite.
    """
    tokens = sum_over_ranks(batch.mask[index].sum()).item()
    policy_learns = iteration >= config.ppo.warmup_iterations
    sums = {
        name: torch.zeros((), dtype=torch.float64)
        for name in ("policy_loss", "value_loss", "clipped", "kl_step")
    }
    parts = index[batch.lengths[index].argsort(stable=True)].split(config.micro_batch)
    for place, part in enumerate(parts):
        sync_gradients(models, place == len(parts) - 1)
        some = batch.rows(part)
        old = experience.rows(part, some.mask.shape[1])
        values = response_values(models.critic, some)
        loss = value_loss(values, old.values, old.returns, some.mask, config.ppo.value_clip, tokens)
        sums["value_loss"] += loss.detach()
        if policy_learns:
            log_probs, entropy = response_log_probs(
                models.policy, some, config.temperature, models.policy.config.vocab_size
            )
            clipped = policy_loss(
                log_probs, old.log_probs, old.advantages, some.mask, config.ppo.clip, tokens
            )
            loss = loss + clipped.loss - config.ppo.entropy_bonus * entropy.sum() / tokens
            sums["policy_loss"] += clipped.loss.detach()
            sums["clipped"] += clipped.clipped / tokens
            sums["kl_step"] += clipped.kl_from_old / tokens
        loss.backward()
    norms = {"critic_grad_norm": clip_gradients(models.critic, config.ppo.clip_norm)}
    if policy_learns:
        norms["policy_grad_norm"] = clip_gradients(models.policy, config.ppo.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return summed(sums) | norms


def sync_gradients(models: ActorCritic, now: bool) -> None:
    """Whether the next backward pass adds gradients up over ranks: only the last of a step needs to."""
    for model in (models.policy, models.critic):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(now)

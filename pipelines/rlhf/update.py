"""One iteration of PPO on one learner.

Every learner holds all rollouts and knows all that is computed from them, and takes an equal part of each
forward and backward pass. What a step learns from is decided before it is divided, and sums are divided by
counts over all learners: neither their number nor the micro-batch changes what is learned, but for rounding.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from llm.alignment.experience import Experience
from llm.alignment.ppo import policy_loss, value_loss
from llm.alignment.rollouts import Batch, Rollout, Scored, pad, response_log_probs, response_values
from llm.tokenizer.special import PAD_ID
from llm.training.step import NonFiniteError, clip_gradients
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.experience import make_experience, view
from pipelines.rlhf.models import ActorCritic, summed


def learn(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    scored: Scored,
    beta: float,
    iteration: int,
    config: RLHFConfig,
) -> dict[str, float]:
    """Learn from the rollouts of an iteration; returns its metrics, equal on every rank.

    Raises:
        NonFiniteError: the gradient of a step is NaN or infinite, on every rank alike; it is not taken.
    """
    batch = pad(rollouts, PAD_ID)
    seen = view(models, batch, config)
    experience, metrics = make_experience(seen, batch, rollouts, scored, beta, config)
    return metrics | take_steps(models, optimizer, batch, experience, iteration, config)


def take_steps(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    experience: Experience,
    iteration: int,
    config: RLHFConfig,
) -> dict[str, float]:
    """`epochs` passes in `minibatches` steps each; returns means over all of them, equal on every rank."""
    totals: list[dict[str, float]] = []
    for epoch in range(config.ppo.epochs):
        order = np.random.default_rng((config.seed, iteration, epoch)).permutation(len(batch.tokens))
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
    """One optimizer step on the rollouts at `index`, of which this rank takes its part."""
    tokens = batch.mask[index].sum().item()
    policy_learns = iteration >= config.ppo.warmup_iterations
    sums = {
        name: torch.zeros((), dtype=torch.float64)
        for name in ("policy_loss", "value_loss", "clipped", "kl_step")
    }
    by_length = index[batch.lengths[index].argsort(stable=True)]
    parts = by_length[dist.get_rank() :: dist.get_world_size()].split(config.micro_batch)
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
    norms = {"critic_grad_norm": clip("critic", models.critic, config)}
    if policy_learns:
        norms["policy_grad_norm"] = clip("policy", models.policy, config)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return summed(sums) | norms


def clip(name: str, model: nn.Module, config: RLHFConfig) -> float:
    """Clip the gradient; returns its norm before. Raises NonFiniteError, naming the model."""
    try:
        return clip_gradients(model, config.ppo.clip_norm)
    except NonFiniteError as error:
        raise NonFiniteError(f"the {name}: {error}") from None


def sync_gradients(models: ActorCritic, now: bool) -> None:
    """Whether the next backward pass adds gradients up over ranks: only the last of a step needs to."""
    for model in (models.policy, models.critic):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(now)

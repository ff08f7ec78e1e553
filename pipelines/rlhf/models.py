"""Policy and critic, and sums over the learners that share them."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar
from llm.models.load import load_model
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from pipelines.rlhf.config import RLHFConfig

BETAS = (0.9, 0.95)


class ActorCritic(nn.Module):
    """Policy and critic under one roof: one optimizer, one checkpoint."""

    policy: Decoder
    critic: DecoderWithScalar

    def __init__(self, policy: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic


def load_sharded(policy: Path, reward_model: Path, config: RLHFConfig) -> ActorCritic:
    """The chat model as policy and the reward model as critic (a value is a reward foreseen), over all
    ranks.
    """
    models = ActorCritic(load_model(policy)[0].train(), load_model(reward_model)[0].train())
    mesh = data_mesh(torch.device("cpu"))
    shard(models.policy, mesh, config.precision)
    shard(models.critic, mesh, config.precision)
    return models


def make_optimizer(models: ActorCritic, config: RLHFConfig) -> torch.optim.Optimizer:
    """AdamW without decay, with a learning rate for each of the two."""
    optimizer = adamw(models.policy, config.ppo.learning_rate, 0.0, BETAS)
    for group in adamw(models.critic, config.ppo.critic_learning_rate, 0.0, BETAS).param_groups:
        optimizer.add_param_group(group)
    return optimizer


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` summed over all learners."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def summed(values: dict[str, Tensor]) -> dict[str, float]:
    """Each scalar summed over all learners, in one message."""
    total = sum_over_ranks(torch.stack([value.double() for value in values.values()]))
    return dict(zip(values, total.tolist(), strict=True))

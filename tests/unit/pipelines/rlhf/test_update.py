"""One learner and two learn the same from the same rollouts, and a ruinous step is not taken."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from llm.alignment.rollouts import Rollout, Scored, pad
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar
from llm.models.presets import model_config
from llm.tokenizer.special import PAD_ID
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.step import NonFiniteError
from pipelines.rlhf.config import PPOConfig, RLHFConfig
from pipelines.rlhf.models import ActorCritic, make_optimizer
from pipelines.rlhf.update import learn
from tests.unit.ranks import on_ranks

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48, max_seq_len=64)
PPO = PPOConfig(epochs=2, minibatches=4, learning_rate=3e-3, critic_learning_rate=3e-3, entropy_bonus=0.01)


def rollouts() -> tuple[list[Rollout], Scored]:
    """24 responses of 1 to 20 tokens, as if drawn from a uniform policy."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(8, 100, (length,), generator=generator).tolist()

    drawn = []
    for number in range(24):
        response = ids(1, 20)
        why = "length" if number % 5 == 0 else "stop"
        drawn.append(
            Rollout(str(number), [2, *ids(1, 8), 6], response, [-4.6] * len(response), 0, why, number)
        )
    shape = pad(drawn, PAD_ID).mask.shape
    reference = -4.6 + 0.1 * torch.randn(shape, generator=generator)
    return drawn, Scored(torch.randn(24, generator=generator), reference)


def models_of(config: RLHFConfig) -> ActorCritic:
    models = ActorCritic(Decoder(CONFIG), DecoderWithScalar(CONFIG))
    models.policy.init_weights(seed=2)
    models.critic.init_weights(seed=3)
    for model in (models.policy, models.critic):
        shard(model, data_mesh(torch.device("cpu")), config.precision)
    return models


def two_iterations() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """(metrics, weights of policy and critic on rank 0); the policy learns in the second iteration."""
    config = RLHFConfig(rollouts=24, micro_batch=2, ppo=PPO)
    models = models_of(config)
    optimizer = make_optimizer(models, config)
    metrics = [learn(models, optimizer, *rollouts(), 0.05, iteration, config) for iteration in range(2)]
    return metrics, gather_weights(models)


def a_step_with_an_infinite_score() -> tuple[str, bool]:
    """(what was said, whether no weight has moved): whitening spreads the score over all advantages."""
    config = RLHFConfig(rollouts=24, ppo=PPO)
    models = models_of(config)
    before = [parameter.detach().clone() for parameter in models.parameters()]
    drawn, scored = rollouts()
    scored.scores[3] = torch.inf
    with pytest.raises(NonFiniteError) as raised:
        learn(models, make_optimizer(models, config), drawn, scored, 0.05, 1, config)
    unmoved = all(torch.equal(whole(a), whole(b)) for a, b in zip(models.parameters(), before, strict=True))
    return str(raised.value), unmoved


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def everything():
    return two_iterations(), a_step_with_an_infinite_score()


@pytest.fixture(scope="module")
def alone():
    return on_ranks(1, everything)[0]


@pytest.fixture(scope="module")
def pair():
    return on_ranks(2, everything)


def test_two_learners_learn_what_one_does(alone, pair):
    """With several minibatches, and responses that do not divide evenly among micro-batches."""
    (expected_metrics, expected), _ = alone
    (metrics, weights), _ = pair[0]
    assert metrics == pair[1][0][0], "metrics are equal on every rank"
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        assert theirs["explained_variance"] != 0
    assert expected_metrics[1]["policy_grad_norm"] > 0
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_that_is_not_finite_is_not_taken_by_any_learner(alone, pair):
    for _, (message, unmoved) in (alone, *pair):
        assert message == "the policy: the gradient's norm is nan"
        assert unmoved

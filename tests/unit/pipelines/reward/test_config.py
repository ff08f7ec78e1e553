"""An option that a reward model has no use for is refused, not ignored."""

import pytest

from pipelines.reward.config import RewardConfig


def test_a_learning_rate_for_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"head_scale=2\.0: a reward model has no vocabulary head; use"):
        RewardConfig(optimizer={"head_scale": 2})
    assert RewardConfig(optimizer={"embedding_scale": 2}).optimizer.embedding_scale == 2


def test_a_z_loss_is_refused_too():
    with pytest.raises(ValueError, match=r"z_loss=0\.1: a reward model has no vocabulary; leave it out"):
        RewardConfig(optimizer={"z_loss": 0.1})

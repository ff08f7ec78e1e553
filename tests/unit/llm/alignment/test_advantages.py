"""GAE against its definition, the golden case of a masked tail, and whitening."""

import numpy as np
import pytest
import torch

from llm.alignment.advantages import gae, whiten


def test_a_masked_tail_is_never_read():
    mask = torch.tensor([[True, True, False]])
    advantages = gae(torch.tensor([[0.0, 1, 0]]), torch.tensor([[0.0, 0, 100]]), mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.95, 1.0, 0.0]]))


def quadratic_gae(rewards, values, gamma, lam):
    """A_t = Σ_{l ≥ t} (γλ)^{l−t} (r_l + γ V_{l+1} − V_l) over one sequence without masked positions,
    float64.
    """
    length = len(rewards)
    advantages = np.zeros(length)
    for t in range(length):
        for later in range(t, length):
            next_value = values[later + 1] if later + 1 < length else 0.0
            delta = rewards[later] + gamma * next_value - values[later]
            advantages[t] += (gamma * lam) ** (later - t) * delta
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_equals_the_double_sum_over_valid_tokens(gamma, lam):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(16, 12)), rng.normal(size=(16, 12))
    mask = rng.random((16, 12)) < 0.7  # holes in the middle, before and after
    poisoned = np.where(mask, values, np.nan)
    ours = gae(
        torch.tensor(np.where(mask, rewards, np.nan)), torch.tensor(poisoned), torch.tensor(mask), gamma, lam
    )
    for row in range(16):
        expected = quadratic_gae(rewards[row, mask[row]], values[row, mask[row]], gamma, lam)
        np.testing.assert_allclose(ours[row].numpy()[mask[row]], expected, rtol=1e-4, atol=1e-5)
        assert (ours[row].numpy()[~mask[row]] == 0).all()


def test_whitening_counts_valid_tokens_only():
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(8, 10, generator=generator)
    mask = torch.rand(8, 10, generator=generator) < 0.6
    white = whiten(torch.where(mask, x, torch.nan), mask)
    assert white[mask].mean().abs() < 1e-6
    assert white[mask].var(correction=0) == pytest.approx(1.0, abs=1e-5)
    assert (white[~mask] == 0).all()
    assert torch.corrcoef(torch.stack([x[mask], white[mask]]))[0, 1] == pytest.approx(1.0)

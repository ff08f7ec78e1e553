"""The sampler against exact probabilities and brute force."""

import numpy as np
import pytest
import torch
from scipy import stats

from llm.engine.request import SamplingParams
from llm.engine.sampler import keep_top, sample, top_logprobs
from llm.engine.uniform import _splitmix64, uniform
from tests.unit.llm.engine.reference import distribution

torch.set_num_threads(1)
WAYS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.5, "top_k": 6},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 0.9, "top_k": 12, "top_p": 0.85},
]


@pytest.mark.parametrize("way", WAYS)
def test_frequencies_equal_exact_probabilities(way):
    draws = 60_000
    logits = torch.randn(30, generator=torch.Generator().manual_seed(4)) * 1.5
    exact = distribution(logits.double().numpy(), SamplingParams(1, **way))
    params = [SamplingParams(1, seed=i, **way) for i in range(draws)]
    tokens, logprobs = sample(logits.expand(draws, 30), params, [17] * draws)
    counts = np.bincount(tokens.numpy(), minlength=30)
    possible = exact > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], exact[possible] * draws).pvalue > 1e-3
    np.testing.assert_allclose(logprobs[0].exp().numpy(), exact, atol=1e-6)


def test_positions_of_one_seed_are_independent_draws():
    logits, n = torch.zeros(16), 40_000
    tokens, _ = sample(logits.expand(n, 16), [SamplingParams(1, seed=7)] * n, list(range(n)))
    pairs = np.bincount(tokens[:-1].numpy() * 16 + tokens[1:].numpy(), minlength=256)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_top_k_and_top_p_equal_brute_force_ties_included():
    rng = np.random.default_rng(0)
    for trial in range(200):
        logits = rng.integers(-3, 4, 12).astype(np.float64) if trial % 2 else rng.normal(0, 2, 12)
        params = SamplingParams(
            1, top_k=int(rng.integers(0, 15)), top_p=float(rng.choice([1.0, 0.999, 0.5, 0.01]))
        )
        logprobs = torch.log_softmax(torch.tensor(logits), -1).unsqueeze(0)
        kept = keep_top(logprobs, torch.tensor([params.top_k]), torch.tensor([params.top_p]))
        np.testing.assert_allclose(kept[0].exp().numpy(), distribution(logits, params), atol=1e-9)


def test_rows_with_different_parameters_do_not_mix():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(1, seed=i, **way) for i, way in enumerate([*WAYS[1:], {"temperature": 0.0}])]
    tokens, logprobs = sample(logits, params, [3] * 5)
    for row in range(5):
        alone, alone_logprobs = sample(logits[row : row + 1], [params[row]], [3])
        assert tokens[row] == alone[0]
        torch.testing.assert_close(logprobs[row], alone_logprobs[0])
    assert tokens[4] == logits[4].argmax()
    torch.testing.assert_close(logprobs[4], torch.log_softmax(logits[4], -1))


def test_uniform_is_splitmix64_and_uniform():
    assert _splitmix64(np.array([0], np.uint64))[0] == 0xE220A8397B1DCDAF  # Vigna's reference, seed 0
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    draws = uniform(seeds.ravel(), positions.ravel())
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
    assert uniform(np.array([2**64 - 1], np.uint64), np.array([2**40], np.uint64)).shape == (1,)


def test_top_logprobs_per_row():
    logprobs = torch.log(torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]))
    rows = top_logprobs(logprobs, [2, 5, 0])
    assert [[i for i, _ in row] for row in rows] == [[0, 2], [1], []]

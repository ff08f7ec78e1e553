"""Plackett-Luce against enumerated permutations, ties, padding, and utilities recovered from rankings."""

import itertools

import numpy as np
import pytest
import torch

from llm.alignment.reward_model import pairwise_agreement, plackett_luce_loss


def log_probability(scores, order):
    """log P(order) of Plackett-Luce by its definition: the best is drawn first, then the best of the rest."""
    utilities = np.exp(np.asarray(scores, dtype=np.float64))
    return sum(
        np.log(utilities[item]) - np.log(utilities[list(order[place:])].sum())
        for place, item in enumerate(order)
    )


def loss_of(scores, ranks):
    return plackett_luce_loss(torch.tensor([scores]), torch.tensor([ranks]), 1.0).item()


def test_equals_the_probability_of_every_permutation():
    scores = np.random.default_rng(0).normal(size=4).tolist()
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = [order.index(item) + 1 for item in range(4)]
        expected = log_probability(scores, order)
        assert loss_of(scores, ranks) == pytest.approx(-expected, rel=1e-5)
        total += np.exp(expected)
    assert total == pytest.approx(1.0)


def test_two_responses_are_bradley_terry():
    winner, loser = torch.tensor(0.7), torch.tensor(-0.4)
    expected = -torch.nn.functional.logsigmoid(winner - loser).item()
    assert loss_of([0.7, -0.4], [1, 2]) == pytest.approx(expected, rel=1e-6)
    assert loss_of([-0.4, 0.7], [2, 1]) == pytest.approx(expected, rel=1e-6)


def test_ties_are_each_chosen_from_all_that_remain():
    a, b, c, d = (float(x) for x in np.exp([0.3, -0.2, 0.9, 0.1]))
    everything = a + b + c + d
    expected = -np.log(a / everything * (b / (b + c + d)) * (c / (b + c + d)) * (d / d))
    assert loss_of([0.3, -0.2, 0.9, 0.1], [1, 2, 2, 4]) == pytest.approx(expected, rel=1e-5)

    scores = torch.tensor([[0.6, -0.6]], requires_grad=True)
    plackett_luce_loss(scores, torch.tensor([[1, 1]]), 1.0).backward()
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1], "a tie pulls the scores together"
    level = torch.tensor([[0.2, 0.2]], requires_grad=True)
    plackett_luce_loss(level, torch.tensor([[1, 1]]), 1.0).backward()
    assert level.grad.abs().max() < 1e-7


def test_padding_changes_neither_loss_nor_gradient():
    full = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    plackett_luce_loss(full, torch.tensor([[2, 1, 3]]), 3.0).backward()
    padded = torch.tensor([[0.3, -0.2, 0.9, 7.0]], requires_grad=True)
    plackett_luce_loss(padded, torch.tensor([[2, 1, 3, 0]]), 3.0).backward()
    torch.testing.assert_close(padded.grad[:, :3], full.grad)
    assert padded.grad[0, 3] == 0


def test_agreement_counts_strict_pairs_and_halves_equal_scores():
    scores = torch.tensor([[2.0, 1.0, 1.0], [0.0, 5.0, 9.0]])
    ranks = torch.tensor([[1, 2, 3], [1, 1, 0]])
    agreeing, pairs = pairwise_agreement(scores, ranks)
    assert (agreeing.item(), pairs.item()) == (2.5, 3)


def test_recovers_known_utilities_from_rankings():
    """Items with features x have utility w·x; rankings are drawn with Gumbel noise, which *is*
    Plackett-Luce.
    """
    generator = torch.Generator().manual_seed(1)
    true_weight = torch.tensor([1.0, -2.0, 0.5])

    def rankings(count):
        features = torch.randn(count, 4, 3, generator=generator)
        gumbel = -torch.log(-torch.log(torch.rand(count, 4, generator=generator)))
        order = (features @ true_weight + gumbel).argsort(dim=1, descending=True)
        return features, order.argsort(dim=1) + 1

    features, ranks = rankings(4000)
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = plackett_luce_loss(features @ weight, ranks, len(ranks))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (weight.detach() - true_weight).abs().max() < 0.1

    unseen, unseen_ranks = rankings(4000)
    learned, pairs = pairwise_agreement(unseen @ weight.detach(), unseen_ranks)
    ceiling, _ = pairwise_agreement(unseen @ true_weight, unseen_ranks)
    assert learned / pairs > ceiling / pairs - 0.005, "within half a point of the Bayes ceiling"

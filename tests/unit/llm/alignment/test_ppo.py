"""PPO's pieces by hand, its gradient against the exact policy gradient, and its optimum on a small task.

The task: 3 tokens from a vocabulary of 8, so that all 512 responses can be enumerated and the optimum of
E[R] − β·KL(π ‖ π_ref) is known: π* ∝ π_ref·exp(R/β).
"""

import pytest
import torch

from llm.alignment.advantages import gae, whiten
from llm.alignment.kl import kl_estimate
from llm.alignment.ppo import policy_loss, token_log_probs, token_rewards, value_loss

VOCABULARY, LENGTH = 8, 3
SEQUENCES = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)
PREFIXES = sum(VOCABULARY**t for t in range(LENGTH))


def prefix_rows(tokens):
    """(batch, LENGTH) row of each token's prefix in a table with one row per prefix."""
    rows, index, start = [], torch.zeros(len(tokens), dtype=torch.long), 0
    for t in range(LENGTH):
        rows.append(start + index)
        start, index = start + VOCABULARY**t, index * VOCABULARY + tokens[:, t]
    return torch.stack(rows, dim=1)


def log_probs_of(table, tokens):
    return token_log_probs(table[prefix_rows(tokens)], tokens, temperature=1.0)[0]


def task(seed):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(PREFIXES, VOCABULARY, generator=generator) * 0.5
    rewards = torch.randn(len(SEQUENCES), generator=generator)
    return reference, rewards, generator


def test_the_score_is_on_the_last_valid_token_and_the_penalty_on_every_one():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    log_probs, reference = torch.full((2, 3), -1.0), torch.full((2, 3), -1.5)
    rewards = token_rewards(torch.tensor([2.0, 9.0]), log_probs, reference, mask, beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 1.95, 0.0], [0.0, 0.0, 0.0]]))


def test_log_probs_are_of_the_distribution_sampled_from():
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 8, (2, 5), generator=torch.Generator().manual_seed(1))
    chosen, entropy = token_log_probs(logits, tokens, temperature=0.7, vocab_size=8)
    expected = torch.distributions.Categorical(logits=logits[..., :8].double() / 0.7)
    torch.testing.assert_close(chosen, expected.log_prob(tokens).float())
    torch.testing.assert_close(entropy, expected.entropy().float())


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, VOCABULARY, generator=generator, requires_grad=True)
    tokens = torch.randint(0, VOCABULARY, (4, 6), generator=generator)
    advantages = torch.randn(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    log_probs, _ = token_log_probs(logits, tokens, 1.0)
    # Infinities at masked positions must not reach the gradient.
    old = torch.where(mask, log_probs.detach(), -torch.inf)
    ours = torch.autograd.grad(
        policy_loss(log_probs, old, advantages, mask, 0.2, 7.0).loss, logits, retain_graph=True
    )
    reference = torch.autograd.grad(-(advantages * log_probs)[mask].sum() / 7.0, logits)
    torch.testing.assert_close(ours, reference)


def test_clipping_stops_the_gradient_only_where_it_would_go_too_far():
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0]])
    log_probs = ratio.log().requires_grad_()
    result = policy_loss(log_probs, torch.zeros(1, 5), advantages, torch.ones(1, 5, dtype=torch.bool), 0.2, 1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8 + 1.1))
    assert log_probs.grad.ne(0).tolist() == [[False, True, True, False, True]]
    assert result.clipped == 2


def test_value_loss_takes_the_worse_of_both_errors():
    values, old = torch.tensor([[2.0, 0.1]], requires_grad=True), torch.zeros(1, 2)
    returns = torch.tensor([[3.0, 1.0]])
    loss = value_loss(values, old, returns, torch.ones(1, 2, dtype=torch.bool), clip=0.5, denominator=2)
    assert loss.item() == pytest.approx(0.5 * (2.5**2 + 0.9**2) / 2)
    loss.backward()
    assert values.grad[0, 0] == 0, "a value that moved further than the clip is not pushed on"
    assert values.grad[0, 1] != 0


def test_the_sampled_gradient_is_the_exact_one():
    """∇(E[R] − β·KL) by enumeration, against policy_loss over 200,000 samples with undiscounted returns."""
    reference, rewards, generator = task(seed=5)
    beta = 0.3
    table = (reference + 0.5 * torch.randn(reference.shape, generator=generator)).requires_grad_()
    log_p = log_probs_of(table, SEQUENCES).sum(1)
    objective = (log_p.exp() * (rewards - beta * (log_p - log_probs_of(reference, SEQUENCES).sum(1)))).sum()
    exact = -torch.autograd.grad(objective, table)[0]

    drawn = torch.multinomial(log_p.detach().exp(), 200_000, replacement=True, generator=generator)
    tokens = SEQUENCES[drawn]
    log_probs = log_probs_of(table, tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    per_token = token_rewards(rewards[drawn], log_probs.detach(), log_probs_of(reference, tokens), mask, beta)
    advantages = gae(per_token, torch.zeros_like(per_token), mask, gamma=1.0, lam=1.0)
    loss = policy_loss(log_probs, log_probs.detach(), advantages, mask, 0.2, len(tokens)).loss
    sampled = torch.autograd.grad(loss, table)[0]
    assert torch.nn.functional.cosine_similarity(sampled.flatten(), exact.flatten(), dim=0) > 0.995
    assert (sampled - exact).abs().max() < 0.02 * exact.abs().max() + 0.003


def test_ppo_approaches_the_known_optimum():
    reference, rewards, generator = task(seed=0)
    beta = 0.5
    log_reference = log_probs_of(reference, SEQUENCES)
    optimum = torch.softmax(log_reference.sum(1) + rewards / beta, dim=0)
    policy = reference.clone().requires_grad_()
    critic = torch.zeros(PREFIXES, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [policy], "lr": 0.03}, {"params": [critic], "lr": 0.1}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=150)

    def distance():
        with torch.no_grad():
            return 0.5 * (log_probs_of(policy, SEQUENCES).sum(1).exp() - optimum).abs().sum().item()

    before = distance()
    for _ in range(150):
        with torch.no_grad():
            old_all = log_probs_of(policy, SEQUENCES)
            drawn = torch.multinomial(old_all.sum(1).exp(), 1024, replacement=True, generator=generator)
            tokens, old, old_values = SEQUENCES[drawn], old_all[drawn], critic[prefix_rows(SEQUENCES[drawn])]
            mask = torch.ones_like(tokens, dtype=torch.bool)
            per_token = token_rewards(rewards[drawn], old, log_reference[drawn], mask, beta)
            advantages = gae(per_token, old_values, mask, gamma=1.0, lam=0.95)
            returns = advantages + old_values
            advantages = whiten(advantages, mask)
        for _ in range(4):
            optimizer.zero_grad()
            denominator = mask.sum().item()
            loss = policy_loss(log_probs_of(policy, tokens), old, advantages, mask, 0.2, denominator).loss
            values = critic[prefix_rows(tokens)]
            loss = loss + value_loss(values, old_values, returns, mask, 1.0, denominator)
            loss.backward()
            optimizer.step()
        schedule.step()
    after = distance()
    assert before > 0.4
    assert after < 0.1, f"total variation to the optimum went from {before:.3f} to {after:.3f}"
    kl = kl_estimate(log_probs_of(policy, SEQUENCES), log_reference, "k1").sum(1)
    assert (optimum * kl).sum() > 0

"""KL estimators against the exact divergence, the gradients that they promise, and the β controller."""

import pytest
import torch

from llm.alignment.kl import AdaptiveKL, kl_estimate


@pytest.fixture
def distributions():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 6, generator=generator, dtype=torch.float64) * 0.5
    return torch.log_softmax(logits, dim=-1)


def test_expectations_are_exact(distributions):
    log_p, log_q = distributions
    p = log_p.exp()
    exact = (p * (log_p - log_q)).sum().item()
    assert (p * kl_estimate(log_p, log_q, "k1")).sum().item() == pytest.approx(exact, rel=1e-5)
    assert (p * kl_estimate(log_p, log_q, "k3")).sum().item() == pytest.approx(exact, rel=1e-5)
    assert (kl_estimate(log_p, log_q, "k3") >= 0).all()
    assert (kl_estimate(log_p, log_q, "k2") >= 0).all()


def test_only_the_gradient_of_k2_is_that_of_the_kl(distributions):
    """Sampling is not differentiated through: p outside the estimator is detached, as in a loss on
    samples.
    """
    log_q = distributions[1]
    logits = distributions[0].clone().requires_grad_()

    def gradient(loss_of):
        return torch.autograd.grad(loss_of(torch.log_softmax(logits, -1)), logits)[0]

    true_gradient = gradient(lambda log_p: (log_p.exp() * (log_p - log_q)).sum())
    on_samples = {
        k: gradient(lambda log_p, k=k: (log_p.exp().detach() * kl_estimate(log_p, log_q, k)).sum())
        for k in ("k1", "k2", "k3")
    }
    torch.testing.assert_close(on_samples["k2"], true_gradient, rtol=1e-4, atol=1e-6)
    assert on_samples["k1"].abs().max() < 1e-6
    assert (on_samples["k3"] - true_gradient).abs().max() > 1e-2


def test_beta_follows_the_target():
    controller = AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    assert controller.updated(6.0, 64).beta == 0.1
    assert controller.updated(6.6, 100).beta == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert controller.updated(600.0, 100).beta == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert controller.updated(0.0, 100).beta == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert AdaptiveKL(beta=0.1).updated(600.0, 100).beta == 0.1

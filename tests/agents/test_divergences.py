"""Divergence estimates by enumeration over a small softmax."""

import pytest
import torch

from aligngym.agents.divergences import categorical_kl, kl_estimate, kl_reward_penalty


def softmaxes(seed=0, actions=6):
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(actions, generator=generator, dtype=torch.float64).requires_grad_()
    return policy, torch.randn(actions, generator=generator, dtype=torch.float64)


def expectation(logits, reference, kind):
    """Exact expectation over the policy's actions; the sampling itself is not differentiated, as in a loss."""
    log_p, log_r = logits.log_softmax(-1), reference.log_softmax(-1)
    return (log_p.detach().exp() * kl_estimate(log_p, log_r, kind)).sum()


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_values(kind):
    logits, reference = softmaxes()
    torch.testing.assert_close(expectation(logits, reference, kind), categorical_kl(logits, reference))


def test_k2_is_biased_but_agrees_when_both_are_close():
    logits, reference = softmaxes()
    assert (expectation(logits, reference, "k2") - categorical_kl(logits, reference)).abs() > 0.01
    near = logits.detach() + 1e-3 * reference
    ratio = expectation(logits, near, "k2") / categorical_kl(logits, near)
    assert ratio.item() == pytest.approx(1, rel=1e-2)


def test_gradients_as_a_loss():
    logits, reference = softmaxes()
    forward = gradient(categorical_kl(logits, reference), logits)
    backward = gradient(categorical_kl(reference, logits), logits)
    assert gradient(expectation(logits, reference, "k1"), logits).abs().max() < 1e-12
    torch.testing.assert_close(gradient(expectation(logits, reference, "k2"), logits), forward)
    torch.testing.assert_close(gradient(expectation(logits, reference, "k3"), logits), backward)
    assert (forward - backward).abs().max() > 0.01


def test_k1_in_the_reward_has_the_gradient_of_the_divergence():
    logits, reference = softmaxes(1)
    log_p, log_r = logits.log_softmax(-1), reference.log_softmax(-1)
    penalty = kl_reward_penalty(torch.zeros(1, 6), log_p[None], log_r[None], torch.ones(1, 6, dtype=torch.bool), 0.5)
    surrogate = (log_p.detach().exp() * penalty[0] * log_p).sum()
    torch.testing.assert_close(gradient(surrogate, logits), -0.5 * gradient(categorical_kl(logits, reference), logits))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_estimates_vanish_where_both_agree_and_k2_k3_are_never_negative(kind):
    difference = torch.arange(-15, 16) / 5
    values = kl_estimate(difference, torch.zeros(31), kind)
    assert values[15] == 0
    assert (values >= 0).all() == (kind != "k1")


def test_the_penalty_is_paid_only_where_the_policy_acted_and_carries_no_gradient():
    log_probs = torch.tensor([[-1.0, -2.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    rewards = torch.tensor([[0.0, 1.0, 0.5]])
    penalised = kl_reward_penalty(rewards, log_probs, torch.tensor([[-2.0, -2.5, -torch.inf]]), mask, 0.1)
    assert penalised.tolist() == [pytest.approx([-0.1, 0.95, 0.5])]
    assert not penalised.requires_grad


def test_categorical_kl_known_answers():
    assert categorical_kl(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 0.0])).item() == pytest.approx(0, abs=1e-7)
    p = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    q = torch.tensor([[0.0, 0.0, -torch.inf]])
    probability = torch.tensor([1.0, 0.0]).softmax(0)
    expected = (probability * (2 * probability).log()).sum()
    divergence = categorical_kl(p, q)
    assert divergence.item() == pytest.approx(expected.item())
    assert gradient(divergence.sum(), p).isfinite().all()
    assert categorical_kl(q, torch.tensor([[0.0, -torch.inf, 0.0]])).item() == torch.inf


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind is 'k4', expected one of k1, k2, k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")

"""Preference losses against what is known of them in closed form."""

import math

import pytest
import torch

from aligngym.agents.preference.losses import log_ratio_difference, preference_loss

H = torch.tensor([-3.0, -0.7, 0.0, 0.4, 2.5], dtype=torch.float64)


def gradient(differences, *args, **kwargs):
    values = differences.clone().requires_grad_()
    preference_loss(values, *args, **kwargs).sum().backward()
    return values.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["sigmoid", "robust"])
def test_at_the_reference_the_loss_is_log_two_exactly(kind, smoothing):
    likelihoods = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)) * 100
    difference = log_ratio_difference(*likelihoods, *likelihoods)
    assert (difference == 0).all()
    loss = preference_loss(difference, 0.3, kind, smoothing)
    if smoothing == 0:
        assert (loss == torch.tensor(2.0).log()).all()
    torch.testing.assert_close(loss, torch.full((5,), math.log(2)), atol=2e-7, rtol=0)


def test_swapping_negates_and_a_common_constant_cancels():
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen, rejected, reference_chosen, reference_rejected = values
    difference = log_ratio_difference(*values)
    swapped = log_ratio_difference(rejected, chosen, reference_rejected, reference_chosen)
    assert torch.equal(difference, -swapped)
    # -log sigma(h) + log sigma(-h) = -h
    torch.testing.assert_close(preference_loss(difference, 1.0) - preference_loss(swapped, 1.0), -difference)
    for both in (
        (chosen + 7, rejected + 7, reference_chosen, reference_rejected),
        (chosen, rejected, reference_chosen - 3, reference_rejected - 3),
    ):
        torch.testing.assert_close(log_ratio_difference(*both), difference)
    one_sided = log_ratio_difference(chosen + 7, rejected, reference_chosen, reference_rejected)
    torch.testing.assert_close(one_sided, difference + 7)


def test_no_gradient_flows_through_the_reference():
    values = [torch.tensor([float(i)], requires_grad=True) for i in range(4)]
    preference_loss(log_ratio_difference(*values), 0.5).backward()
    chosen, rejected, *reference = (v.grad for v in values)
    assert chosen < 0 and torch.equal(chosen, -rejected) and reference == [None, None]


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_gradients(beta):
    margin = beta * H
    torch.testing.assert_close(gradient(H, beta), -beta * torch.sigmoid(-margin))
    e = 0.2
    smooth = -beta * ((1 - e) * torch.sigmoid(-margin) - e * torch.sigmoid(margin))
    torch.testing.assert_close(gradient(H, beta, label_smoothing=e), smooth)
    robust = -beta * ((1 - e) * torch.sigmoid(-margin) + e * torch.sigmoid(margin)) / (1 - 2 * e)
    torch.testing.assert_close(gradient(H, beta, "robust", e), robust)
    torch.testing.assert_close(gradient(H, beta, "ipo"), 2 * H - 1 / beta)


def test_smoothing_of_zero_changes_nothing():
    plain = preference_loss(H, 0.7)
    assert torch.equal(plain, preference_loss(H, 0.7, label_smoothing=0.0))
    assert torch.equal(plain, preference_loss(H, 0.7, "robust", 0.0))
    torch.testing.assert_close(plain, torch.log1p(torch.exp(-0.7 * H)))


def test_conservative_loss_is_smallest_at_its_own_confidence():
    """sigma(h) = 1 - e; without smoothing the loss falls forever."""
    e, beta = 0.1, 0.5
    best = torch.tensor([math.log((1 - e) / e) / beta], dtype=torch.float64)
    assert gradient(best, beta, label_smoothing=e).abs() < 1e-12
    assert gradient(best - 0.1, beta, label_smoothing=e) < 0 < gradient(best + 0.1, beta, label_smoothing=e)
    assert gradient(torch.tensor([100.0]), beta) < 0


@pytest.mark.parametrize("flips", [0.1, 0.3, 0.45])
def test_robust_loss_is_unbiased_under_flipped_labels(flips):
    noisy = (1 - flips) * preference_loss(H, 1.0, "robust", flips) + flips * preference_loss(-H, 1.0, "robust", flips)
    torch.testing.assert_close(noisy, preference_loss(H, 1.0))


@pytest.mark.parametrize("preferred", [0.55, 0.8, 0.99])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_optimum_of_a_population_preference(kind, preferred):
    """DPO: beta d = logit p. IPO: d = (p - 1/2) / beta, finite for p = 1 too."""
    beta = 0.2
    best = math.log(preferred / (1 - preferred)) / beta if kind == "sigmoid" else (preferred - 0.5) / beta
    d = torch.tensor([best], dtype=torch.float64)
    slope = preferred * gradient(d, beta, kind) - (1 - preferred) * gradient(-d, beta, kind)
    assert slope.abs() < 1e-12
    if kind == "ipo":
        assert gradient(torch.tensor([1 / (2 * beta)]), beta, kind) == 0


def test_diffusion_dpo_is_the_sigmoid_loss_on_denoising_errors():
    """-log sigma(-b/2 [(m_w - m_l) - (m_w_ref - m_l_ref)]), m a mean of squared errors; b/2 is our beta."""
    errors = torch.rand(4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1e-3
    m_w, m_l, ref_w, ref_l = errors
    published = -torch.sigmoid(-5000 / 2 * ((m_w - m_l) - (ref_w - ref_l))).log()
    torch.testing.assert_close(preference_loss(log_ratio_difference(*-errors), 2500.0), published)
    dimensions = 48  # a sum over dimensions wants a beta so many times smaller
    sums = log_ratio_difference(*(-errors * dimensions))
    torch.testing.assert_close(preference_loss(sums, 2500.0 / dimensions), published)
    assert not torch.allclose(preference_loss(sums, 2500.0), published)


def test_extreme_margins_stay_finite():
    far = torch.tensor([-1e6, 1e6])
    for kind in ("sigmoid", "robust"):
        assert torch.isfinite(preference_loss(far, 1.0, kind, 0.1)).all()
        assert torch.isfinite(gradient(far, 1.0, kind, 0.1)).all()
    assert preference_loss(far, 1.0).tolist() == [1e6, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "beta=0"),
        ((math.nan,), "beta=nan"),
        ((0.1, "hinge"), "loss='hinge'.*sigmoid, robust, ipo"),
        ((0.1, "sigmoid", 0.5), r"label_smoothing=0.5.*\[0, 0.5\)"),
        ((0.1, "robust", -0.1), "label_smoothing=-0.1"),
        ((0.1, "ipo", 0.1), "takes none"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        preference_loss(H, *arguments)

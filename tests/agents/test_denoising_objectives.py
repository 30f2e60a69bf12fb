"""Closed forms of the Gaussian losses: ratios of sums and of means, GRPO-Guard, Flow-GRPO's divergence, weights."""

import math

import pytest
import torch

from aligngym.agents.divergences import gaussian_kl
from aligngym.agents.objectives import clipped_surrogate, guard_log_ratio, step_weights
from aligngym.agents.policies.samplers import NoiseGrid, gaussian_log_prob, make_table


def decisions(rows, dimensions, seed=0, shift=0.1):
    """Means, old means, deviations and actions drawn from the old Gaussians: ``[rows, 4, dimensions]``, float64."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(rows, 4, dimensions, generator=generator, dtype=torch.float64)
    new = old + shift * torch.randn(rows, 4, dimensions, generator=generator, dtype=torch.float64)
    std = torch.rand(rows, 4, generator=generator, dtype=torch.float64) + 0.1
    noise = torch.randn(rows, 4, dimensions, generator=generator, dtype=torch.float64)
    return new, old, std, noise


def log_ratio_of(new, old, std, noise, divisor):
    actions = (old + std[..., None] * noise).flatten(0, 1)
    logs = [gaussian_log_prob(actions, mean.flatten(0, 1), std.flatten(), divisor) for mean in (new, old)]
    return (logs[0] - logs[1]).view(std.shape)


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_the_guarded_log_ratio_is_the_noise_times_the_shift_of_the_mean(form):
    new, old, std, noise = decisions(8, 32)
    divisor = 32.0 if form == "mean" else 1.0
    guarded = guard_log_ratio(log_ratio_of(new, old, std, noise, divisor), new, old, std, divisor)
    expected = (noise * (new - old)).sum(2) / divisor
    assert (guarded - expected).abs().max() < 1e-12


def test_the_guarded_log_ratio_has_mean_zero_and_the_plain_one_has_not():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.zeros(1, 4, 8, dtype=torch.float64), torch.full((1, 4, 8), 0.05, dtype=torch.float64)
    std = torch.tensor([[0.1, 0.2, 0.4, 0.8]], dtype=torch.float64)
    noise = torch.randn(20_000, 4, 8, generator=generator, dtype=torch.float64)
    new, old, std = (x.expand(20_000, *x.shape[1:]) for x in (new, old, std))
    plain = log_ratio_of(new, old, std, noise, 1.0)
    guarded = guard_log_ratio(plain, new, old, std)
    for values, mean in ((guarded, torch.zeros(4)), (plain, -8 * 0.05**2 / (2 * std[0] ** 2))):
        assert ((values.mean(0) - mean).abs() < 4 * values.std(0) / math.sqrt(20_000)).all()


def test_the_guard_keeps_the_gradient_of_its_second_term():
    """Detached, the gradient away from the old mean would point elsewhere."""
    new, old, std, noise = decisions(3, 5, shift=1.0)
    new.requires_grad_()
    guarded = guard_log_ratio(log_ratio_of(new, old, std, noise, 1.0), new, old, std)
    torch.testing.assert_close(torch.autograd.grad(guarded.sum(), new)[0], noise)


@pytest.mark.parametrize("dimensions", [2, 8])
def test_ratios_of_sums_have_mean_one_and_those_of_means_less(dimensions):
    count, bias = 1_000_000, 0.045  # mean_d (mu - mu_old)^2 / 2 S^2
    generator = torch.Generator().manual_seed(dimensions)
    actions = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    old, new = torch.zeros_like(actions), torch.full_like(actions, math.sqrt(2 * bias))
    std = torch.ones(count, dtype=torch.float64)
    for divisor, expected in ((1.0, 1.0), (float(dimensions), math.exp(-bias * (1 - 1 / dimensions)))):
        difference = gaussian_log_prob(actions, new, std, divisor) - gaussian_log_prob(actions, old, std, divisor)
        ratio = difference.exp()
        assert abs(ratio.mean() - expected) < 4 * ratio.std() / math.sqrt(count)


def flow_table(steps, level):
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return times, make_table(NoiseGrid("flow", times[:-1].float(), times), "velocity", "flow_sde", level)


@pytest.mark.parametrize("level", [0.3, 0.7])
def test_the_divergence_of_a_flow_step_is_the_papers(level):
    times, table = flow_table(10, level)
    t, h = times[:-1], -times.diff()
    generator = torch.Generator().manual_seed(0)
    x, v, reference = torch.randn(3, 6, 10, 4, generator=generator, dtype=torch.float64)
    mean, other = (table.scale[:, None] * x + table.gain[:, None] * out for out in (v, reference))
    sigma = table.std / h.sqrt()
    expected = h / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma) ** 2 * (v - reference).square().sum(2)
    found = gaussian_kl(mean, other, table.std.double().expand(6, 10))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gaussian_kl(mean, other, table.std.double().expand(6, 10), 4.0), found / 4)


def test_the_divergence_is_torchs_own():
    new, old, std, _ = decisions(5, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(new, std[..., None]), normal(old, std[..., None])).sum(2)
    torch.testing.assert_close(gaussian_kl(new, old, std), expected)


def test_weights_by_noise_level_the_gradient_over_the_steps():
    times, table = flow_table(10, 0.7)
    t, h = times[1:-1], 0.1  # the first step has no t / (1 - t)
    weight = (table.std / table.std.mean()).expand(2, 10)
    weights = step_weights("noise", weight, None, torch.ones(2, 10, dtype=torch.bool))
    assert torch.equal(weights, weight) and abs(weights[0].mean() - 1) < 1e-6
    scale = (table.gain.abs() / table.std)[1:].double()
    torch.testing.assert_close(scale, (h * (1 - t) / t).sqrt() * (1 / 0.7 + 0.7 / 2), rtol=1e-5, atol=0)
    level = scale * table.std[1:]
    torch.testing.assert_close(level, torch.full_like(level, h * (1 + 0.7**2 / 2)), rtol=1e-5, atol=0)
    assert scale.max() / scale.min() > 8


def test_weights_by_step_length_need_steps_that_have_one():
    mask = torch.tensor([[True, True, False]])
    sizes = torch.tensor([[0.5, 0.25, 0.0]])
    assert step_weights("inverse_step", None, sizes, mask).tolist() == [[2.0, 4.0, 0.0]]
    assert step_weights("uniform", None, None, mask).tolist() == [[1.0, 1.0, 0.0]]
    for kind, needed in (("noise", "Gaussian"), ("inverse_step", "flow")):
        with pytest.raises(ValueError, match=f"{kind}.*{needed}"):
            step_weights(kind, None, None, mask)


@pytest.mark.parametrize(("form", "stuck"), [("pessimistic", 2), ("clamp", 4)])
def test_dpoks_clamp_kills_the_gradient_on_both_sides(form, stuck):
    """A good decision that became too likely, or too rare, and a bad one likewise; then both within the range."""
    log_ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1, 0.9]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0, -1.0]])
    losses, clipped = clipped_surrogate(log_ratio, advantages, 0.2, 0.2, form=form)
    gradient = torch.autograd.grad(losses.sum(), log_ratio)[0]
    assert int((gradient == 0).sum()) == stuck == int(clipped.sum())
    assert torch.equal(gradient == 0, clipped) and gradient[0, 4:].abs().min() > 0
    if form == "clamp":
        torch.testing.assert_close(losses[0, :4], torch.tensor([-1.2, -0.8, 1.2, 0.8]))

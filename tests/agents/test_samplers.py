"""Samplers as tables: diffusers' schedulers step by step, the papers' formulas, exact marginals, what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal

from aligngym.agents.divergences import gaussian_kl
from aligngym.agents.policies.samplers import (
    NOISE_LEVELS,
    NoiseGrid,
    SamplerTable,
    clean_and_noise,
    gaussian_log_prob,
    make_table,
    noised,
)

PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SDES = ["flow_sde", "dance_sde"]
LEVELS = [1.0, 0.83, 0.5, 0.31, 0.04, 0.0]  # of an uneven flow


def flow_grid(steps=10, levels=None):
    levels = torch.linspace(1, 0, steps + 1) if levels is None else torch.tensor(levels)
    return NoiseGrid("flow", levels[:-1], levels.double())


def diffusion_grid(scheduler, steps=8):
    """The grid of a scheduler of diffusers; its last level is 1 where the scheduler ends in a clean sample."""
    scheduler.set_timesteps(steps)
    last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
    levels = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], last[None]])
    return NoiseGrid("diffusion", scheduler.timesteps.float(), levels.double())


def step(table, k, x, out, noise):
    return table.scale[k] * x + table.gain[k] * out + table.std[k] * noise


def normals(count, shape=(2, 3, 4, 4), seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clean_end", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_diffusers_step(prediction, eta, clean_end):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=clean_end,
    )  # fmt: skip
    grid = diffusion_grid(scheduler)
    table = make_table(grid, prediction, "ddim", eta)
    x, out, noise = normals(3)
    for k, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(out, t, x, eta=eta, variance_noise=noise).prev_sample
        close(step(table, k, x, out, noise), expected)
    assert (table.std[:-1] > 0).all() == (eta > 0) and (table.std[-1] > 0) == (eta > 0 and not clean_end)
    assert table.step_size is None


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eta_one_is_the_posterior_of_ddpm(prediction):
    """Mean and variance of q(x_{t-1} | x_t, x_0), by diffusers and by its formula."""
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
    )
    grid = diffusion_grid(scheduler)
    table = make_table(grid, prediction, "ddim", 1.0)
    x, out = normals(2)
    for k, t in enumerate(scheduler.timesteps[:-1]):
        theirs = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(k)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        close(step(table, k, x, out, noise), theirs)
        now, then = grid.levels[k], grid.levels[k + 1]
        beta = 1 - now / then
        close(table.std[k].double().square(), beta * (1 - then) / (1 - now))
    p_x, p_o, _, _ = clean_and_noise(grid.levels[:-1], "diffusion", prediction)
    now, then = grid.levels[:-1], grid.levels[1:]
    clean, state = then.sqrt() * (1 - now / then) / (1 - now), (now / then).sqrt() * (1 - then) / (1 - now)
    close(table.scale.double(), state + clean * p_x)
    close(table.gain.double(), clean * p_o)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ode", "flow_sde", "dance_sde"])
def test_the_ode_of_a_flow_is_diffusers_euler_step(sampler, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    table = make_table(flow_grid(levels=scheduler.sigmas.tolist()), "velocity", sampler, 0.0)
    x, out = normals(2)
    for k, t in enumerate(scheduler.timesteps):
        close(step(table, k, x, out, 0.0), scheduler.step(out, t, x).prev_sample)
    assert (table.std == 0).all()
    close(table.step_size, -scheduler.sigmas.diff())


@pytest.mark.parametrize("levels", [LEVELS, [1.0, 0.0], [0.7, 0.2, 0.0]])
def test_flow_sde_is_flow_grpos_step(levels):
    """With a step of negative length, as the paper's code has it; t = 1 reads the second time of the grid."""
    a, table = 0.7, make_table(flow_grid(levels=levels), "velocity", "flow_sde", 0.7)
    x, v, noise = normals(3)
    for k, (t, following) in enumerate(itertools.pairwise(levels)):
        second = levels[1] if len(levels) > 2 else 0.5
        sigma = a * math.sqrt(t / (1 - (second if t == 1 else t)))
        dt = following - t
        mean = x * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
        close(step(table, k, x, v, noise), mean + sigma * math.sqrt(-dt) * noise)
        assert table.std[k].item() == pytest.approx(sigma * math.sqrt(-dt))


def test_dance_sde_has_a_constant_noise():
    eta, table = 0.3, make_table(flow_grid(levels=LEVELS), "velocity", "dance_sde", 0.3)
    x, v, noise = normals(3)
    for k, (t, following) in enumerate(itertools.pairwise(LEVELS)):
        dt, clean = following - t, x - t * v
        mean = x + (v + eta**2 / 2 * (x - (1 - t) * clean) / t**2) * dt
        close(step(table, k, x, v, noise), mean + eta * math.sqrt(-dt) * noise)
    close(table.std / table.step_size.sqrt(), torch.full((5,), eta))


def test_cps_keeps_the_total_noise_of_every_state():
    a, table = 0.6, make_table(flow_grid(levels=LEVELS), "velocity", "cps", 0.6)
    x, v, noise = normals(3)
    for k, (t, following) in enumerate(itertools.pairwise(LEVELS)):
        std = following * math.sin(a * math.pi / 2)
        mean = (1 - following) * (x - t * v) + math.sqrt(following**2 - std**2) * (x + (1 - t) * v)
        close(step(table, k, x, v, noise), mean + std * noise)
        kept = table.scale[k] * t + table.gain[k] * 1.0  # what the mean keeps of the noise e, at x_0 = 0 and v = e
        close(kept.square() + table.std[k].square(), torch.tensor(following**2))
    assert table.std[-1] == 0, "the last step is deterministic"


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps"])
def test_no_noise_is_the_ode_exactly(sampler):
    grid = flow_grid(levels=LEVELS)
    none, ode = make_table(grid, "velocity", sampler, 0.0), make_table(grid, "velocity", "ode")
    for name in ("scale", "gain", "std", "step_size"):
        torch.testing.assert_close(
            getattr(none, name), getattr(ode, name), rtol=0, atol=0 if sampler != "cps" else 1e-7
        )
    tiny = make_table(grid, "velocity", sampler, 1e-4)
    close(tiny.gain, ode.gain, 1e-6)
    assert (tiny.std[:-1] > 0).all()
    diffusion = diffusion_grid(DDIMScheduler())
    for name in ("scale", "gain", "std"):
        a, b = (make_table(diffusion, "epsilon", s, 0.0) for s in ("ddim", "ode"))
        assert torch.equal(getattr(a, name), getattr(b, name))


def final(table, grid, mean=2.0, std=0.5):
    """Mean and deviation of the samples for data N(mean, std^2) and its exact velocity, from N(0, 1): no sampling."""
    m, variance = 0.0, 1.0
    for k, t in enumerate(grid.levels[:-1].tolist()):
        spread = (1 - t) ** 2 * std**2 + t**2  # of x_t
        slope = (t - (1 - t) * std**2) / spread  # v = slope (x - (1 - t) mean) - mean
        scale, gain, noise = (float(c[k]) for c in (table.scale, table.gain, table.std))
        m = scale * m + gain * (slope * (m - (1 - t) * mean) - mean)
        variance = (scale + gain * slope) ** 2 * variance + noise**2
    return m, math.sqrt(variance)


STEPS = [10, 20, 50, 200]
MARGINALS = {
    "ode": [0.430, 0.464, 0.485, 0.496],
    "flow_sde": [0.480, 0.491, 0.499, 0.501],
    "dance_sde": [0.440, 0.469, 0.488, 0.497],
}


@pytest.mark.parametrize("sampler", MARGINALS)
def test_marginals_are_the_datas(sampler):
    for steps, expected in zip(STEPS, MARGINALS[sampler], strict=True):
        grid = flow_grid(steps)
        mean, std = final(make_table(grid, "velocity", sampler), grid)
        assert std == pytest.approx(expected, abs=3e-3)
        assert abs(mean - 2) < 0.06 if steps == 10 else abs(mean - 2) < 0.03
    assert std == pytest.approx(0.5, rel=0.01)


def test_noise_without_the_correction_of_the_drift_diverges():
    for steps, expected in zip(STEPS, [0.84, 0.91, 0.99, 1.08], strict=True):
        grid = flow_grid(steps)
        plain, noisy = (make_table(grid, "velocity", s) for s in ("ode", "flow_sde"))
        assert final(SamplerTable(plain.scale, plain.gain, noisy.std), grid)[1] == pytest.approx(expected, abs=0.02)


def test_cps_does_not_converge_to_the_datas_spread():
    found = [final(make_table(grid, "velocity", "cps"), grid)[1] for grid in map(flow_grid, (50, 200, 800))]
    assert found[1] == pytest.approx(0.42, abs=0.01) and found[2] < 0.45
    ode = [final(make_table(grid, "velocity", "ode"), grid)[1] for grid in map(flow_grid, (50, 200, 800))]
    assert ode[2] == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.5])
def test_gradient_scale_and_divergence_of_flow_sde(a):
    """|b| / S, and the divergence of two velocities in the paper's form and in that of its code."""
    grid = flow_grid(20)
    table = make_table(grid, "velocity", "flow_sde", a)
    t, h = grid.levels[1:-1], 1 / 20
    scale = (table.gain.abs() / table.std)[1:].double()
    close(scale, (h * (1 - t) / t).sqrt() * (1 / a + a / 2))
    sigma = a * (t / (1 - t)).sqrt()
    shift = normals(1, (1, 19, 3, 2), seed=1)[0]
    mean = table.gain[1:, None, None] * shift
    kl = gaussian_kl(mean, torch.zeros_like(mean), table.std[None, 1:]).double()
    squares = shift.double().square().sum((2, 3))
    close(kl, h / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma).square() * squares)
    # Flow-GRPO's code: mean over dimensions, and 2 sigma^2 for 2 S^2.
    official, beta = mean.double().square().mean((2, 3)) / (2 * sigma.square()), 0.04
    close(beta * official, beta * h * gaussian_kl(mean, torch.zeros_like(mean), table.std[None, 1:], 6.0).double())
    close(beta * official, beta * h / 6 * kl)


def test_only_the_chosen_steps_draw_noise():
    grid = flow_grid(levels=LEVELS)
    for sampler in ("flow_sde", "cps"):
        mixed = make_table(grid, "velocity", sampler, None, {1, 3})
        noisy, plain = make_table(grid, "velocity", sampler), make_table(grid, "velocity", "ode")
        for name in ("scale", "gain", "std"):
            expected = [getattr(noisy if k in (1, 3) else plain, name)[k] for k in range(5)]
            assert getattr(mixed, name).tolist() == [float(e) for e in expected]
        assert torch.equal(mixed.step_size, plain.step_size)
    assert (make_table(grid, "velocity", "flow_sde", None, []).std == 0).all()
    diffusion = diffusion_grid(DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=False), 6)
    mixed, noisy, plain = (make_table(diffusion, "epsilon", "ddim", *o) for o in ((1.0, (0, 5)), (1.0,), (0.0,)))
    assert mixed.std.nonzero()[:, 0].tolist() == [0, 5] and torch.equal(mixed.gain[1:5], plain.gain[1:5])
    assert torch.equal(mixed.gain[[0, 5]], noisy.gain[[0, 5]])


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "velocity"])
def test_what_a_network_returns_gives_back_sample_and_noise(prediction):
    kind = "flow" if prediction == "velocity" else "diffusion"
    x_0, e = normals(2, (5, 3)).double()
    level = torch.tensor([0.9, 0.5, 0.2, 0.03, 0.6], dtype=torch.float64)
    x_t, out = noised(x_0, e, level[:, None], prediction)
    if kind == "flow":
        close(x_t, (1 - level[:, None]) * x_0 + level[:, None] * e)
    else:
        close(x_t, level[:, None].sqrt() * x_0 + (1 - level[:, None]).sqrt() * e)
    p_x, p_o, q_x, q_o = (c[:, None] for c in clean_and_noise(level, kind, prediction))
    close(p_x * x_t + p_o * out, x_0)
    close(q_x * x_t + q_o * out, e)


def test_log_probabilities_are_those_of_the_gaussian():
    x, mean = normals(2, (4, 3, 2, 2))
    std = torch.tensor([0.1, 0.5, 1.0, 2.0])
    expected = Normal(mean, std[:, None, None, None]).log_prob(x).flatten(1)
    close(gaussian_log_prob(x, mean, std), expected.sum(1))
    close(gaussian_log_prob(x, mean, std, 12.0), expected.mean(1))
    mean, x = mean.requires_grad_(), x.requires_grad_()
    gaussian_log_prob(x, mean, std).sum().backward()
    assert x.grad is None, "the action is data"
    close(mean.grad, ((x - mean) / std[:, None, None, None].square()).detach())
    assert gaussian_log_prob(x[:0], mean[:0], std[:0]).shape == (0,)


def test_deterministic_steps_have_no_density():
    for sampler, level in (("ode", None), ("flow_sde", 0.0), ("dance_sde", 0.0), ("cps", 0.0)):
        std = make_table(flow_grid(4), "velocity", sampler, level).std
        with pytest.raises(ValueError, match="std is 0 at some step: a deterministic step has no log-probability"):
            gaussian_log_prob(torch.zeros(4, 2), torch.zeros(4, 2), std)
    std = make_table(diffusion_grid(DDIMScheduler()), "epsilon", "ddim", 0.0).std
    with pytest.raises(ValueError, match="std is 0"):
        gaussian_log_prob(torch.zeros(8, 2), torch.zeros(8, 2), std)


@pytest.mark.parametrize(
    ("kind", "prediction", "sampler", "options", "message"),
    [
        ("flow", "velocity", "ddpm", {}, "sampler is 'ddpm', expected one of ddim, ode, flow_sde, dance_sde, cps"),
        ("flow", "velocity", "ddim", {}, "is a flow model: expected flow_sde, dance_sde, cps or ode"),
        ("diffusion", "epsilon", "cps", {}, "is a diffusion model: expected ddim or ode"),
        ("flow", "epsilon", "flow_sde", {}, "prediction is 'epsilon', expected 'velocity'"),
        ("diffusion", "velocity", "ddim", {}, "prediction is 'velocity', which no diffusion model returns"),
        ("flow", "velocity", "flow_sde", {"noise_level": -0.1}, "noise_level is -0.1, expected"),
        ("flow", "velocity", "flow_sde", {"noise_level": math.nan}, "noise_level is nan, expected"),
        ("flow", "velocity", "dance_sde", {"noise_level": math.inf}, "noise_level is inf, expected"),
        ("flow", "velocity", "cps", {"noise_level": 1.1}, "noise_level is 1.1, expected at most 1 for cps"),
        ("diffusion", "epsilon", "ddim", {"noise_level": 9}, "noise_level is 9, which asks for more noise than"),
        ("flow", "velocity", "ode", {"stochastic_steps": [0, 4, -1]}, r"has \[-1, 4\], expected numbers from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_named(kind, prediction, sampler, options, message):
    grid = flow_grid(4) if kind == "flow" else diffusion_grid(DDIMScheduler(), 4)
    with pytest.raises(ValueError, match=message):
        make_table(grid, prediction, sampler, **options)


def test_grids_lose_noise_at_every_step():
    for kind, levels in (("flow", [1.0, 0.5, 0.5]), ("flow", [0.0, 1.0]), ("diffusion", [0.9, 0.1])):
        with pytest.raises(ValueError, match=f"levels of a {kind} model must fall in noise at every step"):
            NoiseGrid(kind, torch.tensor(levels[:-1]), torch.tensor(levels))
    with pytest.raises(ValueError, match=r"levels has shape \(2,\), expected \(3,\)"):
        NoiseGrid("flow", torch.ones(2), torch.tensor([1.0, 0.0]))
    assert make_table(flow_grid(3), "velocity", "flow_sde", NOISE_LEVELS["flow_sde"]).std.dtype == torch.float32

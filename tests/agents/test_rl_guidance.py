"""RL guidance: closed forms on Gaussians, the stated counterexample, and both ends bit for bit."""

import math

import pytest
import torch
from torch import Tensor, nn

from aligngym.agents.policies.denoiser import Condition, Denoiser, NoiseGrid
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.rl_guidance import RLGuidedDenoiser, rl_guided

MEAN, STD = 2.0, 0.5


class ExactFlow(Denoiser):
    """The velocity E[e - x_0 | x_t] of data N(mean, std^2), exact; each prompt adds its length to the mean."""

    kind, prediction, shape = "flow", "velocity", (1,)

    def __init__(self, mean: float, std: float, last: float = 0.0) -> None:
        super().__init__()
        self.mean, self.std, self.last = nn.Parameter(torch.tensor(mean, dtype=torch.float64)), std, last

    def encode(self, prompts: list[str]) -> Condition:
        return {"shift": torch.tensor([[float(len(p))] for p in prompts])}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x, t, mean = x.double(), t.double()[:, None], self.mean + condition["shift"].double()
        variance = ((1 - t) * self.std).square() + t.square()
        gain = (t - (1 - t) * self.std**2) / variance
        return (gain * (x - (1 - t) * mean) - mean).float()

    def grid(self, num_steps: int) -> NoiseGrid:
        levels = torch.linspace(1, self.last, num_steps + 1, dtype=torch.float64)
        return NoiseGrid("flow", levels[:-1].float(), levels)


def sample(policy: DenoiserPolicy, start: list[float], *, deterministic: bool = True, prompt: str = "") -> Tensor:
    observation = {
        "sample": torch.tensor(start)[:, None],
        "timestep": torch.full((len(start), 1), policy.num_steps),
        "prompt": torch.tensor(list(prompt.encode().ljust(8, b"\0"))).expand(len(start), 8),
    }
    noise = RowNoise(list(range(len(start))))
    return policy.generate(observation, noise, max_steps=policy.num_steps, deterministic=deterministic).actions[
        :, -1, 0
    ]


def moments(base: Denoiser, tuned: Denoiser, scale: float, num_steps: int = 2000) -> tuple[float, float]:
    """Mean and standard deviation of what the guided ODE makes of N(0, 1): the map is affine, so two points tell."""
    low, high = sample(DenoiserPolicy(RLGuidedDenoiser(base, tuned, scale), num_steps=num_steps), [-1.0, 1.0]).tolist()
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_linear_reward_divides_beta_by_the_scale(scale: float) -> None:
    c, beta = 1.5, 2.0  # p exp(c x / beta) is the Gaussian with its mean moved by s^2 c / beta
    base, tuned = ExactFlow(MEAN, STD), ExactFlow(MEAN + STD**2 * c / beta, STD)
    mean, std = moments(base, tuned, scale)
    assert mean == pytest.approx(MEAN + scale * STD**2 * c / beta, abs=2e-3)
    assert std == pytest.approx(STD, abs=2e-3)
    assert std == pytest.approx(moments(base, tuned, 0.0)[1], abs=1e-5)  # unchanged, whatever the sampler's own error


def test_quadratic_reward_overshoots() -> None:
    """R / beta = -4 (x - 1)^2: the tilt by w has precision 4 + 8 w, but the guided model ends elsewhere."""
    base, tuned = ExactFlow(MEAN, STD), ExactFlow(4 / 3, math.sqrt(1 / 12))
    tilted = {w: ((8 + 8 * w) / (4 + 8 * w), (4 + 8 * w) ** -0.5) for w in (0.0, 0.5, 1.0, 2.0, 3.0)}
    got = {w: moments(base, tuned, w) for w in tilted}
    for w, expected in {0.5: (1.608, 0.379), 2.0: (1.022, 0.166), 3.0: (0.890, 0.096)}.items():
        assert got[w] == pytest.approx(expected, abs=3e-3)
        assert got[w] != pytest.approx(tilted[w], abs=2e-2)
        for i in (0, 1):  # too far from the base past 1, not far enough before
            assert (got[w][i] < tilted[w][i]) == (w > 1)
    for w in (0.0, 1.0):
        assert got[w] == pytest.approx(tilted[w], abs=2e-3)
    for values in zip(*got.values(), strict=True):  # monotone in w
        assert list(values) == sorted(values, reverse=True)


@pytest.mark.parametrize("sampler", ["ode", "flow_sde"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_ends_are_the_two_models_bitwise(sampler: str, guidance: float) -> None:
    base, tuned = (
        DenoiserPolicy(ExactFlow(*m), num_steps=10, sampler=sampler, guidance=guidance)
        for m in ((2.0, 0.5), (3.0, 0.4))
    )
    start = torch.linspace(-2, 2, 9).tolist()
    for scale, plain in ((0.0, base), (1.0, tuned)):
        want = sample(plain, start, deterministic=False, prompt="cat")
        assert torch.equal(sample(rl_guided(base, tuned, scale), start, deterministic=False, prompt="cat"), want)
    middle = sample(rl_guided(base, tuned, 0.5), start, deterministic=False, prompt="cat")
    assert not torch.equal(middle, want)


def test_an_end_evaluates_one_network_only() -> None:
    calls: list[str] = []
    base, tuned = ExactFlow(2.0, 0.5), ExactFlow(3.0, 0.5)
    for name, network in (("base", base), ("tuned", tuned)):
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    for scale, expected in ((0.0, ["base"]), (1.0, ["tuned"]), (2.0, ["base", "tuned"])):
        calls.clear()
        sample(DenoiserPolicy(RLGuidedDenoiser(base, tuned, scale), num_steps=1), [0.0])
        assert calls == expected


def test_mixing_before_classifier_free_guidance_is_mixing_after_it() -> None:
    base, tuned, x = ExactFlow(2.0, 0.5), ExactFlow(3.0, 0.4), torch.linspace(-1, 3, 7)[:, None]
    w, g, t = 1.7, 4.0, torch.full((7,), 0.6)

    def guided(network: Denoiser) -> Tensor:
        c, u = (network(x, t, {k: v.expand(7, -1) for k, v in network.encode([p]).items()}) for p in ("cat", ""))
        return u + g * (c - u)

    after = guided(base) + w * (guided(tuned) - guided(base))
    assert torch.allclose(guided(RLGuidedDenoiser(base, tuned, w)), after, rtol=1e-5, atol=1e-5)


def test_models_that_do_not_fit_are_refused() -> None:
    base, other = ExactFlow(2.0, 0.5), ExactFlow(3.0, 0.5)
    other.prediction = "epsilon"
    with pytest.raises(ValueError, match=r"prediction 'velocity'.*'epsilon'"):
        RLGuidedDenoiser(base, other)
    other.prediction, other.kind = "velocity", "diffusion"
    with pytest.raises(ValueError, match="kind 'flow'"):
        RLGuidedDenoiser(base, other)
    with pytest.raises(ValueError, match="scale is -1"):
        RLGuidedDenoiser(base, base, -1)
    with pytest.raises(ValueError, match="noise levels"):
        DenoiserPolicy(RLGuidedDenoiser(base, ExactFlow(3.0, 0.5, last=0.1)), num_steps=4)
    with pytest.raises(ValueError, match="give both the same"):
        rl_guided(DenoiserPolicy(base, num_steps=4), DenoiserPolicy(base, num_steps=4, guidance=2.0))

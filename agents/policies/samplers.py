r"""Samplers of diffusion and flow models as tables: every step is a Gaussian whose mean is linear in state and output.

.. math:: x_{k+1} = a_k x_k + b_k\, out_k + S_k\, \epsilon, \qquad \epsilon \sim N(0, I)

where ``out`` is what the network returns at :math:`x_k`. A table is computed once in float64, so that sampling and
scoring use the very same numbers. Conventions: diffusion :math:`x_t = \sqrt{\bar\alpha} x_0 + \sqrt{1 - \bar\alpha} e`;
flow :math:`x_t = (1 - t) x_0 + t e`, velocity :math:`v = e - x_0`, time from 1 (noise) to 0 (data), ``h`` the length of
a step. Nothing is clipped: that would make the mean nonlinear and its gradient zero wherever it binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["diffusion", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
SamplerName = Literal["ddim", "ode", "flow_sde", "dance_sde", "cps"]


@dataclass(frozen=True)
class NoiseGrid:
    r"""Where a sampling run of ``T`` steps stands.

    Attributes:
        kind: of the model.
        times: ``[T]`` what the network is told at each state, in its own units.
        levels: ``[T + 1]`` float64 of each state, the final one included: :math:`\bar\alpha` rising towards 1
            (diffusion), or ``t`` falling from 1 to 0 (flow).
    """

    kind: Kind
    times: Tensor
    levels: Tensor

    def __post_init__(self) -> None:
        if self.levels.shape != (len(self.times) + 1,):
            raise ValueError(f"levels has shape {tuple(self.levels.shape)}, expected ({len(self.times) + 1},)")
        steps = self.levels.double().diff()
        if not (steps > 0 if self.kind == "diffusion" else steps < 0).all():
            raise ValueError(f"levels of a {self.kind} model must fall in noise at every step, got {self.levels}")


@dataclass(frozen=True)
class SamplerTable:
    """Coefficients of each of ``T`` steps; see the module. float32 ``[T]`` each.

    Attributes:
        scale: :math:`a_k`.
        gain: :math:`b_k`, also the derivative of the mean by the network's output.
        std: :math:`S_k`, 0 where a step is deterministic.
        step_size: :math:`h_k` of a flow; None for diffusion, whose steps have no length.
    """

    scale: Tensor
    gain: Tensor
    std: Tensor
    step_size: Tensor | None = None


def make_table(
    grid: NoiseGrid,
    prediction: Prediction,
    sampler: SamplerName,
    noise_level: float | None = None,
    stochastic_steps: Collection[int] | None = None,
) -> SamplerTable:
    """The table of a sampler.

    Args:
        grid: levels of the states.
        prediction: what the network returns.
        sampler: ``ddim`` for diffusion; ``flow_sde``, ``dance_sde`` or ``cps`` for flows; ``ode`` for both, which is
            DDIM without noise and Euler's method.
        noise_level: the sampler's strength of noise, at least 0; None takes its default (:data:`NOISE_LEVELS`). 0 gives
            the ODE.
        stochastic_steps: the steps that draw noise; the others take the ODE's step. None: all.

    Raises:
        ValueError: if sampler and kind do not fit, or the noise level or a step is out of range.
    """
    if sampler not in get_args(SamplerName):
        raise ValueError(f"sampler is {sampler!r}, expected one of {', '.join(get_args(SamplerName))}")
    level = NOISE_LEVELS[sampler] if noise_level is None else noise_level
    if not 0 <= level < math.inf:
        raise ValueError(f"noise_level is {noise_level}, expected a number of at least 0")
    if sampler != "ode" and (sampler == "ddim") != (grid.kind == "diffusion"):
        fitting = "ddim or ode" if grid.kind == "diffusion" else "flow_sde, dance_sde, cps or ode"
        raise ValueError(f"sampler is {sampler!r}, but the model is a {grid.kind} model: expected {fitting}")
    if grid.kind == "diffusion":
        noisy, plain = (_ddim(grid.levels.double(), prediction, eta) for eta in (level * (sampler == "ddim"), 0.0))
    else:
        if prediction != "velocity":
            raise ValueError(f"prediction is {prediction!r}, expected 'velocity' for a flow model")
        plain = _sde(grid.levels.double(), torch.zeros(len(grid.times), dtype=torch.float64))
        noisy = plain if sampler == "ode" else _FLOW[sampler](grid.levels.double(), level)
    if stochastic_steps is None:
        return noisy
    if wrong := sorted(k for k in stochastic_steps if not 0 <= k < len(grid.times)):
        raise ValueError(f"stochastic_steps has {wrong}, expected numbers from 0 to {len(grid.times) - 1}")
    chosen = torch.tensor([k in stochastic_steps for k in range(len(grid.times))])
    scale, gain, std = (torch.where(chosen, getattr(noisy, n), getattr(plain, n)) for n in ("scale", "gain", "std"))
    return SamplerTable(scale, gain, std, noisy.step_size)


def clean_and_noise(levels: Tensor, kind: Kind, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Coefficients :math:`(p_x, p_o, q_x, q_o)` of :math:`\hat x_0 = p_x x + p_o out` and
    :math:`\hat e = q_x x + q_o out`.

    Raises:
        ValueError: if a model of this kind does not predict that.
    """  # noqa: D205
    one, zero = torch.ones_like(levels), torch.zeros_like(levels)
    if kind == "flow" and prediction == "velocity":
        return one, -levels, one, 1 - levels
    a, s = levels.sqrt(), (1 - levels).sqrt()
    if kind == "diffusion" and prediction == "epsilon":
        return 1 / a, -s / a, zero, one
    if kind == "diffusion" and prediction == "v_prediction":
        return a, -s, s, a
    if kind == "diffusion" and prediction == "sample":
        return zero, one, 1 / s, -a / s
    raise ValueError(f"prediction is {prediction!r}, which no {kind} model returns")


def noised(x_0: Tensor, e: Tensor, level: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    r"""The state :math:`x_t` of clean ``x_0`` and noise ``e``, and what a network should return there.

    Args:
        x_0: ``[N, ...]``.
        e: ``[N, ...]`` standard normal.
        level: :math:`\bar\alpha` or, for velocities, ``t``; broadcastable to ``x_0``.
        prediction: epsilon: ``e``; v_prediction: :math:`\sqrt{\bar\alpha} e - \sqrt{1 - \bar\alpha} x_0`; sample:
            ``x_0``; velocity: :math:`e - x_0`.
    """
    if prediction == "velocity":
        return (1 - level) * x_0 + level * e, e - x_0
    a, s = level.sqrt(), (1 - level).sqrt()
    return a * x_0 + s * e, {"epsilon": e, "sample": x_0, "v_prediction": a * e - s * x_0}[prediction]


def _ddim(levels: Tensor, prediction: Prediction, eta: float) -> SamplerTable:
    r"""DDIM (Song et al. 2021, arXiv 2010.02502); eta = 1 has DDPM's posterior variance.

    .. math:: \sigma = \eta \sqrt{\frac{1 - \bar\alpha'}{1 - \bar\alpha}} \sqrt{1 - \frac{\bar\alpha}{\bar\alpha'}},
        \qquad \mu = \sqrt{\bar\alpha'}\, \hat x_0 + \sqrt{1 - \bar\alpha' - \sigma^2}\, \hat e
    """
    now, then = levels[:-1], levels[1:]
    sigma = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
    if (sigma.square() > 1 - then + 1e-12).any():
        raise ValueError(f"noise_level is {eta}, which asks for more noise than the schedule has left: lower it")
    direction = (1 - then - sigma.square()).clamp(min=0).sqrt()
    p_x, p_o, q_x, q_o = clean_and_noise(now, "diffusion", prediction)
    return _table(then.sqrt() * p_x + direction * q_x, then.sqrt() * p_o + direction * q_o, sigma)


def _sde(levels: Tensor, sigma: Tensor) -> SamplerTable:
    r"""Euler-Maruyama step of the SDE that has the flow's marginals, for any ``sigma [T]``.

    .. math:: x' = x - h \left[v + \tfrac{\sigma^2}{2t}(x + (1 - t) v)\right] + \sigma \sqrt h\, \epsilon
    """
    t, h = levels[:-1], -levels.diff()
    drift = sigma.square() / (2 * t)
    return _table(1 - h * drift, -h * (1 + drift * (1 - t)), sigma * h.sqrt(), h)


def _flow_sde(levels: Tensor, a: float) -> SamplerTable:
    r"""Flow-GRPO (arXiv 2505.05470): :math:`\sigma = a\sqrt{t / (1 - t)}`, with the second time of the grid for t = 1
    in the denominator, where it would be infinite.
    """  # noqa: D205
    t = levels[:-1]
    # A grid of one step has no second time inside (0, 1); the middle of the step stands in.
    second = levels[1] if len(t) > 1 else levels[0] / 2
    return _sde(levels, a * (t / (1 - torch.where(t >= 1, second, t))).sqrt())


def _dance_sde(levels: Tensor, eta: float) -> SamplerTable:
    r"""DanceGRPO (arXiv 2505.07818): constant :math:`\sigma = \eta`."""
    return _sde(levels, torch.full_like(levels[:-1], eta))


def _cps(levels: Tensor, a: float) -> SamplerTable:
    r"""Coefficient-preserving sampling (arXiv 2509.05952): the noise of each state stays ``t'`` in total.

    .. math:: \mu = (1 - t')\hat x_0 + t' \cos(a\pi/2)\, \hat e, \qquad S = t' \sin(a\pi/2)

    The step's noise does not shrink with its length, so that many steps do not converge to the data's distribution.
    """
    if a > 1:
        raise ValueError(f"noise_level is {a}, expected at most 1 for cps")
    then, angle = levels[1:], a * math.pi / 2
    p_x, p_o, q_x, q_o = clean_and_noise(levels[:-1], "flow", "velocity")
    kept = then * math.cos(angle)
    return _table((1 - then) * p_x + kept * q_x, (1 - then) * p_o + kept * q_o, then * math.sin(angle), -levels.diff())


def _table(scale: Tensor, gain: Tensor, std: Tensor, step_size: Tensor | None = None) -> SamplerTable:
    return SamplerTable(scale.float(), gain.float(), std.float(), None if step_size is None else step_size.float())


_FLOW: dict[str, Callable[[Tensor, float], SamplerTable]] = {
    "flow_sde": _flow_sde,
    "dance_sde": _dance_sde,
    "cps": _cps,
}
NOISE_LEVELS: dict[str, float] = {"ddim": 1.0, "ode": 0.0, "flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.7}
"""Noise level of each sampler unless one is given: eta of DDIM and DanceGRPO, a of Flow-GRPO and CPS."""
DETERMINISTIC: SamplerName = "ode"


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor, divisor: float = 1.0) -> Tensor:
    r"""Log-density of ``x`` under :math:`N(\mu, S^2 I)`, over ``divisor``.

    .. math:: \frac{1}{divisor} \sum_d \left[ -\frac{(x - \mu)^2}{2 S^2} - \log S - \tfrac12 \log 2\pi \right]

    Args:
        x: ``[N, ...]``; detached here, since it is data: only the mean carries a gradient.
        mean: ``[N, ...]``.
        std: ``[N]``, above 0.
        divisor: 1 for the log-probability; the number of dimensions for the mean over them, the form of which the
            papers quote clip ranges (its "ratio" is the d-th root of the true one).

    Returns:
        ``[N]``.

    Raises:
        ValueError: if a standard deviation is 0: a deterministic step has no density.
    """
    if not (std > 0).all():
        raise ValueError("std is 0 at some step: a deterministic step has no log-probability (noise_level above 0?)")
    squares = (x.detach() - mean).square().flatten(1).sum(1)
    dimensions = mean[0].numel() if len(mean) else 1
    constant = dimensions * (std.log() + 0.5 * math.log(2 * math.pi))
    return -(squares / (2 * std.square()) + constant) / divisor

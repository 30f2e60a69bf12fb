r"""How much there is to learn from a prompt, by the rewards of several answers to it; and drawing prompts by that.

Ye et al. 2024, arXiv 2411.00062 (eva): the gap between the best and the worst answer stands in for the regret of the
policy at a prompt. It is 0 where all answers are as good, be the prompt mastered or impossible; for rewards of 0 and 1
and ``n`` answers that succeed with probability ``p`` it is 1 with probability :math:`1 - p^n - (1 - p)^n`, which is
largest at 1/2. A constant added to all rewards of a prompt changes nothing; the scale of rewards does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .episodes import Numbers


@dataclass(frozen=True)
class Measure:
    """A way to tell how informative a prompt is.

    Attributes:
        of: from the rewards ``[n]`` of one prompt, float64 and finite.
        noise: what independent normal noise of standard deviation ``s`` in the rewards of ``n`` equally good answers
            makes of it on average, ``noise(n, s)``.
        least: answers that it needs; prompts with fewer are not known.
        zero: whether 0 says that there is nothing to learn: such prompts are never chosen.
    """

    of: Callable[[Numbers], float]
    noise: Callable[[int, float], float] = lambda n, s: 0.0
    least: int = 2
    zero: bool = True


@lru_cache
def _normal_spacings(n: int) -> tuple[float, float]:
    """Means of best minus worst, and of best minus second best, of ``n`` standard normal numbers."""
    step = 0.005  # the integrands are smooth, and 0 at both ends
    below = np.array([NormalDist().cdf(step * i) for i in range(-1800, 1801)])
    best_worst = 1.0 - below**n - (1.0 - below) ** n
    best_second = n * below ** (n - 1) * (1.0 - below)
    return float(best_worst.sum() * step), float(best_second.sum() * step)


def _second(rewards: Numbers) -> float:
    ordered = np.sort(rewards)
    return float(ordered[-1] - ordered[-2])


MEASURES: dict[str, Measure] = {
    "gap": Measure(lambda r: float(np.ptp(r)), lambda n, s: s * _normal_spacings(n)[0]),
    "advantage": Measure(lambda r: float(r.max() - r.mean()), lambda n, s: s * _normal_spacings(n)[0] / 2),
    "variance": Measure(lambda r: float(r.var()), lambda n, s: s**2 * (n - 1) / n),
    "second": Measure(_second, lambda n, s: s * _normal_spacings(n)[1]),
    "hardest": Measure(lambda r: -float(r.mean()), least=1, zero=False),
    "uniform": Measure(lambda r: 1.0, least=0, zero=False),
}


def informativeness(rewards: Sequence[Sequence[float]], measure: Measure, noise: Numbers | float = 0.0) -> Numbers:
    """``[P]`` float64, how informative each prompt is; NaN where too little is known of it.

    Args:
        rewards: the rewards of each of ``P`` prompts, any number of them.
        measure: which measure.
        noise: standard deviation of the rewards' noise, one number or ``[P]``. What it alone makes of the measure is
            subtracted, down to 0: a noisy prompt would look informative.
    """
    found = np.full(len(rewards), np.nan)
    for i, (given, std) in enumerate(zip(rewards, np.broadcast_to(noise, len(rewards)), strict=True)):
        values = np.array(given, np.float64)
        if len(values) < measure.least:
            continue
        if measure.zero and not np.ptp(values) > 0:  # exactly 0, whatever rounding makes of a mean
            found[i] = 0.0
            continue
        found[i] = measure.of(values)
        if std > 0:
            found[i] -= measure.noise(len(values), float(std))
            found[i] = max(found[i], 0.0) if measure.zero else found[i]
    return found


def sampling_weights(info: Numbers, *, zero: bool = True, epsilon: float = 1e-3) -> Numbers:
    r"""``[P]`` chances of being chosen that sum to 1, or are all 0 where nothing can be chosen; never NaN.

    .. math:: w_i \propto \frac{I_i - \min_j I_j}{\max_j I_j - \min_j I_j} + \epsilon

    over the prompts that are known. Without ``epsilon`` the least informative prompt had no chance at all, and equal
    ones would divide 0 by 0; with it they have equal chances.

    Args:
        info: ``[P]`` float64, NaN where nothing is known.
        zero: a prompt of informativeness 0 gets a chance of 0.
        epsilon: above 0.
    """
    known = np.isfinite(info)
    weights = np.zeros(len(info))
    if not known.any():
        return weights
    low, high = float(info[known].min()), float(info[known].max())
    width = high - low if high > low else 1.0
    weights[known] = (info[known] - low) / width + epsilon
    if zero:
        weights[info == 0] = 0.0
    return weights / weights.sum() if weights.sum() > 0 else weights


def draw_without_replacement(weights: Numbers, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of up to ``count`` different entries, drawn one after the other by their weights.

    Where fewer weights are above 0, those are all that is drawn: nothing without weight ever is. (By Gumbel noise on
    the logarithms, which gives the same distribution.)

    Args:
        weights: ``[P]`` float64, at least 0.
        count: how many.
        rng: draws ``P`` numbers.
    """
    noise = rng.gumbel(size=len(weights))
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + noise
    return np.argsort(-keys, kind="stable")[: min(count, int((weights > 0).sum()))]

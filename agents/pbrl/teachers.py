r"""Scripted teachers: they compare segments by the true reward, as fallibly as B-Pref's (arXiv 2111.03026).

For segments of ``L`` steps with rewards :math:`r_t`, returns :math:`R = \sum_t r_t` and weighted returns
:math:`G = \sum_t \gamma^{L-1-t} r_t`, the teacher

1. skips if :math:`\max(R_1, R_2) \le \delta_{skip}`, if that threshold is above 0;
2. calls both equal if :math:`|R_1 - R_2| < \delta_{equal}`;
3. else prefers the first with probability :math:`\sigma(\beta (G_1 - G_2))`, or the greater :math:`G` if
   :math:`\beta = \infty`;
4. and says the opposite of that with probability ``eps_mistake``.

The thresholds grow with what the learner can do: :math:`\delta = \epsilon \bar R`, where :math:`\bar R` is the mean
return of training episodes, scaled from their length to the segment's (:func:`average_segment_return`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScriptedTeacher:
    """One who knows the true reward, with B-Pref's five numbers; the default is its oracle.

    Deviations from B-Pref's code: hard choices are ``beta=math.inf`` as in the paper, where the code has -1, so that
    0 is a teacher who guesses; and ``eps_skip`` and ``eps_equal`` always enter the thresholds once, as in the paper,
    where the code multiplies by them twice after the first session of queries.

    Attributes:
        beta: rationality in [0, inf], per unit of return: inf takes the greater (the first of two that are exactly
            equal, as in B-Pref), 0 guesses.
        gamma: in (0, 1]. Below 1 the teacher is myopic: a step weighs ``gamma`` times the one after it.
        eps_mistake: probability in [0, 1] of saying the opposite. What is skipped or called equal stays so.
        eps_skip: at least 0. Pairs are skipped if neither return exceeds this times the average.
        eps_equal: at least 0. Returns that differ by less than this times the average are equal.

    Raises:
        ValueError: for a number outside its range.
    """

    beta: float = math.inf
    gamma: float = 1.0
    eps_mistake: float = 0.0
    eps_skip: float = 0.0
    eps_equal: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta}: must be in [0, inf]; B-Pref's -1, a hard choice, is math.inf here")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}: must be in (0, 1]")
        if not 0 <= self.eps_mistake <= 1:
            raise ValueError(f"eps_mistake={self.eps_mistake}: must be in [0, 1]")
        for name in ("eps_skip", "eps_equal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0, and finite")

    def label(self, first: Tensor, second: Tensor, rng: np.random.Generator, *, average: float | None = None) -> Tensor:
        """Compare pairs of segments.

        Args:
            first: ``[P, L]`` true rewards of the first segment of each pair; 0 at padding.
            second: ``[P, L]`` of the second.
            rng: draws two numbers a pair, whatever the teacher's own numbers are.
            average: :func:`average_segment_return`; needed by teachers who skip or call segments equal. At or below 0
                nothing is skipped or equal.

        Returns:
            ``[P]`` float32: 1 where the first is preferred, 0 the second, 0.5 neither; NaN where the teacher skips.

        Raises:
            ValueError: for shapes that do not match, rewards that are not finite, or a missing average.
        """
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(f"first and second have shapes {tuple(first.shape)} and {tuple(second.shape)}, not [P, L]")
        one, two = (values.double().cpu() for values in (first, second))
        if not bool(torch.isfinite(one + two).all()):
            raise ValueError("first or second holds rewards that are not finite, which nobody can compare")
        if average is None and (self.eps_skip or self.eps_equal):
            raise ValueError("average is None, but eps_skip and eps_equal are shares of it")
        average = average or 0.0
        first_return, second_return = one.sum(1), two.sum(1)
        weights = self.gamma ** torch.arange(one.shape[1] - 1, -1, -1, dtype=torch.float64)
        guess, slip = torch.from_numpy(rng.random((2, len(one))))
        advantage = one @ weights - two @ weights
        prefers_first = advantage >= 0 if math.isinf(self.beta) else guess < torch.sigmoid(self.beta * advantage)
        labels = (prefers_first ^ (slip < self.eps_mistake)).float()
        labels[(first_return - second_return).abs() < self.eps_equal * average] = 0.5
        if (threshold := self.eps_skip * average) > 0:
            labels[torch.maximum(first_return, second_return) <= threshold] = torch.nan
        return labels


# As named and set in B-Pref's experiments.
TEACHERS = {
    "oracle": ScriptedTeacher(),
    "noisy": ScriptedTeacher(beta=1.0),
    "mistake": ScriptedTeacher(eps_mistake=0.1),
    "skip": ScriptedTeacher(eps_skip=0.1),
    "equal": ScriptedTeacher(eps_equal=0.1),
    "myopic": ScriptedTeacher(gamma=0.9),
}


def average_segment_return(returns: Tensor, segment_length: int, episode_length: int) -> float:
    """What B-Pref measures its thresholds by: the mean return of an episode, times its share in a segment.

    Args:
        returns: ``[E]`` true returns of training episodes; B-Pref takes the latest 10.
        segment_length: steps of the segments that are compared.
        episode_length: steps of a whole episode.

    Raises:
        ValueError: without returns, or for lengths below 1.
    """
    if not returns.numel() or segment_length < 1 or episode_length < 1:
        raise ValueError(
            f"returns has {returns.numel()} entries, segment_length={segment_length}, episode_length={episode_length}: "
            "all must be at least 1"
        )
    return float(returns.double().mean()) * segment_length / episode_length

r"""Scripted teachers: who compares segments by their true rewards, with the irrationalities of B-Pref.

B-Pref (arXiv 2111.03026, section 3) prefers the first segment with probability

.. math:: \sigma\big(\beta\,(R^\gamma - R'^\gamma)\big), \qquad R^\gamma = \sum_{t=1}^{L} \gamma^{L-t} r_t,

and then may err, find both equal, or skip the pair. Undisturbed, it is an oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .segments import Segments


class Teacher(Protocol):
    """Who compares segments."""

    def answer(
        self, segments: Segments, rewards: Tensor, rng: np.random.Generator, segment_return: float | None = None
    ) -> Tensor:
        """Compare segment ``2 i`` with segment ``2 i + 1``.

        Args:
            segments: ``2 P`` of them.
            rewards: ``[2 P, L]`` true rewards of their steps, for a teacher who judges by them.
            rng: for what is random in the answers: whoever draws from it alone answers alike after a resume.
            segment_return: what a segment returns on average.

        Returns:
            ``[P]``: 1 the first is preferred, 0 the second, 0.5 both are equal, or between; NaN skipped.
        """


@dataclass(frozen=True, kw_only=True)
class ScriptedTeacher:
    """A teacher who knows the rewards. The defaults are B-Pref's oracle; it names these others, one number each.

    ``beta=1`` is its Stoc, ``eps_mistake=0.1`` its Mistake, ``eps_skip=0.1`` its Skip, ``eps_equal=0.1`` its Equal,
    ``gamma=0.9`` its Myopic.

    What a pair goes through, in the order of the authors' code: it is skipped if neither return is above
    ``eps_skip * segment_return``; the better discounted return is preferred, surely or with Bradley-Terry; a mistake
    turns that round; a pair whose returns differ by less than ``eps_equal * segment_return`` is equal whatever came
    before. Returns for skipping and equality are not discounted.

    Args:
        beta: rationality of Bradley-Terry; below 0 (as in the authors' code), or infinite: the better one is always
            preferred, the first one where both are the same. 0 guesses, as in the paper; the code takes it as -1.
        gamma: discount in [0, 1] towards the past: below 1 later steps count more.
        eps_mistake: probability in [0, 1] of the opposite answer.
        eps_skip: at least 0; share of ``segment_return`` that one of the segments must exceed.
        eps_equal: at least 0; share of ``segment_return`` by which returns must differ.

    Raises:
        ValueError: if a number is outside its range.
    """

    beta: float = -1.0
    gamma: float = 1.0
    eps_mistake: float = 0.0
    eps_skip: float = 0.0
    eps_equal: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.beta):
            raise ValueError("beta=nan: must be a number, below 0 or infinite for a teacher without noise")
        for name in ("gamma", "eps_mistake"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1]")
        for name in ("eps_skip", "eps_equal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0, and finite")

    def answer(
        self, segments: Segments, rewards: Tensor, rng: np.random.Generator, segment_return: float | None = None
    ) -> Tensor:
        return self.label(rewards[0::2], rewards[1::2], rng, segment_return)

    def label(
        self, first: Tensor, second: Tensor, rng: np.random.Generator, segment_return: float | None = None
    ) -> Tensor:
        """Compare pairs.

        Two random numbers are drawn a pair, whatever the teacher: with the same seed teachers differ in their numbers
        only.

        Args:
            first: ``[P, L]`` true rewards of the first segments' steps, 0 at padding.
            second: the same of the second ones.
            rng: draws.
            segment_return: what a segment returns on average, the scale of ``eps_skip`` and ``eps_equal``, which need
                it. B-Pref takes the mean true return of the last ten training episodes, times the segment's over the
                episode's number of steps. Where it is negative no pair is skipped or equal, as in the authors' code.
                Deviation: from the second round of queries on, that code multiplies thresholds by their ``eps`` twice.

        Returns:
            ``[P]`` float32 where ``first`` is: 1 the first is preferred, 0 the second, 0.5 both are equal, NaN skipped.

        Raises:
            ValueError: if shapes differ, a reward is not finite, or ``segment_return`` is missing.
        """
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(
                f"rewards have shapes {tuple(first.shape)}, {tuple(second.shape)}: expected the same [P, L]"
            )
        if not bool(first.isfinite().all() & second.isfinite().all()):
            raise ValueError("rewards are not all finite: leave out segments of simulations that diverged")
        if segment_return is None and (self.eps_skip or self.eps_equal):
            raise ValueError(
                f"segment_return is missing, which eps_skip={self.eps_skip} or eps_equal={self.eps_equal} need"
            )
        scale = segment_return or 0.0
        if not math.isfinite(scale):
            raise ValueError(f"segment_return={scale}: must be finite")
        rewards = torch.stack([first, second]).double().cpu()
        chance, slip = torch.from_numpy(rng.random((2, len(first))))

        weights = self.gamma ** torch.arange(first.shape[1] - 1, -1, -1, dtype=torch.float64)
        valued, other = rewards @ weights
        if 0 <= self.beta < math.inf:
            prefers_first = chance < torch.sigmoid(self.beta * (valued - other))
        else:
            prefers_first = valued >= other
        labels: Tensor = (prefers_first ^ (slip < self.eps_mistake)).float()

        returns = rewards.sum(2)
        labels[(returns[0] - returns[1]).abs() < self.eps_equal * scale] = 0.5
        if self.eps_skip * scale > 0:
            labels[returns.amax(0) <= self.eps_skip * scale] = torch.nan
        return labels.to(first.device)

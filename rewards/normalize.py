"""Normalisation of one reward term, over everything seen so far or within its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .algebra import combine
from .reward import Reward, RewardScores, Text


@dataclass
class Normalize(Reward):
    """``(reward - mean) / (std + epsilon)``.

    ``mode="running"``: mean and population standard deviation of every value scored so far, this batch included
    (Chan's parallel update). ``mode="group"``: mean and sample standard deviation (``n - 1``) of the values of the same
    group, so that terms of different scale weigh alike in a sum (GDPO, which normalises each reward within its group
    before adding). A group is an entry of the column ``group``; without that column, samples with equal prompts are a
    group. A group whose values are all equal, a group of one included, gives exactly 0.

    Samples that failed or to which the reward does not apply are left out of the statistics. The group form needs the
    whole group in one call; an environment that scores an episode as it ends cannot give it that.

    Attributes:
        reward: What is normalised.
        mode: ``"running"`` or ``"group"``.
        epsilon: Added to the standard deviation; keeps noise of that size from becoming a signal.
        update: Whether scoring updates the running statistics; False freezes them, as for an evaluation.
    """

    reward: Reward
    mode: str = "running"
    epsilon: float = field(default=1e-4, kw_only=True)
    update: bool = field(default=True, kw_only=True)
    _count: int = field(default=0, init=False, repr=False, compare=False)
    _mean: float = field(default=0.0, init=False, repr=False, compare=False)
    _squares: float = field(default=0.0, init=False, repr=False, compare=False)  # sum of squared deviations

    parts: ClassVar[tuple[str, ...]] = ("reward",)

    def __post_init__(self) -> None:
        if self.mode not in ("running", "group"):
            raise ValueError(f"mode must be 'running' or 'group', got {self.mode!r}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}")

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = self.reward.score(completions, prompts, **columns)
        if self.mode == "group":
            values = group_z_scores(scores.values, _groups(prompts, columns), self.epsilon)
        else:
            if self.update:
                self._observe(scores.values[scores.scored])
            deviation = np.sqrt(self._squares / max(self._count, 1))
            values = (scores.values - self._mean) / (deviation + self.epsilon)
        return combine([(self.reward, scores)], values, applies=scores.scored)

    def _observe(self, values: NDArray[np.float64]) -> None:
        if not len(values):
            return
        total, shift = self._count + len(values), float(values.mean()) - self._mean
        self._squares += float(((values - values.mean()) ** 2).sum()) + shift**2 * self._count * len(values) / total
        self._mean += shift * len(values) / total
        self._count = total

    def _get_state(self) -> dict[str, Any]:
        if self.mode == "group":
            return {}
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._count = int(state["count"])
        self._mean, self._squares = float(state["mean"]), float(state["squares"])


def _groups(prompts: list[Text] | None, columns: Mapping[str, Any]) -> list[Any]:
    if columns.get("group") is not None:
        return list(columns["group"])
    if prompts is None:
        raise ValueError("normalize(mode='group') needs the column 'group' or prompts, got neither")
    return [prompt if isinstance(prompt, str) else repr(prompt) for prompt in prompts]


def group_z_scores(values: NDArray[np.float64], groups: Sequence[Any], epsilon: float = 1e-4) -> NDArray[np.float64]:
    """Returns ``(value - group mean) / (group std + epsilon)``.

    Args:
        values: ``[n]``; NaN entries belong to no group and stay NaN.
        groups: ``[n]`` hashable labels.
        epsilon: Added to the sample standard deviation.
    """
    members: dict[Any, list[int]] = {}
    for i, label in enumerate(groups):
        if not np.isnan(values[i]):
            members.setdefault(label, []).append(i)
    result = np.full(len(values), np.nan)
    for rows in members.values():
        group = values[rows]
        # Rounding in the mean would turn equal values into tiny advantages, hence the exact test.
        equal = group.max() == group.min()
        result[rows] = 0.0 if equal else (group - group.mean()) / (group.std(ddof=1) + epsilon)
    return result

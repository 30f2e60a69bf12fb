"""The algebra of rewards: sums, products, gates and transforms, each itself a reward with a JSON form.

Two rules hold everywhere. A *failure* spreads: where a part that is used failed, the result failed, with that part's
name and reason. A part that *does not apply* is left out of a sum; every other operation on it does not apply either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .reward import Reward, RewardScores, Text


def combine(
    parts: Sequence[tuple[Reward, RewardScores]],
    values: NDArray[np.float64],
    *,
    applies: NDArray[np.bool_],
    used: Sequence[NDArray[np.bool_]] | None = None,
) -> RewardScores:
    """Joins the scores of the parts of an operation.

    Args:
        parts: The parts and their scores.
        values: ``[n]``, the result where it exists; read only where it applies and no used part failed.
        applies: ``[n]``, where the operation applies.
        used: For each part ``[n]``, where its failure counts; None: everywhere.
    """
    terms: dict[str, NDArray[np.float64]] = {}
    reasons: list[str | None] = [None] * len(values)
    for index, (part, scores) in enumerate(parts):
        terms.update(scores.terms)
        counts = scores.failed if used is None else scores.failed & used[index]
        for i in np.flatnonzero(counts):
            label = f"{part.name}: " if part.name else ""
            reasons[i] = reasons[i] or f"{label}{scores.reasons[i]}"
    for i in np.flatnonzero(applies & ~np.isfinite(values)):
        reasons[i] = reasons[i] or f"the arithmetic overflowed to {values[i]}"
    return RewardScores(np.where(applies, values, np.nan), terms, reasons)


def check_names(parts: Sequence[Reward]) -> None:
    """Raises a ValueError if two different rewards would be logged under one name."""
    known: dict[str, Reward] = {}
    for reward in (node for part in parts for node in part.walk()):
        if reward.name is not None and known.setdefault(reward.name, reward) != reward:
            raise ValueError(
                f"two different terms are both called {reward.name!r}; rename one: reward.named({reward.name + '_2'!r})"
            )


def linear(*parts: tuple[Reward | float, float]) -> Sum:
    """Returns the sum of ``weight * part`` with nested unnamed sums written out, so that ``+`` is associative."""
    terms: list[Reward] = []
    weights: list[float] = []
    constant = 0.0
    for part, weight in parts:
        if isinstance(part, Sum) and part.name is None:
            terms.extend(part.terms)
            weights.extend(weight * inner for inner in part.weights)
            constant += weight * part.constant
        elif isinstance(part, Reward):
            terms.append(part)
            weights.append(weight)
        else:
            constant += weight * float(part)
    return Sum(tuple(terms), tuple(weights), constant)


def product(*parts: Reward) -> Product:
    """Returns the product with nested unnamed products written out, so that ``*`` is associative."""
    factors: list[Reward] = []
    for part in parts:
        factors.extend(part.factors if isinstance(part, Product) and part.name is None else [part])
    return Product(tuple(factors))


def gate(condition: Reward, reward: Reward, threshold: float = 0.0, otherwise: float = 0.0) -> Gate:
    """Pays ``reward`` where ``condition > threshold``; see :class:`Gate`."""
    return Gate(condition, reward, threshold, otherwise)


def schedule(reward: Reward, points: Sequence[Sequence[float]]) -> Schedule:
    """Multiplies by a weight that changes with the number of episodes; see :class:`Schedule`."""
    return reward.schedule(points)


@dataclass
class Sum(Reward):
    """``constant + sum_k weights[k] * terms[k]`` over the terms that apply; does not apply where none does.

    A part that fails makes the sum fail whatever its weight, 0 included.

    Attributes:
        terms: At least one reward.
        weights: One finite number a term.
        constant: Added wherever at least one term applies.
    """

    terms: tuple[Reward, ...]
    weights: tuple[float, ...]
    constant: float = 0.0

    parts: ClassVar[tuple[str, ...]] = ("terms",)

    def __post_init__(self) -> None:
        self.terms, self.weights = tuple(self.terms), tuple(float(weight) for weight in self.weights)
        if not self.terms or len(self.terms) != len(self.weights):
            raise ValueError(f"a sum needs one weight a term, got {len(self.weights)} weights, {len(self.terms)} terms")
        if not np.isfinite([*self.weights, self.constant]).all():
            raise ValueError(f"weights and constant must be finite, got {self.weights} and {self.constant}")
        check_names(self.terms)

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = [term.score(completions, prompts, **columns) for term in self.terms]
        total = np.full(len(completions), float(self.constant))
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, score in zip(self.weights, scores, strict=True):
                total += weight * np.where(score.scored, score.values, 0.0)
        applies = np.any([score.scored for score in scores], axis=0)
        return combine(list(zip(self.terms, scores, strict=True)), total, applies=applies)


@dataclass
class Product(Reward):
    """The product of rewards; does not apply where any factor does not.

    Attributes:
        factors: At least one reward.
    """

    factors: tuple[Reward, ...]

    parts: ClassVar[tuple[str, ...]] = ("factors",)

    def __post_init__(self) -> None:
        self.factors = tuple(self.factors)
        if not self.factors:
            raise ValueError("a product needs at least one factor, got none")
        check_names(self.factors)

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = [factor.score(completions, prompts, **columns) for factor in self.factors]
        applies = np.all([score.scored for score in scores], axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.prod([score.values for score in scores], axis=0)
        return combine(list(zip(self.factors, scores, strict=True)), values, applies=applies)


@dataclass
class Gate(Reward):
    """``reward`` where ``condition > threshold``, else ``otherwise``; does not apply where the condition does not.

    Both are computed for every sample and logged, but a reward behind a closed gate may fail without consequence.

    Attributes:
        condition: The reward that opens the gate.
        reward: What is paid where the gate is open.
        threshold: The gate opens strictly above it.
        otherwise: What is paid where the gate is closed.
    """

    condition: Reward
    reward: Reward
    threshold: float = 0.0
    otherwise: float = 0.0

    parts: ClassVar[tuple[str, ...]] = ("condition", "reward")

    def __post_init__(self) -> None:
        if not np.isfinite([self.threshold, self.otherwise]).all():
            raise ValueError(f"threshold and otherwise must be finite, got {self.threshold} and {self.otherwise}")
        check_names([self.condition, self.reward])

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        condition = self.condition.score(completions, prompts, **columns)
        reward = self.reward.score(completions, prompts, **columns)
        is_open = np.nan_to_num(condition.values, nan=-np.inf) > self.threshold
        return combine(
            [(self.condition, condition), (self.reward, reward)],
            np.where(is_open, reward.values, self.otherwise),
            applies=condition.scored & (reward.scored | ~is_open),
            used=[np.ones_like(is_open), is_open],
        )


@dataclass
class Clip(Reward):
    """``min(max(reward, low), high)``.

    Attributes:
        reward: What is limited.
        low: Smallest value.
        high: Largest value, at least ``low``.
    """

    reward: Reward
    low: float
    high: float

    parts: ClassVar[tuple[str, ...]] = ("reward",)

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high, got low={self.low}, high={self.high}")

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = self.reward.score(completions, prompts, **columns)
        values = np.clip(scores.values, self.low, self.high)
        return combine([(self.reward, scores)], values, applies=scores.scored)


@dataclass
class LogSigmoid(Reward):
    """``log sigmoid(reward - reference)`` (Wang et al. 2024, arXiv 2402.00742, equation of the reward transform).

    On the Bradley-Terry scale it is the log-probability that the completion beats the reference, so that a sum of such
    terms is the log-probability of beating all of them: no term can buy out another. At the reference it is ``-log 2``.

    Deviation: the paper computes the reference as the 85th percentile of rewards of the base policy on the prompt;
    here the caller gives it, as a number or as a column.

    Attributes:
        reward: What is transformed.
        reference: A number, or the name of the column that holds one a sample (None there: does not apply).
    """

    reward: Reward
    reference: float | str = 0.0

    parts: ClassVar[tuple[str, ...]] = ("reward",)

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str) and not np.isfinite(self.reference):
            raise ValueError(f"reference must be finite or the name of a column, got {self.reference}")

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = self.reward.score(completions, prompts, **columns)
        reference: Any = self.reference
        if isinstance(reference, str):
            if reference not in columns:
                given = ", ".join(sorted(columns)) or "none"
                raise ValueError(f"LogSigmoid reads column {reference!r}; columns given: {given}")
            reference = np.array(columns[reference], dtype=np.float64)
        margin = scores.values - reference
        # log sigmoid(x) = -log(1 + exp(-x)), which logaddexp computes without overflow.
        with np.errstate(invalid="ignore"):  # NaN where it does not apply
            values = -np.logaddexp(0.0, -margin)
        return combine([(self.reward, scores)], values, applies=~np.isnan(margin))


@dataclass
class Schedule(Reward):
    """``weight(episodes) * reward``, where the weight is piecewise linear and constant outside its points.

    Attributes:
        reward: What is weighted.
        points: ``((episodes, weight), ...)`` with strictly increasing episodes.
    """

    reward: Reward
    points: tuple[tuple[float, float], ...]
    _progress: int = field(default=0, init=False, repr=False, compare=False)

    parts: ClassVar[tuple[str, ...]] = ("reward",)

    def __post_init__(self) -> None:
        self.points = tuple((float(x), float(y)) for x, y in self.points)
        steps = [x for x, _ in self.points]
        if not steps or not np.isfinite(self.points).all() or (np.diff(steps) <= 0).any():
            raise ValueError(f"points must be (episodes, weight) with increasing episodes, got {self.points}")

    @property
    def weight(self) -> float:
        """The weight now."""
        steps, weights = zip(*self.points, strict=True)
        return float(np.interp(self._progress, steps, weights))

    def set_progress(self, step: int) -> None:
        """Sets the number of episodes so far."""
        self._progress = int(step)
        super().set_progress(step)

    def _get_state(self) -> dict[str, Any]:
        return {"progress": self._progress}

    def _set_state(self, state: Any) -> None:
        self._progress = int(state["progress"])

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        scores = self.reward.score(completions, prompts, **columns)
        return combine([(self.reward, scores)], self.weight * scores.values, applies=scores.scored)

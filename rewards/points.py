"""Rewards on points: whether the first is in a box, how far off it is, its form, and adaptive exploration (AEPO)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..answers import parse_points
from .answer import AnswerReward, vectors_of

Points = NDArray[np.float64]


def collinear(points: ArrayLike, tolerance: float = 1e-6) -> bool:
    r"""Whether any three of the points are on one line.

    .. math:: |(b - a) \times (c - a)| \le \mathrm{tolerance}

    which is twice the area of their triangle, so that two equal points are on one line with any third. Two points never
    are. Takes time in proportion to :math:`n^3`.

    Args:
        points: ``[n, 2]``, in [0, 1] for the default tolerance: it is half of a pixel's area on a screen of 1000 x 1000
            pixels, and more than single precision leaves of a line.
        tolerance: See above, at least 0.
    """
    array = vectors_of("points", points, 2)
    for i in range(len(array) - 2):
        x, y = (array[i + 1 :] - array[i]).T
        products = np.outer(x, y)
        if np.triu(np.isclose(products, products.T, rtol=1e-9, atol=tolerance), 1).any():
            return True
    return False


def adaptive_exploration_reward(num_points: int, rank: int | None) -> float:
    r"""Returns AEPO's adaptive exploration reward, :math:`\eta = U / C`, in ``[-1, 1]``.

    The utility ``U`` is 1 for a hit, -1 for a miss; the cost ``C`` is the geometric mean of the ``N`` points that were
    tried and the ``k`` that had to be checked: :math:`1 / \sqrt{N k}` where the first hit has rank ``k``,
    :math:`-1 / N` where none hits, since then all are checked.

    Args:
        num_points: ``N``, at least 1.
        rank: ``k``, from 1 to ``N``; None: a miss.

    Raises:
        ValueError: if either is out of its range.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if rank is not None and not 1 <= rank <= num_points:
        raise ValueError(f"rank must be from 1 to num_points={num_points} or None, got {rank}")
    return -1.0 / num_points if rank is None else 1.0 / math.sqrt(num_points * rank)


def points_of(answer: NDArray[Any] | str, row: Mapping[str, Any]) -> Points:
    """Returns the points ``[n, 2]`` of an answer, none of one that is malformed."""
    if not isinstance(answer, str):
        return vectors_of("points", answer, 2)
    points = parse_points(answer, row.get("image_size"))
    return np.empty((0, 2)) if points is None else points


def corners_of(box: Any) -> tuple[Points, Points]:
    """Returns the upper left and the lower right corner, each ``[2]``, of a box ``x0, y0, x1, y1``."""
    corners = vectors_of("box", [box], 4).reshape(2, 2)
    if (corners[0] > corners[1]).any():
        raise ValueError(f"box must be x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {np.asarray(box).tolist()}")
    return corners[0], corners[1]


def inside(points: Points, box: Any) -> NDArray[np.bool_]:
    """Returns ``[n]``, which of the points ``[n, 2]`` are in a box ``x0, y0, x1, y1``, edges included."""
    low, high = corners_of(box)
    within: NDArray[np.bool_] = np.all((low <= points) & (points <= high), axis=1)
    return within


def well_formed(points: Points) -> bool:
    """Whether there is a point, and all of them are in the unit square."""
    return len(points) > 0 and bool(inside(points, (0.0, 0.0, 1.0, 1.0)).all())


@dataclass
class PointReward(AnswerReward):
    """Base of rewards on points.

    Completions are arrays ``[n, 2]`` of points in [0, 1], or texts that :func:`aligngym.answers.parse_points` reads.
    No points, ``n = 0``, are a malformed answer. Columns:

    * ``box``: ``[x0, y0, x1, y1]`` in [0, 1], a sample; edges are part of it.
    * ``image_size``: ``[width, height]`` in pixels, a sample, where texts give pixels; without it they give numbers in
      [0, 1].
    """

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of boxes."""
        return ("box",)


@dataclass
class PointInBox(PointReward):
    """1 where the *first* point is in the box, else 0; a malformed answer is a wrong one."""

    name: str | None = field(default="point_in_box", kw_only=True)

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        return float(inside(points_of(answer, row)[:1], row["box"]).any()), {}


@dataclass
class PointDistance(PointReward):
    r"""Minus the Euclidean distance from the *first* point to the box, in :math:`[-\sqrt 2, 0]`; 0 inside.

    A malformed answer has :math:`-\sqrt 2`, the largest distance there is in the unit square; a point outside of the
    square has no more.
    """

    name: str | None = field(default="point_distance", kw_only=True)

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        (low, high), points = corners_of(row["box"]), points_of(answer, row)[:1]
        gaps = np.maximum(low - points, points - high).clip(0)
        return -min([math.sqrt(2), *(math.hypot(*gap) for gap in gaps)]), {}


@dataclass
class PointFormat(PointReward):
    """1 where there is at least one point, at most ``most`` of them, and all are in the unit square, else 0.

    Attributes:
        most: At least 1; None: no limit.
    """

    most: int | None = None
    name: str | None = field(default="point_format", kw_only=True)

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1 or None, got {self.most}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns nothing: the form does not depend on the box."""
        return ()

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        points = points_of(answer, row)
        return float(well_formed(points) and len(points) <= (self.most or math.inf)), {}


@dataclass
class AdaptiveExploration(PointReward):
    r"""AEPO's reward of ``N`` candidate points, of which the one of rank ``k`` is the first in the box.

    .. math:: -1 \text{ if malformed or any three points are collinear, else } \mathrm{format\_bonus} + \eta(N, k)

    with :math:`\eta` of :func:`adaptive_exploration_reward`; the penalty is paid instead of the rest, not added to it.
    In ``[-1, 2]``. ``N`` misses have :math:`1 - 1/N`, more than one wrong point: it is the hits that keep ``N`` small.

    Terms: ``accuracy`` (1 where the first point is in the box), ``any_hit`` (1 where some point is), ``num_points``,
    ``collinear`` and ``well_formed`` (0 or 1).

    InfiGUI-G1, Liu et al. 2025, arXiv 2508.05731.

    Deviations: an answer without points is malformed and has -1; in the paper's code it has 0, as much as one wrong
    point. Malformed are also a point outside of the image, and more points than ``most``, since the time that three on
    a line are looked for grows with the cube of their number.

    Attributes:
        format_bonus: What a well-formed answer has in addition, finite.
        collinear_penalty: Whether three points on a line have -1. Elements in one row of a toolbar are truly on one.
        most: The most points of a well-formed answer, at least 1.
    """

    format_bonus: float = 1.0
    collinear_penalty: bool = True
    most: int = 100
    name: str | None = field(default="adaptive_exploration", kw_only=True)

    def __post_init__(self) -> None:
        if not math.isfinite(self.format_bonus):
            raise ValueError(f"format_bonus must be finite, got {self.format_bonus}")
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        points = points_of(answer, row)
        hits = inside(points, row["box"])
        formed = well_formed(points) and len(points) <= self.most
        on_a_line = formed and collinear(points)
        value = -1.0
        if formed and not (on_a_line and self.collinear_penalty):
            rank = int(hits.argmax()) + 1 if hits.any() else None
            value = self.format_bonus + adaptive_exploration_reward(len(points), rank)
        return value, {
            "accuracy": float(hits[:1].any()),
            "any_hit": float(hits.any()),
            "num_points": float(len(points)),
            "collinear": float(on_a_line),
            "well_formed": float(formed),
        }

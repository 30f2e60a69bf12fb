"""The reward of detected boxes by criteria that tighten: format, precision and recall (Vision-R1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..answers import parse_boxes
from .answer import AnswerReward, vectors_of
from .image import optional


class Criteria(NamedTuple):
    """Thresholds: of quality and recall ``(low, high)`` for :func:`differentiate`, and of what counts as found."""

    quality: tuple[float, float]
    match: float
    recall: tuple[float, float]


CRITERIA = {
    "loose": Criteria((0.5, 0.75), 0.5, (0.5, 0.75)),
    "strict": Criteria((0.75, 0.9), 0.75, (0.5, 0.75)),
    "raw": Criteria((0.0, 1.0), 0.5, (0.0, 1.0)),
}


def giou(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    r"""Returns the generalised intersection over union of every pair, in ``[-1, 1]``; 1 for equal boxes.

    .. math:: \frac{|A \cap B|}{|A \cup B|} - \frac{|H| - |A \cup B|}{|H|}

    where ``H`` is the smallest box around both (Rezatofighi et al. 2019, arXiv 1902.09630).

    Args:
        boxes: ``[n, 4]``, each ``x0, y0, x1, y1``.
        others: ``[m, 4]``.

    Returns:
        ``[n, m]``.

    Raises:
        ValueError: if a box has no area.
    """
    a, b = (vectors_of("boxes", array, 4) for array in (boxes, others))
    for array in (a, b):
        if not _has_area(array).all():
            raise ValueError(f"boxes must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {array.tolist()}")
    a = a[:, None]
    shared = (np.minimum(a[..., 2:], b[:, 2:]) - np.maximum(a[..., :2], b[:, :2])).clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - shared
    hull = (np.maximum(a[..., 2:], b[:, 2:]) - np.minimum(a[..., :2], b[:, :2])).prod(-1)
    return np.asarray(shared / union - (hull - union) / hull)


def differentiate(x: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    """Returns 0 where ``x < low``, 1 where ``x > high``, else ``x`` itself, at both thresholds too."""
    x = np.asarray(x, np.float64)
    return np.where(x < low, 0.0, np.where(x > high, 1.0, x))


def criterion_rewards(
    boxes: NDArray[np.float64],
    right: NDArray[np.float64],
    same_label: NDArray[np.bool_] | None = None,
    criteria: Criteria = CRITERIA["loose"],
    *,
    true_precision: bool = False,
) -> tuple[float, float]:
    r"""Returns precision and recall, each in ``[0, 1]``.

    Boxes and right boxes are matched one to one at the least total of L1 distance - [same label] - GIoU. Of the GIoU
    ``q`` of the matched pairs, with :math:`f` of :func:`differentiate`:

    .. math:: \mathrm{precision} = \overline{f(q; \mathrm{quality})}, \qquad
        \mathrm{recall} = f(\textstyle\sum f(q; \mathrm{match}, \mathrm{match}) / M; \mathrm{recall})

    There are as many pairs as the fewer of both, so boxes beyond ``M`` cost no precision. Nor does a wrong label, as in
    the paper's code: labels only bear on which box a box is matched with.

    Args:
        boxes: ``[n, 4]`` of the answer, all with an area, normalised to [0, 1] so that L1 does not outweigh the rest.
        right: ``[M, 4]``, likewise.
        same_label: ``[n, M]``; None: labels do not count.
        criteria: Thresholds.
        true_precision: The sum of quality is divided by ``n``, so that superfluous boxes cost.

    Returns:
        Both 1 where ``n`` and ``M`` are 0, both 0 where one of them is.

    Raises:
        ValueError: if a box has no area.
    """
    if not len(boxes) or not len(right):
        return (float(len(boxes) == len(right)),) * 2
    quality = giou(boxes, right)
    cost = np.abs(boxes[:, None] - right).sum(-1) - quality - (0.0 if same_label is None else same_label)
    matched = quality[import_module("scipy.optimize").linear_sum_assignment(cost)]
    precision = differentiate(matched, *criteria.quality).sum() / (len(boxes) if true_precision else len(matched))
    found = differentiate(matched, criteria.match, criteria.match).sum()
    return float(precision), float(differentiate(found / len(right), *criteria.recall))


@dataclass
class VisionR1(AnswerReward):
    """Format + precision + recall of detected boxes, in ``[0, 3]``, by thresholds that may tighten during training.

    Completions are texts that :func:`aligngym.answers.parse_boxes` reads, or arrays ``[n, 4]`` of boxes in [0, 1].
    Precision and recall are those of :func:`criterion_rewards`; format is 1 for a well-formed answer of at least one
    box, else 0. Where nothing is to be found it is reversed: an answer without boxes has 3, any other 0. Columns:

    * ``boxes``: the right ones, a list of ``[x0, y0, x1, y1]`` in [0, 1], which may be empty, a sample.
    * ``labels``: as many labels a sample (optional); letter case and white space at both ends do not count.
    * ``image_size``: ``[width, height]`` in pixels, a sample, where texts give pixels.

    Terms: ``precision``, ``recall``, ``format``. Where the stage switches, rewards drop: reset running statistics.

    Vision-R1, Zhan et al. 2025, arXiv 2503.18013.

    Deviations from the paper's code: L1 is of normalised coordinates; there it is of pixels and outweighs GIoU and
    label. A malformed text has no boxes; there, items that can be read count. An empty list has the format 0 where
    there are objects and 1 where there are none; there, the reverse. The switch is after episodes, there after 1,500
    steps, and its released run has no stages at all: that is ``"raw"``.

    Attributes:
        stage: ``"loose"``: quality counts from 0.5 and is full above 0.75, found is above 0.5. ``"strict"``: from 0.75
            and above 0.9, above 0.75. ``"progressive"``: loose, and strict from ``switch_at`` on. ``"raw"``: quality
            and recall as they are, found is above 0.5.
        switch_at: Episodes, at least 0.
        true_precision: Whether boxes beyond the right number cost precision; in the paper's code they cost nothing.
    """

    stage: str = "progressive"
    switch_at: int = 1500
    true_precision: bool = False
    name: str | None = field(default="vision_r1", kw_only=True)
    _progress: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.stage not in (allowed := (*CRITERIA, "progressive")):
            raise ValueError(f"stage must be one of {', '.join(map(repr, allowed))}, got {self.stage!r}")
        if self.switch_at < 0:
            raise ValueError(f"switch_at must be at least 0, got {self.switch_at}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of right boxes."""
        return ("boxes",)

    def load(self) -> None:
        """Imports scipy."""
        optional("scipy.optimize", self)

    def set_progress(self, step: int) -> None:
        """Sets the number of episodes so far."""
        self._progress = int(step)

    def _get_state(self) -> dict[str, Any]:
        return {"progress": self._progress}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._progress = int(state["progress"])

    @property
    def criteria(self) -> Criteria:
        """The thresholds now."""
        late = "strict" if self._progress >= self.switch_at else "loose"
        return CRITERIA[late if self.stage == "progressive" else self.stage]

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        right = vectors_of("boxes", row["boxes"] if len(row["boxes"]) else np.empty((0, 4)), 4)
        labels = row.get("labels")
        if labels is not None and len(labels) != len(right):
            raise ValueError(f"labels has {len(labels)} entries, but there are {len(right)} boxes")
        boxes, given = _read(answer, row)
        formed = len(boxes) > 0
        # Boxes without an area are left out, as in the paper's code; but where there is none to find, each is too many.
        whole = _has_area(boxes) | (len(right) == 0)
        same_label = None
        if labels is not None and given is not None:
            same_label = np.equal.outer(_plain(given), _plain(labels))[whole]
        precision, recall = criterion_rewards(
            boxes[whole], right, same_label, self.criteria, true_precision=self.true_precision
        )
        terms = {"precision": precision, "recall": recall, "format": float(formed == (len(right) > 0))}
        return sum(terms.values()), terms


def _read(answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[NDArray[np.float64], tuple[str, ...] | None]:
    """The boxes of an answer, none of a malformed one, and their labels, None for an array."""
    if not isinstance(answer, str):
        return vectors_of("boxes", answer, 4), None
    found = parse_boxes(answer, row.get("image_size"))
    return (np.empty((0, 4)), ()) if found is None else (found.boxes, found.labels)


def _has_area(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = np.all(boxes[:, :2] < boxes[:, 2:], axis=1)
    return whole


def _plain(labels: Any) -> NDArray[np.object_]:
    return np.array([str(label).strip().casefold() for label in labels], dtype=object)

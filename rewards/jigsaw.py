"""The reward of puzzles: pieces were shown in mixed order, and the answer says where each belongs (Visual Jigsaw)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..answers import parse_order
from .answer import AnswerReward

LONG_WORDS = 7
"""How many words make a line long."""

MOST_REPEATS = 3
"""How often a long line may stand in a row."""


def inverse_permutation(shown: ArrayLike) -> NDArray[np.int64]:
    """Returns the right answer of a puzzle: entry ``i`` is the slot, from 1, in which piece ``i + 1`` is shown.

    Args:
        shown: ``[K]``, the piece, from 1, that is shown in each slot.

    Returns:
        ``[K]``.

    Raises:
        ValueError: if ``shown`` is no permutation of 1 to ``K``.
    """
    return np.argsort(_permutation("shown", shown)) + 1


@dataclass
class Jigsaw(AnswerReward):
    r"""Visual Jigsaw's reward of an order of ``K`` pieces: format, exact or partial accuracy, repetition.

    .. math:: \mathrm{format\_bonus} + a - \mathrm{repetition\_penalty} \cdot [\text{a long line is repeated}]

    and 0 if malformed, where :math:`a` is 1 for the right order, and for any other permutation of more than four pieces
    ``credit`` times the fraction of its places that are right. Well-formed are ``K`` integers, each from 1 to ``K``;
    where two are equal, :math:`a` is 0. A line of at least 7 words is repeated if it stands more than 3 times in a row,
    which it can in texts only. By default in ``[-0.3, 1.2]``.

    Completions are arrays or lists of ``K`` integers, or texts that :func:`aligngym.answers.parse_order` reads. Column
    ``order``: the right answer, a permutation of 1 to ``K``, a sample. It is the *inverse* of the order in which pieces
    were shown (:func:`inverse_permutation`); both agree where pieces only change places in pairs.

    Terms: ``exact`` (0 or 1), ``fraction`` (of places that are right, 0 if malformed) and ``format`` (0 or 1).

    Visual Jigsaw, Wu et al. 2025, arXiv 2509.25190.

    Deviations: in the paper's code the form is that of tags around any text, and partial credit is for answers with
    ``K`` different entries, so that 1, ..., 8, 99 has some, and so have longer lists.

    Attributes:
        partial: Whether an order that is not the right one has credit.
        format_bonus: What a well-formed answer has in addition, finite.
        credit: What all places together are worth short of the right order, finite.
        repetition_penalty: See above, finite.
    """

    partial: bool = True
    format_bonus: float = 0.2
    credit: float = 0.2
    repetition_penalty: float = 0.5
    name: str | None = field(default="jigsaw", kw_only=True)

    def __post_init__(self) -> None:
        for key in ("format_bonus", "credit", "repetition_penalty"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be finite, got {getattr(self, key)}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of right answers."""
        return ("order",)

    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer."""
        order = _permutation("order", row["order"])
        given = parse_order(answer) if isinstance(answer, str) else _integers(answer)
        if given is None or len(given) != len(order) or not all(1 <= n <= len(order) for n in given):
            return 0.0, {"exact": 0.0, "fraction": 0.0, "format": 0.0}
        fraction = float(np.mean(given == order))
        exact = float(fraction == 1)
        credit = self.credit * fraction if self.partial and len(order) > 4 and len({*given}) == len(order) else 0.0
        penalty = self.repetition_penalty if isinstance(answer, str) and repeats_a_long_line(answer) else 0.0
        value = self.format_bonus + (exact or credit) - penalty
        return value, {"exact": exact, "fraction": fraction, "format": 1.0}


def repeats_a_long_line(text: str) -> bool:
    """Whether a line of at least ``LONG_WORDS`` words stands more than ``MOST_REPEATS`` times in a row.

    Letter case, empty lines and white space at both ends do not count.
    """
    lines = (line for line in map(str.strip, text.lower().splitlines()) if line)
    runs = ((line, sum(1 for _ in run)) for line, run in groupby(lines))
    return any(count > MOST_REPEATS and len(line.split()) >= LONG_WORDS for line, count in runs)


def _permutation(name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or not np.array_equal(np.sort(array), np.arange(1, len(array) + 1)):
        raise ValueError(f"{name} must be a permutation of 1 to K, got {array.tolist()}")
    return array.astype(np.int64)


def _integers(answer: NDArray[Any]) -> list[int]:
    if answer.dtype.kind not in "iu" or answer.ndim != 1:
        raise TypeError(f"an order must be integers [K], got {answer.dtype} {list(answer.shape)}")
    return [int(number) for number in answer]

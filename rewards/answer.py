"""What rewards on answers have in common: an answer is an array, or a text in which one is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reward import Completion, Reward, RewardScores, Text, reason_of, row_of, text_of


def answer_of(completion: Any) -> NDArray[Any] | str:
    """Returns a completion that is an array or a list of numbers as an array, any other as text.

    Raises:
        TypeError: if it is neither numbers nor a text.
    """
    if isinstance(completion, list | tuple) and not all(isinstance(entry, Mapping) for entry in completion):
        completion = np.asarray(completion)
    return completion if isinstance(completion, np.ndarray) else text_of(completion)


def vectors_of(name: str, value: Any, length: int) -> NDArray[np.float64]:
    """Returns an array ``[n, length]`` in double precision.

    Raises:
        TypeError: if it is no array of numbers of this shape.
        ValueError: if one is not finite.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != length:
        raise TypeError(f"{name} must be numbers [n, {length}], got {array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(np.float64)


@dataclass
class AnswerReward(Reward):
    """Base of rewards on answers; a subclass is a dataclass and defines :meth:`answer`.

    An answer that is malformed is a wrong answer and has a score. A completion that is neither numbers nor a text, or
    numbers of another shape, and a right answer that makes no sense, fail their sample. The reward does not apply
    where a column that it needs holds None.
    """

    def required_columns(self) -> tuple[str, ...]:
        """Returns the columns without which the reward cannot be computed."""
        return ()

    @abstractmethod
    def answer(self, answer: NDArray[Any] | str, row: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """Scores one answer. An exception marks the sample as failed.

        Args:
            answer: An array, or a text.
            row: Its columns.

        Returns:
            The value, and the terms by name.
        """

    def _score(
        self, completions: list[Completion], prompts: list[Text] | None, columns: dict[str, Any]
    ) -> RewardScores:
        for column in self.required_columns():
            if column not in columns:
                given = ", ".join(sorted(columns)) or "none"
                raise ValueError(f"{type(self).__name__} reads column {column!r}; columns given: {given}")
        self.load()  # a missing library is an error of the set-up, not of the samples
        scores = RewardScores(np.full(len(completions), np.nan))
        for i, completion in enumerate(completions):
            row = row_of(columns, i)
            if any(row[column] is None for column in self.required_columns()):
                continue
            try:
                scores.values[i], terms = self.answer(answer_of(completion), row)
            except Exception as error:  # whatever a reward raises must cost one sample, not the run
                scores.reasons[i] = reason_of(error)
                continue
            for name, value in terms.items():
                scores.terms.setdefault(name, np.full(len(completions), np.nan))[i] = value
        return scores

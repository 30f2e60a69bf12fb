"""What a teacher is: it designs the rewards of steps, sees finished episodes, and may design anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...tabular import Array

States = NDArray[Any]
Probabilities = Callable[[States], Array]
"""A policy as teachers see it: probabilities ``[n, A]`` of the actions in ``n`` states."""


class Teacher:
    """A design of rewards. A subclass says what a step is paid, and what it learns from episodes, if anything.

    Attributes:
        mode: whether the design replaces the true reward or is added to it.
    """

    mode: Literal["replace", "add"] = "replace"

    def __call__(self, state: Any, action: int, next_state: Any, terminated: bool) -> float:
        """The designed reward of a step, which the teacher may count.

        Args:
            state: in which the action was taken.
            action: that was taken.
            next_state: to which it led.
            terminated: whether that ended the episode for good.
        """
        raise NotImplementedError

    def record(self, states: States, actions: NDArray[np.int64], rewards: Array) -> None:
        """See a finished episode.

        Args:
            states: ``[T, ...]`` in which actions were taken.
            actions: ``[T]``.
            rewards: ``[T]``, true ones.
        """

    def update(self, policy: Probabilities) -> None:
        """Design anew, for the learner as it is."""

    def get_state(self) -> dict[str, Any]:
        """All that the next designs depend on, of JSON's types."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`, in a teacher made with the same arguments."""


class TableTeacher(Teacher):
    """Rewards in a table; by themselves they stay as they are.

    Args:
        table: ``[S, A]``.
        mode: whether they replace the true reward or are added to it.
    """

    def __init__(self, table: Array, mode: Literal["replace", "add"] = "replace") -> None:
        self.table, self.mode = np.array(table, np.float64), mode

    def __call__(self, state: Any, action: int, next_state: Any, terminated: bool) -> float:
        return float(self.table[state, action])

    def get_state(self) -> dict[str, Any]:
        return {"table": self.table.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.table = np.array(state["table"])


class Episodes:
    """The last finished episodes, with what followed each of their steps.

    Args:
        size: how many, at least 1.
        gamma: discount of returns, in [0, 1].

    Raises:
        ValueError: for another size or discount.
    """

    def __init__(self, size: int, gamma: float) -> None:
        if size < 1:
            raise ValueError(f"buffer={size}: must be at least 1")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma}: must be in [0, 1]")
        self.gamma = gamma
        self.kept: deque[tuple[States, NDArray[np.int64], Array]] = deque(maxlen=size)

    def add(self, states: States, actions: NDArray[np.int64], rewards: Array) -> None:
        """Keep an episode: its states, actions, and discounted returns from each step on."""
        self.kept.append((np.asarray(states), np.asarray(actions), returns_to_go(rewards, self.gamma)))

    def joined(self) -> tuple[States, NDArray[np.int64], Array]:
        """All steps of all episodes, one after the other."""
        states, actions, returns = zip(*self.kept, strict=True)
        return np.concatenate(states), np.concatenate(actions), np.concatenate(returns)

    def get_state(self) -> list[list[Any]]:
        """Of JSON's types."""
        return [[states.tolist(), actions.tolist(), returns.tolist()] for states, actions, returns in self.kept]

    def set_state(self, state: list[list[Any]], dtype: Any = np.int64) -> None:
        """Inverse of :meth:`get_state`, for states of that type."""
        self.kept.clear()
        self.kept.extend((np.array(s, dtype), np.array(a, np.int64), np.array(g)) for s, a, g in state)


def returns_to_go(rewards: Array, gamma: float) -> Array:
    r""":math:`G_t = \sum_{k \ge t} \gamma^{k - t} r_k` of one episode, ``[T]``."""
    returns, total = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        total = rewards[t] + gamma * total
        returns[t] = total
    return returns

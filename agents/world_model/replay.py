"""Recorded steps for a world model, drawn as sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Some recorded steps, one after the other.

    Attributes:
        observations: ``[B, L, ...]``.
        actions: ``[B, L, A]`` in [-1, 1], the one that led to each observation; 0 at the first of an episode.
        rewards: ``[B, L]``, for having got there; 0 at the first of an episode.
        first: ``[B, L]`` bool, where an episode begins.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    first: Tensor


class SequenceReplayBuffer:
    """The newest steps of every row of an environment, final observations included.

    Args:
        capacity: steps of all rows together.
        rows: of the environment.
        shape: of an observation.
        dtype: of one.
        actions: numbers of an action.
    """

    def __init__(self, capacity: int, rows: int, shape: tuple[int, ...], dtype: Any, actions: int) -> None:
        self.capacity = max(1, capacity // rows)  # of a row
        places = rows, self.capacity
        self.arrays: dict[str, NDArray[Any]] = {
            "observations": np.zeros((*places, *shape), dtype),
            "actions": np.zeros((*places, actions), np.float32),
            "rewards": np.zeros(places, np.float32),
            "first": np.zeros(places, np.bool_),
        }
        self.added = np.zeros(rows, np.int64)  # steps of each row so far, those included that were overwritten

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Steps that each row holds."""
        return np.minimum(self.added, self.capacity)

    def add(self, row: int, observation: Any, action: Any = 0.0, reward: float = 0.0, *, first: bool = False) -> None:
        """Append a step to a row; over the oldest one where it is full."""
        place = row, self.added[row] % self.capacity
        for name, value in (
            ("observations", observation), ("actions", action), ("rewards", reward), ("first", first)
        ):  # fmt: skip
            self.arrays[name][place] = value
        self.added[row] += 1

    def sample(self, count: int, length: int, rng: np.random.Generator, device: torch.device) -> Sequences:
        """``count`` sequences of ``length`` steps, each equally likely; they may go on into the next episode.

        Raises:
            ValueError: if no row holds so many steps.
        """
        starts = np.maximum(0, self.sizes - length + 1)
        if not starts.any():
            raise ValueError(f"the replay buffer holds {int(self.sizes.max())} steps of a row, expected {length}")
        chosen = rng.integers(starts.sum(), size=count)
        rows = np.searchsorted(starts.cumsum(), chosen, side="right")
        offset = chosen - (starts.cumsum() - starts)[rows]
        oldest = (self.added - self.sizes)[rows]
        places = (oldest + offset)[:, None] + np.arange(length)
        index = rows[:, None], places % self.capacity
        return Sequences(**{k: torch.from_numpy(v[index]).to(device) for k, v in self.arrays.items()})

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is in use, as tensors and JSON."""
        used = int(self.sizes.max())
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v[:, :used])) for k, v in self.arrays.items()}
        return tensors, {"added": self.added.tolist()}

    def set_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`."""
        self.added = np.array(plain["added"], np.int64)
        for name, values in tensors.items():
            self.arrays[name][:, : values.shape[1]] = values.numpy()

"""Segments: pieces of episodes of one length, which a teacher compares and a reward model reads."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ...trajectories import Trajectories


@dataclass(frozen=True)
class Segments:
    """``N`` segments of ``L`` steps. There are no rewards in it: it is what a learner from preferences may see.

    Attributes:
        observations: ``[N, L, D]`` float32, flattened; 0 where there is no step.
        actions: ``[N, L, A]`` float32, flattened; 0 where there is no step.
        mask: ``[N, L]`` bool, True for steps: all of them in what is cut from episodes here.
        episode: ``[N]`` int64, the row of the episode that a segment is from.
        start: ``[N]`` int64, its first step there.

    Raises:
        ValueError: if the shapes do not belong together.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    episode: Tensor
    start: Tensor

    def __post_init__(self) -> None:
        if self.mask.ndim != 2:
            raise ValueError(f"mask has shape {tuple(self.mask.shape)}, expected [segments, steps]")
        for name in ("observations", "actions"):
            shape = getattr(self, name).shape
            if len(shape) != 3 or shape[:2] != self.mask.shape:
                raise ValueError(f"{name} have shape {tuple(shape)}, expected {(*self.mask.shape, 'numbers')}")
        for name in ("episode", "start"):
            if getattr(self, name).shape != self.mask.shape[:1]:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected ({len(self.mask)},)")

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, index: Tensor) -> Segments:
        """Segments ``index`` (bool mask or integer positions)."""
        return Segments(*(getattr(self, f.name)[index.to(self.mask.device)] for f in fields(self)))

    def to(self, device: torch.device | str) -> Segments:
        """The same segments on ``device``."""
        return Segments(*(getattr(self, f.name).to(device) for f in fields(self)))


def sample_segments(
    episodes: Trajectories, length: int, count: int, rng: np.random.Generator
) -> tuple[Segments, Tensor]:
    """Draw segments, each place where one of that length fits equally likely, the same place more than once too.

    Args:
        episodes: whole control episodes, observations ``[B, T + 1, ...]``.
        length: steps, at least 1.
        count: how many, at least 1.
        rng: draws.

    Returns:
        the segments, and the recorded rewards ``[count, length]`` of their steps, for a scripted teacher.

    Raises:
        ValueError: for a length or a count below 1, or if no episode is as long.
    """
    places = _places(episodes, length, 1)
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    return _cut(episodes, places[torch.from_numpy(rng.integers(len(places), size=count))], length)


def cut_segments(episodes: Trajectories, length: int, stride: int) -> tuple[Segments, Tensor]:
    """All segments that begin at multiples of ``stride`` and fit; episodes in order. As :func:`sample_segments`."""
    return _cut(episodes, _places(episodes, length, stride), length)


def _places(episodes: Trajectories, length: int, stride: int) -> Tensor:
    """``[P, 2]`` int64: episode and first step of every segment that fits."""
    if length < 1 or stride < 1:
        raise ValueError(f"length={length}, stride={stride}: must be at least 1")
    lengths = episodes.lengths.cpu()
    steps = torch.arange(0, episodes.mask.shape[1], stride)
    places = (steps + length <= lengths[:, None]).nonzero()
    if not len(places):
        raise ValueError(f"length={length}: the longest episode has {int(lengths.max())} steps")
    return torch.stack([places[:, 0], steps[places[:, 1]]], 1)


def _cut(episodes: Trajectories, places: Tensor, length: int) -> tuple[Segments, Tensor]:
    if isinstance(episodes.observations, dict):
        raise TypeError(f"observations are a dict with {sorted(episodes.observations)}, expected one array: flatten it")
    episode, start = places.unbind(1)
    rows, steps = episode[:, None], start[:, None] + torch.arange(length)

    def taken(values: Tensor) -> Tensor:
        return values.cpu()[rows, steps].float()

    observations, actions = taken(episodes.observations), taken(episodes.actions)
    mask = torch.ones(steps.shape, dtype=torch.bool)
    segments = Segments(_flat(observations), _flat(actions), mask, episode, start)
    return segments, taken(episodes.rewards)


def _flat(values: Tensor) -> Tensor:
    """``[N, L, F]`` from ``[N, L, ...]``."""
    return values.reshape(*values.shape[:2], -1)

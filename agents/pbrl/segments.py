"""Segments: pieces of episodes of one length, which a teacher compares and a reward model reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ...trajectories import Trajectories

DTYPES = {
    "observations": torch.float32, "actions": torch.float32, "mask": torch.bool,
    "episode": torch.int64, "start": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """``N`` segments of ``L`` steps. There are no rewards in it: it is what a learner from preferences may see.

    Attributes:
        observations: ``[N, L, D]`` float32, flattened; 0 where there is no step.
        actions: ``[N, L, A]`` float32, flattened; 0 where there is no step.
        mask: ``[N, L]`` bool, True for steps; what is missing in an episode that is shorter comes before them.
        episode: ``[N]`` int64, the row of the episode that a segment is from.
        start: ``[N]`` int64, its first step there.

    Raises:
        ValueError: if the shapes do not belong together, or the dtypes are others.
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
        for name, dtype in DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"{name} has dtype {getattr(self, name).dtype}, expected {dtype}")

    def __len__(self) -> int:
        return len(self.mask)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell these segments from all others."""
        found = hashlib.sha256()
        for f in fields(self):
            values = getattr(self, f.name).cpu().contiguous()
            found.update(f"{f.name} {tuple(values.shape)} ".encode() + values.numpy().tobytes())
        return found.hexdigest()[:16]

    def select(self, index: Tensor) -> Segments:
        """Segments ``index`` (bool mask or integer positions)."""
        return Segments(*(getattr(self, f.name)[index.to(self.mask.device)] for f in fields(self)))

    def to(self, device: torch.device | str) -> Segments:
        """The same segments on ``device``."""
        return Segments(*(getattr(self, f.name).to(device) for f in fields(self)))


def sample_segments(
    episodes: Trajectories, length: int, count: int, rng: np.random.Generator, *, pad: bool = False
) -> tuple[Segments, Tensor]:
    """Draw segments, each place where one of that length fits equally likely, the same place more than once too.

    Args:
        episodes: whole control episodes, observations ``[B, T + 1, ...]``.
        length: steps, at least 1.
        count: how many, at least 1.
        rng: draws.
        pad: take an episode that is shorter as one segment, padded with zeros before its steps; else it gives none.

    Returns:
        the segments, and the recorded rewards ``[count, length]`` of their steps, for a scripted teacher.

    Raises:
        ValueError: for a length or a count below 1, or if no episode is as long (with ``pad``: has a step).
    """
    places = _places(episodes, length, 1, pad)
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    return _cut(episodes, places[torch.from_numpy(rng.integers(len(places), size=count))], length)


def cut_segments(episodes: Trajectories, length: int, stride: int, *, pad: bool = False) -> tuple[Segments, Tensor]:
    """All segments that begin at multiples of ``stride`` and fit; episodes in order. As :func:`sample_segments`."""
    return _cut(episodes, _places(episodes, length, stride, pad), length)


def _places(episodes: Trajectories, length: int, stride: int, pad: bool) -> Tensor:
    """``[P, 2]`` int64: episode and first step of every segment there is."""
    if length < 1 or stride < 1:
        raise ValueError(f"length={length}, stride={stride}: must be at least 1")
    lengths = episodes.lengths.cpu()
    steps = torch.arange(0, episodes.mask.shape[1], stride)
    needed = lengths.clamp(1, length) if pad else torch.full_like(lengths, length)
    places = (steps + needed[:, None] <= lengths[:, None]).nonzero()
    if not len(places):
        raise ValueError(f"length={length}: the longest episode has {int(lengths.max())} steps")
    return torch.stack([places[:, 0], steps[places[:, 1]]], 1)


def _cut(episodes: Trajectories, places: Tensor, length: int) -> tuple[Segments, Tensor]:
    if isinstance(episodes.observations, dict):
        raise TypeError(f"observations are a dict with {sorted(episodes.observations)}, expected one array: flatten it")
    episode, start = places.unbind(1)
    missing = (length - episodes.lengths.cpu()[episode]).clamp(min=0)
    steps = (start - missing)[:, None] + torch.arange(length)
    mask = steps >= 0
    rows, steps = episode[:, None], steps.clamp(min=0)

    def taken(values: Tensor) -> Tensor:
        return values.cpu()[rows, steps].float().masked_fill(~mask.reshape(*mask.shape, *(1,) * (values.ndim - 2)), 0)

    observations, actions = taken(episodes.observations), taken(episodes.actions)
    segments = Segments(_flat(observations), _flat(actions), mask, episode, start)
    return segments, taken(episodes.rewards)


def _flat(values: Tensor) -> Tensor:
    """``[N, L, F]`` from ``[N, L, ...]``."""
    return values.reshape(*values.shape[:2], -1)

"""What the file formats share: recorded control episodes taken apart, and what is told of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ...trajectories import Trajectories
from ..rollouts import TERM_PREFIX


def step_counts(episodes: Trajectories) -> list[int]:
    """The length of each episode, once it is sure that they are whole episodes with every state.

    Raises:
        ValueError: if an episode is empty or has gaps in its mask, or if the final observations are missing.
    """
    lengths = episodes.lengths
    columns = torch.arange(episodes.mask.shape[1], device=episodes.mask.device)
    if not len(episodes) or bool((lengths < 1).any()):
        raise ValueError(f"episodes have lengths {lengths.tolist()[:8]}, expected at least one step in each")
    if not torch.equal(episodes.mask, columns < lengths[:, None]):
        raise ValueError("the mask of the episodes has gaps, but a control policy decides at every step")
    parts = episodes.observations
    for name, values in (parts if isinstance(parts, dict) else {"observations": parts}).items():
        if values.ndim < 2 or values.shape[1] <= int(lengths.max()):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, expected [{len(episodes)}, {int(lengths.max())} + 1, ...]: "
                "every state of an episode, the final one too"
            )
    return [int(length) for length in lengths.tolist()]


def attributes(episodes: Trajectories, row: int, reserved: Collection[str]) -> dict[str, Any]:
    """What is to be written of an episode as a whole: ``group``, ``reward/<term>``, and its ``info`` without None.

    Args:
        episodes: of them.
        row: one.
        reserved: names that the format uses itself.

    Raises:
        ValueError: for an info that HDF5 cannot hold as an attribute, or of a name that has another meaning.
    """
    found: dict[str, Any] = {"group": int(episodes.group[row])}
    found |= {TERM_PREFIX + name: float(values[row]) for name, values in episodes.terms.items()}
    for name, column in episodes.info.items():
        value = column[row]
        if name in found or name in reserved or (value is not None and np.asarray(value).dtype.kind not in "biufU"):
            raise ValueError(
                f"info[{name!r}] of episode {row} is {value!r}: it must be text, a number, a bool or an array of "
                f"numbers, and not called {', '.join([*reserved, *found])}"
            )
        if value is not None:
            found[name] = value
    return dict(sorted(found.items()))  # the order in which HDF5 gives them back


def from_attributes(found: Mapping[str, Any], reserved: Collection[str]) -> dict[str, Any]:
    """Inverse of :func:`attributes`: the arguments ``group``, ``terms`` and ``info`` of an :class:`.Episode`."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items() if k not in reserved}
    return {
        "group": plain.pop("group", None),
        "terms": {k.removeprefix(TERM_PREFIX): v for k, v in plain.items() if k.startswith(TERM_PREFIX)},
        "info": {k: v for k, v in plain.items() if not k.startswith(TERM_PREFIX)},
    }

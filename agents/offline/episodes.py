"""What the file formats share: recorded control episodes taken apart, and put together again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...trajectories import Trajectories
from ..rollouts import TERM_PREFIX

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of ``L`` steps, nothing padded.

    Attributes:
        observations: ``[L + 1, D]``, the final one included.
        actions: ``[L, ...]``.
        rewards: ``[L]``.
        terminated: it ended by itself. Otherwise it was cut, by a time limit, say: its last state has a value.
        group: episodes with equal numbers began in the same state; None where nobody knows.
        terms: reward terms.
        info: whatever else there is to say of it.
        extras: what was recorded beside each action, ``[L, ...]`` each.
    """

    observations: Array
    actions: Array
    rewards: Array
    terminated: bool
    group: int | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Array] = field(default_factory=dict)


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


def stack(episodes: Sequence[Episode]) -> Trajectories:
    """The episodes as one record: observations, rewards and Box actions float32, Discrete actions int64.

    Who acted is unknown, so the log-probabilities are NaN.

    Raises:
        ValueError: if there are none, or their shapes differ.
    """
    if not episodes:
        raise ValueError("episodes is empty, expected at least one")
    for name in ("observations", "actions"):
        shapes = sorted({getattr(e, name).shape[1:] for e in episodes})
        if len(shapes) > 1:
            raise ValueError(f"{name} of the episodes have the shapes {shapes} a step: must be equal")
    mask = pad_sequence([torch.ones(len(e.actions), dtype=torch.bool) for e in episodes], batch_first=True)
    terminated = torch.tensor([e.terminated for e in episodes])
    rewards = _pad([e.rewards for e in episodes])
    groups = [e.group for e in episodes]
    names = {k: None for e in episodes for k in e.terms}
    keys = {k: None for e in episodes for k in e.info}
    return Trajectories(
        observations=_pad([e.observations for e in episodes]),
        actions=_pad([e.actions for e in episodes]),
        log_probs=torch.zeros_like(rewards).masked_fill(mask, torch.nan),
        mask=mask,
        rewards=rewards,
        terminated=terminated,
        truncated=~terminated,
        valid=~rewards.isnan().any(1),
        group=torch.tensor([i if g is None or None in groups else g for i, g in enumerate(groups)]),
        terms={k: torch.tensor([e.terms.get(k, torch.nan) for e in episodes]) for k in names},
        info={k: [e.info.get(k) for e in episodes] for k in keys},
        extras={
            k: _pad([e.extras[k] for e in episodes]) for k in episodes[0].extras if all(k in e.extras for e in episodes)
        },
    )


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
    """Inverse of :func:`attributes`: the arguments ``group``, ``terms`` and ``info`` of an :class:`Episode`."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items() if k not in reserved}
    return {
        "group": plain.pop("group", None),
        "terms": {k.removeprefix(TERM_PREFIX): v for k, v in plain.items() if k.startswith(TERM_PREFIX)},
        "info": {k: v for k, v in plain.items() if not k.startswith(TERM_PREFIX)},
    }


def _pad(values: Sequence[Array]) -> Tensor:
    """``[B, T, ...]``: floats as float32, integers as int64, bools as they are."""
    to = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[values[0].dtype.kind]
    return pad_sequence([torch.from_numpy(np.ascontiguousarray(v, dtype=to)) for v in values], batch_first=True)

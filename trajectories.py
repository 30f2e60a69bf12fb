"""The one record that environments produce, wrappers change and agents read: episodes, padded ``[batch, time]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Array = npt.NDArray[Any]
Observations = Tensor | dict[str, Tensor]


@dataclass(kw_only=True)
class Trajectories:
    """``B`` episodes of at most ``T`` decisions, one episode a row, padded on the right.

    Attributes:
        observations: What the policy needs to score the actions again: the first observation ``[B, ...]`` where states
            are rebuilt from it and the actions (text, images), else every observation ``[B, T + 1, ...]``, the last one
            being the final observation of the longest episode.
        actions: ``[B, T, ...]``; padding is 0.
        log_probs: ``[B, T]`` float, log-probability of each action under the policy and sampler that drew it; 0 at
            padding.
        mask: ``[B, T]`` bool, True where the policy chose the action: the only positions a loss may read.
        rewards: ``[B, T]`` float, padding 0. For an invalid episode the entry that failed is NaN.
        terminated: ``[B]`` bool, the episode ended by itself.
        truncated: ``[B]`` bool, the episode was cut by a budget. Never both.
        valid: ``[B]`` bool, False where a reward failed; such rows belong in no loss and no statistic but their count.
        group: ``[B]`` int64, rows with the same number began from the same state.
        terms: reward terms by name, each ``[B]`` float, NaN where a term does not apply.
        sampling: the sampler's settings (temperature, top_p, ...), so that re-scoring applies the same ones.
        version: number of optimiser updates the acting policy had seen.
        info: one list of length ``B`` a key (``prompt``, ``completion``, ``invalid``, ...).
        extras: what the policy recorded beside each action, ``[B, T, ...]`` a key (a denoiser: ``mean`` and ``std``).
    """

    observations: Observations
    actions: Tensor
    log_probs: Tensor
    mask: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    group: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    info: dict[str, list[Any]] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batch, steps = self.mask.shape
        for name in ("log_probs", "rewards"):
            if getattr(self, name).shape != (batch, steps):
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, but mask has {(batch, steps)}")
        for name in ("terminated", "truncated", "valid", "group"):
            if getattr(self, name).shape != (batch,):
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected ({batch},)")
        if self.actions.shape[:2] != (batch, steps):
            raise ValueError(f"actions have shape {tuple(self.actions.shape)}, expected ({batch}, {steps}, ...)")
        for name, values in self.extras.items():
            if values.shape[:2] != (batch, steps):
                raise ValueError(f"extras[{name!r}] has shape {tuple(values.shape)}, expected ({batch}, {steps}, ...)")
        sizes = [(k, len(v)) for k, v in self.terms.items()] + [(k, len(v)) for k, v in self.info.items()]
        for name, size in sizes:
            if size != batch:
                raise ValueError(f"{name!r} of terms or info has {size} entries, expected {batch}")

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64, decisions of the policy in each episode."""
        return self.mask.sum(1)

    @property
    def returns(self) -> Tensor:
        """``[B]`` undiscounted sum of rewards; NaN for an invalid episode."""
        return self.rewards.sum(1)

    def select(self, index: Tensor) -> Trajectories:
        """Rows ``index`` (bool mask or integer positions), still padded to the same ``T``."""
        rows = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        changes: dict[str, Any] = {
            f.name: getattr(self, f.name)[rows.to(getattr(self, f.name).device)]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        if isinstance(self.observations, dict):
            changes["observations"] = {k: v[rows.to(v.device)] for k, v in self.observations.items()}
        for name in ("terms", "extras"):
            changes[name] = {k: v[rows.to(v.device)] for k, v in getattr(self, name).items()}
        keep = rows.tolist()
        changes["info"] = {k: [v[i] for i in keep] for k, v in self.info.items()}
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Trajectories:
        """The same episodes with every tensor on ``device``."""
        changes: dict[str, Any] = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        if isinstance(self.observations, dict):
            changes["observations"] = {k: v.to(device) for k, v in self.observations.items()}
        for name in ("terms", "extras"):
            changes[name] = {k: v.to(device) for k, v in getattr(self, name).items()}
        return replace(self, **changes)


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Stack episodes of several records below one another, padding each to the longest ``T`` with zeros.

    Raises:
        ValueError: if ``parts`` is empty or the records were sampled with different settings.
    """
    if not parts:
        raise ValueError("parts is empty, expected at least one Trajectories")
    if any(p.sampling != parts[0].sampling for p in parts):
        raise ValueError(f"cannot concatenate episodes sampled differently: {[p.sampling for p in parts]}")
    steps = max(p.mask.shape[1] for p in parts)

    def observed(values: Sequence[Tensor]) -> Tensor:
        # Axis 1 is time, or the length of a state; records of different lengths are padded either way.
        if values[0].ndim > 1:
            longest = max(v.shape[1] for v in values)
            values = [pad_time(v, longest) for v in values]
        return torch.cat(list(values))

    everything = [p.observations for p in parts]
    if isinstance(everything[0], dict):
        observations: Observations = {k: observed([o[k] for o in everything]) for k in everything[0]}  # type: ignore[index]
    else:
        observations = observed(everything)  # type: ignore[arg-type]
    names = {k: None for p in parts for k in p.terms}
    keys = {k: None for p in parts for k in p.info}
    per_step = ("actions", "log_probs", "mask", "rewards")
    per_row = ("terminated", "truncated", "valid", "group")
    changes: dict[str, Any] = {n: torch.cat([pad_time(getattr(p, n), steps) for p in parts]) for n in per_step}
    changes |= {n: torch.cat([getattr(p, n) for p in parts]) for n in per_row}
    changes["extras"] = {k: torch.cat([pad_time(p.extras[k], steps) for p in parts]) for k in parts[0].extras}
    return replace(
        parts[0],
        observations=observations,
        terms={k: torch.cat([p.terms.get(k, p.rewards.new_full((len(p),), torch.nan)) for p in parts]) for k in names},
        info={k: [x for p in parts for x in p.info.get(k, [None] * len(p))] for k in keys},
        **changes,
    )


def pad_time(values: Tensor, steps: int) -> Tensor:
    """``values [B, T, ...]`` padded with zeros on the right to ``[B, steps, ...]``."""
    missing = steps - values.shape[1]
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, missing)) if missing else values


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


def _pad(values: Sequence[Array]) -> Tensor:
    """``[B, T, ...]``: floats as float32, integers as int64, bools as they are."""
    to = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[values[0].dtype.kind]
    return pad_sequence([torch.from_numpy(np.ascontiguousarray(v, dtype=to)) for v in values], batch_first=True)

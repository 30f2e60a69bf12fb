"""What batched environments are given and give back: seeds, masks and indices a row; arrays and their rows; scores."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class EpisodeScores:
    """What ``n`` finished episodes earned.

    Attributes:
        rewards: ``[n]`` float64; NaN where scoring failed.
        terms: the rewards' parts by name, each ``[n]`` float64; NaN where a part does not apply.
        reasons: why a reward is NaN, one a row, None where it is not; may be left empty.
        info: further facts of the episodes, one list of length ``n`` a key.
    """

    rewards: NDArray[np.float64]
    terms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    reasons: Sequence[str | None] = ()
    info: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The info dictionary of each episode: ``info``, terms as ``reward/<name>``, ``invalid`` where it failed."""
        rows: list[dict[str, Any]] = []
        for i in range(len(self.rewards)):
            row = {key: copy.deepcopy(values[i]) for key, values in self.info.items()}
            row |= {f"reward/{name}": float(values[i]) for name, values in self.terms.items()}
            if self.reasons and self.reasons[i] is not None:
                row["invalid"] = self.reasons[i]
            rows.append(row)
        return rows


def check_positive(**values: Any) -> None:
    """Raise a ValueError that names the first of ``values`` which is no integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


def check_probability(**values: float) -> None:
    """Raise a ValueError that names the first of ``values`` which is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}, expected a probability in [0, 1]")


def check_no_options(options: Mapping[str, Any] | None) -> None:
    """Raise a ValueError that names the options given to a ``reset`` which knows none."""
    if options:
        raise ValueError(f"options has unknown keys {sorted(options)}, expected none")


def row_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """One seed a row: an integer ``s`` gives row ``i`` the seed ``s + i``, None gives none.

    Raises:
        ValueError: for a list of another length.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed has {len(seed)} entries, expected one for each of num_envs={num_envs} rows")
    return [int(s) if isinstance(s, np.integer) else s for s in seed]


def seed_rows(generators: list[np.random.Generator], rows: Rows, seed: int | Sequence[int | None] | None) -> None:
    """Give each of ``rows`` that :func:`row_seeds` has a seed for a new generator; the others' run on.

    Raises:
        ValueError: for seeds of another length.
        gymnasium.error.Error: for a seed that is no non-negative integer.
    """
    seeds = row_seeds(seed, len(generators))
    for row in rows:
        if seeds[row] is not None:
            generators[row] = seeding.np_random(seeds[row])[0]


def row_groups(seeds: Sequence[int | None]) -> Rows:
    """``[B]``: rows with equal seeds share a number, all others have their own; numbered by first appearance."""
    numbers: dict[Any, int] = {}
    keys = [("row", i) if s is None else s for i, s in enumerate(seeds)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def masked_rows(mask: Any, num_envs: int) -> Rows:
    """The rows that ``options["reset_mask"]`` names; None names all.

    Raises:
        ValueError: unless it is a bool array of shape ``(num_envs,)`` with a True in it.
    """
    if mask is None:
        return np.arange(num_envs)
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(
            f"options['reset_mask'] is {mask!r}, expected a bool array of shape ({num_envs},) with a True in it"
        )
    return np.flatnonzero(mask)


def row_indices(value: Any, num_envs: int, limit: int) -> Rows:
    """``options["prompt_index"]`` as ``[num_envs]``.

    Raises:
        ValueError: unless it is an integer in ``0 ... limit - 1``, or ``num_envs`` of them.
    """
    index = np.asarray(value)
    fits = index.dtype.kind in "iu" and index.shape in ((), (num_envs,))
    if not fits or (index < 0).any() or (index >= limit).any():
        raise ValueError(
            f"options['prompt_index'] is {value!r}, expected an integer in 0 ... {limit - 1}, "
            f"or num_envs={num_envs} of them"
        )
    return np.broadcast_to(index, (num_envs,)).astype(np.int64)


def valid_actions(actions: NDArray[Any], space: gymnasium.Space[Any], count: int) -> NDArray[Any]:
    """``actions [count, ...]`` in the dtype of ``space``, the space of one action.

    Raises:
        gymnasium.error.InvalidAction: for another shape or dtype, or an action that is not in the space.
    """
    batched = batch_space(space, max(count, 1))
    if actions.shape != (count, *(batched.shape or ())[1:]):
        raise InvalidAction(f"actions have shape {actions.shape}, expected {count} actions of {space}")
    dtype = np.dtype(batched.dtype)
    if actions.dtype.kind == "b" or not np.can_cast(actions.dtype, dtype, "same_kind"):
        raise InvalidAction(f"actions have dtype {actions.dtype}, expected {dtype}")
    cast = actions.astype(dtype, copy=False)
    if count and cast not in batched:
        bad = [action for action in cast if action not in space]
        raise InvalidAction(f"action {bad[0]} is not in {space} ({len(bad)} of {count} are not)")
    return cast


def check_ends(theirs: Mapping[str, Any], ours: Mapping[str, NDArray[Any]]) -> None:
    """Raise a ValueError unless a policy's record of how episodes ended is what the environment found, ``[B]`` each."""
    for name, found in ours.items():
        told = np.broadcast_to(to_numpy(theirs[name]), found.shape)
        if (wrong := np.flatnonzero(told != found)).size:
            row = wrong[0]
            raise ValueError(
                f"the policy's episodes do not end where the environment ends them: row {row} has {name} = {told[row]} "
                f"in the policy's record, but {found[row]} here (rows {wrong.tolist()[:8]} differ)"
            )


def copy_rows(space: gymnasium.Space[Any], batch: Any, rows: Sequence[int]) -> list[Any]:
    """Those ``rows`` of a sample of the batched ``space``, each a copy."""
    singles = list(iterate(space, batch))
    return [copy.deepcopy(singles[row]) for row in rows]


def to_numpy(values: Any) -> NDArray[Any]:
    """An array; a tensor on any device; or numbers, nested in lists or not."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def to_device(values: Any, device: str | None) -> Any:
    """Arrays, in a dictionary or not, as tensors on ``device``; None leaves them arrays."""
    if device is None:
        return values
    if isinstance(values, dict):
        return {key: to_device(value, device) for key, value in values.items()}
    import torch

    return torch.from_numpy(values).to(device)

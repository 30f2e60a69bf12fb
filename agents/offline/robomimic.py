"""Episodes in robomimic's HDF5 layout, which its own reader opens (extra ``robot``; robomimic itself is not needed).

==========================================  ====================================================================
in the file                                 holds
==========================================  ====================================================================
``data`` attributes                         ``total`` steps, ``env_args`` as JSON: env_name, type, env_kwargs
``data/demo_i/actions, rewards, dones``     ``[L, ...]``, ``[L]``, ``[L]``
``data/demo_i/obs/<key>``                   ``[L, ...]`` states that the actions were chosen in
``data/demo_i/next_obs/<key>``              ``[L, ...]`` states after them
``data/demo_i`` attributes                  ``num_samples`` (``L``); ours: ``terminated``, ``truncated``, ``group``,
                                            ``reward/<name>`` for the terms, and the columns of ``episodes.info``
``data/demo_i/extras/<name>``               ours: what was recorded beside each action
``mask/<name>``                             names of the demonstrations of a split, such as ``train`` and ``valid``
==========================================  ====================================================================

robomimic's ``dones`` say at will success, the end of the episode or both, and its algorithms do not bootstrap where
they are 1. Here they are 1 at the last step of an episode that terminated by itself, and at no time limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...trajectories import Array, Episode, Trajectories, stack
from .episodes import attributes, from_attributes, step_counts

OWN = ("num_samples", "terminated", "truncated")


def write_robomimic(
    path: str | Path,
    episodes: Trajectories,
    *,
    env_args: Mapping[str, Any],
    key: str = "state",
    masks: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write episodes; equal ones give equal bytes. Log-probabilities are not kept.

    Args:
        path: the file; one that is there is replaced once the new one is complete.
        episodes: of one vector observation, or of a dict of them. Columns of ``info`` that are text, numbers, bools or
            arrays become attributes; None is left out.
        env_args: what robomimic builds its environment from: ``env_name``, ``type``, ``env_kwargs``; any JSON.
        key: name of the observation where it is not a dict.
        masks: splits by name: the numbers of their episodes.

    Raises:
        ImportError: if h5py is not installed.
        ValueError: for episodes without their final states, other columns of ``info``, or a mask that names no episode.
    """
    h5py = _h5py()
    lengths = step_counts(episodes)
    observations = episodes.observations if isinstance(episodes.observations, dict) else {key: episodes.observations}
    for name, numbers in (masks or {}).items():
        if wrong := [i for i in numbers if not 0 <= i < len(lengths)]:
            raise ValueError(f"masks[{name!r}] holds {wrong[0]}, expected numbers from 0 to {len(lengths) - 1}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with h5py.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(dict(env_args), indent=4)
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            dones = np.zeros(length, np.int64)
            dones[-1] = bool(episodes.terminated[i])
            columns = {"actions": episodes.actions[i, :length], "rewards": episodes.rewards[i, :length], "dones": dones}
            columns |= {f"extras/{name}": values[i, :length] for name, values in episodes.extras.items()}
            columns |= {f"obs/{name}": values[i, :length] for name, values in observations.items()}
            columns |= {f"next_obs/{name}": values[i, 1 : length + 1] for name, values in observations.items()}
            for name, values in columns.items():
                array = np.asarray(values)
                demo.create_dataset(name, data=array, chunks=array.shape, compression="gzip", shuffle=True)
            own = {"num_samples": length}
            own |= {name: bool(getattr(episodes, name)[i]) for name in ("terminated", "truncated")}
            demo.attrs.update(own | attributes(episodes, i, OWN))
        for name, numbers in (masks or {}).items():
            file.create_dataset(f"mask/{name}", data=np.array([f"demo_{i}" for i in numbers], dtype="S"))
    os.replace(partial, path)


def read_robomimic(path: str | Path, keys: Sequence[str] | None = None, *, mask: str | None = None) -> Trajectories:
    """Read episodes, ours or robomimic's.

    A file without our attributes: an episode terminated if the last of its ``dones`` is 1; earlier ones, where a task
    was solved and went on, are not ends.

    Args:
        path: the file.
        keys: observations, flattened and joined in this order; None takes all, by name.
        mask: only the episodes of this split.

    Returns:
        float32 observations ``[B, T + 1, D]``, actions and rewards; log-probabilities NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if h5py is not installed.
        ValueError: if the file has no demonstrations, no such observation or split, or lacks final states.
    """
    h5py = _h5py()
    if not Path(path).is_file():
        raise FileNotFoundError(f"the robomimic file {path} does not exist")
    with h5py.File(path, "r") as file:
        if not isinstance(file.get("data"), h5py.Group) or not len(file["data"]):
            raise ValueError(f"{path} has no demonstrations under data/: is it a robomimic file?")
        names = sorted(file["data"], key=lambda name: int(name.removeprefix("demo_")))
        if mask is not None:
            found = list(file.get("mask", {}))
            if mask not in found:
                raise ValueError(f"{path} has no split {mask!r}; there are: {', '.join(found) or 'none'}")
            wanted = {name.decode() for name in file["mask"][mask][:]}
            names = [name for name in names if name in wanted]
        return stack([_episode(file["data"][name], keys, f"{path}, {name}") for name in names])


def read_env_args(path: str | Path) -> dict[str, Any]:
    """What the file says of the environment it was recorded in."""
    with _h5py().File(path, "r") as file:
        return json.loads(file["data"].attrs["env_args"])  # type: ignore[no-any-return]


def _episode(demo: Any, keys: Sequence[str] | None, where: str) -> Episode:
    keys = list(demo["obs"]) if keys is None else keys
    if missing := [name for name in keys if name not in demo["obs"]]:
        raise ValueError(f"{where} has no observation {missing}; it has {', '.join(demo['obs'])}")
    terminated = bool(demo.attrs.get("terminated", demo["dones"][-1]))
    if "next_obs" not in demo and not terminated:
        raise ValueError(
            f"{where} has no next_obs, so the state that it was cut in is missing: write the file with them"
        )
    after = demo["next_obs" if "next_obs" in demo else "obs"]  # nothing is read of the state after a termination
    return Episode(
        observations=np.concatenate([_flat(demo["obs"], keys), _flat(after, keys)[-1:]]),
        actions=demo["actions"][:],
        rewards=demo["rewards"][:],
        terminated=terminated,
        extras={k: v[:] for k, v in demo.get("extras", {}).items()},
        **from_attributes(demo.attrs, OWN),
    )


def _flat(group: Any, keys: Sequence[str]) -> Array:
    """Observations ``[L, D]``, joined in the order of ``keys``."""
    return np.concatenate([group[key][:].reshape(len(group[key]), -1).astype(np.float32) for key in keys], 1)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("robomimic's format needs h5py: pip install 'aligngym[robot]'") from error
    return h5py

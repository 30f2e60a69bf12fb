"""Episodes as a Minari dataset and back (extra ``robot``).

``minari.MinariDataset(folder)`` opens what is written. ``info["seed"]`` is Minari's seed of an episode; the other
columns, the terms and the group are metadata of the episode; ``extras`` are its infos, which begin at the reset.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec

from ...trajectories import Array, Episode, Trajectories, stack
from .episodes import attributes, from_attributes, step_counts

OWN = ("id", "total_steps")


def write_minari(
    folder: str | Path,
    episodes: Trajectories,
    *,
    dataset_id: str,
    observation_space: Space[Any],
    action_space: Space[Any],
    env_spec: EnvSpec | None = None,
) -> None:
    """Write episodes of vector observations as a new dataset. Log-probabilities are not kept.

    Args:
        folder: of the dataset, new or empty.
        episodes: with all their states; columns of ``info`` as for
            :func:`~aligngym.agents.offline.robomimic.write_robomimic`.
        dataset_id: such as ``metaworld/drawer-open-mixed-v0``.
        observation_space: of one environment, Box or Discrete.
        action_space: of one environment, Box or Discrete.
        env_spec: from which Minari's ``recover_environment`` makes the environment.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: for a folder that is not empty, or episodes that cannot be written.
    """
    storage_class, buffer_class, version = _minari()
    if isinstance(episodes.observations, dict):
        raise ValueError(f"the observations are a dict of {sorted(episodes.observations)}, expected one tensor")
    lengths, observations = step_counts(episodes), episodes.observations
    folder = Path(folder).resolve()  # Minari cannot measure the size of a relative one
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} is not empty: give a new one")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while writing
    partial.mkdir(parents=True)
    storage = storage_class.new(partial, observation_space, action_space, env_spec=env_spec, jpeg_encoding=False)
    storage.update_metadata({"dataset_id": dataset_id, "minari_version": version})

    def buffer(row: int, length: int) -> Any:
        ends = np.zeros((2, length), bool)
        ends[:, -1] = bool(episodes.terminated[row]), not episodes.terminated[row]
        # The info of the reset comes first, and there it is 0.
        infos = {k: np.concatenate([np.zeros_like(v[row, :1]), v[row, :length]]) for k, v in episodes.extras.items()}
        return buffer_class(
            observations=np.asarray(observations[row, : length + 1]).astype(observation_space.dtype),
            actions=np.asarray(episodes.actions[row, :length]).astype(action_space.dtype),
            rewards=np.asarray(episodes.rewards[row, :length]),
            terminations=ends[0],
            truncations=ends[1],
            infos=infos or None,
        )

    storage.update_episodes(buffer(row, length) for row, length in enumerate(lengths))
    storage.update_episode_metadata([attributes(episodes, row, OWN) for row in range(len(episodes))])
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)


def read_minari(folder: str | Path) -> Trajectories:
    """Read episodes, ours or another's. One that neither terminated nor was truncated counts as truncated.

    Args:
        folder: of the dataset.

    Returns:
        Box observations, those of a Dict joined in its order, float32 ``[B, T + 1, D]``; Discrete ones int64
        ``[B, T + 1]``. Numeric infos of each step are ``extras``. Log-probabilities are NaN.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if there is no dataset, it is empty, or of other spaces.
    """
    storage = _minari()[0].read(Path(folder))
    if not isinstance(storage.action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"the actions of {folder} are {storage.action_space}, expected Box or Discrete")
    numbers = range(storage.total_episodes)
    rows = zip(storage.get_episodes(numbers), storage.get_episode_metadata(numbers), strict=True)
    return stack([_episode(data, metadata, storage.observation_space) for data, metadata in rows])


def _episode(data: dict[str, Any], metadata: dict[str, Any], space: Space[Any]) -> Episode:
    length = len(data["rewards"])
    found = {k: v for k, v in (data["infos"] or {}).items() if isinstance(v, np.ndarray)}
    extras = {k: v[1:] for k, v in found.items() if v.dtype.kind in "biuf" and v.shape[:1] == (length + 1,)}
    terms = {f"reward/{k}": v for k, v in metadata.pop("reward", {}).items()}  # Minari reads slashes as nesting
    return Episode(
        observations=_vectors(space, data["observations"]),
        actions=data["actions"],
        rewards=data["rewards"],
        terminated=bool(data["terminations"][-1]),
        extras=extras,
        **from_attributes(metadata | terms, OWN),
    )


def _vectors(space: Space[Any], values: Any) -> Array:
    """Observations ``[L + 1, D]``, or ``[L + 1]`` of a Discrete space."""
    if isinstance(space, spaces.Dict):
        parts = [_vectors(space[key], values[key]) for key in space]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    if isinstance(space, spaces.Box):
        return np.asarray(values, np.float32).reshape(len(values), -1)
    if isinstance(space, spaces.Discrete):
        return np.asarray(values)
    raise ValueError(f"the dataset's observations are {space}, expected Box, Discrete or a Dict of them")


def _minari() -> tuple[Any, Any, str]:
    """Minari's storage, its buffer of an episode, and its version."""
    try:
        from minari import __version__
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise ImportError("Minari datasets need Minari with HDF5: pip install 'aligngym[robot]'") from error
    return MinariStorage, EpisodeBuffer, __version__

"""Episodes of a control environment as a Minari dataset (extra ``robot``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import spaces


class MinariWriter:
    """Writes each episode of one environment into a Minari storage as it ends, and appends to one that is there.

    ``minari.MinariDataset(folder)`` reads it. Episodes that do not end, because ``reset`` came first, are not written.

    Args:
        folder: of the storage.
        env: its spaces and spec go into the dataset.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if the folder holds a dataset of other spaces.
    """

    def __init__(self, folder: Path, env: gymnasium.Env[Any, Any]) -> None:
        try:
            from minari import __version__
            from minari.dataset.minari_storage import MinariStorage
        except ImportError as error:
            raise ImportError("format='minari' needs Minari with HDF5: pip install 'aligngym[robot]'") from error
        self.spaces = env.observation_space, env.action_space
        folder = folder.resolve()  # Minari joins a relative one to itself when it writes
        if (folder / "metadata.json").exists():
            self.storage = MinariStorage.read(folder)
            if (self.storage.observation_space, self.storage.action_space) != self.spaces:
                raise ValueError(
                    f"{folder} holds a dataset of {self.storage.observation_space} and {self.storage.action_space}, "
                    f"but the environment has {self.spaces[0]} and {self.spaces[1]}; choose another folder"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.storage = MinariStorage.new(folder, *self.spaces, env_spec=env.spec, jpeg_encoding=False)
            name = env.spec.name if env.spec is not None else type(env.unwrapped).__name__
            self.storage.update_metadata({"dataset_id": f"{name}/recorded-v0", "minari_version": __version__})
        self._steps: list[tuple[Any, ...]] = []
        self._observations: list[Any] = []
        self._seed: int | None = None

    def begin(self, observation: Any, seed: int | None) -> None:
        """An episode begins."""
        self._observations, self._steps, self._seed = [observation], [], seed

    def add(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        """A step of it; the last one writes the episode."""
        from minari.data_collector.episode_buffer import EpisodeBuffer

        self._observations.append(observation)
        self._steps.append((action, reward, terminated, truncated))
        if not (terminated or truncated):
            return
        actions, rewards, terminations, truncations = zip(*self._steps, strict=True)
        buffer = EpisodeBuffer(
            seed=self._seed,
            observations=_columns(self.spaces[0], self._observations),
            actions=_columns(self.spaces[1], list(actions)),
            rewards=list(rewards),
            terminations=list(terminations),
            truncations=list(truncations),
        )
        self.storage.update_episodes([buffer])
        self._steps = []


def _columns(space: gymnasium.Space[Any], values: list[Any]) -> Any:
    """Samples of a space as Minari wants them: one list a leaf."""
    if isinstance(space, spaces.Dict):
        return {key: _columns(space[key], [value[key] for value in values]) for key in space}
    if isinstance(space, spaces.Tuple):
        return tuple(_columns(part, [value[i] for value in values]) for i, part in enumerate(space))
    return values

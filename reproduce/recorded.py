"""Recording scripted episodes of Meta-World's tasks to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..agents.offline.robomimic import write_robomimic
from ..envs.robot.experts import BEHAVIOURS, collect_behaviour
from ..envs.robot.manipulation import full_task_name
from ..trajectories import Trajectories, concatenate


def record_behaviours(
    path: str | Path,
    task: str,
    episodes: int,
    *,
    behaviours: Sequence[str] = BEHAVIOURS,
    max_steps: int = 500,
    noise: float = 1.0,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Trajectories]:
    """Play episodes of several behaviours, and write them in robomimic's layout once all are there.

    The file has a mask of each behaviour's name. The arguments are those of
    :func:`~aligngym.envs.robot.experts.collect_behaviour`; the same give the same bytes.

    Returns:
        The episodes of each behaviour.

    Raises:
        ImportError: if Meta-World or h5py is not installed.
        ValueError: for an argument outside what is allowed.
    """
    parts = [
        collect_behaviour(task, name, episodes, seed=seed, max_steps=max_steps, noise=noise, progress=progress)
        for name in behaviours
    ]
    together = concatenate(parts)
    together.group = together.group.new_tensor(range(len(together)))  # no two begin alike
    # 2 is robomimic's number for environments with Gym's interface.
    env_args = {
        "env_name": "ManipulationAlign-v0",
        "type": 2,
        "env_kwargs": {"task": full_task_name(task), "max_steps": max_steps},
        "made_with": {"seed": seed, "noise": noise, "episodes": episodes},
    }
    masks = {name: range(i * episodes, (i + 1) * episodes) for i, name in enumerate(behaviours)}
    write_robomimic(path, together, env_args=env_args, masks=masks)
    return parts

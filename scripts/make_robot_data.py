"""Offline episodes of Meta-World's tasks, of good, misled and aimless behaviour, as robomimic-layout HDF5 files.

One file a task, ``OUT/<task>.hdf5``: ``--episodes`` of each behaviour, in this order.

    expert        the task's scripted expert, with Gaussian noise on its actions
    wrong_goal    the same expert, who thinks that objects and goal are elsewhere
    other_task    the expert of another task, drawn for each episode
    random        uniformly random actions

Rewards are the task's true dense ones: whoever is to learn from preferences must not be shown them. Each episode also
keeps its behaviour, its seed, its true return, and whether any and whether the last of its steps succeeded. The masks
``expert``, ``wrong_goal`` ... name the episodes of a behaviour. The same arguments give the same episodes, and the
first ones of a larger set are those of a smaller one. Files that are there are left alone, so that an interrupted run
goes on where it was.

    python scripts/make_robot_data.py --tasks button-press window-open --out robot-data
    python scripts/make_robot_data.py --out assets/robot --episodes 6 --max-steps 200

In Python: ``agents.offline.robomimic.read_robomimic`` reads a file, and ``reproduce.recorded.record_behaviours``
makes one. 100 episodes of 500 steps of each behaviour take about three minutes a task on one core, and 20 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress

from aligngym.envs.robot.experts import BEHAVIOURS
from aligngym.envs.robot.manipulation import full_task_name
from aligngym.reproduce.recorded import record_behaviours

TASKS = ("button-press", "faucet-close", "window-open", "drawer-open", "door-close")


def make_file(path: Path, task: str, arguments: argparse.Namespace, progress: Progress) -> None:
    """Play the episodes of a task, and write them once all are there."""
    line = progress.add_task(task, total=arguments.episodes * len(arguments.behaviours))
    parts = record_behaviours(
        path,
        task,
        arguments.episodes,
        behaviours=arguments.behaviours,
        max_steps=arguments.max_steps,
        noise=arguments.noise,
        seed=arguments.seed,
        progress=lambda: progress.advance(line),
    )
    for part in parts:
        facts = {name: float(part.terms[name].mean()) for name in ("success_any", "success_last", "true_return")}
        values = "  ".join(f"{name} {value:.2f}" for name, value in facts.items())
        progress.console.print(f"{task:14} {part.info['behaviour'][0]:11} {values}", soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="names of Meta-World's tasks (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("robot-data"), help="folder (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="of each behaviour (default: %(default)s)")
    parser.add_argument("--behaviours", nargs="+", choices=BEHAVIOURS, default=BEHAVIOURS, help="default: all four")
    parser.add_argument("--max-steps", type=int, default=500, help="of every episode (default: %(default)s)")
    parser.add_argument(
        "--noise", type=float, default=1.0, help="standard deviation, on experts (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        full_task_name(task)  # a misspelt name is better known now than after an hour
    with Progress() as progress:
        for task in arguments.tasks:
            path = arguments.out / f"{full_task_name(task).removesuffix('-v3')}.hdf5"
            if path.exists() and not arguments.overwrite:
                progress.console.print(f"{path} is there and stays as it is; --overwrite makes it again")
            else:
                make_file(path, task, arguments, progress)


if __name__ == "__main__":
    main()

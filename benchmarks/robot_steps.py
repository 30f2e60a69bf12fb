"""Steps a second of the robots' environments: one, a row of them (``SyncVectorEnv``), ``make_async``, MJX.

    python benchmarks/robot_steps.py [--quick] [--pairs 5] [--envs ControlAlign-v0] [--observation state]
        [--rows 2] [--mjx 16 256 1024]

Random actions; the time is wall-clock, resets at the ends of episodes included, compiling left out. A step is one of
one environment, so that all numbers compare. MJX simulates on the device that JAX uses, the others on the CPU, where
``--rows`` should be the number of cores. Then pictures a second of 64 x 64, ours against the library's own renderer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from pairs import RESULTS, Stopwatch, alternate, report, table

ENVS: dict[str, dict[str, Any]] = {
    "ManipulationAlign-v0": {"task": "drawer-open"},
    "ControlAlign-v0": {"domain": "walker", "task": "walk"},
    "RobosuiteAlign-v0": {"task": "Can"},
}
ARMS = ("single", "SyncVectorEnv", "make_async")
RENDERERS = ("ours", "library")


def steps_arm(name: str, env_id: str, observation: str, rows: int, steps: int, seed: int) -> dict[str, float]:
    """Take ``steps`` steps in all, with random actions."""
    import gymnasium as gym
    import numpy as np
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
    from gymnasium.wrappers import Autoreset

    import aligngym  # noqa: F401
    from aligngym.envs.robot import make_async

    options = ENVS[env_id] | {"observation": observation}
    env: Any
    if name == "make_async":
        env = make_async(env_id, rows, **options)
    elif name == "SyncVectorEnv":
        env = SyncVectorEnv([lambda: gym.make(env_id, **options)] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    else:
        env = Autoreset(gym.make(env_id, **options))
    rows = getattr(env, "num_envs", 1)  # a single one has none
    calls = steps // rows
    actions = np.random.default_rng(seed).uniform(-1, 1, (calls + 20, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=seed)
    for action in actions[:20]:  # compiles, draws for the first time
        env.step(action)
    watch = Stopwatch()
    with watch:
        for action in actions[20:]:
            env.step(action)
    env.close()
    return {"steps_per_second": calls * rows / watch.wall, "ms": 1000 * watch.wall / (calls * rows)}


def mjx_arm(env_id: str, rows: int, steps: int, seed: int) -> dict[str, float]:
    """The same for MJX, at least 20 times in every row; with its share of the time that starting episodes takes."""
    import gymnasium as gym
    import jax
    import numpy as np

    import aligngym  # noqa: F401

    jax.config.update("jax_compilation_cache_dir", str(RESULTS / "jax"))
    env: Any = gym.make_vec(env_id.replace("-v0", "MJX-v0"), num_envs=rows, **ENVS[env_id])
    calls = max(steps // rows, 20)
    actions = np.random.default_rng(seed).uniform(-1, 1, (calls + 3, *env.action_space.shape)).astype(np.float32)
    starting, stepping = Stopwatch(), Stopwatch()
    env.reset(seed=seed)
    for action in actions[:3]:
        env.step(action)
    with starting:
        env.reset()
    with stepping:
        for action in actions[3:]:
            env.step(action)
    wall = stepping.wall + starting.wall * calls / env.max_steps
    return {
        "steps_per_second": calls * rows / wall,
        "ms": 1000 * wall / (calls * rows),
        "start_ms": 1000 * starting.wall / rows,
    }


def frames_arm(name: str, env_id: str, count: int, seed: int) -> dict[str, float]:
    """Draw the first state of an episode ``count`` times, by our renderer or by the library that made the model."""
    import gymnasium as gym

    import aligngym  # noqa: F401
    from aligngym.envs.robot.rendering import choose_backend

    choose_backend()  # for the libraries
    env: Any = gym.make(env_id, **ENVS[env_id], render_mode="rgb_array", render_size=64).unwrapped
    env.reset(seed=seed)
    draw = env.render if name == "ours" else _library(env_id, env.simulator)
    draw()
    watch = Stopwatch()
    with watch:
        for _ in range(count):
            draw()
    return {"frames_per_second": count / watch.wall, "ms": 1000 * watch.wall / count}


def _library(env_id: str, simulator: Any) -> Any:
    """The library's own way to a picture of 64 x 64 of its simulator."""
    if env_id == "ControlAlign-v0":
        return lambda: simulator.physics.render(64, 64, camera_id=0)
    if env_id == "ManipulationAlign-v0":
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        renderer = MujocoRenderer(simulator.model, simulator.data, width=64, height=64, camera_name="corner4")
        return lambda: renderer.render("rgb_array")
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    simulation = simulator.sim
    simulation.add_render_context(MjRenderContextOffscreen(simulation, device_id=-1))
    simulation._render_context_offscreen.vopt.geomgroup[0] = 0
    return lambda: simulation.render(height=64, width=64, camera_name="agentview")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few steps: does it run?")
    parser.add_argument("--pairs", type=int, default=5, help="rounds")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--observation", nargs="+", default=["state", "pixels"], choices=["state", "pixels"])
    parser.add_argument("--rows", type=int, default=2, help="side by side on the CPU")
    parser.add_argument(
        "--mjx", type=int, nargs="*", default=[16, 256, 1024], help="numbers of rows; none: leave it out"
    )
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=(*ARMS, *RENDERERS, "MJX"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm in ARMS:
        print(json.dumps(steps_arm(args.arm, args.envs[0], args.observation[0], args.rows, args.steps, args.seed)))
        return
    if args.arm == "MJX":
        print(json.dumps(mjx_arm(args.envs[0], args.rows, args.steps, args.seed)))
        return
    if args.arm:
        print(json.dumps(frames_arm(args.arm, args.envs[0], args.frames, args.seed)))
        return
    if args.quick:
        args.pairs, args.steps, args.frames, args.mjx = 1, 40, 10, args.mjx[:1]
    load = os.getloadavg()[0]
    sections = [f"## Robots: {args.steps} steps on {os.cpu_count()} cores, {args.rows} rows, load {load:.1f} before\n"]
    if args.mjx and find_spec("jax"):
        shown = [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"]
        sections.append(f"MJX on: {subprocess.check_output(shown, text=True).strip()}\n")
    for env_id in args.envs:
        for observation in args.observation:
            same = ["--envs", env_id, "--observation", observation, "--steps", str(args.steps)]
            commands = {arm: [sys.executable, __file__, *same, "--rows", str(args.rows), "--arm", arm] for arm in ARMS}
            if env_id == "ControlAlign-v0" and observation == "state":
                for rows in args.mjx:
                    arm = [sys.executable, __file__, *same, "--rows", str(rows), "--arm", "MJX"]
                    commands[f"MJX, {rows} rows"] = arm
            runs = alternate(commands, args.pairs, vary="--seed")
            columns = {"steps_per_second": "steps/s", "ms": "ms a step", "start_ms": "ms to start a row"}
            text = table(runs, "single", columns, {"ms": "time"})
            sections.append(f"### {env_id}, {observation}\n\n{text}\n")
        same = ["--envs", env_id, "--frames", str(args.frames)]
        commands = {arm: [sys.executable, __file__, *same, "--arm", arm] for arm in RENDERERS}
        runs = alternate(commands, args.pairs, vary="--seed")
        text = table(runs, "ours", {"frames_per_second": "pictures/s", "ms": "ms a picture"}, {"ms": "time"})
        sections.append(f"### {env_id}, pictures of 64 x 64\n\n{text}\n")
    report("robot_steps", "\n".join(sections))


if __name__ == "__main__":
    main()

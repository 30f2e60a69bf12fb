"""Steps a second of the robots' environments: one, two in a row (``SyncVectorEnv``), two side by side (``make_async``).

    python benchmarks/robot_steps.py [--quick] [--pairs 5] [--envs ControlAlign-v0] [--observation state]

Random actions; the time is wall-clock, resets at the ends of episodes included. A step is one of one environment, so
that the numbers of one and of two compare. Then pictures a second of 64 x 64, ours against the library's own renderer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pairs import Stopwatch, alternate, report, table

ENVS: dict[str, dict[str, Any]] = {
    "ManipulationAlign-v0": {"task": "drawer-open"},
    "ControlAlign-v0": {"domain": "walker", "task": "walk"},
    "RobosuiteAlign-v0": {"task": "Can"},
}
ARMS = ("single", "SyncVectorEnv", "make_async")
RENDERERS = ("ours", "library")
ROWS = 2


def steps_arm(name: str, env_id: str, observation: str, steps: int, seed: int) -> dict[str, float]:
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
        env = make_async(env_id, ROWS, **options)
    elif name == "SyncVectorEnv":
        env = SyncVectorEnv([lambda: gym.make(env_id, **options)] * ROWS, autoreset_mode=AutoresetMode.SAME_STEP)
    else:
        env = Autoreset(gym.make(env_id, **options))
    rows = getattr(env, "num_envs", 1)
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
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=(*ARMS, *RENDERERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm in ARMS:
        print(json.dumps(steps_arm(args.arm, args.envs[0], args.observation[0], args.steps, args.seed)))
        return
    if args.arm:
        print(json.dumps(frames_arm(args.arm, args.envs[0], args.frames, args.seed)))
        return
    if args.quick:
        args.pairs, args.steps, args.frames = 1, 40, 10
    load = os.getloadavg()[0]
    sections = [f"## Robots: {args.steps} steps on {os.cpu_count()} cores, load {load:.1f} before\n"]
    for env_id in args.envs:
        for observation in args.observation:
            same = ["--envs", env_id, "--observation", observation, "--steps", str(args.steps)]
            commands = {arm: [sys.executable, __file__, *same, "--arm", arm] for arm in ARMS}
            runs = alternate(commands, args.pairs, vary="--seed")
            text = table(runs, "single", {"steps_per_second": "steps/s", "ms": "ms a step"}, {"ms": "time"})
            sections.append(f"### {env_id}, {observation}\n\n{text}\n")
        same = ["--envs", env_id, "--frames", str(args.frames)]
        commands = {arm: [sys.executable, __file__, *same, "--arm", arm] for arm in RENDERERS}
        runs = alternate(commands, args.pairs, vary="--seed")
        text = table(runs, "ours", {"frames_per_second": "pictures/s", "ms": "ms a picture"}, {"ms": "time"})
        sections.append(f"### {env_id}, pictures of 64 x 64\n\n{text}\n")
    report("robot_steps", "\n".join(sections))


if __name__ == "__main__":
    main()

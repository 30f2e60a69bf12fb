"""``LLMAlign-v0`` batched (``make_vec``) against Gymnasium's ``SyncVectorEnv`` of single environments.

    python benchmarks/environment.py [--quick] [--pairs 5]

Random tokens are the actions, so policies cost nothing; the reward is a constant ("off") or the default one ("on").
Both arms take the same prompts, share one tokenizer, and reset finished rows in the same step.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pairs import Stopwatch, alternate, report, table

ARMS = ("make_vec", "SyncVectorEnv")


def zero(completions: list[str], **_: Any) -> list[float]:
    """Score nothing."""
    return [0.0] * len(completions)


def arm(name: str, rows: int, reward: str, steps: int, seed: int) -> dict[str, float]:
    """Step ``rows`` environments ``steps`` times with random tokens."""
    import gymnasium as gym
    import numpy as np
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    import aligngym
    from aligngym.envs.text.llm_align import load_tokenizer
    from aligngym.envs.text.prompts import load_prompts

    options: dict[str, Any] = {"tokenizer": load_tokenizer("stories"), "prompts": load_prompts(None).prompts[:64]}
    if reward == "off":
        options["reward"] = zero
    if name == "make_vec":
        env = gym.make_vec("LLMAlign-v0", num_envs=rows, **options)
    else:
        single = [lambda: gym.make("LLMAlign-v0", **options)] * rows
        env = SyncVectorEnv(single, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = np.random.default_rng(seed).integers(env.single_action_space.n, size=(steps, rows))  # type: ignore[attr-defined]
    env.reset(seed=seed)
    for action in actions[:5]:
        env.step(action)
    watch, ended = Stopwatch(), 0
    with watch:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            ended += int((terminated | truncated).sum())
    assert aligngym.__version__
    return {"wall": watch.wall, "cpu": watch.cpu, "steps_per_second": steps * rows / watch.wall, "episodes": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of few steps: does it run?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--reward", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(arm(args.arm, args.rows[0], args.reward[0], args.steps, args.seed)))
        return
    if args.quick:
        args.pairs, args.steps = 1, 80
    sections = [f"## Environment: {args.steps} steps\n"]
    for rows in args.rows:
        for reward in args.reward:
            same = ["--rows", str(rows), "--reward", reward, "--steps", str(args.steps)]
            commands = {a: [sys.executable, __file__, *same, "--arm", a] for a in ARMS}
            runs = alternate(commands, args.pairs, vary="--seed")
            columns = {"steps_per_second": "steps/s", "episodes": "episodes", "peak_mb": "peak MB"}
            text = table(runs, "make_vec", columns, {"wall": "wall", "cpu": "CPU"})
            sections.append(f"### {rows} rows, reward {reward}\n\n{text}\n")
    report("environment", "\n".join(sections))


if __name__ == "__main__":
    main()

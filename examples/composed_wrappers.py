"""Compose wrappers around LLMAlign-v0: a curriculum of prompts, a changed reward, a monitor, a record of all episodes.

Each acts alike on `step` and on `rollout`, so GRPO still generates whole episodes in the model's own fast loop.

    python examples/composed_wrappers.py --episodes 2048
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym
import torch

import aligngym
from aligngym.rewards import Repetition
from aligngym.wrappers import vector

gym.register_envs(aligngym)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("runs/composed"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    # VADER's sentiment of the whole text is easily gamed; what we really want is the story's.
    env = gym.make_vec("LLMAlign-v0", num_envs=64, reward="sentiment")
    env = vector.PromptCurriculum(env, "spread")  # more often the prompts whose rewards still differ
    env = vector.TransformReward(env, Repetition(), add=True, weight=-1.0)
    env = vector.LengthPenalty(env, per_token=0.01, target=48)
    env = monitor = vector.RewardMonitor(env, gold="story_sentiment")  # scored, never given
    env = vector.RecordTrajectories(env, args.out)

    agent = aligngym.GRPO(env, "stories").learn(args.episodes)
    print(monitor.report())

    # A wrapped environment is resumed with all that its wrappers have learned.
    agent.save(args.out / "checkpoint")
    again = aligngym.GRPO.load(args.out / "checkpoint", env=env)
    print(f"after {again.episodes} episodes, the last of them:")
    lines = (args.out / "completions.jsonl").read_text("utf-8").splitlines()
    print(json.dumps(json.loads(lines[-1]), indent=2))
    env.close()


if __name__ == "__main__":
    main()

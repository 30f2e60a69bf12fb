"""Train the embedded language model on a reward of your own: a plain function with TRL's signature.

python examples/custom_reward.py --episodes 1024
"""

import argparse

import gymnasium as gym
import torch

import aligngym
from aligngym.rewards import FunctionReward, as_reward

gym.register_envs(aligngym)


def dialogue(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """1 for a completion in which somebody speaks, that is, which holds a pair of quotation marks."""
    return [float(text.count('"') >= 2) for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1024)
    parser.add_argument("--eval-episodes", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    # Rewards compose: each term is logged on its own as rollout/term/<name>.
    reward = FunctionReward(dialogue) + 0.2 * as_reward("story_sentiment")
    env = gym.make_vec("LLMAlign-v0", num_envs=64, reward=reward)
    held_out = gym.make_vec("LLMAlign-v0", num_envs=min(64, args.eval_episodes), reward=reward, split="eval")
    agent = aligngym.GRPO(env, "stories")
    before = agent.evaluate(held_out, episodes=args.eval_episodes)
    agent.learn(args.episodes)
    after = agent.evaluate(held_out, episodes=args.eval_episodes)
    print(f"before {before.mean:.3f} ± {before.standard_error:.3f}, terms {before.terms}")
    print(f"after  {after.mean:.3f} ± {after.standard_error:.3f}, terms {after.terms}")
    print(after.info["prompt"][0], "->", after.info["completion"][0])


if __name__ == "__main__":
    main()

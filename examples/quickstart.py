"""Align the embedded story model with GRPO: happier stories that still read like stories.

Prints the mean reward on held-out prompts before and after with standard errors, the divergence from the untrained
model, three stories before and after, and the path of the learning curve.

    python examples/quickstart.py
"""

import argparse

from aligngym import GRPOConfig
from aligngym.agents.experiment import Experiment, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2560)
    parser.add_argument("--eval-episodes", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", default=None, help="folder of the run; a new one in runs/ by default")
    args = parser.parse_args()
    experiment = Experiment(
        env="LLMAlign-v0",
        agent="grpo",
        model="stories",
        episodes=args.episodes,
        eval_episodes=args.eval_episodes,
        max_new_tokens=args.max_new_tokens,
        out=args.out,
    )
    # Each iteration plays 64 episodes: 8 prompts, 8 stories each, every story judged against the other 7.
    config = GRPOConfig(episodes_per_iteration=64, group_size=8, learning_rate=5e-5, kl_coef=0.05)
    print(train(experiment, config))


if __name__ == "__main__":
    main()

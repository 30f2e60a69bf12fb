"""Train two runs and compare them: learning curves, and the plane of reward against divergence, as PNG.

The plane also shows best-of-N of the untrained model: what drawing N completions and keeping the best would give.

    python examples/plotting.py --episodes 2048
"""

import argparse
from pathlib import Path

import gymnasium as gym
import torch

import aligngym
from aligngym.agents.callbacks import EvaluationCallback
from aligngym.agents.experiment import Experiment, best_of_n_returns
from aligngym.agents.plots import best_of_n, plot_frontier, plot_learning

gym.register_envs(aligngym)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2048, help="of each run")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts of an evaluation")
    parser.add_argument("--draws", type=int, default=16, help="completions of a prompt for best-of-N")
    parser.add_argument("--out", type=Path, default=Path("runs/plotting"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than several for a model this small
    held_out = gym.make_vec("LLMAlign-v0", num_envs=args.prompts, split="eval")

    runs = {}
    for kl_coef in (0.0, 0.1):
        folder = runs[f"kl_coef={kl_coef}"] = args.out / f"kl-{kl_coef}"
        config = aligngym.GRPOConfig(kl_coef=kl_coef)
        agent = aligngym.GRPO("LLMAlign-v0", "stories", config, folder=folder)
        agent.learn(args.episodes, EvaluationCallback(held_out, args.prompts, every=max(1, args.episodes // 8)))
    print("learning curves:", plot_learning(runs, args.out / "learning.png"))

    returns = best_of_n_returns(Experiment(), args.prompts, args.draws)  # of the untrained model, [prompts, draws]
    print("frontier:", plot_frontier(runs, args.out / "frontier.png", best_of_n(returns)))


if __name__ == "__main__":
    main()

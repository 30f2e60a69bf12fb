"""A rule that is broken from neighbour to neighbour, filmed.

python examples/self_evolving_society.py --players 60
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import networkx
import numpy as np
import torch

import aligngym  # noqa: F401
from aligngym.agents.callbacks import Callback
from aligngym.agents.self_evolving import SelfEvolving, SelfEvolvingConfig
from aligngym.envs.society.plots import plot_rates, plot_tipping_points, save_diffusion


class Choices(Callback):
    """Who broke the rule, round by round."""

    def on_start(self, agent: Any, target: int) -> None:
        self.rounds: list[np.ndarray] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.rounds.append(episodes.actions[:, 0].numpy() == 1)
        return True


def evolve(players: int, rounds: int, visibility: Any, pull: float) -> np.ndarray:
    """Who broke the rule, ``[rounds, players]``."""
    game = {"players": players, "threshold": 4, "success_pays": "colluders", "visibility": visibility}
    env = gym.make_vec("StrategyDiffusion-v0", num_envs=players, rounds=1, reward="additive", **game)
    config = SelfEvolvingConfig(alignment=5.0, imitation=1.0, reference_pull=pull)
    agent = SelfEvolving(env, config=config, seed=0)
    with torch.no_grad():
        agent.policy.logits[:4] = torch.tensor([0.0, 5.0])  # who begin, next to each other
    agent.learn(rounds * players, choices := Choices())
    return np.array(choices.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--players", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=40)
    args, out = parser.parse_args(), Path("runs/society")
    graph = networkx.watts_strogatz_graph(args.players, 4, 0.05, seed=0)
    runs = {"they see neighbours": (graph, 0.0), "they see all": ("complete", 0.0), "pulled back": (graph, 0.2)}
    choices = {name: evolve(args.players, args.rounds, see, pull) for name, (see, pull) in runs.items()}
    for name, found in choices.items():
        print(f"{name}: {found[0].mean():.0%} break the rule at first, {found[-1].mean():.0%} in the last round")
    print("film:", save_diffusion(choices["they see neighbours"], out / "diffusion.gif", graph))
    print("rates:", plot_rates({name: found.mean(1) for name, found in choices.items()}, out / "rates.png"))
    print("tipping points:", plot_tipping_points(out / "tipping-points.png"))


if __name__ == "__main__":
    main()

"""Train an environment of your own with GRPO: write three digits that add up to the number shown.

python examples/custom_environment.py --episodes 16384
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np

import aligngym
from aligngym.envs.generation import EpisodeScores, GenerationVectorEnv


class DigitSumVectorEnv(GenerationVectorEnv):
    """Observation: target, sum so far, digits left, in [0, 1]. Reward: 1 less the distance from the target."""

    def __init__(self, num_envs: int = 1, *, digits: int = 3) -> None:
        self.targets = np.zeros(num_envs, np.int64)
        self.written = np.full((num_envs, digits), -1)  # -1: not written yet
        observation = gym.spaces.Box(0, 1, (3,), np.float64)
        super().__init__(num_envs, observation, gym.spaces.Discrete(10), max_steps=digits)

    def _start(self, rows: np.ndarray, options: Any) -> None:
        # Only a row's own generator: rows with equal seeds get the same target, which is what makes a GRPO group.
        self.targets[rows] = [self.generators[row].integers(9 * self.max_steps + 1) for row in rows]
        self.written[rows] = -1

    def _observe(self) -> np.ndarray:
        sums = np.where(self.written >= 0, self.written, 0).sum(1)
        return np.stack([self.targets / 9, sums / 9, self.max_steps - self.steps], 1) / self.max_steps

    def _apply(self, actions: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.written[active, self.steps[active] - 1] = actions[active]  # self.steps counts this decision already
        return active & (self.steps == self.max_steps), np.zeros_like(active)

    def _score(self, rows: np.ndarray) -> EpisodeScores:
        distance = np.abs(self.written[rows].sum(1) - self.targets[rows])
        info = {"target": self.targets[rows].tolist(), "digits": self.written[rows].tolist()}
        return EpisodeScores(1.0 - distance, {"exact": (distance == 0).astype(float)}, info=info)

    def _render_row(self, row: int) -> str:
        return f"{self.targets[row]}: {self.written[row]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=16384)
    args = parser.parse_args()
    gym.register("DigitSum-v0", vector_entry_point=DigitSumVectorEnv)
    config = aligngym.GRPOConfig(episodes_per_iteration=256, minibatch_size=64, epochs=2, learning_rate=1e-2, kl_coef=0)
    result = aligngym.GRPO("DigitSum-v0", config=config).learn(args.episodes).evaluate(episodes=256, deterministic=True)
    print(f"reward {result.mean:.2f} ± {result.standard_error:.2f}, exactly right {result.terms['exact']:.0%}")
    print(*(f"{n} = {d}" for n, d in zip(result.info["target"][:8], result.info["digits"], strict=False)))


if __name__ == "__main__":
    main()

"""Stable-Baselines3's agents with networks of 16 units on short episodes, and what to compare of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

from aligngym.agents.callbacks import Callback
from aligngym.agents.sb3 import SAC, SB3PPO, SB3Agent

MODES = list(AutoresetMode)
SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "sac": (SAC, {"steps_per_iteration": 32, "learning_starts": 20, "batch_size": 16, "net_arch": (16, 16)}),
    "sb3-ppo": (SB3PPO, {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "net_arch": (16, 16)}),
}
HOMES = {"sac": "Pendulum-v1", "sb3-ppo": "CartPole-v1"}


def make_env(env_id: str, rows: int = 2, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **options: Any) -> Any:
    """Gymnasium's synchronous vector environment."""
    if mode is not AutoresetMode.NEXT_STEP:  # Gymnasium's default; JSON cannot hold the others
        options["vector_kwargs"] = {"autoreset_mode": mode}
    return gym.make_vec(env_id, num_envs=rows, vectorization_mode="sync", **options)


def small(name: str, env: Any = None, seed: int = 3, folder: Any = None, **options: Any) -> Any:
    """An agent of that name."""
    cls, defaults = SMALL[name]
    env = env or make_env(HOMES[name], max_episode_steps=15)
    return cls(env, config=cls.config_class(**defaults | options), seed=seed, folder=folder)


def everything(agent: SB3Agent) -> list[torch.Tensor]:
    """All numbers that training changed."""
    return [t for key, values in sorted(agent._tensors().items()) for _, t in sorted(values.items())] + [
        *agent.policy.parameters()
    ]


def equal(one: SB3Agent, two: SB3Agent) -> bool:
    """Whether all of them are, bit for bit."""
    ours, others = everything(one), everything(two)
    return len(ours) == len(others) and all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


class Metrics(Callback):
    """Everything that is logged, but for the clock."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_iteration(self, agent: Any, episodes: Any, metrics: dict[str, float]) -> bool:
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        return True

"""Agents that count environment steps, not episodes, and may stop in the middle of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent
from .checkpoint import flatten_optimizer, restore_optimizer
from .sb3_env import SeededVecEnv


class SteppingAgent(Agent):
    """An agent whose training environment keeps its episodes under way, through evaluation and checkpoints.

    A subclass makes ``vec_env`` with :meth:`_make_vec_env`, steps that, and calls ``vec_env.go_on()`` before.

    Attributes:
        vec_env: the training environment, with the episodes under way.
    """

    unit = "steps"
    vec_env: SeededVecEnv

    def _make_vec_env(self) -> SeededVecEnv:
        """The training environment; the agent draws a seed for every episode."""
        return SeededVecEnv(self.env, lambda count: self.rng.integers(2**31, size=count).tolist())

    @abstractmethod
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By the name of their file in a checkpoint."""

    def _rounds(
        self, env: VectorEnv[Any, Any, Any], episodes: int, seed: int, deterministic: bool
    ) -> Generator[Trajectories]:
        if env is self.env:
            self.vec_env.moved = True
        yield from super()._rounds(env, episodes, seed, deterministic)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        optimizers = {name: flatten_optimizer(optimizer)[0] for name, optimizer in self._optimizers().items()}
        return optimizers | {"episodes": self.vec_env.get_state()[0]}

    def _state(self) -> dict[str, Any]:
        return {
            "optimizers": {name: flatten_optimizer(optimizer)[1] for name, optimizer in self._optimizers().items()},
            "vec_env": self.vec_env.get_state()[1],
        }

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        for name, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, tensors[name], state["optimizers"][name])
        self.vec_env.set_state(tensors["episodes"], state["vec_env"])

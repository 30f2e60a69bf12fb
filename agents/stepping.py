"""Agents that count environment steps, not episodes, and may stop in the middle of them."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Self

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent
from .callbacks import Callback
from .checkpoint import flatten_optimizer, restore_optimizer
from .sb3_env import SeededVecEnv


class SteppingAgent(Agent):
    """An agent whose training environment keeps its episodes under way, through evaluation and checkpoints.

    A subclass makes ``vec_env`` with :meth:`_make_vec_env`, steps that, and calls ``vec_env.go_on()`` before.

    Attributes:
        vec_env: the training environment, with the episodes under way.
    """

    unit = "steps"
    warmup: ClassVar[str] = "learning_starts"
    """The options that put off what :meth:`first_lesson` says, for people."""
    vec_env: SeededVecEnv

    def first_lesson(self) -> int:
        """The step from which on the agent learns what it is meant to."""
        return 0

    def learn(self, total_episodes: int, callback: Callback | Sequence[Callback] | None = None) -> Self:
        """Train for at least ``total_episodes`` further steps; see :meth:`Agent.learn`.

        Warns:
            UserWarning: if they end before the agent learns anything.
        """
        first, every = self.first_lesson(), getattr(self.config, "steps_per_iteration", 1)
        if math.ceil((self.episodes + total_episodes) / every) * every < first:
            warnings.warn(
                f"{type(self).__name__} learns from step {first} on, which these {total_episodes} steps do not reach, "
                f"so that nothing is learned: train for more, or lower {self.warmup}",
                stacklevel=2,
            )
        return super().learn(total_episodes, callback)

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

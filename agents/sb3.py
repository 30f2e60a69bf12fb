"""Stable-Baselines3's SAC and PPO with this package's verbs: learn, predict, evaluate, save, load, exact resume."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor

from ..trajectories import Trajectories
from .agent import AgentConfig
from .checkpoint import read_generator, write_generator
from .policies.policy import Policy
from .policies.sb3_policy import ALGORITHMS, Algorithm, SB3Policy, check_spaces, policy_name
from .randomness import GlobalRandomness
from .sb3_config import SACConfig, SB3Config, SB3PPOConfig
from .sb3_env import from_tensors, to_tensors
from .stepping import SteppingAgent

__all__ = ["SAC", "SB3PPO", "SACConfig", "SB3Agent", "SB3Config", "SB3PPOConfig"]

BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class SB3Agent(SteppingAgent):
    """An algorithm of Stable-Baselines3.

    Its loop, its losses and its networks are its own; environment, evaluation, logs, checkpoints and random numbers are
    this package's. What it draws comes from generators of its own, although it knows global ones only
    (:class:`.randomness.GlobalRandomness`).

    Deviations from running Stable-Baselines3 by hand: every episode has a seed of its own, drawn by the agent, where
    there only the first of a row has one; with equal seeds the parameters are equal bit for bit. Learning rate and clip
    ranges are constant. State-dependent exploration is left out.

    Args:
        env: an environment id, or a vector environment whose rows can be reset one by one.
        policy: a :class:`.policies.sb3_policy.SB3Policy` to start from; None: Stable-Baselines3's initial weights.
        config: the algorithm's options; None takes the defaults.
        seed: fixes initial weights, episodes and actions.
        device: where the networks live.
        folder: run folder for logs and checkpoints; None writes nothing.
    """

    algorithm: ClassVar[Algorithm]
    model: Any  # Stable-Baselines3's
    randomness: GlobalRandomness

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        self._device = torch.device(device)
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """Stable-Baselines3's own networks, with its own initial weights.

        Raises:
            ValueError: for a model's name.
        """
        if model is not None:
            raise ValueError(f"policy={model!r} names a model, but {type(self).__name__} makes its own networks")
        self.model = self._build_model()
        return SB3Policy(self.model.policy)

    def _setup(self) -> None:
        if hasattr(self, "model"):
            return
        given = self.policy
        if not isinstance(given, SB3Policy) or given.algorithm != self.algorithm:
            raise ValueError(f"policy is a {type(given).__name__}, but {type(self).__name__} takes its own SB3Policy")
        self.model = self._build_model()
        try:
            self.model.policy.load_state_dict(given.network.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the policy does not fit the environment and net_arch: {error}") from error
        self.policy = SB3Policy(self.model.policy)

    def _build_model(self) -> Any:
        """Stable-Baselines3's agent, seeded as it seeds itself."""
        spaces = self.env.single_observation_space, self.env.single_action_space
        check_spaces(self.algorithm, *spaces, name=type(self).__name__)
        self.randomness = GlobalRandomness(self._device)
        self.vec_env = self._make_vec_env()
        cls = ALGORITHMS[self.algorithm]
        options = {k: v for k, v in vars(self.config).items() if k in inspect.signature(cls).parameters}
        arch = {} if self.config.net_arch is None else {"net_arch": list(self.config.net_arch)}
        options |= {"policy_kwargs": arch, "seed": self.seed, "device": self._device, **self._model_options()}
        with self.randomness.installed():
            model = cls(policy_name(self.vec_env.observation_space), self.vec_env, **options)
        model.set_logger(Logger(None, []))
        return model

    def _model_options(self) -> dict[str, Any]:
        """Further arguments of Stable-Baselines3's agent."""
        return {}

    def iterate(self) -> tuple[None, dict[str, float]]:
        """Some steps with their updates, wherever in an episode they begin and end."""
        self.train_steps(self._steps_per_iteration())
        return None, self._metrics()

    def advance(self, episodes: Trajectories | None) -> int:
        """Steps of the last iteration."""
        return int(self.model.num_timesteps) - self.episodes

    def _steps_per_iteration(self) -> int:
        """Up to the next multiple of ``steps_per_iteration``, which several rows together may overstep."""
        every: int = self.config.steps_per_iteration
        return every - int(self.model.num_timesteps) % every

    def train_steps(self, steps: int) -> None:
        """Let Stable-Baselines3 train for at least ``steps`` steps, until its next round of updates is over."""
        with self.at_work():
            self.model.learn(steps, reset_num_timesteps=False, log_interval=None)
        self.policy.version = self.model._n_updates

    @contextmanager
    def at_work(self) -> Generator[None]:
        """Environment and generators as training left them, whoever used them since."""
        self.vec_env.go_on()
        with self.randomness.installed():
            yield

    def _metrics(self) -> dict[str, float]:
        """Of the episodes that ended since the last call, and of the updates."""
        logged = {k: float(v) for k, v in self.model.logger.name_to_value.items() if k.startswith("train/")}
        self.model.logger.dump()  # empties it
        return self.vec_env.metrics() | logged

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.model.policy.optimizer}

    def _state(self) -> dict[str, Any]:
        model, starts = self.model, self.model._last_episode_starts
        return super()._state() | {
            "randomness": self.randomness.get_state(),
            "action_space": write_generator(model.action_space.np_random),
            "steps": model.num_timesteps,
            "updates": model._n_updates,
            "episode_starts": None if starts is None else starts.tolist(),
        }

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        model = self.model
        self.randomness.set_state(state["randomness"])
        model.action_space.np_random.bit_generator.state = read_generator(state["action_space"]).bit_generator.state
        model.num_timesteps, model._n_updates = state["steps"], state["updates"]
        starts, last = state["episode_starts"], self.vec_env.observation
        model._last_episode_starts = None if starts is None else np.array(starts)
        if last is not None and isinstance(model.env, VecTransposeImage):
            last = model.env.transpose_observations(last)
        model._last_obs = last


class SB3PPO(SB3Agent):
    """Stable-Baselines3's PPO (arXiv 1707.06347), for continuous and discrete actions."""

    config_class = SB3PPOConfig
    algorithm = "ppo"

    def _steps_per_iteration(self) -> int:
        return int(self.config.n_steps * self.env.num_envs)


class SAC(SB3Agent):
    """Stable-Baselines3's soft actor-critic (arXiv 1801.01290, 1812.05905), for continuous actions."""

    config_class: ClassVar[type[SACConfig]] = SACConfig
    algorithm = "sac"

    def first_lesson(self) -> int:
        return int(self.config.learning_starts) + 1

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        model = self.model
        found = {"actor_optimizer": model.actor.optimizer, "critic_optimizer": model.critic.optimizer}
        if model.ent_coef_optimizer is not None:
            found["ent_coef_optimizer"] = model.ent_coef_optimizer
        return found

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        weight = {} if self.model.log_ent_coef is None else {"log_ent_coef": self.model.log_ent_coef}
        return super()._tensors() | {"ent_coef": weight, "replay": buffer_tensors(self.model.replay_buffer)}

    def _state(self) -> dict[str, Any]:
        buffer = self.model.replay_buffer
        return super()._state() | {"replay": {"pos": buffer.pos, "full": buffer.full}}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        if self.model.log_ent_coef is not None:
            with torch.no_grad():
                self.model.log_ent_coef.copy_(tensors["ent_coef"]["log_ent_coef"])
        buffer = self.model.replay_buffer
        buffer.pos, buffer.full = state["replay"]["pos"], state["replay"]["full"]
        fill_buffer(buffer, tensors["replay"])


def buffer_tensors(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """The part of a replay buffer that is in use."""
    size = buffer.size()
    found: dict[str, Tensor] = {}
    for name in BUFFER:
        values: Any = getattr(buffer, name)
        used = {k: v[:size] for k, v in values.items()} if isinstance(values, dict) else values[:size]
        found |= to_tensors(used, name)
    return found


def fill_buffer(buffer: ReplayBuffer, tensors: dict[str, Tensor]) -> None:
    """Inverse of :func:`buffer_tensors`."""
    for name in BUFFER:
        values, saved = getattr(buffer, name), from_tensors(tensors, name)
        parts = [(values[k], v) for k, v in saved.items()] if isinstance(saved, dict) else [(values, saved)]
        for into, part in parts:
            into[: buffer.size()] = part

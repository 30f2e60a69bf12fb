"""Stable-Baselines3's SAC and PPO with this package's verbs: learn, predict, evaluate, save, load, exact resume."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
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
from .agent import Agent, AgentConfig
from .checkpoint import flatten_optimizer, read_generator, restore_optimizer, write_generator
from .environment import environment_state, restore_environment
from .policies.policy import Policy
from .policies.sb3_policy import ALGORITHMS, Algorithm, SB3Policy, check_spaces, policy_name
from .randomness import GlobalRandomness
from .rollouts import TERM_PREFIX
from .sb3_env import SeededVecEnv, from_tensors, to_tensors

BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True, kw_only=True)
class SB3Config(AgentConfig):
    """Options that both algorithms have; names and defaults are Stable-Baselines3's.

    Attributes:
        num_envs: environments side by side where they are made from an id: 1, 2, 4, 8 or 16.
        learning_rate: of Adam, for all networks; constant. 1e-4 to 1e-3.
        gamma: discount. 0.9 to 0.999.
        net_arch: widths of the hidden layers of actor and critic. None: (256, 256) for SAC, (64, 64) for PPO, none on
            top of PPO's convolutions.
    """

    num_envs: int = 1
    learning_rate: float = 3e-4
    gamma: float = 0.99
    net_arch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["num_envs"], (1, 2, 4, 8, 16).__contains__, "1, 2, 4, 8 or 16")
        self.require(["learning_rate"], lambda v: 0 < v < np.inf, "above 0")
        self.require(["gamma"], lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(["net_arch"], lambda v: v is None or all(w >= 1 for w in v), "None or widths of at least 1")

    @property
    def rows(self) -> int:
        """Environments side by side in training."""
        return self.num_envs


@dataclass(frozen=True, kw_only=True)
class SACConfig(SB3Config):
    """Options of soft actor-critic; names and defaults are Stable-Baselines3's.

    Attributes:
        steps_per_iteration: environment steps, of all rows together, between two entries of the log; whatever it is,
            training is the same.
        buffer_size: transitions kept for replay.
        learning_starts: steps of uniformly random actions before the first update.
        batch_size: transitions of an update. 64 to 1024.
        tau: share of the critics in each update of the target networks. 0.001 to 0.05.
        train_freq: steps of each row between two rounds of updates.
        gradient_steps: updates of a round; -1: as many as steps were taken in it.
        ent_coef: weight of the entropy: a number, "auto" to learn it, "auto_0.1" to learn it from 0.1 on.
        target_update_interval: updates between two updates of the target networks.
        target_entropy: entropy that is aimed at where its weight is learned, in nats; "auto": minus the number of
            action dimensions.
    """

    steps_per_iteration: int = 1000
    buffer_size: int = 1_000_000
    learning_starts: int = 100
    batch_size: int = 256
    tau: float = 0.005
    train_freq: int = 1
    gradient_steps: int = 1
    ent_coef: float | str = "auto"
    target_update_interval: int = 1
    target_entropy: float | str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("steps_per_iteration", "buffer_size", "batch_size", "train_freq", "target_update_interval")
        self.require(positive, lambda v: v >= 1, "at least 1")
        self.require(["learning_starts"], lambda v: v >= 0, "at least 0")
        self.require(["tau"], lambda v: 0 < v <= 1, "in (0, 1]")
        self.require(["gradient_steps"], lambda v: v >= 1 or v == -1, "at least 1, or -1")
        self.require(["ent_coef"], _is_entropy_weight, 'a number that is not negative, "auto", or "auto_0.1"')
        self.require(["target_entropy"], lambda v: v == "auto" or _number(v) is not None, 'a number or "auto"')


@dataclass(frozen=True, kw_only=True)
class SB3PPOConfig(SB3Config):
    """Options of proximal policy optimisation; names and defaults are Stable-Baselines3's.

    Attributes:
        n_steps: steps of each row between two rounds of updates.
        batch_size: transitions of an update. 32 to 4096.
        n_epochs: passes over the collected steps.
        gae_lambda: 1: Monte-Carlo return less the value; 0: one-step error. 0.9 to 1.
        clip_range: the ratio is clipped to 1 plus and minus this. 0.1 to 0.3.
        clip_range_vf: how far the critic moves from its old value in the loss; None: no limit.
        normalize_advantage: advantages of a batch have mean 0 and standard deviation 1.
        ent_coef: weight of an entropy bonus. 0 to 0.01.
        vf_coef: weight of the critic's loss.
        max_grad_norm: gradients are scaled down to this norm.
        target_kl: an iteration's updates stop where the divergence of the updated policy exceeds one and a half times
            this, in nats; None: no limit.
    """

    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(["n_steps", "n_epochs"], lambda v: v >= 1, "at least 1")
        self.require(["batch_size"], lambda v: v >= (2 if self.normalize_advantage else 1), "at least 2")
        self.require(["gae_lambda"], lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(["clip_range", "max_grad_norm"], lambda v: v > 0, "above 0")
        self.require(["clip_range_vf", "target_kl"], lambda v: v is None or v > 0, "None or above 0")
        self.require(["ent_coef", "vf_coef"], lambda v: v >= 0, "at least 0")


class SB3Agent(Agent):
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

    unit = "steps"
    algorithm: ClassVar[Algorithm]
    model: Any  # Stable-Baselines3's
    vec_env: SeededVecEnv
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
        check_spaces(self.algorithm, self.env.single_observation_space, self.env.single_action_space)
        self.randomness = GlobalRandomness(self._device)
        self.vec_env = SeededVecEnv(self.env, lambda count: self.rng.integers(2**31, size=count).tolist())
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
        if self.vec_env.moved and hasattr(type(self.env.unwrapped), "get_state"):
            self.vec_env.moved = False  # such an environment is restored with all its episodes by itself
        if self.vec_env.moved:
            state = environment_state(self.env)
            self.vec_env.replay()
            restore_environment(self.env, state)  # wrappers saw the replayed steps twice
        with self.randomness.installed():
            yield

    def _metrics(self) -> dict[str, float]:
        """Of the episodes that ended since the last call, and of the updates."""
        ended, self.vec_env.finished = self.vec_env.finished, []
        logged = {k: float(v) for k, v in self.model.logger.name_to_value.items() if k.startswith("train/")}
        self.model.logger.dump()  # empties it
        if not ended:
            return logged
        returns = np.array([e["return"] for e in ended])
        metrics = {
            "rollout/reward_mean": float(returns.mean()),
            "rollout/reward_std": float(returns.std(ddof=1)) if len(ended) > 1 else 0.0,
            "rollout/length_mean": float(np.mean([e["length"] for e in ended])),
            "rollout/terminated_fraction": float(np.mean([e["terminated"] for e in ended])),
        }
        for key in sorted({k for e in ended for k in e if k.startswith(TERM_PREFIX)}):
            values = [e[key] for e in ended if np.isfinite(e.get(key, np.nan))]
            if values:
                metrics[f"rollout/term/{key.removeprefix(TERM_PREFIX)}"] = float(np.mean(values))
        return metrics | logged

    def _rounds(
        self, env: VectorEnv[Any, Any, Any], episodes: int, seed: int, deterministic: bool
    ) -> Generator[Trajectories]:
        if env is self.env:
            self.vec_env.moved = True
        yield from super()._rounds(env, episodes, seed, deterministic)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By the name of their file in a checkpoint."""
        return {"optimizer": self.model.policy.optimizer}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        optimizers = {name: flatten_optimizer(optimizer)[0] for name, optimizer in self._optimizers().items()}
        return optimizers | {"episodes": self.vec_env.get_state()[0]}

    def _state(self) -> dict[str, Any]:
        model, starts = self.model, self.model._last_episode_starts
        return {
            "optimizers": {name: flatten_optimizer(optimizer)[1] for name, optimizer in self._optimizers().items()},
            "vec_env": self.vec_env.get_state()[1],
            "randomness": self.randomness.get_state(),
            "action_space": write_generator(model.action_space.np_random),
            "steps": model.num_timesteps,
            "updates": model._n_updates,
            "episode_starts": None if starts is None else starts.tolist(),
        }

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        model = self.model
        for name, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, tensors[name], state["optimizers"][name])
        self.vec_env.set_state(tensors["episodes"], state["vec_env"])
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


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _is_entropy_weight(value: float | str) -> bool:
    number = _number(value)
    if number is None and isinstance(value, str):
        start = _number(value.removeprefix("auto_"))
        return value == "auto" or (value.startswith("auto_") and start is not None and start > 0)
    return number is not None and number >= 0

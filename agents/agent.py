"""The base of every agent: learn, predict, evaluate, save, load, with logs, callbacks and exact resume."""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.logger import Logger, make_output_format
from torch import Tensor

from ..trajectories import Trajectories, concatenate
from .callbacks import Callback, CallbackList
from .checkpoint import load_checkpoint, read_generator, save_checkpoint, write_generator
from .environment import (
    environment_spec,
    environment_state,
    is_single,
    make_environment,
    registered_spec,
    restore_environment,
)
from .evaluation import EvaluationResult, join, rollout_metrics, summarize
from .interruption import interruptible
from .policies import build_policy, policy_class
from .policies.policy import Policy, RowNoise
from .rollouts import collect, environment_actions

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Base of all configurations: frozen, keyword-only, JSON-able; also the command line and the checkpoint."""

    def __post_init__(self) -> None:
        """Check fields of whole numbers and of a fixed set of values; a subclass checks the ranges of its numbers.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        hints = get_type_hints(type(self))
        for name, value in vars(self).items():
            if hints[name] is int and not isinstance(value, int | np.integer):
                raise ValueError(f"{name}={value!r}: must be a whole number")
            if get_origin(hints[name]) is Literal and value not in get_args(hints[name]):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(hints[name]))}")

    def require(self, names: Sequence[str], allowed: Callable[[Any], bool], words: str) -> None:
        """Raise a ValueError for the first of the fields ``names`` whose value is not ``allowed``."""
        for name in names:
            if not allowed(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: must be {words}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @property
    def rows(self) -> int:
        """Environments side by side in training where they are made from an id, at most."""
        return getattr(self, "episodes_per_iteration", 16)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: naming fields that this class does not have.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}; it has {sorted(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class Agent(ABC):
    """An alignment algorithm, a policy and the environments it learns from.

    Args:
        env: an environment id, or a vector environment (wrapped as you like).
        policy: a policy; or a model name (``"stories"``, ``"smollm2-135m"``, a folder, a hub name) for token
            environments; None builds the default one for the environment's spaces.
        config: the algorithm's options; None takes the defaults.
        seed: fixes initial weights that the agent makes, the environments' seeds and every action.
        device: where the policy lives: ``"cpu"``, ``"cuda"``.
        folder: run folder for logs (``progress.csv``, TensorBoard) and checkpoints; None writes nothing.
    """

    config_class: ClassVar[type[AgentConfig]]
    config: Any
    needs_values: ClassVar[bool] = False
    unit: ClassVar[Literal["episodes", "updates", "steps"]] = "episodes"
    """What ``learn`` and ``self.episodes`` count: episodes that were played, gradient updates of agents that learn from
    a dataset, or steps of the environment."""
    env_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of environments that the agent makes from an id; those that are given come first."""
    training_reward: ClassVar[str | None] = None
    """The reward of such an environment in training; None, and all evaluation: the environment's own."""

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
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(
                f"config is a {type(config).__name__}, but {type(self).__name__} takes {self.config_class.__name__}"
            )
        self.config = config or self.config_class()
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self._prediction_rng = np.random.default_rng([seed, 1])
        self.env = make_environment(env, self.config.rows, self.environment_options("train"))
        self.folder = Path(folder) if folder is not None else None
        generator = torch.Generator().manual_seed(seed)
        if not isinstance(policy, Policy):
            policy = self.default_policy(policy, generator)
        self.policy = policy.to(device)
        self.iteration = self.episodes = 0
        limit = getattr(self.env.spec, "max_episode_steps", None)
        self.horizon: int = getattr(self.env.unwrapped, "max_steps", limit or 0)  # 0: unknown
        self.callback: Callback = CallbackList([])
        self._logger: Logger | None = None
        self._setup()
        self.policy.check_spaces(self.env.single_observation_space, self.env.single_action_space)

    @classmethod
    def environment_options(cls, split: str) -> dict[str, Any]:
        """Arguments of the environment that suits the agent, for training (``"train"``) or evaluation."""
        own = {"reward": cls.training_reward} if cls.training_reward is not None and split == "train" else {}
        return {**cls.env_options, **own}

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """The policy that suits the environment and the algorithm where none is given.

        Args:
            model: name of a model, or None.
            generator: source of initial weights that are drawn.
        """
        return build_policy(self.env, model, value=self.needs_values, generator=generator)

    @abstractmethod
    def _setup(self) -> None:
        """Build optimisers and whatever else depends on the policy."""

    @abstractmethod
    def iterate(self) -> tuple[Trajectories | None, dict[str, float]]:
        """One round of collecting and updating: its episodes, None where no whole ones are played, and metrics."""

    def advance(self, episodes: Trajectories | None) -> int:
        """How much an iteration counts, in the agent's unit.

        Args:
            episodes: what :meth:`iterate` returned.
        """
        assert episodes is not None, "an agent that plays no whole episodes says what its iterations count"
        return len(episodes)

    def row_noise(self, rows: int) -> RowNoise:
        """Fresh noise streams, one a row, from the agent's own generator."""
        return RowNoise(self.rng.integers(2**62, size=rows).tolist())

    def learn(self, total_episodes: int, callback: Callback | Sequence[Callback] | None = None) -> Self:
        """Train for at least ``total_episodes`` further episodes, or whatever else the agent's unit is.

        Ctrl-C finishes the iteration, saves ``folder/last`` and raises KeyboardInterrupt; a second one stops at once.

        Args:
            total_episodes: episodes to collect, on top of those already seen.
            callback: called at every iteration; see :mod:`aligngym.agents.callbacks`.
        """
        if total_episodes < 1:
            raise ValueError(f"total_episodes={total_episodes}: must be at least 1")
        restored = self.callback.get_state()
        self.callback = CallbackList([callback] if isinstance(callback, Callback) else list(callback or []))
        self.callback.set_state(restored or self._callback_state)
        target = self.episodes + total_episodes
        with interruptible() as interrupted:
            self.callback.on_start(self, target)
            proceed = True
            while self.episodes < target and proceed and not interrupted():
                began = time.perf_counter()
                episodes, metrics = self.iterate()
                count = self.advance(episodes)
                self.episodes += count
                self.iteration += 1
                metrics = ({} if episodes is None else rollout_metrics(episodes)) | metrics
                metrics[f"time/{self.unit}_per_second"] = count / (time.perf_counter() - began)
                proceed = self.callback.on_iteration(self, episodes, metrics)
                self.log(metrics)
            self.callback.on_end(self)
            if self.folder is not None:
                self.save(self.folder / "last")
            if interrupted():
                where = f"saved in {self.folder / 'last'}" if self.folder else "nothing saved: the agent has no folder"
                raise KeyboardInterrupt(f"stopped after {self.episodes} {self.unit}; {where}")
        return self

    def log(self, metrics: dict[str, float]) -> None:
        """Write ``metrics`` at the current episode to CSV and TensorBoard under ``folder``."""
        if self.folder is None:
            return
        if self._logger is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The CSV writer truncates its file: a resumed run writes a further one beside it, so that nothing is lost.
            suffix = f"-{self.episodes}" if (self.folder / "progress.csv").exists() else ""
            self._logger = Logger(
                str(self.folder), [make_output_format(f, str(self.folder), suffix) for f in ("csv", "tensorboard")]
            )
            (self.folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        for name, value in {"time/episodes": self.episodes, "time/iterations": self.iteration, **metrics}.items():
            self._logger.record(name, value)
        self._logger.dump(self.episodes)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """Choose actions for one observation or a batch, as Stable-Baselines3's agents do; training is not touched.

        Args:
            observation: of the environment's space, or a batch of such.
            state: not used, as policies here keep none; neither is ``episode_start``.
            episode_start: not used.
            deterministic: take the likeliest action instead of drawing one.

        Returns:
            the action or actions, and None.
        """
        if single := is_single(observation, self.env.single_observation_space):
            observation = (
                {k: np.asarray(v)[None] for k, v in observation.items()}
                if isinstance(observation, dict)
                else np.asarray(observation)[None]
            )
        count = len(next(iter(observation.values()))) if isinstance(observation, dict) else len(observation)
        noise = RowNoise(self._prediction_rng.integers(2**62, size=count).tolist())
        drawn = self.policy.act(observation, noise, deterministic).actions.cpu()
        actions = environment_actions(drawn, self.env.single_action_space).numpy()
        return (actions[0] if single else actions), None

    def evaluate(
        self,
        env: VectorEnv[Any, Any, Any] | None = None,
        episodes: int = 256,
        *,
        seed: int = 1_000_000,
        deterministic: bool | None = None,
    ) -> EvaluationResult:
        """Play ``episodes`` with fixed seeds: the same states and the same random numbers at every call.

        Args:
            env: where; None takes the training environment.
            episodes: how many; rounded up to a multiple of ``env.num_envs`` while playing, cut afterwards.
            seed: of the first episode; episode ``i`` has ``seed + i``.
            deterministic: take the likeliest actions; None leaves it to ``policy.deterministic_evaluation``, which
                plays flow models with their ODE. Deterministic episodes say nothing of the divergence, which is a mean
                over what the policy draws.
        """
        likeliest = self.policy.deterministic_evaluation if deterministic is None else deterministic
        with closing(self._rounds(env or self.env, episodes, seed, likeliest)) as played:
            divergences = (lambda part: None) if likeliest else self.divergences
            return join([summarize(part, divergences(part.to(self.policy.device))) for part in played], episodes)

    def play(
        self,
        env: VectorEnv[Any, Any, Any] | None = None,
        episodes: int = 4,
        *,
        seed: int = 1_000_000,
        deterministic: bool | None = None,
    ) -> Trajectories:
        """The episodes that :meth:`evaluate` would summarise, whole; arguments as there."""
        likeliest = self.policy.deterministic_evaluation if deterministic is None else deterministic
        parts = list(self._rounds(env or self.env, episodes, seed, likeliest))
        return concatenate(parts).select(torch.arange(episodes))

    def _rounds(
        self, env: VectorEnv[Any, Any, Any], episodes: int, seed: int, deterministic: bool
    ) -> Generator[Trajectories]:
        """Rounds of ``env.num_envs`` episodes."""
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be at least 1")
        state = environment_state(env)  # evaluation must not move the training statistics of rewards and wrappers
        try:
            for first in range(0, episodes, env.num_envs):
                seeds = list(range(seed + first, seed + first + env.num_envs))
                yield collect(
                    env,
                    self.policy,
                    seeds=seeds,
                    noise=RowNoise([s + 2**62 for s in seeds]),  # equal seeds would correlate states and actions
                    group=torch.arange(first, first + env.num_envs),
                    deterministic=deterministic,
                )
        finally:
            restore_environment(env, state)

    def divergences(self, episodes: Trajectories) -> Tensor | None:
        """``[B]`` nats from the agent's reference policy; None where it has none."""
        return None

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint: safetensors, JSON and a manifest with hashes; replaced atomically."""
        state = {
            "agent": type(self).__name__, "config": self.config.to_dict(), "seed": self.seed,
            "iteration": self.iteration, "episodes": self.episodes, "rng": write_generator(self.rng),
            "env": {
                "spec": environment_spec(self.env), "num_envs": self.env.num_envs, "state": environment_state(self.env),
            },
            "policy": {"class": type(self.policy).__name__, "spec": self.policy.spec(), "version": self.policy.version},
            "callback": self.callback.get_state(), **self._state(),
        }  # fmt: skip
        policy = {k: p.detach() for k, p in self.policy.named_parameters() if p.requires_grad}
        save_checkpoint(folder, {"policy": policy, **self._tensors()}, state, schema=SCHEMA)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        env: str | VectorEnv[Any, Any, Any] | None = None,
        *,
        policy: Policy | None = None,
        config: AgentConfig | None = None,
        device: str | torch.device = "cpu",
        run_folder: str | Path | None = None,
    ) -> Self:
        """Restore an agent; ``learn`` then continues as if it had never stopped, bit for bit on CPU.

        Args:
            folder: what :meth:`save` wrote.
            env: needed where the environment was built with objects that JSON cannot hold, or wrapped.
            policy: needed for policy classes of your own.
            config: if given, must equal the saved one.
            device: where to put the policy.
            run_folder: logs go on there.

        Raises:
            ValueError: wrong agent class, another config, a corrupted file, a newer schema, a missing environment.
        """
        tensors, state = load_checkpoint(folder, schema=SCHEMA)
        if state["agent"] != cls.__name__:
            raise ValueError(f"{folder} holds a {state['agent']}, not a {cls.__name__}: use {state['agent']}.load")
        saved = cls.config_class.from_dict(state["config"])
        if config is not None and config != saved:
            old = saved.to_dict()
            differ = [f"{k} (saved {old[k]!r}, given {v!r})" for k, v in config.to_dict().items() if v != old[k]]
            raise ValueError(
                f"the config differs from the checkpoint's in {', '.join(differ)}: "
                "resume with the saved config, or start a new run from its policy"
            )
        if env is None:
            if state["env"]["spec"] is None:
                raise ValueError(
                    f"{folder}: its environment cannot be rebuilt from JSON; pass it as load(folder, env=...)"
                )
            env = gym.make_vec(registered_spec(state["env"]["spec"]), num_envs=state["env"]["num_envs"])
        policy = policy or policy_class(state["policy"]["class"]).from_spec(state["policy"]["spec"])
        agent = cls(env, policy, saved, seed=state["seed"], device=device, folder=run_folder)
        agent._restore(tensors, state)
        return agent

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        parameters = {k: p for k, p in self.policy.named_parameters() if p.requires_grad}
        here, saved = ({(k, *v.shape) for k, v in values.items()} for values in (parameters, tensors["policy"]))
        if here != saved:
            raise ValueError(
                f"the policy's parameters differ from the checkpoint's, in names or shapes: {sorted(here ^ saved)[:4]}"
            )
        with torch.no_grad():
            for name, value in tensors["policy"].items():
                parameters[name].copy_(value)
        self.policy.version = state["policy"]["version"]
        self.iteration, self.episodes = state["iteration"], state["episodes"]
        self.rng = read_generator(state["rng"])
        restore_environment(self.env, state["env"]["state"])
        self._callback_state = state["callback"]

    _callback_state: dict[str, Any] = {}  # of a restored run, until learn() brings the callbacks it belongs to

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def _state(self) -> dict[str, Any]:
        return {}

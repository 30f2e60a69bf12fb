"""Learners of small problems: they play one episode after the other, on rewards that a teacher may design."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from ..tabular import Array, check_reward_table, pay_for
from ..trajectories import Trajectories
from .agent import Agent, AgentConfig
from .checkpoint import check_own_teacher
from .policies.policy import Policy
from .rollouts import TERM_PREFIX
from .teachers.build import TeacherName, build_teacher
from .teachers.teacher import TableTeacher, Teacher


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(AgentConfig):
    """Options of learners that may have a teacher.

    Attributes:
        teacher: who designs the reward: nobody; ``pbrs``, ``exprd``, ``invariance`` and ``expadard``, which know the
            environment's table and replace its reward; ``explors``, its parts ``explob`` and ``selfrs``, and ``sors``,
            which know nothing and add to it; ``lirpg``, which adds to it and knows where actions lead.
        teacher_every: episodes between the updates of a teacher that has any (5 in the papers, 20 for networks).
        teacher_budget: states beside the rewarded ones in which ``exprd`` and ``expadard`` may reward (1 to 5); None:
            all of them.
        teacher_rate: learning rate of ``explors``, ``selfrs``, ``sors`` and ``lirpg``; networks have a tenth of it.
        teacher_clip: largest size of what ``explors``, ``selfrs`` and ``lirpg`` learn; None: 0.01 for Q-learning, no
            limit in the tables of others, 0.1 in networks.
        discount: of rewards; None takes the environment's ``gamma``.
        episodes_per_iteration: between two lines of the log; all episodes are learned from as they end.
    """

    teacher: TeacherName = "none"
    teacher_every: int = 5
    teacher_budget: int | None = None
    teacher_rate: float = 0.01
    teacher_clip: float | None = None
    discount: float | None = None
    episodes_per_iteration: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("teacher_every", "episodes_per_iteration"), lambda v: v >= 1, "at least 1")
        self.require(("teacher_budget", "teacher_clip"), lambda v: v is None or v >= 0, "at least 0, or None")
        self.require(("teacher_rate",), lambda v: 0 <= v < np.inf, "at least 0")
        self.require(("discount",), lambda v: v is None or 0 <= v <= 1, "in [0, 1], or None")

    @property
    def rows(self) -> int:
        """Episodes are played one after the other."""
        return 1


@dataclass(frozen=True)
class Episode:
    """One that was played.

    Attributes:
        states: ``[T, ...]`` in which actions were taken.
        actions: ``[T]``.
        true: ``[T]`` rewards of the environment.
        given: ``[T]`` rewards that the learner saw.
        terminated: whether it ended itself.
        terms: reward terms that the environment reported.
    """

    states: NDArray[Any]
    actions: NDArray[np.int64]
    true: Array
    given: Array
    terminated: bool
    terms: dict[str, float]


class TaughtAgent(Agent):
    """Plays, asks the teacher what each step is worth, and learns. A subclass chooses actions and learns from them.

    Evaluation is on the environment's reward: a teacher's is not in it, a wrapper's is. Give a teacher of your own as
    ``teacher``; it must be given to :meth:`load` again.

    Args:
        env: an environment id, or a ``SyncVectorEnv``, of which the first row is played.
        policy: a policy, or None for the default one.
        config: the algorithm's options.
        seed: fixes everything that is random.
        device: where the policy lives.
        folder: run folder.
        teacher: instead of the config's.

    Raises:
        TypeError: for a teacher of another kind.
        ValueError: for an environment of another kind, two teachers, or a teacher's table of another shape.
    """

    config: TaughtConfig
    default_clip: ClassVar[float | None] = None
    """What ``teacher_clip=None`` stands for."""
    env: SyncVectorEnv

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if teacher is not None and not isinstance(teacher, Teacher):
            raise TypeError(f"teacher is {teacher!r}, expected a Teacher; its name goes into the config, a table into "
                            "TableTeacher(table)")  # fmt: skip
        self.teacher = teacher
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)

    def _setup(self) -> None:
        if not isinstance(self.env, SyncVectorEnv) or not isinstance(self.env.single_action_space, spaces.Discrete):
            raise ValueError(
                f"{type(self).__name__} plays single environments with numbered actions, but was given {self.env}: "
                "make it with gymnasium.make_vec(..., num_envs=1, vectorization_mode='sync'), wrappers inside"
            )
        c, one = self.config, self.env.envs[0]
        self.gamma = getattr(one.unwrapped, "gamma", 0.99) if c.discount is None else c.discount
        if self.teacher is not None and c.teacher != "none":
            raise ValueError(f"teacher={c.teacher!r} in the config, and another one was given: choose one")
        self.own_teacher = self.teacher is not None
        if self.teacher is None:
            clip = self.default_clip if c.teacher_clip is None else c.teacher_clip
            options: dict[str, Any] = {"budget": c.teacher_budget, "rate": c.teacher_rate, "clip": clip}
            self.teacher = build_teacher(c.teacher, one, self.gamma, seed=self.seed, **options)
        self._check_teacher(self.teacher)
        self.played = 0

    def _check_teacher(self, teacher: Teacher | None) -> None:
        if isinstance(teacher, TableTeacher):
            check_reward_table(teacher.table, self.env.single_observation_space, self.env.single_action_space)

    @abstractmethod
    def choose(self, state: Any) -> int:
        """An action for the training episode under way."""

    @abstractmethod
    def probabilities(self, states: NDArray[Any]) -> Array:
        """``[n, A]`` of the policy that acts in training."""

    def see_step(self, state: Any, action: int, reward: float, next_state: Any, terminated: bool) -> None:
        """Learn from a step as it happens; ``reward`` is the given one."""

    def see_episode(self, episode: Episode) -> None:
        """Learn from an episode as it has ended."""

    def play_episode(self) -> Episode:
        """Play one, and pay for every step what the teacher says.

        Raises:
            ValueError: if that is no finite number.
        """
        env, teacher = self.env.envs[0], self.teacher
        replaces = teacher is not None and teacher.mode == "replace"
        state, _ = env.reset(seed=int(self.rng.integers(2**31)))
        states, actions, true, given, over = [], [], [], [], False
        while not over:
            action = self.choose(state)
            next_state, reward, terminated, truncated, info = env.step(action)
            paid, true_reward = float(reward), float(info.get("true_reward", reward))
            if teacher is not None:
                designed = pay_for(teacher, state, action, next_state, terminated)
                paid = designed if replaces else paid + designed
            self.see_step(state, action, paid, next_state, terminated)
            states.append(state)
            actions.append(action)
            true.append(true_reward)
            given.append(paid)
            state, over = next_state, terminated or truncated
        terms = {k.removeprefix(TERM_PREFIX): float(v) for k, v in info.items() if k.startswith(TERM_PREFIX)}
        return Episode(np.array(states), np.array(actions), np.array(true), np.array(given), bool(terminated), terms)

    def iterate(self) -> tuple[None, dict[str, float]]:
        """``episodes_per_iteration`` episodes, learned from one by one."""
        episodes = []
        for _ in range(self.config.episodes_per_iteration):
            episode = self.play_episode()
            self.played += 1
            if self.teacher is not None:
                self.teacher.record(episode.states, episode.actions, episode.true)
                if self.played % self.config.teacher_every == 0:
                    self.teacher.update(self.probabilities)
            self.see_episode(episode)
            episodes.append(episode)
        self.policy.version = self.played
        means = {
            "rollout/reward_mean": [e.true.sum() for e in episodes],
            "rollout/designed_mean": [e.given.sum() for e in episodes],
            "rollout/length_mean": [len(e.true) for e in episodes],
            "rollout/terminated_fraction": [e.terminated for e in episodes],
            **{f"rollout/term/{name}": [e.terms[name] for e in episodes] for name in episodes[0].terms},
        }
        return None, {name: float(np.mean(values)) for name, values in means.items()}

    def advance(self, episodes: Trajectories | None) -> int:
        """Episodes of an iteration."""
        return self.config.episodes_per_iteration

    def _state(self) -> dict[str, Any]:
        teacher = None if self.teacher is None else self.teacher.get_state()
        return {"teacher": teacher, "own_teacher": self.own_teacher, "played": self.played}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.played, self.own_teacher = state["played"], state["own_teacher"]
        self._teacher_state = state["teacher"]
        if not self.own_teacher and self.teacher is not None:
            self.teacher.set_state(self._teacher_state)

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
        teacher: Teacher | None = None,
    ) -> Self:
        """Restore an agent; see :meth:`.agent.Agent.load`.

        Args:
            folder: what :meth:`save` wrote.
            env: needed where the environment was built with objects that JSON cannot hold, or wrapped.
            policy: needed for policy classes of your own.
            config: if given, must equal the saved one.
            device: where to put the policy.
            run_folder: logs go on there.
            teacher: made like the one that the saved agent was given; none otherwise.

        Raises:
            ValueError: if a teacher is missing, or was not expected.
        """
        agent = super().load(folder, env, policy=policy, config=config, device=device, run_folder=run_folder)
        check_own_teacher(folder, agent.own_teacher, teacher)
        if teacher is not None:
            agent._check_teacher(teacher)
            teacher.set_state(agent._teacher_state)
            agent.teacher = teacher
        return agent

r"""PEBBLE: rewards from preferences while learning, with unsupervised exploration first and relabelled replay.

The learner never sees a reward. It first acts at random, then explores for the entropy of states. From then on, in
rounds, a teacher compares pairs of segments of its newest episodes, an ensemble of reward models is fitted to all
answers, :math:`P(x \succ x') = \sigma(\sum_t r(x_t) - \sum_t r(x'_t))`, and the whole replay buffer gets the new
rewards. Between rounds it is soft actor-critic. Paper: PEBBLE, arXiv 2106.05091; details as in the code of B-Pref,
arXiv 2111.03026.

Deviations from that code: SAC is Stable-Baselines3's (targets move at every update, no bound of -5 on the logarithm of
the deviation, entropy weight from 1); the optimiser of the reward models is made anew in every round; segments may end
with their episode; questions come from the newest ``query_episodes`` whole episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor

from ..trajectories import stack
from .agent import AgentConfig
from .checkpoint import check_own_teacher, read_generator, write_generator
from .pbrl.dataset import PreferenceDataset
from .pbrl.queries import disagreement_queries, entropy_queries, uniform_queries
from .pbrl.replay import EpisodeRecord, RewardlessReplayBuffer, RunningDeviation
from .pbrl.reward_model import EnsembleRewardModel
from .pbrl.reward_training import RewardTrainingConfig, fit_reward_model
from .pbrl.segments import Segments, sample_segments
from .pbrl.teachers import ScriptedTeacher, Teacher
from .policies.policy import Policy
from .sb3 import SAC
from .sb3_config import SACConfig


@dataclass(frozen=True, kw_only=True)
class PEBBLEConfig(SACConfig):
    """Options of PEBBLE; the defaults are those published for Meta-World's button-press.

    Attributes:
        learning_starts: steps of uniformly random actions before the first update.
        batch_size: transitions of an update of actor and critics.
        net_arch: widths of the hidden layers of actor and critics.
        unsupervised_steps: steps of exploration for the entropy of states, after the random ones.
        neighbors: the state entropy is the distance to this nearest neighbour.
        segment_length: steps of a segment; episodes must be as long.
        queries_per_round: pairs that the teacher is asked about in a round.
        max_queries: in all; skipped ones count.
        steps_between_queries: environment steps from one round to the next.
        query_scheme: which pairs from the second round on: uniform, those of most disagreement of the ensemble, or
            those of the greatest entropy.
        query_candidates: pairs to choose one from, if not uniformly.
        query_episodes: newest whole episodes that segments are drawn from.
        ensemble_size: reward models.
        reward_hidden: widths of their hidden layers.
        reward_learning_rate: of their Adam.
        reward_epochs: of a round at most, over all answers so far.
        reward_batch_size: pairs of an update.
        stop_accuracy: a round's fitting stops where this share of the pairs is told right.
        reset_updates: updates right after the first round, from critics that are made anew.
        teacher_beta: rationality of the scripted teacher: it prefers the better segment with Bradley-Terry, below 0
            always.
        teacher_gamma: in [0, 1]; below 1 the teacher weighs late steps more.
        teacher_mistake: probability that it answers the opposite.
        teacher_skip: it skips pairs of which no return exceeds this share of a usual one.
        teacher_equal: it finds pairs equal whose returns differ by less than this share of a usual one.
    """

    learning_starts: int = 1000
    batch_size: int = 512
    net_arch: tuple[int, ...] | None = (256, 256, 256)
    unsupervised_steps: int = 9000
    neighbors: int = 5
    segment_length: int = 50
    queries_per_round: int = 100
    max_queries: int = 10_000
    steps_between_queries: int = 5000
    query_scheme: Literal["uniform", "disagreement", "entropy"] = "uniform"
    query_candidates: int = 10
    query_episodes: int = 100
    ensemble_size: int = 3
    reward_hidden: tuple[int, ...] = (256, 256, 256)
    reward_learning_rate: float = 3e-4
    reward_epochs: int = 10
    reward_batch_size: int = 128
    stop_accuracy: float = 0.97
    reset_updates: int = 100
    teacher_beta: float = -1.0
    teacher_gamma: float = 1.0
    teacher_mistake: float = 0.0
    teacher_skip: float = 0.0
    teacher_equal: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = (
            "neighbors", "segment_length", "queries_per_round", "max_queries", "steps_between_queries",
            "query_candidates", "query_episodes", "ensemble_size", "reward_epochs", "reward_batch_size",
        )  # fmt: skip
        self.require(positive, lambda v: v >= 1, "at least 1")
        self.require(["unsupervised_steps", "reset_updates"], lambda v: v >= 0, "at least 0")
        self.require(["reward_learning_rate"], lambda v: 0 < v < math.inf, "above 0")
        self.require(["stop_accuracy"], lambda v: 0.5 < v <= 1, "in (0.5, 1]")
        self.require(["reward_hidden"], lambda v: all(w >= 1 for w in v), "widths of at least 1")
        if self.query_scheme == "disagreement" and self.ensemble_size < 2:
            raise ValueError("query_scheme='disagreement' takes an ensemble_size of at least 2")
        self.teacher()

    def teacher(self) -> ScriptedTeacher:
        """The scripted teacher of these options."""
        return ScriptedTeacher(
            beta=self.teacher_beta,
            gamma=self.teacher_gamma,
            eps_mistake=self.teacher_mistake,
            eps_skip=self.teacher_skip,
            eps_equal=self.teacher_equal,
        )


class PEBBLE(SAC):
    """Soft actor-critic on rewards that are learned from a teacher's preferences.

    The teacher compares by ``info["true_reward"]`` of the steps; in an environment without it, by the steps' rewards.
    Nothing else reads these, but for ``rollout/reward_mean`` and evaluation, which report the environment's rewards.

    Observations are one vector of numbers. Give a teacher of your own as ``teacher``, a person for example; it must be
    given to :meth:`load` again.

    Args:
        env: as :class:`.sb3.SAC`'s.
        policy: as SAC's.
        config: the options.
        seed: as SAC's.
        device: as SAC's.
        folder: as SAC's.
        teacher: instead of the scripted one of the config.

    Attributes:
        reward_model: the ensemble.
        record: the newest episodes with their true rewards, for the teacher.
        preferences: all answers so far; None before the first.
        queries: questions asked so far.

    Raises:
        ValueError: if the observations are something else, or for two teachers; in training, if no episode is as long
            as a segment by the time of the first round, or if a teacher's answers are none.
    """

    config_class = PEBBLEConfig
    config: PEBBLEConfig
    warmup = "learning_starts or unsupervised_steps"
    reward_model: EnsembleRewardModel
    record: EpisodeRecord
    preferences: PreferenceDataset | None = None
    queries: int = 0
    _fit: Mapping[str, float] = MappingProxyType({})  # metrics of the last round

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
        super().__init__(env, policy, config, seed=seed, device=device, folder=folder)
        scripted = self.config.teacher()
        if teacher is not None and scripted != ScriptedTeacher():
            raise ValueError(f"the config has a {scripted}, and another teacher was given: choose one")
        self.teacher: Teacher = scripted if teacher is None else teacher
        self.own_teacher = teacher is not None

    def first_lesson(self) -> int:
        """The first questions; all before is exploration."""
        return self.config.learning_starts + self.config.unsupervised_steps + 1

    def _model_options(self) -> dict[str, Any]:
        c, space = self.config, self.env.single_observation_space
        if not isinstance(space, spaces.Box) or is_image_space(space):
            name = type(self).__name__
            raise ValueError(f"the observations have the space {space}: {name} takes a Box of numbers, no image")
        self._teacher_rng = np.random.default_rng([self.seed, 3])
        dims = spaces.flatdim(space), spaces.flatdim(self.env.single_action_space)
        generator = torch.Generator().manual_seed(self.seed)
        model = EnsembleRewardModel(*dims, size=c.ensemble_size, hidden=c.reward_hidden, generator=generator)
        self.reward_model = model.to(self._device).eval()
        self.record = EpisodeRecord(self.env.num_envs, c.query_episodes)
        options = {"reward_model": self.reward_model, "record": self.record, "neighbors": c.neighbors}
        return {"replay_buffer_class": RewardlessReplayBuffer, "replay_buffer_kwargs": options}

    @property
    def buffer(self) -> RewardlessReplayBuffer:
        """The replay buffer."""
        found = self.model.replay_buffer
        assert isinstance(found, RewardlessReplayBuffer)
        return found

    def iterate(self) -> tuple[None, dict[str, float]]:
        """Some steps with their updates, and the rounds of questions that are due."""
        target = self.model.num_timesteps + self._steps_per_iteration()
        while self.model.num_timesteps < target:
            due = self._next_round()
            if self.model.num_timesteps >= due:
                self.ask()
            else:
                self.train_steps(int(min(target, due)) - self.model.num_timesteps)
        return None, self._metrics() | {**self._fit, "preferences/queries": float(self.queries)}

    def _next_round(self) -> float:
        """The step of the next round of questions."""
        c = self.config
        if self.queries >= c.max_queries:
            return math.inf
        rounds = self.queries // c.queries_per_round  # only the last one may ask less
        return c.learning_starts + c.unsupervised_steps + rounds * c.steps_between_queries

    def ask(self) -> None:
        """A round: ask the teacher, fit the reward models, relabel the buffer."""
        first = self.queries == 0
        self._collect_answers(first)
        if self.preferences is not None:
            self._fit = self._fit_reward(self.preferences)
        buffer = self.buffer
        buffer.exploring = False
        buffer.relabel()
        if first:
            with self.at_work():
                self._reset_critic()
                if self.config.reset_updates:
                    self.model.train(self.config.reset_updates, self.config.batch_size)

    def _collect_answers(self, first: bool) -> None:
        """Ask about pairs of new segments, and add the answers to ``preferences``."""
        c, rng = self.config, self._teacher_rng
        count = min(c.queries_per_round - self.queries % c.queries_per_round, c.max_queries - self.queries)
        uniform = first or c.query_scheme == "uniform"
        candidates = count if uniform else count * c.query_candidates
        if not self.record.episodes:
            raise ValueError(
                f"no episode ended within the first {self.model.num_timesteps} steps, so there is nothing to ask "
                "about: raise unsupervised_steps, or shorten the episodes"
            )
        segments, truth = sample_segments(stack(list(self.record.episodes)), c.segment_length, 2 * candidates, rng)
        pairs = torch.arange(2 * candidates).reshape(-1, 2)
        if uniform:
            pairs = uniform_queries(pairs, count, rng)
        else:
            choose = disagreement_queries if c.query_scheme == "disagreement" else entropy_queries
            pairs = choose(pairs, self.reward_model.member_scores(segments), count)
        rows = pairs.flatten()
        self._answer(segments.select(rows), truth[rows])

    def _answer(self, segments: Segments, truth: Tensor) -> PreferenceDataset | None:
        """Ask about segment ``2 i`` against ``2 i + 1``, and add the answers; returns them, None if all are skipped."""
        usual = self.record.mean_step_reward() * self.config.segment_length
        labels = torch.as_tensor(self.teacher.answer(segments, truth, self._teacher_rng, usual)).float()
        if labels.shape != (len(truth) // 2,):
            raise ValueError(f"the teacher's answers have shape {tuple(labels.shape)}, expected ({len(truth) // 2},)")
        self.queries += len(labels)
        answered = ~labels.isnan()
        if not answered.any():
            return None
        chosen = segments.select(answered.repeat_interleave(2))
        self.preferences = joined(self.preferences, chosen, labels[answered])
        return joined(None, chosen, labels[answered])

    def _fit_reward(
        self, preferences: PreferenceDataset, further: Callable[[], Tensor] | None = None
    ) -> dict[str, float]:
        """Fit the reward models to all answers; ``further`` is added to the loss of every update."""
        c = self.config
        options = RewardTrainingConfig(
            updates=c.reward_epochs * math.ceil(len(preferences) / c.reward_batch_size),
            batch_size=c.reward_batch_size,
            learning_rate=c.reward_learning_rate,
            schedule="constant",
            weight_decay=0.0,
            stop_accuracy=c.stop_accuracy,
            standardize=False,
        )
        history = fit_reward_model(self.reward_model, preferences, options, rng=self._teacher_rng, further=further)
        return {f"preferences/{k}": history[-1][k] for k in ("loss", "accuracy")} | {
            "preferences/epochs": float(len(history)), "preferences/answers": float(len(preferences)),
        }  # fmt: skip

    def _reset_critic(self) -> None:
        """New critics, their targets alike, and a new optimiser: the old ones valued the entropy of states."""
        critic, target = self.model.critic, self.model.critic_target
        critic.load_state_dict(self.model.policy.make_critic(features_extractor=None).state_dict())
        target.load_state_dict(critic.state_dict())
        critic.optimizer.state.clear()

    def predict_rewards(self, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Learned rewards ``[T]`` of the steps of one episode, NaN before anything was learned.

        Args:
            observations: ``[T, D]``.
            actions: ``[T, A]``, as the environment takes them.
        """
        if self.preferences is None:
            return np.full(len(actions), np.nan)
        return self.reward_model.predict(observations, actions)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        answers: dict[str, Tensor] = {}
        if self.preferences is not None:
            segments = {f.name: getattr(self.preferences.segments, f.name) for f in fields(Segments)}
            answers = segments | {"labels": self.preferences.labels}
        return super()._tensors() | {
            "reward_model": dict(self.reward_model.state_dict()),
            "preferences": answers,
            "record": self.record.get_state()[0],
        }

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "queries": self.queries,
            "own_teacher": self.own_teacher,
            "fit": dict(self._fit),
            "teacher_rng": write_generator(self._teacher_rng),
            "record": self.record.get_state()[1],
            "exploring": self.buffer.exploring,
            "deviation": asdict(self.buffer.deviation),
        }

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.reward_model.load_state_dict(tensors["reward_model"])
        if answers := dict(tensors["preferences"]):
            labels = answers.pop("labels")
            self.preferences = joined(None, Segments(**answers), labels)
        self.own_teacher = state.get("own_teacher", False)
        self.record.set_state(tensors["record"], state["record"])
        self.queries, self._fit = state["queries"], state["fit"]
        self._teacher_rng = read_generator(state["teacher_rng"])
        self.buffer.exploring, self.buffer.deviation = state["exploring"], RunningDeviation(**state["deviation"])

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
            agent.teacher = teacher
        return agent


def joined(old: PreferenceDataset | None, segments: Segments, labels: Tensor) -> PreferenceDataset:
    """Preferences with further ones, segment ``2 i`` against ``2 i + 1``."""
    if old is not None:
        parts = old.segments, segments
        segments = Segments(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Segments)))
        labels = torch.cat([old.labels, labels])
    pairs = torch.arange(len(segments)).reshape(-1, 2)
    return PreferenceDataset(segments=segments, pairs=pairs, labels=labels)

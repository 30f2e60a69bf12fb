r"""PEARL: preferences of one task, carried over to another by Gromov-Wasserstein, and a reward that knows its doubts.

Cross-task preference alignment (:mod:`.pbrl.transfer`) matches segments of the source task with segments of the target
task by their distances within each task, and carries the labels of source pairs over to target pairs. No label of the
target task is asked for. Robust reward learning (:mod:`.pbrl.reward_training`) fits a Preference Transformer whose
rewards are Gaussian, so that labels which contradict each other raise the variance rather than move the mean. The mean
relabels the episodes of the target task, and IQL learns from them. Paper: arXiv 2306.03615 (ICML 2024).

The baselines are values of the options: ``transfer`` is ``cpa``, ``similarity`` or ``distance``, or ``none`` if the
given preferences are those of the target task (Preference Transformer itself; with a scripted teacher the oracle), and
``gaussian=False`` fits an ordinary Preference Transformer.

Deviations: what the paper leaves open is chosen in those modules. The transformer is smaller and trained for less than
that of the Preference Transformer (width 256, 10,000 epochs), so that it is a matter of a minute on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from ..trajectories import Trajectories
from .agent import AgentConfig
from .callbacks import Callback
from .iql import IQL, IQLConfig
from .pbrl.dataset import PreferenceDataset
from .pbrl.preference_transformer import PreferenceTransformer
from .pbrl.reward_training import RewardTrainingConfig, fit_reward_model, relabel
from .pbrl.segments import sample_segments
from .pbrl.transfer import AlignmentConfig, AlignmentReport, align_preferences, distance_labels, similarity_labels
from .policies.policy import Policy


@dataclass(frozen=True, kw_only=True)
class PEARLConfig(IQLConfig):
    """Options of PEARL and of IQL, which learns from its rewards.

    Attributes:
        preferences: file of the preferences to learn from (``PreferenceDataset.save``). None: the agent is given them.
        transfer: how labels come from the source task: cpa (Gromov-Wasserstein), similarity, distance; none takes
            the preferences as they are, those of the target task.
        target_segments: of the dataset, that labels are carried over to; as long as the source's.
        labels: pairs of them that get one.
        starts: couplings that each transport problem is solved from.
        gaussian: learn a mean and a standard deviation of each reward (robust reward learning), or the reward alone.
        reward_width: of the Preference Transformer; a multiple of 4.
        reward_updates: its gradient updates.
        reward_batch_size: pairs of one.
        standardize: observations get mean 0 and standard deviation 1 over the dataset.
        return_range: learned rewards are scaled so that the best and the worst return differ by this; the length of an
            episode is usual.
    """

    preferences: str | None = None
    transfer: Literal["cpa", "similarity", "distance", "none"] = "cpa"
    target_segments: int = 200
    labels: int = 500
    starts: int = 6
    gaussian: bool = True
    reward_width: int = 64
    reward_updates: int = 500
    reward_batch_size: int = 64
    standardize: bool = True
    return_range: float = 500.0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("target_segments", "labels", "starts", "reward_width", "reward_updates", "reward_batch_size")
        self.require(counts, lambda v: v >= 1, "at least 1")


class PEARL(IQL):
    """Label transfer and robust reward learning before the first update, then IQL.

    Args:
        env: as every agent's.
        policy: as :class:`~aligngym.agents.offline.agent.OfflineAgent`'s.
        config: the options.
        dataset: episodes of the target task; their rewards are not read. None takes the file in the config.
        preferences: of the source task, or with ``transfer="none"`` of the target's. None takes the file in the config.
        seed: as every agent's.
        device: as every agent's.
        folder: as every agent's.

    Attributes:
        reward_model: what was learned; None before ``learn``.
        alignment: how the transfer went; None without one.

    Raises:
        ValueError: if the preferences are given twice.
    """

    config_class = PEARLConfig
    config: PEARLConfig
    reward_model: PreferenceTransformer | None = None
    alignment: AlignmentReport | None = None
    _unlabelled: Trajectories | None = None

    def __init__(
        self,
        env: str | VectorEnv[Any, Any, Any],
        policy: str | Policy | None = None,
        config: AgentConfig | None = None,
        *,
        dataset: Trajectories | None = None,
        preferences: PreferenceDataset | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(env, policy, config, dataset=dataset, seed=seed, device=device, folder=folder)
        path = self.config.preferences
        if preferences is not None and path is not None:
            raise ValueError(f"preferences are given twice: as an argument and as the file {path} of the config")
        self.preferences = preferences if path is None else PreferenceDataset.load(path)

    def learn(self, total_episodes: int, callback: Callback | Sequence[Callback] | None = None) -> Self:
        """Learn the reward if that was not done yet, then train; see :meth:`OfflineAgent.learn`.

        Raises:
            ValueError: if there are no preferences, or no dataset.
        """
        if self.reward_model is None and self._unlabelled is not None:
            self._learn_reward(self._unlabelled)
        return super().learn(total_episodes, callback)

    def target_preferences(self, episodes: Trajectories, rng: np.random.Generator) -> PreferenceDataset:
        """The preferences that the reward is fitted to: those given, or their transfer to segments of ``episodes``."""
        if self.preferences is None:
            raise ValueError(
                "there is nothing to learn a reward from: give PEARL(..., preferences=...) or the config's preferences"
            )
        c, source = self.config, self.preferences.segments
        if c.transfer == "none":
            return self.preferences
        segments, _ = sample_segments(episodes, source.mask.shape[1], c.target_segments, rng)
        table = self.preferences.table()
        if c.transfer == "cpa":
            options = AlignmentConfig(num_labels=c.labels, starts=c.starts)
            pairs, labels, self.alignment = align_preferences(source, table, segments, options, rng)
            return PreferenceDataset(segments=segments, pairs=pairs, labels=labels)
        carry = similarity_labels if c.transfer == "similarity" else distance_labels
        found = carry(source, table, segments)
        known = np.argwhere(np.triu(np.isfinite(found), 1))
        chosen = known[rng.permutation(len(known))[: c.labels]]
        labels = torch.from_numpy(found[tuple(chosen.T)]).float()
        return PreferenceDataset(segments=segments, pairs=torch.from_numpy(chosen), labels=labels)

    def predict_rewards(self, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Learned rewards ``[T]`` of the steps of one episode, NaN before anything was learned.

        Args:
            observations: ``[T, D]``.
            actions: ``[T, A]``.
        """
        if self.reward_model is None:
            return np.full(len(actions), np.nan)
        return self.reward_model.predict(observations, actions)

    def _learn_reward(self, episodes: Trajectories) -> None:
        c, rng = self.config, np.random.default_rng([self.seed, 3])
        preferences = self.target_preferences(episodes, rng)
        model = self._untrained_reward(preferences.segments.mask.shape[1])
        options = RewardTrainingConfig(updates=c.reward_updates, batch_size=c.reward_batch_size)
        fit_reward_model(model, preferences, options, rng=rng)
        self.reward_model = model
        self._learn_from(episodes)

    def _untrained_reward(self, length: int) -> PreferenceTransformer:
        observed, acted = self.env.single_observation_space, self.env.single_action_space
        generator = torch.Generator().manual_seed(self.seed + 3)
        model = PreferenceTransformer(
            math.prod(observed.shape or ()), math.prod(acted.shape or ()), length, width=self.config.reward_width,
            gaussian=self.config.gaussian, generator=generator,
        )  # fmt: skip
        return model.to(self.policy.device)

    def _learn_from(self, episodes: Trajectories) -> None:
        """Keep the episodes without their rewards; with the learned ones they become what IQL reads."""
        self._unlabelled = replace(episodes, rewards=torch.zeros_like(episodes.rewards), terms={}, info={})
        if self.reward_model is not None:
            super()._learn_from(relabel(self.reward_model, self._unlabelled))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        model = self.reward_model
        return super()._tensors() | ({} if model is None else {"reward_model": dict(model.state_dict())})

    def _state(self) -> dict[str, Any]:
        length = None if self.reward_model is None else self.reward_model.length
        report = None if self.alignment is None else asdict(self.alignment)
        return super()._state() | {"reward_length": length, "alignment": report}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        if state["alignment"] is not None:
            self.alignment = AlignmentReport(**{**state["alignment"], "values": tuple(state["alignment"]["values"])})
        if state["reward_length"] is not None:
            self.reward_model = self._untrained_reward(state["reward_length"])
            self.reward_model.load_state_dict(tensors["reward_model"])
            self.reward_model.eval()
            if self._unlabelled is not None:
                self._learn_from(self._unlabelled)

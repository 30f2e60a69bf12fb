"""Rewards brought to mean 0 and standard deviation 1, with statistics that never change within a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper
from .episodes import Episodes

UNNORMALIZED = "unnormalized"  # the term under which the reward is logged as it came


class NormalizeRewardRule(EpisodeRule):
    """What :class:`NormalizeReward` does to finished episodes."""

    def __init__(
        self, env: Any, *, center: bool = True, scale: bool = True, epsilon: float = 1e-4, clip: float | None = None
    ) -> None:
        if not epsilon > 0:
            raise ValueError(f"epsilon is {epsilon}, expected a number above 0")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip}, expected None or a number above 0")
        super().__init__(env, center=center, scale=scale, epsilon=epsilon, clip=clip)
        self.center, self.scale, self.epsilon, self.clip = center, scale, epsilon, clip
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Population standard deviation so far; 1 as long as it is not above ``epsilon``."""
        std = float(np.sqrt(self._squares / max(self.count, 1)))
        return std if std > self.epsilon else 1.0

    def transform(self, episodes: Episodes) -> Episodes:
        """Normalises with the statistics of the batches before."""
        rewards = episodes.rewards - (self.mean if self.center else 0.0)
        if self.scale:
            rewards = rewards / self.std
        if self.clip is not None:
            rewards = np.clip(rewards, -self.clip, self.clip)
        return episodes.with_rewards(rewards, {UNNORMALIZED: episodes.rewards})

    def update(self, episodes: Episodes) -> None:
        """Takes a batch's rewards into the statistics (Chan's parallel update)."""
        rewards = episodes.terms[UNNORMALIZED]
        rewards = rewards[np.isfinite(rewards)]
        if not len(rewards):
            return
        total, shift = self.count + len(rewards), float(rewards.mean()) - self.mean
        self._squares += float(((rewards - rewards.mean()) ** 2).sum()) + shift**2 * self.count * len(rewards) / total
        self.mean += shift * len(rewards) / total
        self.count = total

    def _get_state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


class NormalizeReward(NormalizeRewardRule, EpisodeWrapper):
    r"""Normalises an episode's reward by the running mean and standard deviation of all before it.

    .. math:: r' = \mathrm{clip}\left((r - \mu) / \sigma, -c, c\right)

    The statistics are those of complete batches: they change when every row has finished an episode since the last
    change, by the first episode of each. Within a batch all rewards are treated alike, so that rewards of one group
    keep their order and ``step`` and ``rollout`` agree exactly. Before the first batch is complete rewards stay as they
    are. Invalid rewards stay invalid and are left out. The reward as it came is logged as ``reward/unnormalized``.

    Unlike Gymnasium's wrapper of this name, which scales every step's reward by the deviation of a discounted sum, it
    treats the reward of a whole episode. GRPO normalises within each group already and gains nothing from it; PPO's
    critic does, where the scale of a reward is unknown.

    Args:
        env: the environment.
        center: subtract the mean.
        scale: divide by the population standard deviation.
        epsilon: a deviation up to it counts as 1, so that equal rewards are not blown up.
        clip: largest absolute value of the result; None: no limit.

    Raises:
        ValueError: for an epsilon or clip not above 0.
    """


class VectorNormalizeReward(NormalizeRewardRule, VectorEpisodeWrapper):
    """:class:`NormalizeReward` for a batch of environments."""

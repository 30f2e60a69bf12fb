"""Rewards changed by any element of the reward algebra, or by a function of the number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..rewards import Reward, as_reward
from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper
from .episodes import Episodes, score_episodes


class TransformRewardRule(EpisodeRule):
    """What :class:`TransformReward` does to finished episodes."""

    def __init__(
        self,
        env: Any,
        reward: str | Mapping[str, Any] | Callable[..., Any] | Reward,
        *,
        add: bool = False,
        weight: float = 1.0,
    ) -> None:
        if not np.isfinite(weight):
            raise ValueError(f"weight is {weight}, expected a finite number")
        self.function: Callable[..., Any] | None = None
        if callable(reward) and not isinstance(reward, Reward) and _maps_a_number(reward):
            self.function = reward
        self.reward = None if self.function else as_reward(reward)
        super().__init__(env, reward=json_form(self.reward or reward), add=add, weight=weight)
        self.add, self.weight = add, float(weight)

    def transform(self, episodes: Episodes) -> Episodes:
        """Replaces the rewards, or adds to them."""
        if self.reward is None:
            return self._mapped(episodes)
        self.reward.set_progress(self.episodes)
        scores = score_episodes(self.reward, episodes)
        if not self.add:
            reasons = [
                reason or (None if scored else "the reward does not apply")
                for reason, scored in zip(scores.reasons, scores.scored, strict=True)
            ]
            return episodes.with_rewards(self.weight * scores.values, scores.terms, reasons)
        # What does not apply is left out of a sum; what failed makes the sum fail.
        values = np.where(scores.scored | scores.failed, scores.values, 0.0)
        reasons = [old or new for old, new in zip(episodes.invalid, scores.reasons, strict=True)]
        return episodes.with_rewards(episodes.rewards + self.weight * values, scores.terms, reasons)

    def _mapped(self, episodes: Episodes) -> Episodes:
        """Applies the function to every number; an invalid reward stays invalid."""
        assert self.function is not None
        values, reasons = episodes.rewards.copy(), episodes.invalid
        for i in np.flatnonzero(episodes.valid):
            try:
                values[i] = self.weight * float(self.function(episodes.rewards[i]))
            except Exception as error:  # whatever a function raises must not end the run
                values[i], reasons[i] = np.nan, f"{type(error).__name__}: {error}"
        return episodes.with_rewards(episodes.rewards + values if self.add else values, invalid=reasons)

    def _get_state(self) -> dict[str, Any]:
        return {} if self.reward is None else {"reward": self.reward.get_state()}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if self.reward is not None:
            self.reward.set_state(state["reward"])


class TransformReward(TransformRewardRule, EpisodeWrapper):
    """Replaces an episode's reward by another one, adds one to it, or maps it.

    A reward is computed once an episode ends, on its ``prompt``, ``completion`` and ``columns``; its terms are logged
    as ``reward/<name>``, beside those of the environment (a term of the same name replaces the environment's: give it
    another with ``reward.named``). Where it fails, the reward is NaN and ``info["invalid"]`` says why; a new reward
    that replaces a failed one makes the episode valid again. With ``add``, a reward that does not apply adds nothing.

    Schedules follow the number of episodes in complete batches. A reward that keeps running statistics
    (``reward.normalize()``) sees episodes in the order in which they end, which differs between ``step`` and
    ``rollout``: use :class:`~aligngym.wrappers.NormalizeReward` where they must agree.

    Example:
        >>> env = TransformReward(gymnasium.make("LLMAlign-v0"), 0.5 * Repetition(), add=True, weight=-1.0)
        >>> env = TransformReward(env, np.tanh)

    Args:
        env: the environment.
        reward: what :func:`~aligngym.rewards.as_reward` takes: a name, a JSON form, a ``Reward``, or a function with
            TRL's signature (``completions``, ``prompts``, ...). Any other function of one argument maps the number, as
            in Gymnasium's wrapper of this name; it does not see invalid rewards.
        add: keep the old reward and add to it.
        weight: factor of what is new.

    Raises:
        ValueError: for an unknown reward or a weight that is not finite.
    """


class VectorTransformReward(TransformRewardRule, VectorEpisodeWrapper):
    """:class:`TransformReward` for a batch of environments."""


def json_form(reward: Any) -> Any:
    """The JSON form of a reward, so that ``env.spec`` has one too; what has none stays itself."""
    if not isinstance(reward, Reward):
        return reward
    try:
        return reward.to_dict()
    except ValueError:
        return reward


def _maps_a_number(function: Callable[..., Any]) -> bool:
    """Whether a callable takes one positional argument and is no reward, which takes ``completions`` by name."""
    if inspect.isclass(function):
        return False
    if isinstance(function, np.ufunc):
        return function.nin == 1
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature; none of them is a reward
        return True
    if any(p.name == "completions" or p.kind is p.VAR_KEYWORD for p in parameters):
        return False
    return sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters) == 1

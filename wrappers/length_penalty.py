"""Rewards that depend on how many decisions an episode took."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper, generation_env
from .episodes import Episodes


class LengthPenaltyRule(EpisodeRule):
    """What :class:`LengthPenalty` does to finished episodes."""

    def __init__(
        self,
        env: Any,
        *,
        per_token: float = 0.0,
        target: int = 0,
        overlong_buffer: int = 0,
        overlong_factor: float = 1.0,
        max_length: int | None = None,
    ) -> None:
        if not np.isfinite([per_token, overlong_factor]).all() or target < 0 or overlong_buffer < 0:
            raise ValueError(
                f"per_token={per_token}, target={target}, overlong_buffer={overlong_buffer}, "
                f"overlong_factor={overlong_factor}: expected finite numbers, target and buffer not negative"
            )
        super().__init__(
            env,
            per_token=per_token,
            target=target,
            overlong_buffer=overlong_buffer,
            overlong_factor=overlong_factor,
            max_length=max_length,
        )
        self.per_token, self.target = per_token, target
        self.overlong_buffer, self.overlong_factor = overlong_buffer, overlong_factor
        self.max_length = getattr(generation_env(env), "max_steps", None) if max_length is None else max_length
        if overlong_buffer and (self.max_length is None or overlong_buffer > self.max_length):
            raise ValueError(
                f"overlong_buffer is {overlong_buffer} and max_length {self.max_length}, expected a buffer within the "
                "longest episode; give max_length where the environment has no max_steps"
            )

    def penalty(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is added to the rewards of episodes of ``lengths [n]``; ``[n]``."""
        added = -self.per_token * np.maximum(lengths - self.target, 0)
        if self.overlong_buffer and self.max_length is not None:
            over = (lengths - (self.max_length - self.overlong_buffer)) / self.overlong_buffer
            added = added - self.overlong_factor * np.clip(over, 0.0, 1.0)
        return np.asarray(added, np.float64)

    def transform(self, episodes: Episodes) -> Episodes:
        """Adds the penalty."""
        added = self.penalty(episodes.lengths)
        return episodes.with_rewards(episodes.rewards + added, {"length_penalty": added})


class LengthPenalty(LengthPenaltyRule, EpisodeWrapper):
    r"""Adds to an episode's reward what its number of decisions (for text: tokens) ``n`` costs.

    Two independent parts, each off by default:

    .. math:: -c \, \max(n - n_0, 0), \qquad -f \, \mathrm{clip}\left(\frac{n - (L - b)}{b}, 0, 1\right)

    The first is linear beyond a target; a negative ``c`` pays for length. The second is DAPO's soft overlong
    punishment (Yu et al. 2025, arXiv 2503.14476, equation 13): nothing up to ``L - b`` decisions, ``-f`` at ``L``.
    The sum is logged as ``reward/length_penalty``.

    Trap: a penalty makes rewards of a group differ that were equal. Whoever filters groups by their spread must do so
    by the reward without it.

    Args:
        env: the environment.
        per_token: ``c``.
        target: ``n_0``, decisions that cost nothing.
        overlong_buffer: ``b``; 0 leaves the second part out.
        overlong_factor: ``f``.
        max_length: ``L``; None takes the environment's ``max_steps``.

    Raises:
        ValueError: for a negative target or buffer, a factor that is not finite, or a buffer above ``L``.
    """


class VectorLengthPenalty(LengthPenaltyRule, VectorEpisodeWrapper):
    """:class:`LengthPenalty` for a batch of environments."""

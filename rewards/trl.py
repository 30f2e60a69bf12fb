"""Rewards of this package as reward functions of TRL. The other way needs no adapter: ``as_reward(trl_function)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .reward import Reward, Text


class TrlReward:
    """A reward as a TRL reward function: pass it in ``GRPOTrainer(reward_funcs=[...])``.

    Every term, and the share of samples that failed, goes to the trainer's ``log_metric`` where it gives one. The
    number of episodes follows the trainer's count of steps, for schedules: ``global_step`` times ``episodes_per_step``.

    TRL cannot tell "failed" from "does not apply": both come back as None, and a sample for which every reward function
    gives None counts as 0 there. Watch the metric ``<name>/failed``.

    Attributes:
        reward: The reward.
        episodes_per_step: Completions an optimiser step; only schedules read it.
    """

    def __init__(self, reward: Reward, name: str | None = None, episodes_per_step: int = 1) -> None:
        self.reward = reward
        self.episodes_per_step = episodes_per_step
        self.__name__ = name or reward.name or type(reward).__name__

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Scores a batch; entries are floats or None."""
        state, log = columns.pop("trainer_state", None), columns.pop("log_metric", None)
        columns.pop("log_extra", None)
        if state is not None:
            self.reward.set_progress(int(state.global_step) * self.episodes_per_step)
        scores = self.reward.score(completions, prompts, **columns)
        if log is not None:
            self._log(log, scores.terms, scores.failed.mean() if len(completions) else 0.0)
        return [float(value) if known else None for value, known in zip(scores.values, scores.scored, strict=True)]

    def _log(self, log: Callable[[str, float], None], terms: Mapping[str, Any], failed: float) -> None:
        for key, values in terms.items():
            if not np.isnan(values).all():
                log(f"{self.__name__}/{key}", float(np.nanmean(values)))
        log(f"{self.__name__}/failed", float(failed))


def to_trl(reward: Reward, name: str | None = None, episodes_per_step: int = 1) -> TrlReward:
    """Returns a TRL reward function; it pickles and has a ``__name__``. See :class:`TrlReward`."""
    return TrlReward(reward, name, episodes_per_step)

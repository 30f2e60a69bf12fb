"""Finished episodes, as the wrappers see them on either face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rewards import Reward, RewardScores

TERM_PREFIX = "reward/"

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Episodes:
    """``n`` finished episodes.

    Attributes:
        rewards: ``[n]`` float64, the undiscounted sum of an episode's rewards; NaN where it is invalid.
        terminated: ``[n]`` bool; the others were truncated.
        actions: one array ``[length, ...]`` an episode.
        terms: the reward's terms by name, each ``[n]`` float64, NaN where one does not apply.
        info: facts of the episodes (``prompt``, ``completion``, ``columns``, ``invalid``, ...), a list of length
            ``n`` a key, None where an episode lacks it.
    """

    rewards: Numbers
    terminated: Flags
    actions: Sequence[NDArray[Any]]
    terms: Mapping[str, Numbers] = field(default_factory=dict)
    info: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[n]`` decisions in each episode."""
        return np.array([len(actions) for actions in self.actions], np.int64)

    @property
    def invalid(self) -> list[str | None]:
        """Why a reward failed, one an episode; None where it did not."""
        return list(self.info.get("invalid", [None] * len(self)))

    @property
    def valid(self) -> Flags:
        """``[n]``, False where the reward failed."""
        return np.isfinite(self.rewards)

    def with_rewards(
        self, rewards: Numbers, terms: Mapping[str, Numbers] | None = None, invalid: Sequence[str | None] | None = None
    ) -> Episodes:
        """These episodes with other rewards, further terms, and reasons where a reward is NaN."""
        info = self.info if invalid is None else {**self.info, "invalid": list(invalid)}
        return replace(self, rewards=rewards, terms={**self.terms, **(terms or {})}, info=info)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary an episode, of JSON's types as far as the info is."""
        return [
            {
                "reward": float(self.rewards[i]),
                "terminated": bool(self.terminated[i]),
                "actions": np.asarray(self.actions[i]).tolist(),
                "terms": {name: float(values[i]) for name, values in self.terms.items()},
                "info": {key: plain(values[i]) for key, values in self.info.items() if values[i] is not None},
            }
            for i in range(len(self))
        ]

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> Episodes:
        """Inverse of :meth:`records`."""
        names = dict.fromkeys(name for record in records for name in record["terms"])
        keys = dict.fromkeys(key for record in records for key in record["info"])
        return cls(
            rewards=np.array([record["reward"] for record in records], np.float64),
            terminated=np.array([record["terminated"] for record in records], np.bool_),
            actions=[np.asarray(record["actions"]) for record in records],
            terms={name: np.array([r["terms"].get(name, np.nan) for r in records], np.float64) for name in names},
            info={key: [record["info"].get(key) for record in records] for key in keys},
        )


def score_episodes(reward: Reward, episodes: Episodes) -> RewardScores:
    """Scores finished episodes with a reward.

    It is called with what the info holds: ``prompt``, ``completion`` (messages where the prompt is messages) and the
    ``columns`` beside the prompt, and with the actions as ``completion_ids``. Where an environment writes no text, the
    completion is the list of actions.
    """
    ids = [np.asarray(actions).tolist() for actions in episodes.actions]
    prompts = episodes.info.get("prompt")
    completions = [
        [{"role": "assistant", "content": completion}] if isinstance(prompt, list) else completion
        for prompt, completion in zip(prompts or [None] * len(ids), episodes.info.get("completion", ids), strict=True)
    ]
    rows = [columns or {} for columns in episodes.info.get("columns", [])]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return reward.score(completions, prompts, **{**columns, "completion_ids": ids})


def info_of(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The info of one row, out of the arrays into which Gymnasium packs those of all (``_key`` says who has one)."""
    info: dict[str, Any] = {}
    for key, values in infos.items():
        if (key.startswith("_") and key[1:] in infos) or not infos.get("_" + key, np.ones(row + 1))[row]:
            continue
        if isinstance(values, dict):
            info[key] = info_of(values, row)
        else:
            info[key] = values[row].item() if isinstance(values[row], np.generic) else values[row]
    return info


def is_term(key: str) -> bool:
    """Whether a key of info names a term of the reward."""
    return key.startswith(TERM_PREFIX)


def plain(value: Any) -> Any:
    """``value`` with arrays and numpy numbers in it as lists and numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

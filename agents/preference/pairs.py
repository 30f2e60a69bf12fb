"""Pairs of a preferred and another episode from one state: sampled and ranked by their reward, or read as texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ...trajectories import Trajectories, concatenate
from ..advantages import group_advantages

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Preferences:
    """Pairs of episodes, one a row: ``chosen[i]`` is preferred over ``rejected[i]``, and both began in one state.

    Attributes:
        chosen: the preferred episodes. Their rewards and recorded log-probabilities are not read by a preference loss.
        rejected: the others; ``group`` must be that of ``chosen``, since it says who shares an initial state.

    Raises:
        ValueError: if the rows do not belong together.
    """

    chosen: Trajectories
    rejected: Trajectories

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ValueError(
                f"there are {len(self.chosen)} chosen and {len(self.rejected)} rejected episodes: not pairs"
            )
        if not torch.equal(self.chosen.group, self.rejected.group):
            raise ValueError("chosen and rejected differ in group, the number of the state that a pair began in")

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` decisions of the longer episode of each pair."""
        return torch.maximum(self.chosen.lengths, self.rejected.lengths)

    def select(self, index: Tensor) -> Preferences:
        """Pairs ``index`` (bool mask or integer positions)."""
        return Preferences(self.chosen.select(index), self.rejected.select(index))

    def stacked(self) -> Trajectories:
        """``[2 B]`` episodes: the chosen ones, then the rejected ones."""
        return concatenate([self.chosen, self.rejected])

    def to(self, device: torch.device | str) -> Preferences:
        """The same pairs with every tensor on ``device``."""
        return Preferences(self.chosen.to(device), self.rejected.to(device))

    def fingerprint(self) -> str:
        """SHA-256 of what was decided in them; equal for equal pairs in equal order."""
        digest = hashlib.sha256()
        for episodes in (self.chosen, self.rejected):
            for values in (episodes.actions, episodes.mask):
                digest.update(f"{tuple(values.shape)}{values.dtype}".encode())
                digest.update(np.ascontiguousarray(values.cpu().numpy()).tobytes())
        return digest.hexdigest()


def best_and_worst(episodes: Trajectories) -> Preferences:
    """From each group the episode with the highest and the one with the lowest return, the first of equals.

    A group gives no pair if its returns are equal up to float noise or fewer than two of its episodes are valid.

    Args:
        episodes: rewarded; rows with the same ``group`` began in the same state.
    """
    # Centred returns are exactly 0 in the groups that say nothing, and in invalid rows.
    centered = group_advantages(episodes.returns, episodes.group, episodes.valid, "centered")
    chosen, rejected = [], []
    for group in episodes.group[centered != 0].unique():
        rows = (episodes.group == group).nonzero()[:, 0]
        chosen.append(rows[centered[rows].argmax()])
        rejected.append(rows[centered[rows].argmin()])
    empty = torch.empty(0, dtype=torch.int64, device=episodes.group.device)
    pick = [torch.stack(found) if found else empty for found in (chosen, rejected)]
    return Preferences(episodes.select(pick[0]), episodes.select(pick[1]))


def text_preferences(env: VectorEnv[Any, Any, Any], pairs: str | Path | Sequence[Mapping[str, Any]]) -> Preferences:
    """Pairs of texts as episodes of a text environment.

    A completion is tokenised by itself, ended by the tokenizer's end-of-sequence token, and cut to the environment's
    budget of new tokens, as an episode would be (which then counts as truncated). What never came from a policy has
    log-probabilities of NaN; the reward of a chosen text is 1, of a rejected one 0.

    Args:
        env: has a tokenizer and takes prompts, as ``LLMAlign-v0``; wrapped or not. Its state stays as it is.
        pairs: a JSON Lines file or rows of ``{"prompt", "chosen", "rejected"}``, the format of TRL: texts, or for a
            chat a list of messages, of which a completion has one. Other fields are ignored.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the environment has no tokens, there are no pairs, or one cannot be used.
    """
    text_env: Any = env.unwrapped
    if not hasattr(text_env, "tokenizer"):
        raise ValueError(f"pairs are texts, but {env} has no tokenizer: give the agent Preferences instead")
    rows, source = (read_pairs(pairs), str(pairs)) if isinstance(pairs, str | Path) else (list(pairs), "pairs")
    if not rows:
        raise ValueError(f"{source}: there are no pairs, expected at least one")
    for i, row in enumerate(rows):
        if missing := [name for name in FIELDS if name not in row]:
            raise ValueError(f"{source}, row {i}: has no {', '.join(missing)}; a pair has {', '.join(FIELDS)}")
    first = first_observations(text_env, [row["prompt"] for row in rows], source)
    sides = []
    for name, reward in (("chosen", 1.0), ("rejected", 0.0)):
        texts = [completion_text(row[name], f"{source}, row {i}: {name}") for i, row in enumerate(rows)]
        sides.append(_episodes(text_env, first, texts, [row["prompt"] for row in rows], reward))
    return Preferences(*sides)


def read_pairs(path: str | Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON Lines file; errors name the line."""
    path, rows = Path(path), list[Mapping[str, Any]]()
    if not path.is_file():
        raise FileNotFoundError(f"pairs: the file {path} does not exist")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: is a {type(row).__name__}, expected an object with {FIELDS}")
        rows.append(row)
    return rows


def completion_text(completion: Any, where: str) -> str:
    """The text of a completion: itself, or the content of its one message."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise ValueError(f"{where} is {str(completion)[:60]!r}, expected a text or a list of one message")
    return completion


def first_observations(env: Any, prompts: Sequence[Any], source: str) -> dict[str, Tensor]:
    """What the environment shows at the start of an episode from each prompt, ``[N, ...]``; its state is put back."""
    state, parts = env.get_state(), []
    try:
        for start in range(0, len(prompts), env.num_envs):
            some = list(prompts[start : start + env.num_envs])
            filled = some + [some[0]] * (env.num_envs - len(some))
            try:
                observation, _ = env.reset(options={"prompt": filled})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{source}, rows from {start} on: {error}") from error
            parts.append({k: torch.as_tensor(v)[: len(some)] for k, v in observation.items()})
    finally:
        env.set_state(state)
    return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}


def _episodes(
    env: Any, first: dict[str, Tensor], texts: Sequence[str], prompts: Sequence[Any], reward: float
) -> Trajectories:
    """Completions as episodes that begin at ``first``."""
    ids = [_decisions(i, env) for i in env.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    count, steps = len(ids), max(map(len, ids))
    lengths = torch.tensor([len(i) for i in ids])
    mask = torch.arange(steps) < lengths[:, None]
    rewards = torch.zeros(count, steps)
    rewards[torch.arange(count), lengths - 1] = reward
    ends = torch.tensor([i[-1] in env.terminal_actions for i in ids])
    return Trajectories(
        observations=first,
        actions=torch.tensor([i + [0] * (steps - len(i)) for i in ids]),
        log_probs=torch.zeros(count, steps).masked_fill(mask, torch.nan),
        mask=mask,
        rewards=rewards,
        terminated=ends,
        truncated=~ends,
        valid=torch.ones(count, dtype=torch.bool),
        group=torch.arange(count),
        info={"prompt": list(prompts), "completion": list(texts), "invalid": [None] * count},
    )


def _decisions(ids: list[int], env: Any) -> list[int]:
    """Tokens up to the first that ends the episode, or else one such token; at most the environment's budget."""
    ends = [i for i, token in enumerate(ids) if token in env.terminal_actions]
    ids = ids[: ends[0]] if ends else ids
    ids = [*ids, *env.terminal_actions[:1]][: env.max_steps]
    if not ids:
        raise ValueError("a completion is empty, and the tokenizer has no token to end it with")
    return ids

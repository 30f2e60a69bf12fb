"""Collecting episodes from a vector environment: one seed, one row, one episode."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from ..trajectories import Observations, Trajectories, concatenate
from .policies.policy import Decision, Policy, RowNoise

TERM_PREFIX = "reward/"

Flags = npt.NDArray[np.bool_]


def collect(
    env: VectorEnv[Any, Any, Any],
    policy: Policy,
    *,
    seeds: Sequence[int],
    noise: RowNoise,
    group: Tensor,
    deterministic: bool = False,
    max_steps: int | None = None,
) -> Trajectories:
    """Play one episode a seed: whole episodes at once where environment and policy can, else step by step.

    A row is the episode of its own seed and noise stream, whatever the batch around it. More seeds than the environment
    has rows are played in rounds.

    Args:
        env: a vector environment, wrapped or not, in any autoreset mode.
        policy: acts; no gradient is kept.
        seeds: ``B`` seeds; equal ones begin in the same state. ``B`` is a multiple of ``env.num_envs``.
        noise: ``B`` streams.
        group: ``[B]`` int64, recorded as it is.
        deterministic: let the policy take its likeliest actions.
        max_steps: cut episodes after so many decisions (step by step only); needed where an environment never ends.

    Raises:
        ValueError: if the lengths do not fit each other or ``env.num_envs``, or ``max_steps`` is less than 1.

    Warns:
        UserWarning: if a wrapper without ``rollout`` keeps a generation environment from playing whole episodes.
    """
    if not len(seeds) == len(noise) == len(group):
        raise ValueError(f"seeds, noise and group have {len(seeds)}, {len(noise)} and {len(group)} rows: must be equal")
    if not seeds or len(seeds) % env.num_envs:
        raise ValueError(f"seeds has {len(seeds)} entries, expected a positive multiple of num_envs = {env.num_envs}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, expected at least 1 or None")
    at_once = max_steps is None and type(policy).generate is not Policy.generate and _has_rollout(env)
    parts = []
    for start in range(0, len(seeds), env.num_envs):
        rows = slice(start, start + env.num_envs)
        streams = noise if env.num_envs == len(seeds) else noise.rows(rows)
        chosen = [int(s) for s in seeds[rows]]
        if at_once:
            part = env.rollout(policy, noise=streams, seed=chosen, deterministic=deterministic)  # type: ignore[attr-defined]
        else:
            part = step_through(
                env, policy, seeds=chosen, noise=streams, deterministic=deterministic, max_steps=max_steps
            )
        parts.append(part)
    episodes = parts[0] if len(parts) == 1 else concatenate(parts)
    return replace(episodes, group=group.to(episodes.mask.device), version=policy.version)


@torch.no_grad()
def step_through(
    env: VectorEnv[Any, Any, Any],
    policy: Policy,
    *,
    seeds: Sequence[int],
    noise: RowNoise,
    deterministic: bool = False,
    max_steps: int | None = None,
) -> Trajectories:
    """Play the first episode of every row one decision at a time; what a row does after its end is ignored.

    An episode that terminates in the very step in which its time limit passes counts as terminated only. See
    :func:`collect` for the arguments; there are as many seeds and streams as the environment has rows.
    """
    mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    observation, _ = env.reset(seed=list(seeds))  # type: ignore[arg-type]
    record = _Record(policy, observation, rows=env.num_envs)
    while record.active.any() and (max_steps is None or len(record.active_at) < max_steps):
        decision = policy.act(observation, noise, deterministic)
        actions = environment_actions(decision.actions, env.single_action_space)
        observation, rewards, terminated, truncated, infos = env.step(
            actions if _is_torch(observation) else actions.cpu().numpy()
        )
        terminated, truncated = as_array(terminated).astype(bool), as_array(truncated).astype(bool)
        record.add(decision, observation, as_array(rewards), terminated, truncated, infos, mode)
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any() and record.active.any():
            # Rows that ended are out of the record, but stepping them on without a reset would be illegal.
            observation, _ = env.reset(options={"reset_mask": terminated | truncated})
    return record.finish()


def environment_actions(actions: Tensor, space: Space[Any]) -> Tensor:
    """Actions as the environment takes them: those of a Box clipped into it, in the dtype of the space.

    Args:
        actions: ``[B, ...]`` as the policy drew them.
        space: ``single_action_space`` of the environment.
    """
    if not isinstance(space, spaces.Box):
        return actions
    low, high = (torch.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))
    return actions.clamp(low, high).to(low.dtype)


@dataclass
class _Record:
    """The episodes of one batch while they are played; row ``i`` is written until its first end."""

    policy: Policy
    first: Any
    rows: int
    frames: list[Observations] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    extras: dict[str, list[Tensor]] = field(default_factory=dict)
    log_probs: list[Tensor] = field(default_factory=list)
    rewards: list[npt.NDArray[np.float64]] = field(default_factory=list)
    active_at: list[Flags] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    info: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.active = np.ones(self.rows, bool)
        self.terminated, self.truncated = np.zeros(self.rows, bool), np.zeros(self.rows, bool)
        self.frames.append(_tensors(self.first, self.policy.device))

    def add(
        self,
        decision: Decision,
        observation: Any,
        rewards: npt.NDArray[np.float64],
        terminated: Flags,
        truncated: Flags,
        infos: dict[str, Any],
        mode: AutoresetMode,
    ) -> None:
        """One step of every row: the decision, and what followed from it."""
        active, same_step = self.active, mode is AutoresetMode.SAME_STEP
        self.active_at.append(active)
        self.actions.append(_zero_rows(decision.actions, ~active))
        self.log_probs.append(_zero_rows(decision.log_probs, ~active))
        for key, values in decision.extras.items():
            self.extras.setdefault(key, []).append(_zero_rows(values, ~active))
        self.rewards.append(np.where(active, rewards, 0.0))
        ended = active & (terminated | truncated)
        if not self.policy.first_observation_only:
            final = infos.get("final_obs") if same_step else None
            self.frames.append(_next_frame(observation, final, ended, ~active, self.policy.device))
        self.terminated |= ended & terminated
        self.truncated |= ended & truncated & ~terminated
        if ended.any():
            self._episode_info(infos.get("final_info", {}) if same_step else infos, ended)
        self.active = active & ~ended

    def _episode_info(self, infos: dict[str, Any], ended: Flags) -> None:
        for i in np.flatnonzero(ended).tolist():
            for key, value in info_of_row(infos, i).items():
                if key.startswith(TERM_PREFIX):
                    term = self.terms.setdefault(key.removeprefix(TERM_PREFIX), [np.nan] * self.rows)
                    term[i] = np.nan if value is None else float(value)
                else:
                    self.info.setdefault(key, [None] * self.rows)[i] = value

    def finish(self) -> Trajectories:
        """The record of all rows; those still going are truncated."""
        device = self.policy.device
        rewards = torch.from_numpy(np.stack(self.rewards, 1)).float()
        first, frames = self.frames[0], self.frames
        observations: Observations
        if self.policy.first_observation_only:
            observations = first
        elif isinstance(first, dict):
            observations = {k: torch.stack([f[k] for f in frames], 1) for k in first}  # type: ignore[index]
        else:
            observations = torch.stack(frames, 1)  # type: ignore[arg-type]
        return Trajectories(
            observations=observations,
            actions=torch.stack(self.actions, 1),
            log_probs=torch.stack(self.log_probs, 1),
            mask=torch.from_numpy(np.stack(self.active_at, 1)).to(device),
            rewards=rewards.to(device),
            terminated=torch.from_numpy(self.terminated).to(device),
            truncated=torch.from_numpy(self.truncated | self.active).to(device),
            valid=~rewards.isnan().any(1).to(device),
            group=torch.arange(self.rows, device=device),
            terms={k: torch.tensor(v, device=device) for k, v in self.terms.items()},
            sampling=self.policy.sampling,
            version=self.policy.version,
            info={"invalid": [None] * self.rows} | self.info,
            extras={k: torch.stack(v, 1) for k, v in self.extras.items()},
        )


def _has_rollout(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environment and every wrapper around it play whole episodes; warns of a wrapper that does not."""
    missing: list[str] = []
    while isinstance(env, VectorWrapper):
        own = [c for c in type(env).__mro__ if c not in VectorWrapper.__mro__]
        if not any("rollout" in vars(c) for c in own):
            missing.append(type(env).__name__)
        env = env.env
    if not hasattr(type(env), "rollout"):
        return False
    if missing:
        warnings.warn(
            f"{', '.join(missing)} defines no rollout, so {type(env).__name__} is played one decision at a time, "
            "which is much slower: use one of aligngym's wrappers or give yours a rollout method",
            stacklevel=3,
        )
    return not missing


def _next_frame(observation: Any, final: Any, ended: Flags, unused: Flags, device: torch.device) -> Observations:
    """The observation after a step, the final one (not that of the next episode) where an episode ended."""
    frame = _tensors(observation, device)
    if final is not None:
        for i in np.flatnonzero(ended):
            last = _tensors(final[i], device)
            for values, value in zip(_leaves(frame), _leaves(last), strict=True):
                values[i] = value
    if isinstance(frame, dict):
        return {k: _zero_rows(v, unused) for k, v in frame.items()}
    return _zero_rows(frame, unused)


def _tensors(observation: Any, device: torch.device) -> Observations:
    """A copy on ``device``: environments may write into the arrays that they handed out."""
    if isinstance(observation, dict):
        return {k: _copy(v, device) for k, v in observation.items()}
    return _copy(observation, device)


def _copy(values: Any, device: torch.device) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to(device, copy=True)
    if isinstance(values, np.ndarray | np.generic | int | float) and np.asarray(values).dtype.kind in "biuf":
        return torch.tensor(values, device=device)
    raise TypeError(
        f"cannot record an observation of type {type(values).__name__}: expected arrays or a dict of arrays"
    )


def info_of_row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """The info of one environment, out of the arrays into which Gymnasium packs those of all (``_key`` says whose)."""
    info: dict[str, Any] = {}
    for key, values in infos.items():
        if (key.startswith("_") and key[1:] in infos) or not infos.get("_" + key, np.ones(row + 1))[row]:
            continue
        if isinstance(values, dict):
            info[key] = info_of_row(values, row)
        else:
            info[key] = values[row].item() if isinstance(values[row], np.generic) else copy.copy(values[row])
    return info


def _leaves(observation: Observations) -> list[Tensor]:
    return [observation[k] for k in sorted(observation)] if isinstance(observation, dict) else [observation]


def _zero_rows(values: Tensor, rows: Flags) -> Tensor:
    values = values.detach().clone()
    values[torch.from_numpy(rows).to(values.device)] = 0
    return values


def _is_torch(observation: Any) -> bool:
    return any(
        isinstance(v, Tensor) for v in (observation.values() if isinstance(observation, dict) else [observation])
    )


def as_array(values: Any) -> npt.NDArray[Any]:
    """A tensor on any device, or anything that NumPy takes, as an array."""
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

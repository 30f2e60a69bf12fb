"""A Gymnasium vector environment as Stable-Baselines3 wants it, and its episodes under way as something to save."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from .environment import environment_state, restore_environment
from .rollouts import TERM_PREFIX, as_array, info_of_row

Flags = npt.NDArray[np.bool_]
Arrays = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]


class SeededVecEnv(VecEnv):
    """Stable-Baselines3's face of a Gymnasium vector environment, in any autoreset mode.

    What differs between the two: after the last step of an episode Stable-Baselines3 is given the first observation of
    the next one, the final observation in ``info["terminal_observation"]``, and in ``info["TimeLimit.truncated"]``
    whether to bootstrap from it. So a row whose episode ended is reset at once, whatever the mode, by
    ``reset(options={"reset_mask": ...})``.

    Every episode has a seed of its own, by which it can be played again: with the actions taken since
    (:meth:`get_state`) training goes on in the middle of an episode after loading. Plain Stable-Baselines3 seeds
    the first episode of a row only.

    A step whose reward is NaN because a simulation diverged or its process died ends its episode, truncated. It is paid
    like the row's step before, since Stable-Baselines3 cannot leave it out, and the episode counts in no statistic.

    Args:
        env: whose rows can be reset one by one: Gymnasium's ``SyncVectorEnv`` and ``AsyncVectorEnv``, and this
            package's batched environments.
        draw: ``draw(n)`` gives seeds of ``n`` episodes.

    Attributes:
        finished: return, length, ``terminated``, ``invalid`` and reward terms of the episodes that ended;
            :meth:`metrics` empties it.
        moved: whether somebody else played in the environment, so that :meth:`go_on` is needed before the next step.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], draw: Callable[[int], Iterable[int]]) -> None:
        self.env, self.draw, self.moved = env, draw, False
        self.mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.seeds = [0] * env.num_envs
        self.actions: list[list[npt.NDArray[Any]]] = [[] for _ in self.seeds]
        self.returns, self.rewards = np.zeros((2, env.num_envs))  # of the episodes under way, and their last step's
        self.observation: Arrays | None = None  # the current one; None before the first reset
        self.finished: list[dict[str, float]] = []
        # Stable-Baselines3 seeds the action space and draws from it: of a copy, not the user's.
        super().__init__(env.num_envs, *map(deepcopy, (env.single_observation_space, env.single_action_space)))

    def reset(self) -> Any:
        """First observations of a new episode in every row."""
        self._begin(np.ones(self.num_envs, bool))
        return deepcopy(self.observation)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        space = self.action_space
        if isinstance(space, gym.spaces.Box):  # scaling back from [-1, 1] may miss a bound by a rounding error
            actions = np.clip(actions, space.low, space.high)
        self._pending = np.asarray(actions, space.dtype)

    def step_wait(self) -> tuple[Any, npt.NDArray[np.float32], Flags, list[dict[str, Any]]]:
        """What the pending actions led to.

        Raises:
            ValueError: if a reward failed (is NaN) otherwise than by the end of a simulation.
        """
        observation, rewards, terminated, truncated, infos = self.env.step(self._pending)
        self.observation, given = _copied(observation), as_array(rewards)
        terminated, truncated = as_array(terminated).astype(bool), as_array(truncated).astype(bool)
        failed, ended = np.isnan(given), terminated | truncated
        self.rewards = rewards = self._paid(given, failed, truncated)
        rows = [info_of_row(infos, i) for i in range(self.num_envs)]
        for i in range(self.num_envs):
            self.actions[i].append(self._pending[i].copy())
            self.returns[i] += rewards[i]
        for i in np.flatnonzero(ended).tolist():
            rows[i], final = self._end(infos, rows[i], i)
            rows[i]["terminal_observation"] = final
            terms = {k: float(v) for k, v in rows[i].items() if k.startswith(TERM_PREFIX) and v is not None}
            done = {"return": float(self.returns[i]), "length": float(len(self.actions[i]))}
            self.finished.append(terms | done | {"terminated": float(terminated[i]), "invalid": float(failed[i])})
        for i in range(self.num_envs):
            rows[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        if ended.any():
            self._begin(ended)
        # float32 as of Stable-Baselines3's own environments: PPO adds to the rewards in place.
        return deepcopy(self.observation), rewards.astype(np.float32), ended, rows

    def _paid(self, rewards: npt.NDArray[Any], failed: Flags, truncated: Flags) -> npt.NDArray[Any]:
        """Rewards, those of a simulation's end replaced by the row's last ones."""
        earlier = np.array([len(a) > 0 for a in self.actions])
        if (failed & ~(truncated & earlier)).any() or (failed.any() and hasattr(type(self.env.unwrapped), "rollout")):
            raise ValueError(
                f"a reward of {self.env} is NaN, so it failed: Stable-Baselines3's agents cannot leave an episode out"
            )
        return np.where(failed, self.rewards, rewards)

    def _end(self, infos: dict[str, Any], info: dict[str, Any], row: int) -> tuple[dict[str, Any], Any]:
        """Info of an episode's last step, and the observation after it."""
        assert self.observation is not None
        if self.mode is AutoresetMode.SAME_STEP:  # everything else is the next episode's already
            return info_of_row(infos["final_info"], row), _copied(infos["final_obs"][row])
        return info, _row(self.observation, row)

    def _begin(self, rows: Flags) -> None:
        """Start new episodes in some rows."""
        numbers = np.flatnonzero(rows).tolist()
        for i, seed in zip(numbers, self.draw(len(numbers)), strict=True):
            self.seeds[i], self.actions[i], self.returns[i] = int(seed), [], 0.0
        self._reset(rows)

    def _reset(self, rows: Flags) -> None:
        """Go to the first step of the episodes that ``self.seeds`` name, in some rows.

        Raises:
            ValueError: if the environment resets the others, too.
        """
        before = self.observation
        options = None if rows.all() else {"reset_mask": rows.copy()}
        observation, _ = self.env.reset(seed=list(self.seeds), options=options)  # type: ignore[arg-type]
        self.observation = _copied(observation)
        if before is not None and not _equal(_row(before, ~rows), _row(self.observation, ~rows)):
            raise ValueError(
                f"{self.env} resets all rows where one is to be reset: make it with vectorization_mode='sync'"
            )

    def go_on(self) -> None:
        """The environment as training left it, whoever used it since."""
        if self.moved and hasattr(type(self.env.unwrapped), "get_state"):
            self.moved = False  # such an environment is restored with all its episodes by itself
        if self.moved:
            state = environment_state(self.env)
            self.replay()
            restore_environment(self.env, state)  # wrappers saw the replayed steps twice

    def metrics(self) -> dict[str, float]:
        """Of the episodes that ended since the last call."""
        every, self.finished = self.finished, []
        ended = [e for e in every if not e["invalid"]]
        metrics = {"rollout/invalid_fraction": 1 - len(ended) / len(every)} if every else {}
        if not ended:
            return metrics
        returns = np.array([e["return"] for e in ended])
        metrics |= {
            "rollout/reward_mean": float(returns.mean()),
            "rollout/reward_std": float(returns.std(ddof=1)) if len(ended) > 1 else 0.0,
            "rollout/length_mean": float(np.mean([e["length"] for e in ended])),
            "rollout/terminated_fraction": float(np.mean([e["terminated"] for e in ended])),
        }
        for key in sorted({k for e in ended for k in e if k.startswith(TERM_PREFIX)}):
            values = [e[key] for e in ended if np.isfinite(e.get(key, np.nan))]
            if values:
                metrics[f"rollout/term/{key.removeprefix(TERM_PREFIX)}"] = float(np.mean(values))
        return metrics

    def replay(self) -> None:
        """Bring the environment back to where training stands, by playing the episodes under way again.

        Rows whose episodes are younger than the oldest one wait, in episodes that nobody reads, until all arrive
        together.

        Warns:
            UserWarning: if that leads elsewhere, so that going on is not exact.
        """
        if self.observation is None or not self.moved:
            return
        there, self.observation, self.moved = self.observation, None, False
        lengths = np.array([len(a) for a in self.actions])
        starts, stale = lengths.max() - lengths, np.zeros(self.num_envs, bool)
        self._reset(np.ones(self.num_envs, bool))
        for t in range(lengths.max()):
            if (rows := (starts == t) & (t > 0) | stale).any():
                self._reset(rows)
            waiting = self.actions[int(lengths.argmax())][0]
            taken = [a[t - s] if t >= s else waiting for a, s in zip(self.actions, starts, strict=True)]
            observation, _, terminated, truncated, _ = self.env.step(np.stack(taken))
            self.observation = _copied(observation)
            if self.mode is not AutoresetMode.SAME_STEP:
                stale = (as_array(terminated) | as_array(truncated)).astype(bool)
        if (rows := (lengths == 0) & (lengths.max() > 0)).any():
            self._reset(rows)
        assert self.observation is not None
        if not _equal(there, self.observation):
            warnings.warn(
                f"{self.env} does not repeat an episode from its seed and actions, so training does not go on exactly "
                "where it was",
                stacklevel=3,
            )

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The episodes under way, as tensors and JSON; no tensors before the first reset."""
        plain = {"seeds": self.seeds, "returns": self.returns.tolist(), "rewards": self.rewards.tolist()}
        if self.observation is None:
            return {}, plain
        tensors = {f"actions.{i}": torch.from_numpy(np.stack(a)) for i, a in enumerate(self.actions) if a}
        return tensors | to_tensors(self.observation, "observation"), plain

    def set_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`; :meth:`replay` then brings the environment there.

        Raises:
            ValueError: if the environment has another number of rows.
        """
        if len(plain["seeds"]) != self.num_envs:
            raise ValueError(f"the environment has {self.num_envs} rows, the checkpoint's had {len(plain['seeds'])}")
        self.seeds = list(plain["seeds"])
        self.returns, self.rewards = np.array(plain["returns"]), np.array(plain["rewards"])
        none = torch.empty(0)
        self.actions = [list(tensors.get(f"actions.{i}", none).numpy()) for i in range(self.num_envs)]
        self.observation = from_tensors(tensors, "observation")
        self.moved = self.observation is not None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Does nothing: episodes have seeds of their own."""
        return [None] * self.num_envs

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once a row."""
        return [getattr(self.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise TypeError("attributes of single rows are not reached through a vector environment")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise TypeError("methods of single rows are not reached through a vector environment")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def to_tensors(arrays: Arrays, name: str) -> dict[str, Tensor]:
    """An array as one tensor ``name``, a dictionary of them as several ``name.key``."""
    named = {f"{name}.{k}": v for k, v in arrays.items()} if isinstance(arrays, dict) else {name: arrays}
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in named.items()}


def from_tensors(tensors: Mapping[str, Tensor], name: str) -> Arrays | None:
    """Inverse of :func:`to_tensors`; None where there are none of that name."""
    if name in tensors:
        return tensors[name].numpy()
    return {k.removeprefix(f"{name}."): v.numpy() for k, v in tensors.items() if k.startswith(f"{name}.")} or None


def _copied(observation: Any) -> Any:
    """NumPy copies: environments may write into the arrays that they handed out."""
    if isinstance(observation, dict):
        return {k: as_array(v).copy() for k, v in observation.items()}
    return as_array(observation).copy()


def _row(observation: Arrays, row: Any) -> Any:
    if isinstance(observation, dict):
        return {k: v[row].copy() for k, v in observation.items()}
    return observation[row].copy()


def _equal(one: Arrays, two: Arrays) -> bool:
    if isinstance(one, dict):
        assert isinstance(two, dict)
        return all(np.array_equal(v, two[k], equal_nan=True) for k, v in one.items())
    return np.array_equal(one, two, equal_nan=True)  # type: ignore[arg-type]

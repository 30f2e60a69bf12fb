"""Rewards of every step as a teacher designs them, in place of the true ones or beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorWrapper
from numpy.typing import ArrayLike

from ..tabular import check_reward_table, pay_for

Mode = Literal["replace", "add"]
Design = Callable[[Any, int, Any, bool], float]


class DesignRule:
    """What :class:`DesignedReward` pays, and what it tells the design of finished episodes."""

    def __init__(
        self,
        design: ArrayLike | Design,
        mode: Mode | None,
        rows: int,
        observation_space: Space[Any],
        action_space: Space[Any],
    ) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"designs are for numbered actions, but those of the environment are {action_space}")
        if not callable(design) and hasattr(design, "reward"):
            raise TypeError(
                f"design is a {type(design).__name__}, expected a table [S, A] or a callable: give its .reward"
            )
        table = None if callable(design) else np.array(design, np.float64)
        held = getattr(design, "table", None) if table is None else table  # a teacher's
        if held is not None:
            check_reward_table(held, observation_space, action_space)
        self.design: Design = design if callable(design) else lambda s, a, *_: float(table[s, a])  # type: ignore[index]
        self.mode = mode or getattr(design, "mode", "replace")
        if self.mode not in ("replace", "add"):
            raise ValueError(f"mode is {self.mode!r}, expected 'replace' or 'add'")
        self.states: list[Any] = [None] * rows
        self._steps: list[list[tuple[Any, int, float]]] = [[] for _ in range(rows)]

    def begin(self, row: int, state: Any) -> None:
        """An episode starts."""
        self.states[row], self._steps[row] = np.copy(state), []

    def pay(self, row: int, action: Any, reward: float, next_state: Any, terminated: bool, over: bool) -> float:
        """The reward of a step as the learner shall see it."""
        state = self.states[row]
        designed = pay_for(self.design, state, int(action), next_state, terminated)
        self._steps[row].append((state, int(action), reward))
        if over and hasattr(self.design, "record"):
            states, actions, rewards = zip(*self._steps[row], strict=True)
            self.design.record(np.stack(states), np.array(actions), np.array(rewards))
        self.states[row] = np.copy(next_state)
        return designed if self.mode == "replace" else reward + designed

    def own_state(self) -> dict[str, Any]:
        """Of JSON's types: the design's, and the episodes under way."""
        steps = [[[np.asarray(s).tolist(), a, r] for s, a, r in row] for row in self._steps]
        states = [None if s is None else [np.asarray(s).tolist(), str(np.asarray(s).dtype)] for s in self.states]
        design = self.design.get_state() if hasattr(self.design, "get_state") else None
        return {"states": states, "steps": steps, "design": design}

    def set_own_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`own_state`."""
        kinds = [None if s is None else s[1] for s in state["states"]]
        self.states = [None if s is None else np.array(*s) for s in state["states"]]
        self._steps = [
            [(np.array(s, kind), a, r) for s, a, r in row] for row, kind in zip(state["steps"], kinds, strict=True)
        ]
        if state["design"] is not None:
            self.design.set_state(state["design"])  # type: ignore[attr-defined]


class DesignedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Pays for every step what a design says, in place of the environment's reward or added to it.

    The environment's own reward is ``info["true_reward"]``, where an environment does not report one already. A design
    with a method ``record`` sees the states, actions and true rewards of finished episodes.

    Example:
        >>> env = DesignedReward(gymnasium.make("RewardDesign/LineKey-v0"), table)

    Args:
        env: an environment with numbered actions.
        design: a table ``[S, A]`` for numbered states, or ``design(state, action, next_state, terminated)``: a teacher
            of :mod:`aligngym.agents.teachers`, for one.
        mode: ``"replace"`` or ``"add"``; None asks ``design.mode``, and replaces where it has none.

    Raises:
        ValueError: for actions that are not numbered, a table of another shape, or another mode; from ``step``, for
            a design that pays no finite number.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], design: ArrayLike | Design, mode: Mode | None = None) -> None:
        RecordConstructorArgs.__init__(self, design=design, mode=mode)
        super().__init__(env)
        self.rule = DesignRule(design, mode, 1, env.observation_space, env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.rule.begin(0, observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        given = self.rule.pay(0, action, float(reward), observation, terminated, terminated or truncated)
        return observation, given, terminated, truncated, {"true_reward": float(reward), **info}

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types, with that of the environment inside."""
        inner: Any = self.env.unwrapped
        return {"design": self.rule.own_state(), "env": inner.get_state() if hasattr(inner, "get_state") else None}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues exactly where ``get_state`` was called."""
        self.rule.set_own_state(state["design"])
        if state["env"] is not None:
            self.env.unwrapped.set_state(state["env"])  # type: ignore[attr-defined]


class VectorDesignedReward(VectorWrapper[Any, Any, Any, Any, Any], RecordConstructorArgs):
    """:class:`DesignedReward` for a batch of environments, in any autoreset mode; all rows share the design."""

    def __init__(
        self, env: gymnasium.vector.VectorEnv[Any, Any, Any], design: ArrayLike | Design, mode: Mode | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, design=design, mode=mode)
        super().__init__(env)
        self.rule = DesignRule(design, mode, env.num_envs, env.single_observation_space, env.single_action_space)
        self._over = np.zeros(env.num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes; ``options["reset_mask"]`` names the rows where not all do."""
        mask = (options or {}).get("reset_mask")  # SyncVectorEnv takes it out of the options
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            self.rule.begin(row, observations[row])
            self._over[row] = False
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action in every row."""
        mode = AutoresetMode(self.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        given, over = np.array(rewards, np.float64), terminated | truncated
        for row in range(self.num_envs):
            if self._over[row]:  # this step reset the row
                self.rule.begin(row, observations[row])
                continue
            same_step = over[row] and mode is AutoresetMode.SAME_STEP
            after = infos["final_obs"][row] if same_step else observations[row]
            given[row] = self.rule.pay(
                row, actions[row], float(rewards[row]), after, bool(terminated[row]), bool(over[row])
            )
            if same_step:
                self.rule.begin(row, observations[row])
        if "true_reward" not in infos:
            infos = {**infos, "true_reward": rewards, "_true_reward": np.ones(self.num_envs, np.bool_)}
        if mode is AutoresetMode.NEXT_STEP:
            self._over = over & ~self._over
        return observations, given, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """The design's state and the episodes under way, of JSON's types; that of the environment, if it keeps one."""
        inner = self.env.get_state() if hasattr(self.env, "get_state") else None
        return {"design": self.rule.own_state(), "over": self._over.tolist(), "env": inner}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where ``get_state`` was called."""
        self.rule.set_own_state(state["design"])
        self._over = np.array(state["over"], np.bool_)
        if state["env"] is not None:
            self.env.set_state(state["env"])  # type: ignore[attr-defined]

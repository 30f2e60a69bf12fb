"""What environments of reward design share: an episode's course and its true rewards; and stepping a table."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from numpy.typing import NDArray

from ...tabular import TabularMDP, optimal_values
from ..batching import check_no_options, check_positive
from .picture import draw_layout


class DesignEnv(gymnasium.Env[Any, np.int64]):
    """An environment whose reward others may replace or add to. A subclass starts episodes, moves and draws.

    The info of every step holds ``true_reward``, the environment's own; that of the last step ``reward/true_return``
    and ``reward/discounted_return``, its sums over the episode. They stay what they are whatever wrappers pay, so that
    learners can be judged by them.

    Args:
        gamma: discount of the task, in [0, 1).
        max_steps: decisions after which an episode is truncated, at least 1.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for another discount, limit or render mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, *, gamma: float, max_steps: int, render_mode: str | None) -> None:
        check_positive(max_steps=max_steps)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma={gamma}: must be in [0, 1)")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or one of {self.metadata['render_modes']}")
        self.gamma, self.max_steps, self.render_mode = gamma, max_steps, render_mode
        self.steps, self.true_return, self.discounted_return, self.over = 0, 0.0, 0.0, True

    @abstractmethod
    def _start(self) -> None:
        """Begin an episode; random numbers come from ``self.np_random``."""

    @abstractmethod
    def _move(self, action: int) -> tuple[float, bool]:
        """Let the action happen; its reward, and whether the episode ended itself."""

    @abstractmethod
    def _observe(self) -> Any:
        """The observation of the current state."""

    @abstractmethod
    def _draw(self) -> NDArray[np.uint8]:
        """A picture of the current state."""

    @abstractmethod
    def _get_state(self) -> Any:
        """The current state, of JSON's types."""

    @abstractmethod
    def _set_state(self, state: Any) -> None:
        """Inverse of ``_get_state``."""

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of all that is random in it; None lets the generator run on.
            options: none are known.

        Raises:
            ValueError: for an option.
        """
        super().reset(seed=seed)
        check_no_options(options)
        self._start()
        self.steps, self.true_return, self.discounted_return, self.over = 0, 0.0, 0.0, False
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Let an action happen.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: when no episode is running.
        """
        if self.over:
            raise ResetNeeded("no episode is running: call reset() before step()")
        if not self.action_space.contains(action):
            raise InvalidAction(f"action {action} is not in {self.action_space}")
        reward, terminated = self._move(int(action))
        self.true_return += reward
        self.discounted_return += self.gamma**self.steps * reward
        self.steps += 1
        truncated = not terminated and self.steps >= self.max_steps
        self.over = terminated or truncated
        info: dict[str, Any] = {"true_reward": reward}
        if self.over:
            info["reward/true_return"], info["reward/discounted_return"] = self.true_return, self.discounted_return
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """A picture of the current state, or None without a render mode."""
        return None if self.render_mode is None else self._draw()

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        return {
            "steps": self.steps, "returns": [self.true_return, self.discounted_return], "over": self.over,
            "state": self._get_state(), "generator": self.np_random.bit_generator.state,
        }  # fmt: skip

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        self.steps, self.over = state["steps"], state["over"]
        self.true_return, self.discounted_return = state["returns"]
        self._set_state(state["state"])
        self.np_random.bit_generator.state = state["generator"]


class TabularEnv(DesignEnv):
    """Steps a :class:`~aligngym.tabular.TabularMDP`, which it exposes.

    Make one of a table of your own with ``TabularEnv(mdp, max_steps=50, render_mode=None)``; pictures need its layout.

    Observation: the number of the state; the last one of an episode that ended itself is terminal. Action: a number.

    Attributes:
        mdp: the table.

    Raises:
        ValueError: as :class:`DesignEnv`; from ``render``, for a table without a layout.
    """

    observation_space: spaces.Discrete
    action_space: spaces.Discrete

    def __init__(self, mdp: TabularMDP, *, max_steps: int, render_mode: str | None) -> None:
        super().__init__(gamma=mdp.gamma, max_steps=max_steps, render_mode=render_mode)
        self.mdp = mdp
        states, actions = mdp.shape
        self.observation_space, self.action_space = spaces.Discrete(states), spaces.Discrete(actions)
        self.state = 0
        # Divided by their last entry, so that rounding cannot lead to a state that has no probability.
        self._starts = mdp.start.cumsum() / mdp.start.sum()
        self._steps = mdp.P.cumsum(-1) / mdp.P.sum(-1, keepdims=True)

    @property
    def optimal_values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``V* [S]`` and ``Q* [S, A]`` of the true reward, discounted, without the limit of steps."""
        return optimal_values(self.mdp)

    def _start(self) -> None:
        self.state = int(self._starts.searchsorted(self.np_random.random(), side="right"))

    def _move(self, action: int) -> tuple[float, bool]:
        reward = float(self.mdp.R[self.state, action])
        self.state = int(self._steps[self.state, action].searchsorted(self.np_random.random(), side="right"))
        return reward, bool(self.mdp.terminal[self.state])

    def _observe(self) -> np.int64:
        return np.int64(self.state)

    def _draw(self) -> NDArray[np.uint8]:
        if self.mdp.layout is None:
            raise ValueError("the table has no layout to draw: give TabularMDP(..., layout=Layout(cells))")
        return draw_layout(self.mdp.layout, self.mdp.layout.cells[self.state])

    def _get_state(self) -> int:
        return self.state

    def _set_state(self, state: int) -> None:
        self.state = state

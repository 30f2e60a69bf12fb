"""What the environments of all simulators share: an episode's course, its rewards and its pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from numpy.typing import NDArray

from ..batching import check_no_options
from .rendering import FastRenderer

BROKEN = slice(4, 7)  # of MuJoCo's warnings: bad positions, velocities, accelerations


@dataclass(frozen=True)
class Moved:
    """What an action led to in a simulator.

    Attributes:
        state: what ``_observe`` makes an observation of.
        reward: the true one.
        success: 0 or 1 of this step; None where the task knows none.
        terminated: the task ended itself.
        diverged: why the simulation is worth nothing from here on; None if it is.
    """

    state: Any
    reward: float
    success: float | None = None
    terminated: bool = False
    diverged: str | None = None


class SimulatorEnv(gymnasium.Env[Any, NDArray[np.float32]]):
    """An environment on a library's simulator. A subclass starts episodes, moves the simulation and draws it.

    It sets ``reward``, ``max_steps``, ``render_mode``, ``render_size`` and both spaces; ``terminate_on_success`` where
    the task knows success.
    """

    metadata = {"render_modes": ["rgb_array"]}
    simulator: Any
    reward: str
    max_steps: int
    size: int
    terminate_on_success: bool = False
    render_size: int

    def __init__(self) -> None:
        self._renderers: dict[int, FastRenderer] = {}
        self._steps = 0  # decisions of the episode so far
        self._true_return, self._any_success, self._over = 0.0, 0.0, True

    @abstractmethod
    def _start(self) -> Any:
        """Begin an episode, all that is random in it drawn from ``self.np_random``; the state."""

    @abstractmethod
    def _move(self, action: NDArray[np.float32]) -> Moved:
        """Let the action happen."""

    @abstractmethod
    def _observe(self, state: Any) -> Any:
        """The observation of a state."""

    @abstractmethod
    def _renderer(self, size: int) -> FastRenderer:
        """What draws pictures of this size from now on."""

    @abstractmethod
    def _picture(self, size: int) -> NDArray[np.uint8]:
        """The scene as it is, ``[size, size, 3]``."""

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the state that it starts in; None lets the generator run on.
            options: none are known.

        Raises:
            ValueError: for an option.
        """
        super().reset(seed=seed)
        check_no_options(options)
        state = self._start()
        self._steps, self._true_return, self._any_success, self._over = 0, 0.0, 0.0, False
        return self._observe(state), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Let an action happen.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: when no episode is running.
        """
        if self._over:
            raise ResetNeeded("no episode is running: call reset() before step()")
        taken = np.asarray(action, np.float32)
        if not self.action_space.contains(taken):
            raise InvalidAction(f"action {action} is not in {self.action_space}")
        moved = self._move(taken)
        self._steps += 1
        diverged = moved.diverged is not None
        true_reward = math.nan if diverged else moved.reward
        self._true_return += true_reward
        info: dict[str, Any] = {"true_reward": true_reward}
        if moved.success is not None:
            info["success"] = moved.success
            self._any_success = max(self._any_success, moved.success)
        solved = self.terminate_on_success and bool(moved.success)
        terminated = (moved.terminated or solved) and not diverged
        truncated = not terminated and (diverged or self._steps >= self.max_steps)
        self._over = terminated or truncated
        if diverged:
            info["invalid"] = moved.diverged
        elif self._over:
            info["reward/true_return"] = self._true_return
            if moved.success is not None:
                info["reward/success_any"], info["reward/success_last"] = self._any_success, moved.success
        given = math.nan if diverged else {"task": true_reward, "success": moved.success, "none": 0.0}[self.reward]
        assert given is not None, "reward='success' is offered by tasks that know success"
        return self._observe(moved.state), given, terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The scene ``[render_size, render_size, 3]``, or None without a render mode."""
        return None if self.render_mode is None else self._picture(self.render_size)

    def background(self, *, floor: bool = True) -> NDArray[np.bool_]:
        """Where the observed picture shows no body, ``[size, size]``.

        Args:
            floor: planes and terrain are background, too.
        """
        return self._renderers[self.size].background(floor=floor)

    def _draw(self, size: int, data: Any) -> NDArray[np.uint8]:
        """The picture of a state, by a renderer that is kept."""
        if size not in self._renderers:
            self._renderers[size] = self._renderer(size)
        return self._renderers[size].render(data)

    def _close_renderers(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}


def check_choice(name: str, value: Any, *allowed: Any) -> None:
    """Raise a ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {list(allowed)}")

"""``ControlAlign-v0``: the tasks of dm_control's suite, from states or pixels, the true reward kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..batching import check_positive
from .rendering import FastRenderer, choose_backend
from .simulator import Moved, SimulatorEnv, check_choice

BOUND = 1e6  # of observed numbers; the suite declares none, and only a simulation that blows up goes beyond
CAMERAS: dict[str, str | int] = {"quadruped": 2, "dog": "x-axis"}  # where number 0 does not show the body well
LIMIT = 10.0  # of actions of a task that does not bound them
ENDLESS = 1000  # decisions of a task that has no time limit, as the others have


def control_tasks() -> dict[str, tuple[str, ...]]:
    """The tasks of every domain of the suite.

    Raises:
        ImportError: if dm_control is not installed.
    """
    return dict(_suite().TASKS_BY_DOMAIN)


class ControlAlignEnv(SimulatorEnv):
    """One task of the DeepMind Control Suite (arXiv 1801.00690), built on dm_control's own tasks and physics.

    Observation: all of the task's observables in the suite's order, one after the other, float32 and clipped to +-1e6;
    :attr:`observables` says which numbers are which. With ``observation="pixels"``: ``[size, size, 3]`` uint8 of a
    camera, without shadows and reflections (see :class:`.rendering.FastRenderer`).

    Action: float32 in [-1, 1], stretched to the suite's own bounds, which are the same but for ``quadruped`` and
    ``lqr`` (without bounds there, +-10 here).

    A step takes the action ``action_repeat`` times and is rewarded with the sum, each in [0, 1] (``lqr``: negative
    costs). Episodes are *truncated* at their time limit. The suite lets tasks end themselves with a discount of 0, and
    ``lqr`` does, at its goal: they are *terminated*.

    The suite knows rewards and no success, so there is none in the info. That of every step holds ``true_reward``,
    whatever ``reward`` is, and that of the last step ``reward/true_return``. If the simulation diverges, that step is
    rewarded with NaN, is truncated, and says so in ``info["invalid"]``.

    One seed gives one episode: the suite's generator is seeded anew at each reset. What a task draws when it is built
    (the springs of ``lqr``) is always the same.

    Args:
        domain: of the suite, such as "walker"; see :func:`control_tasks`.
        task: of the domain, such as "walk".
        observation: "state" or "pixels".
        size: height and width of the pixels that are observed, at least 1.
        camera: number or name of a camera of the model; None is the first, or one that follows the body
            (``quadruped``, ``dog``).
        action_repeat: control steps that one decision lasts, at least 1.
        reward: "task" gives the suite's reward, "none" always 0.
        max_steps: decisions of an episode, at least 1; None is the suite's own limit, 1000 control steps. ``lqr`` has
            none and gets 1000 decisions.
        render_mode: None or "rgb_array".
        render_size: height and width of what ``render`` returns, at least 1.

    Attributes:
        observables: the suite's observables by name, each the slice of the observed state that holds it.
        centre: of the suite's own bounds of actions.
        reach: from there to the upper bound.
        last_step: control steps of an episode.

    Raises:
        ImportError: if a package of the extra ``robot`` is missing.
        ValueError: for an argument outside what is allowed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}

    def __init__(
        self,
        *,
        domain: str = "walker",
        task: str = "walk",
        observation: str = "state",
        size: int = 64,
        camera: str | int | None = None,
        action_repeat: int = 1,
        reward: str = "task",
        max_steps: int | None = None,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        check_positive(size=size, action_repeat=action_repeat, render_size=render_size)
        check_positive(max_steps=1 if max_steps is None else max_steps)
        check_choice("domain", domain, *control_tasks())
        check_choice("task", task, *control_tasks()[domain])
        check_choice("observation", observation, "state", "pixels")
        check_choice("reward", reward, "task", "none")
        check_choice("render_mode", render_mode, None, *self.metadata["render_modes"])
        super().__init__()
        self.domain, self.task, self.observation, self.size = domain, task, observation, size
        self.camera = CAMERAS.get(domain, 0) if camera is None else camera
        self.action_repeat, self.reward = action_repeat, reward
        self.render_mode, self.render_size = render_mode, render_size
        self.simulator, limit = _load(domain, task)
        self.metadata = self.metadata | {"render_fps": round(1 / self.simulator.control_timestep() / action_repeat)}
        self.last_step = (max_steps or ENDLESS) * action_repeat
        if max_steps is None and limit < math.inf:
            self.last_step = math.ceil(limit)
        self.max_steps = math.ceil(self.last_step / action_repeat)
        spec = self.simulator.action_spec()
        low, high = (np.clip(bound, -LIMIT, LIMIT) for bound in (spec.minimum, spec.maximum))
        self.centre, self.reach = (high + low) / 2, (high - low) / 2
        self.action_space = spaces.Box(-1, 1, spec.shape, np.float32)
        start, self.observables = 0, {}
        for name, values in self.simulator.reset().observation.items():
            self.observables[name] = slice(start, start := start + np.size(values))
        state = spaces.Box(-BOUND, BOUND, (start,), np.float32)
        pixels = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = state if observation == "state" else pixels

    def _start(self) -> Mapping[str, Any]:
        if self.simulator is None:
            self.simulator, _ = _load(self.domain, self.task)
        self.simulator.task.random.seed(int(self.np_random.integers(2**32)))
        state: Mapping[str, Any] = self.simulator.reset().observation
        if self.simulator.physics.model.nhfield:
            self._close_renderers()  # they have the old terrain
        return state

    def close(self) -> None:
        """Free the renderers and the simulation; a second call does nothing. A later ``reset`` makes them anew."""
        self._close_renderers()
        if self.simulator is not None:
            self.simulator.physics.free()
        self.simulator, self._over = None, True

    def _move(self, action: NDArray[np.float32]) -> Moved:
        """Take the action ``action_repeat`` times, or until the episode ends."""
        from dm_control.rl.control import PhysicsError

        rewards = []
        done = self._steps * self.action_repeat  # control steps
        for step in range(done + 1, min(done + self.action_repeat, self.last_step) + 1):
            try:
                taken = self.simulator.step(self.centre + self.reach * action)
            except PhysicsError as error:
                why = f"the simulation of {self.domain} {self.task} diverged in control step {step}: {error}"
                state = self.simulator.task.get_observation(self.simulator.physics)
                return Moved(state, math.nan, diverged=why)
            rewards.append(float(taken.reward))
            if taken.last():
                break
        return Moved(taken.observation, math.fsum(rewards), terminated=taken.last())

    def _observe(self, state: Mapping[str, Any]) -> NDArray[Any]:
        if self.observation == "pixels":
            return self._picture(self.size)
        flat = np.nan_to_num(np.concatenate([np.ravel(values) for values in state.values()]))
        clipped: NDArray[np.float32] = np.clip(flat, -BOUND, BOUND).astype(np.float32)
        return clipped

    def _renderer(self, size: int) -> FastRenderer:
        return FastRenderer(self.simulator.physics.model.ptr, size, size, self.camera)

    def _picture(self, size: int) -> NDArray[np.uint8]:
        return self._draw(size, self.simulator.physics.data.ptr)


def _suite() -> Any:
    choose_backend()  # dm_control looks at it when it is imported
    try:
        from dm_control import suite
    except ImportError as error:
        raise ImportError("the control suite needs dm_control and MuJoCo: pip install 'aligngym[robot]'") from error
    return suite


def _load(domain: str, task: str) -> tuple[Any, float]:
    """The suite's environment of a task, and its time limit in control steps, which it no longer enforces itself."""
    suite = _suite()
    if domain == "quadruped":
        suite.quadruped.Physics._get_sensor_names = _sensor_names
    simulator = suite.load(domain, task, task_kwargs={"random": 0})
    limit, simulator._step_limit = simulator._step_limit, math.inf
    return simulator, limit


def _sensor_names(physics: Any, *kinds: int) -> list[str]:
    """What dm_control 1.0.28's method of this name returns; that one needs a function that NumPy 2.4 no longer has."""
    return [physics.model.id2name(i, "sensor") for i in np.flatnonzero(np.isin(physics.model.sensor_type, kinds))]

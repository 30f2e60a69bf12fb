"""``ManipulationAlign-v0``: Meta-World's tasks for a robot arm, the true reward kept apart from the given one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from ..batching import check_positive
from .rendering import FastRenderer
from .simulator import BROKEN, Moved, SimulatorEnv, check_choice

# Of the hand (x, y, z, gripper's opening) as Meta-World clips it, and of 14 numbers about the objects: metres and
# quaternions. Meta-World leaves the latter unbounded; in all of its tasks they stay within 1 unless an object is flung.
_FRAME_LOW = [-0.525, 0.348, -0.0525, -1.0] + [-10.0] * 14
_FRAME_HIGH = [0.525, 1.025, 0.7, 1.0] + [10.0] * 14


def task_names() -> list[str]:
    """Names of Meta-World's 50 tasks, such as ``button-press-v3``.

    Raises:
        ImportError: if Meta-World is not installed.
    """
    return list(_tasks())


def full_task_name(task: str) -> str:
    """``button-press-v3`` for itself and for ``button-press``.

    Raises:
        ImportError: if Meta-World is not installed.
        ValueError: if there is no such task.
    """
    name = task if task.endswith("-v3") else f"{task}-v3"
    if name not in _tasks():
        raise ValueError(f"task is {task!r}, expected one of {', '.join(_tasks())}")
    return name


class ManipulationAlignEnv(SimulatorEnv):
    """One Meta-World v3 task (arXiv 1910.10897), built on Meta-World's own classes: their physics, rewards and success.

    Observation: ``[39]`` float32. Twice 18 numbers, of now and of the step before: the hand's place (3), the gripper's
    opening in [0, 1], places and quaternions of up to two objects (14, unused ones 0); then the goal's place (3), or
    zeros if it is hidden. With ``observation="pixels"``: ``[size, size, 3]`` uint8 of a camera, without shadows and
    reflections (see :class:`.rendering.FastRenderer`); a hidden goal is not marked in it.

    Action: ``[4]`` float32 in [-1, 1]: how the hand moves (x, y, z; 1 is a centimetre) and the effort that closes the
    gripper (-1 opens it).

    Episodes are *truncated* after ``max_steps`` steps. They go on after a success, unless ``terminate_on_success``.

    The info of every step holds ``true_reward``, the task's dense reward in [0, 10], and ``success``, 0 or 1 of this
    step, whatever ``reward`` is; nothing else in it tells of the reward. That of the last step also holds
    ``reward/true_return``, ``reward/success_any`` (1 if any step succeeded) and ``reward/success_last`` (of the last
    step). If the simulation diverges, that step is rewarded with NaN, is truncated, and says so in ``info["invalid"]``.

    One seed gives one episode: the task's random vector (where objects and goal are) is drawn from the environment's
    own generator, and nothing of the episodes before is left. Meta-World's ``reset(seed)`` does neither, and its
    declared observations do not contain the goal.

    Args:
        task: name of the task; its ending ``-v3`` may be left out.
        observation: "state" or "pixels".
        size: height and width of the pixels that are observed, at least 1.
        camera: what is seen: "corner", "corner2", "corner3", "corner4", "topview", "behindGripper" or "gripperPOV".
            Meta-World's corner cameras hang upside down; their pictures are turned here.
        goal: "random" draws the places of objects and goal in each episode, "fixed" has always the same.
        goal_observable: show the goal.
        reward: "task" gives the dense reward, "success" 1 where a step succeeds and else 0, "none" always 0.
        max_steps: of an episode, at least 1; 500 in Meta-World.
        terminate_on_success: end an episode by its first success.
        render_mode: None or "rgb_array".
        render_size: height and width of what ``render`` returns, at least 1.

    Raises:
        ImportError: if a package of the extra ``robot`` is missing.
        ValueError: for an argument outside what is allowed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        *,
        task: str = "button-press-v3",
        observation: str = "state",
        size: int = 64,
        camera: str = "corner4",
        goal: str = "random",
        goal_observable: bool = True,
        reward: str = "task",
        max_steps: int = 500,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        check_positive(size=size, max_steps=max_steps, render_size=render_size)
        check_choice("observation", observation, "state", "pixels")
        check_choice("goal", goal, "random", "fixed")
        check_choice("reward", reward, "task", "success", "none")
        check_choice("render_mode", render_mode, None, *self.metadata["render_modes"])
        super().__init__()
        self.task = full_task_name(task)
        self.observation, self.size, self.camera, self.goal = observation, size, camera, goal
        self.goal_observable, self.reward, self.max_steps = goal_observable, reward, max_steps
        self.terminate_on_success, self.render_mode, self.render_size = terminate_on_success, render_mode, render_size
        low, high = (np.array([*f, *f, g, g, g], np.float32) for f, g in ((_FRAME_LOW, -1), (_FRAME_HIGH, 1)))
        self._state_space = spaces.Box(low, high, dtype=np.float32)
        pixels = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = self._state_space if observation == "state" else pixels
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)
        self.simulator = self._simulator()
        names = [self.simulator.model.camera(i).name for i in range(self.simulator.model.ncam)]
        check_choice("camera", camera, *names)
        # All that Meta-World's resets change in the model; what is not set again would reach into the next episode.
        self._places = {k: getattr(self.simulator.model, k).copy() for k in ("body_pos", "site_pos")}
        self._fixed = self._draw_vector(np.random.default_rng(0)) if goal == "fixed" else None

    def _start(self) -> NDArray[np.float64]:
        vector = self._draw_vector(self.np_random) if self._fixed is None else self._fixed
        self._clear()
        self.simulator._last_rand_vec = vector.copy()
        state: NDArray[np.float64] = self.simulator.reset()[0]
        return state

    def _move(self, action: NDArray[np.float32]) -> Moved:
        """Move the hand for 1/80 of a second."""
        state, dense, _, _, facts = self.simulator.step(action)
        diverged = None
        if self.simulator.data.warning.number[BROKEN].any():
            diverged = f"the simulation of {self.task} diverged in step {self._steps + 1}"
        return Moved(state, float(dense), float(facts["success"]), diverged=diverged)

    def close(self) -> None:
        """Free the renderers; a second call does nothing. A later ``reset`` works."""
        self._close_renderers()
        self.simulator.close()

    def _simulator(self) -> Any:
        """Meta-World's environment of the task; its own time limit is out of the way."""
        simulator = _tasks()[self.task]()
        simulator._set_task_called = True
        simulator.max_path_length = self.max_steps + 1
        # It shows the goal to the reward and to us, who hide it from the observation.
        simulator._partially_observable = False
        simulator.__dict__.pop("sawyer_observation_space", None)
        if not self.goal_observable:
            simulator.model.site_rgba[:, 3] = 0
        return simulator

    def _draw_vector(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """A random vector of the task: only its ``reset_model`` knows which of those in the box are allowed."""
        self._clear()
        simulator = self.simulator
        simulator.np_random, simulator.seeded_rand_vec, simulator._freeze_rand_vec = generator, True, False
        simulator.reset_model()
        simulator._freeze_rand_vec = True
        return np.array(simulator._last_rand_vec, np.float64)

    def _clear(self) -> None:
        """Make the simulation forget everything, as if it were new."""
        import mujoco

        for name, places in self._places.items():
            getattr(self.simulator.model, name)[:] = places
        mujoco.mj_resetData(self.simulator.model, self.simulator.data)

    def _observe(self, state: NDArray[np.float64]) -> NDArray[Any]:
        if self.observation == "pixels":
            return self._picture(self.size)
        low, high = self._state_space.low, self._state_space.high
        observation = np.clip(state.astype(np.float32), low, high)
        if not self.goal_observable:
            observation[-3:] = 0
        return observation

    def _renderer(self, size: int) -> FastRenderer:
        return FastRenderer(self.simulator.model, size, size, self.camera)

    def _picture(self, size: int) -> NDArray[np.uint8]:
        simulator = self.simulator
        if simulator._target_pos is None:
            raise ResetNeeded("there is nothing to draw: call reset() before render()")
        # Meta-World puts the goals' marks where they belong, and loses them again before anybody can draw them.
        before = simulator.data.site_xpos.copy()
        for name, place in simulator._target_site_config:
            simulator.data.site(name).xpos = place[:3]
        picture = self._draw(size, simulator.data)
        simulator.data.site_xpos[:] = before
        return np.ascontiguousarray(picture[::-1, ::-1]) if self.camera.startswith("corner") else picture

    def background(self, *, floor: bool = True) -> NDArray[np.bool_]:
        mask = super().background(floor=floor)
        return mask[::-1, ::-1] if self.camera.startswith("corner") else mask


def _tasks() -> Mapping[str, Any]:
    """Meta-World's classes by the names of their tasks."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ImportError("Meta-World's tasks need metaworld and MuJoCo: pip install 'aligngym[robot]'") from error
    return ALL_V3_ENVIRONMENTS

"""``RobosuiteAlign-v0``: robosuite's Lift, Can and Square, with the observations and controller of robomimic's data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..batching import check_positive
from .rendering import FastRenderer, choose_backend
from .simulator import BROKEN, Moved, SimulatorEnv, check_choice

# Our names: robosuite's, the object's body, and how many numbers robomimic's key "object" has.
TASKS = {
    "Lift": ("Lift", "cube_main", 10),
    "Can": ("PickPlaceCan", "Can_main", 14),
    "Square": ("NutAssemblySquare", "SquareNut_main", 14),
}
BOUND = 10.0  # of observed numbers, which are metres and quaternions
CONTROLLER = {
    "type": "BASIC",
    "body_parts": {
        "right": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150,
            "damping_ratio": 1,
            "impedance_mode": "fixed",
            "kp_limits": [0, 300],
            "damping_ratio_limits": [0, 10],
            "position_limits": None,
            "orientation_limits": None,
            "uncouple_pos_ori": True,
            "input_type": "delta",
            "input_ref_frame": "base",
            "interpolation": None,
            "ramp_ratio": 0.2,
            "gripper": {"type": "GRIP"},
        }
    },
}
_NEEDED = (
    "RobosuiteAlign-v0 needs robosuite 1.5. No extra of ours holds it, because its pins rule out NumPy 2, although it "
    "runs with that: pip install 'aligngym[robot]' numba opencv-python-headless qpsolvers scipy termcolor tqdm, then "
    "pip install --no-deps robosuite==1.5.2 mink==0.0.13"
)


class RobosuiteAlignEnv(SimulatorEnv):
    """A task of robosuite (arXiv 2009.12293) for one Panda arm, as in robomimic's datasets (arXiv 2108.03298).

    Observation: robomimic's four keys, float32, clipped to +-10, one after the other or (``flatten=False``) as a
    dictionary.

    - ``object``: place (3) and quaternion (4, x y z w) of the cube, can or nut in the world; then, of Lift, the hand's
      place minus the cube's (3), of the others, the object's place (3) and quaternion (4) in the hand's frame.
    - ``robot0_eef_pos`` (3), ``robot0_eef_quat`` (4): of the hand. ``robot0_gripper_qpos`` (2): of the fingers.

    So robosuite up to 1.4.1 observed, and most published datasets do. robosuite 1.5's own observations differ: Lift's
    difference has the other sign, the relative pose of Can and Square comes first, is zero after a reset and of an
    older state afterwards, and all are sampled at times that drift. Here they are of now.

    With ``observation="pixels"``: ``[size, size, 3]`` uint8 of a camera, without shadows and reflections (see
    :class:`.rendering.FastRenderer`).

    Action: ``[7]`` float32 in [-1, 1] for the operational space controller of the datasets, at 20 Hz: how the hand
    moves (3, 1 is 5 cm) and turns (3, axis times angle, 1 is 0.5 rad), and the gripper (-1 opens, 1 closes it).

    Episodes are *truncated* after ``max_steps`` steps. They go on after a success, unless ``terminate_on_success``.

    The info of every step holds ``true_reward``, robosuite's shaped reward in [0, 1], and ``success``, 0 or 1 of this
    step, whatever ``reward`` is. That of the last step also holds ``reward/true_return``, ``reward/success_any`` (1 if
    any step succeeded) and ``reward/success_last`` (of the last step). If the simulation diverges, that step is
    rewarded with NaN, is truncated, and says so in ``info["invalid"]``.

    One seed gives one episode: robosuite's generator is seeded anew at each reset, which draws the arm's pose and the
    object's. Lift draws the cube's size, too, for which its model is built anew (0.7 s); the others keep theirs.

    Args:
        task: "Lift", "Can" or "Square".
        observation: "state" or "pixels".
        flatten: make the state one array.
        size: height and width of the pixels that are observed, at least 1; 84 in robomimic's data.
        camera: "agentview", "frontview", "sideview", "birdview", "robot0_robotview" or "robot0_eye_in_hand".
        reward: "task" gives the shaped reward, "success" 1 where a step succeeds and else 0 (the datasets' sparse
            reward), "none" always 0.
        max_steps: of an episode, at least 1; robomimic evaluates with 400, Preference Transformer with 500.
        terminate_on_success: end an episode by its first success, as robomimic's evaluation does.
        render_mode: None or "rgb_array".
        render_size: height and width of what ``render`` returns, at least 1.

    Raises:
        ImportError: if robosuite or what it needs is missing; the message says how to install it.
        ValueError: for an argument outside what is allowed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        *,
        task: str = "Lift",
        observation: str = "state",
        flatten: bool = True,
        size: int = 84,
        camera: str = "agentview",
        reward: str = "task",
        max_steps: int = 400,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        check_positive(size=size, max_steps=max_steps, render_size=render_size)
        check_choice("task", task, *TASKS)
        check_choice("observation", observation, "state", "pixels")
        check_choice("flatten", flatten, True, False)
        check_choice("reward", reward, "task", "success", "none")
        check_choice("render_mode", render_mode, None, *self.metadata["render_modes"])
        super().__init__()
        self.task, self.observation, self.flatten, self.size, self.camera = task, observation, flatten, size, camera
        self.reward, self.max_steps, self.terminate_on_success = reward, max_steps, terminate_on_success
        self.render_mode, self.render_size = render_mode, render_size
        self.simulator = _load(task)
        cameras = [self.simulator.sim.model.camera_id2name(i) for i in range(self.simulator.sim.model.ncam)]
        check_choice("camera", camera, *cameras)
        sizes = {"object": TASKS[task][2], "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
        boxes = {name: spaces.Box(-BOUND, BOUND, (count,), np.float32) for name, count in sizes.items()}
        if observation == "pixels":
            self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        elif flatten:
            self.observation_space = spaces.Box(-BOUND, BOUND, (sum(sizes.values()),), np.float32)
        else:
            self.observation_space = spaces.Dict(boxes)  # type: ignore[arg-type]
        self.action_space = spaces.Box(-1, 1, (7,), np.float32)

    def _start(self) -> None:
        if self.simulator is None:
            self.simulator = _load(self.task)
        # All that robosuite draws from shares this one generator.
        drawn = int(self.np_random.integers(2**63))
        self.simulator.rng.bit_generator.state = np.random.default_rng(drawn).bit_generator.state
        if self.simulator.hard_reset:
            self._close_renderers()  # they have the old model
        with _quiet():
            self.simulator.reset()

    def _move(self, action: NDArray[np.float32]) -> Moved:
        """Take the action for 1/20 of a second."""
        _, shaped, _, _ = self.simulator.step(action.astype(np.float64))
        diverged = None
        if self.simulator.sim.data._data.warning.number[BROKEN].any():
            diverged = f"the simulation of {self.task} diverged in step {self._steps + 1}"
        return Moved(None, float(shaped), float(self.simulator._check_success()), diverged=diverged)

    def close(self) -> None:
        """Free the renderers and the simulation; a second call does nothing. A later ``reset`` makes them anew."""
        self._close_renderers()
        if self.simulator is not None:
            self.simulator.close()
        self.simulator, self._over = None, True

    def _observe(self, state: None) -> Any:
        """The observation of the simulation as it is."""
        if self.observation == "pixels":
            return self._picture(self.size)
        values = {k: np.nan_to_num(np.clip(v, -BOUND, BOUND)).astype(np.float32) for k, v in self._state().items()}
        return np.concatenate(list(values.values())) if self.flatten else values

    def _state(self) -> dict[str, NDArray[np.float64]]:
        """The keys of robomimic, of the simulation as it is."""
        from robosuite.utils import transform_utils as poses

        data, robot, body = self.simulator.sim.data, self.simulator.robots[0], TASKS[self.task][1]
        place = np.array(data.get_body_xpos(body))
        quaternion = poses.convert_quat(data.get_body_xquat(body), to="xyzw")
        hand = np.array(data.site_xpos[robot.eef_site_id["right"]])
        turned = poses.convert_quat(data.get_body_xquat(robot.robot_model.eef_name["right"]), to="xyzw")
        if self.task == "Lift":
            relative = [hand - place]
        else:
            world_in_hand = poses.pose_inv(poses.pose2mat((hand, turned)))
            relative = list(poses.mat2pose(world_in_hand @ poses.pose2mat((place, quaternion))))
        return {
            "object": np.concatenate([place, quaternion, *relative]),
            "robot0_eef_pos": hand,
            "robot0_eef_quat": turned,
            "robot0_gripper_qpos": np.array(data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]),
        }

    def _renderer(self, size: int) -> FastRenderer:
        # robosuite hides group 0, which holds what collides.
        return FastRenderer(self.simulator.sim.model._model, size, size, self.camera, hidden_groups=[0])

    def _picture(self, size: int) -> NDArray[np.uint8]:
        return self._draw(size, self.simulator.sim.data._data)


def _load(task: str) -> Any:
    """The task's environment of robosuite, as robomimic makes it, without its own observations and pictures."""
    choose_backend()  # robosuite looks at it when it is imported
    with _quiet():
        try:
            import robosuite
        except ImportError as error:
            raise ImportError(f"{_NEEDED}. What is missing: {error}") from error
        simulator = robosuite.make(
            TASKS[task][0],
            robots="Panda",
            controller_configs=CONTROLLER,
            control_freq=20,
            lite_physics=False,  # which robosuite 1.4.1 and older did not have
            ignore_done=True,
            hard_reset=task == "Lift",
            reward_shaping=True,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            renderer="mujoco",
            seed=0,
        )
    for name in simulator.observation_names:
        simulator.modify_observable(name, "enabled", False)
    return simulator


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep robosuite's advice about private settings and other robots to itself; its errors are logged."""
    logger = logging.getLogger("robosuite_logs")

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)

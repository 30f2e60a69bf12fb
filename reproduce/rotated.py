"""A point to be steered to a place, seen through a rotation together with what has nothing to do with it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

POINT, DISTRACTORS = 2, 20
PUSH, NOISE, WALLS = 0.3, 0.05, 3.0  # of the point's motion
GOAL = 2.0  # in each of its coordinates
MEMORY, SPREAD = 0.8, 10**0.5  # of the distractors: correlation from step to step, standard deviation
STEPS = 50


class RotatedPointEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    r"""A linear world of which a picture would be too expensive.

    The point starts about 0, moves by :math:`x' = x + 0.3 a + 0.05 \epsilon` between walls at 3 and costs
    :math:`|x - (2, 2)|^2` a step. Twenty distractors are autoregressive, with ten times the variance that the point
    starts with. What is seen is a rotation of all 22 numbers, so that no single one of them is the point's.

    The goal is off the start so that what a push does to the cost can be told from the cost alone, at first. A state
    that is to tell rewards and nothing else becomes :math:`|x|^2` otherwise, in which pushes do not show.

    Args:
        distracted: without, the distractors are 0.
        view: number of the rotation.
    """

    metadata = {"render_modes": []}
    max_steps = STEPS

    def __init__(self, *, distracted: bool = True, view: int = 0) -> None:
        count = POINT + DISTRACTORS
        self.distracted = distracted
        self.rotation = np.linalg.qr(np.random.default_rng([view, 7]).standard_normal((count, count)))[0]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (count,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (POINT,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start somewhere."""
        super().reset(seed=seed)
        self.point, self._steps = self.np_random.standard_normal(POINT), 0
        self.distractors = SPREAD * self.np_random.standard_normal(DISTRACTORS)
        return self._seen(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push the point."""
        self._steps += 1
        pushed = np.clip(np.asarray(action, np.float64), -1, 1)
        moved = self.point + PUSH * pushed + NOISE * self.np_random.standard_normal(POINT)
        self.point = np.clip(moved, -WALLS, WALLS)
        fresh = SPREAD * np.sqrt(1 - MEMORY**2) * self.np_random.standard_normal(DISTRACTORS)
        self.distractors = MEMORY * self.distractors + fresh
        cost = float(np.square(self.point - GOAL).sum())
        return self._seen(), -cost, False, self._steps >= STEPS, self._info()

    def _seen(self) -> NDArray[np.float32]:
        hidden = np.concatenate([self.point, self.distractors * self.distracted])
        seen: NDArray[np.float32] = (self.rotation @ hidden).astype(np.float32)
        return seen

    def _info(self) -> dict[str, Any]:
        return {"point": self.point.copy(), "distractors": self.distractors.copy()}


def rotated_points(rows: int, **options: Any) -> SyncVectorEnv:
    """Several of them side by side."""
    return SyncVectorEnv([lambda: RotatedPointEnv(**options)] * rows, autoreset_mode=AutoresetMode.SAME_STEP)

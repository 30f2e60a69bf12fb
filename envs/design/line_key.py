"""A line with a key at one end and a door at the other: in ten cells, and on real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...tabular import Layout, TabularMDP
from ..batching import check_positive, check_probability
from .env import DesignEnv, TabularEnv
from .picture import draw_layout

ACTIONS = ("left", "right", "pick")
LEFT, RIGHT, PICK = range(3)
KEY_CELL = 1


def line_key_mdp(*, cells: int = 10, noise: float = 0.1, reward: float = 10.0, gamma: float = 0.95) -> TabularMDP:
    """The table of :class:`LineKeyEnv`, whose arguments see: states without the key, with it, and the end."""
    check_probability(noise=noise)
    end = 2 * cells
    P, R = np.zeros((end + 1, 3, end + 1)), np.zeros((end + 1, 3))
    P[end, :, end] = 1
    for state in range(end):
        cell, key = state % cells, state // cells
        ways = (
            key * cells + max(0, cell - 1),
            end if key and cell == cells - 1 else key * cells + min(cells - 1, cell + 1),
        )
        for action in (LEFT, RIGHT):
            P[state, action, ways[action]] += 1 - noise
            P[state, action, ways[1 - action]] += noise
        P[state, PICK, state + cells if cell == KEY_CELL and not key else state] = 1
    R[end - 1, RIGHT] = reward
    start = np.zeros(end + 1)
    start[3 : cells - 2] = 1 / (cells - 5)
    there = np.array([[s % cells, s // cells] for s in range(end)] + [[np.nan, np.nan]])
    marks = {"start": tuple(range(3, cells - 2)), "goal": (end - 1,), "key": (KEY_CELL,)}
    layout = Layout(there, (((0, 1), (cells, 1)),), marks)
    return TabularMDP(P, R, start, gamma, np.arange(end + 1) == end, ACTIONS, layout)


class LineKeyEnv(TabularEnv):
    """Fetch the key, bring it to the door: LineKeyNav of EXPRD (Devidze et al., NeurIPS 2021) in cells.

    Ten cells, each with and without the key, and the end. ``pick`` takes the key in cell 1. ``right`` in the last cell
    with the key is paid and, unless it slips, ends the episode; without the key it does nothing. Episodes start in the
    cells 3 to 7.

    Deviation: the paper's line is a continuum with a key between 0.1 and 0.2 and steps of 0.075. In ten cells a step is
    0.1.

    Args:
        cells: in a row, at least 6.
        noise: probability that ``left`` and ``right`` go the other way.
        reward: at the door.
        gamma: discount.
        max_steps: decisions of an episode.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for fewer than 6 cells, or a noise that is no probability.
    """

    def __init__(
        self,
        *,
        cells: int = 10,
        noise: float = 0.1,
        reward: float = 10.0,
        gamma: float = 0.95,
        max_steps: int = 50,
        render_mode: str | None = None,
    ) -> None:
        if cells < 6:
            raise ValueError(f"cells={cells}: must be at least 6, or there is none to start in")
        mdp = line_key_mdp(cells=cells, noise=noise, reward=reward, gamma=gamma)
        super().__init__(mdp, max_steps=max_steps, render_mode=render_mode)


class LineKeyContinuousEnv(DesignEnv):
    """Fetch the right key, bring it to the door, on real numbers: the environment of deep ExploRS (NeurIPS 2022).

    The agent is at x in [0, 1]. ``left`` and ``right`` move it by 0.075, give or take ``step_noise``; ``pick`` in the
    zone of the keys takes the right one, ``pick another`` one of the wrong ones at random, and whatever was taken stays
    taken. ``right`` between 0.9 and 1 with the right key is paid 1, at every step: nothing but the limit of steps ends
    an episode.

    Observation: float32, x, then whether a key was taken, whether x is in the keys' zone, whether it is at the door,
    and which key was taken, one-hot.

    Args:
        keys: kinds of keys, at least 1; with 1 there is no fourth action. EXPRD's line has 1, ``key_zone=(0.1, 0.2)``,
            ``start=(0.5, 0.5)``, ``noise=0.1`` and ``gamma=0.95``.
        noise: probability that ``left`` and ``right`` go the other way.
        step_noise: largest deviation of a step.
        key_zone: where keys are.
        start: between which x episodes start.
        gamma: discount.
        max_steps: decisions of an episode.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for fewer than one key, or a noise that is no probability.
    """

    STEP, DOOR = 0.075, 0.9

    def __init__(
        self,
        *,
        keys: int = 10,
        noise: float = 0.05,
        step_noise: float = 0.001,
        key_zone: tuple[float, float] = (0.0, 0.1),
        start: tuple[float, float] = (0.3, 0.4),
        gamma: float = 0.99,
        max_steps: int = 60,
        render_mode: str | None = None,
    ) -> None:
        check_positive(keys=keys)
        check_probability(noise=noise)
        super().__init__(gamma=gamma, max_steps=max_steps, render_mode=render_mode)
        self.keys, self.noise, self.step_noise, self.key_zone, self.start = keys, noise, step_noise, key_zone, start
        self.observation_space = spaces.Box(0.0, 1.0, (4 + keys,), np.float32)
        self.action_space = spaces.Discrete(3 + (keys > 1))
        self.x, self.key = 0.0, -1  # -1: none was taken

    def _start(self) -> None:
        self.x, self.key = self.np_random.uniform(*self.start), -1

    def _at_door(self) -> bool:
        return self.x >= self.DOOR

    def _at_keys(self) -> bool:
        return self.key_zone[0] <= self.x <= self.key_zone[1]

    def _move(self, action: int) -> tuple[float, bool]:
        reward = float(action == RIGHT and self._at_door() and self.key == 0)
        if action in (LEFT, RIGHT):
            way = (-1, 1)[action] * (-1 if self.np_random.random() < self.noise else 1)
            step = self.STEP + self.np_random.uniform(-self.step_noise, self.step_noise)
            self.x = min(1.0, max(0.0, self.x + way * step))
        elif self._at_keys() and self.key < 0:
            self.key = 0 if action == PICK else int(self.np_random.integers(1, self.keys))
        return reward, False

    def _observe(self) -> NDArray[np.float32]:
        observation = np.zeros(4 + self.keys, np.float32)
        observation[:4] = self.x, self.key >= 0, self._at_keys(), self._at_door()
        if self.key >= 0:
            observation[4 + self.key] = 1
        return observation

    def _draw(self) -> NDArray[np.uint8]:
        # Row 0 without a key, row 1 with the right one, row 2 with another.
        rows = 2 + (self.keys > 1)
        cells = np.array([[x, y] for y in range(rows) for x in range(10)], float)
        first, last = (round(10 * bound) for bound in self.key_zone)
        marks = {"key": tuple(range(first, max(first + 1, last))), "goal": (19,)}
        walls = tuple(((0, y), (10, y)) for y in range(1, rows))
        row = 0 if self.key < 0 else 1 if self.key == 0 else 2
        return draw_layout(Layout(cells, walls, marks), np.array([10 * self.x - 0.5, row]).clip(0, 9))

    def _get_state(self) -> Any:
        return [self.x, self.key]

    def _set_state(self, state: Any) -> None:
        self.x, self.key = state

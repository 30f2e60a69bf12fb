"""Four rooms on a grid of 7 by 7: a reward at one corner, a trap at the other."""

from __future__ import annotations

import numpy as np

from ...tabular import Array, Layout, TabularMDP
from ..batching import check_probability
from .env import TabularEnv

SIZE = 7
ACTIONS = ("up", "left", "down", "right")
UP, LEFT, DOWN, RIGHT = range(4)
MOVES = ((0, 1), (-1, 0), (0, -1), (1, 0))
START, GOAL, END = SIZE + 1, SIZE * SIZE - 1, SIZE * SIZE
DOORS = (1, 5)
COLUMN, ROW = 3, 3  # walls: left of this column, below this row, but for the doors


def neighbour(state: int, action: int) -> int | None:
    """The cell that a move leads to; None where a wall is in the way."""
    x, y = state % SIZE, state // SIZE
    new_x, new_y = x + MOVES[action][0], y + MOVES[action][1]
    outside = not (0 <= new_x < SIZE and 0 <= new_y < SIZE)
    through_column = {x, new_x} == {COLUMN - 1, COLUMN} and y not in DOORS
    through_row = {y, new_y} == {ROW - 1, ROW} and x not in DOORS
    return None if outside or through_column or through_row else new_x + SIZE * new_y


def target(state: int, action: int) -> int | None:
    """The same, with the ways out: ``left`` and ``down`` at the bottom left, ``right`` at the goal."""
    if (state == 0 and action in (LEFT, DOWN)) or (state == GOAL and action == RIGHT):
        return END
    return neighbour(state, action)


def rooms_nav_table(noise: float) -> Array:
    """``P`` of EXPRD: with probability ``noise`` a move leads to one of the other cells that a move can lead to."""
    check_probability(noise=noise)
    P = np.zeros((END + 1, 4, END + 1))
    P[END, :, END] = 1
    for state in range(END):
        # At the goal `up` leaves the room as `right` does, although it is not rewarded.
        targets = [END if (state, a) == (GOAL, UP) else target(state, a) for a in range(4)]
        reachable = {t for t in targets if t is not None}
        for action, intended in enumerate(targets):
            others = sorted(reachable - {intended})
            P[state, action, state if intended is None else intended] += 1 - noise
            P[state, action, others] += noise / len(others)
    return P


def four_rooms_table(noise: float, terminal_goal: bool = True) -> Array:
    """``P`` of the later papers, of ExpAdaRD or, where the goal does not lead out, of ExploRS."""
    check_probability(noise=noise)
    exact: Array = np.zeros((END + 1, 4, END + 1))
    exact[END, :, END] = 1
    for state in range(END):
        for action in range(4):
            found = target(state, action)
            exact[state, action, state if found is None else found] = 1
    if not terminal_goal:
        exact[GOAL, RIGHT] = np.eye(END + 1)[GOAL]
    P: Array = (1 - noise) * exact + noise * exact.mean(1, keepdims=True)
    if terminal_goal:
        P[[0, GOAL]] = exact[[0, GOAL]]
    return P


def rooms_mdp(P: Array, *, reward: float, gamma: float, distractor: float = 0.0) -> TabularMDP:
    """The table of either, with its rewards and layout."""
    R = np.zeros((END + 1, 4))
    R[GOAL, RIGHT] = reward
    R[1, UP] = distractor
    cells = np.array([[s % SIZE, s // SIZE] for s in range(END)] + [[np.nan, np.nan]])
    free = [i for i in range(SIZE) if i not in DOORS]
    walls = [((COLUMN, y), (COLUMN, y + 1)) for y in free] + [((x, ROW), (x + 1, ROW)) for x in free]
    layout = Layout(cells, tuple(walls), {"start": (START,), "goal": (GOAL,), "exit": (0,)})
    terminal = np.arange(END + 1) == END
    return TabularMDP(P, R, np.eye(END + 1)[START], gamma, terminal, ACTIONS, layout)


class RoomsNavEnv(TabularEnv):
    """The four rooms of EXPRD (Devidze et al., NeurIPS 2021), and what their code makes of them.

    49 cells and the end; up, left, down and right. ``right`` in the top right cell is paid, wherever it leads; it and
    ``up`` lead out. So do ``left`` and ``down`` in the bottom left cell, unpaid. Episodes start in the middle of the
    room at the bottom left.

    Args:
        noise: probability that a move leads to another of the cells within reach, in [0, 1].
        reward: at the goal.
        gamma: discount.
        max_steps: decisions of an episode.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for a noise that is no probability.
    """

    def __init__(
        self,
        *,
        noise: float = 0.1,
        reward: float = 10.0,
        gamma: float = 0.95,
        max_steps: int = 50,
        render_mode: str | None = None,
    ) -> None:
        mdp = rooms_mdp(rooms_nav_table(noise), reward=reward, gamma=gamma)
        super().__init__(mdp, max_steps=max_steps, render_mode=render_mode)


class FourRoomsEnv(TabularEnv):
    """The four rooms of ExpAdaRD (AAMAS 2024) and of ExploRS (NeurIPS 2022): the same cells, other noise.

    With probability ``noise`` the action is drawn anew, uniformly; at the goal and in the bottom left cell it is not.
    Only ``right`` leads out of the goal. The rooms of ExploRS have ``terminal_goal=False, reward=1, gamma=0.99``, and
    may pay a distractor: there ``right`` at the goal stays and is paid *at every step*, and noise is everywhere.

    Args:
        terminal_goal: the rewarded action ends the episode.
        noise: probability of a random action, in [0, 1].
        reward: at the goal.
        gamma: discount.
        distractor: reward of ``up`` in the cell right of the bottom left one.
        max_steps: decisions of an episode.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for a noise that is no probability.
    """

    def __init__(
        self,
        *,
        terminal_goal: bool = True,
        noise: float = 0.05,
        reward: float = 10.0,
        gamma: float = 0.95,
        distractor: float = 0.0,
        max_steps: int = 30,
        render_mode: str | None = None,
    ) -> None:
        P = four_rooms_table(noise, terminal_goal)
        mdp = rooms_mdp(P, reward=reward, gamma=gamma, distractor=distractor)
        super().__init__(mdp, max_steps=max_steps, render_mode=render_mode)

"""Cells in a row: a chain whose end is far, and a short corridor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...tabular import Layout, TabularMDP
from ..batching import check_positive, check_probability
from .env import TabularEnv

ACTIONS = ("left", "right")
LEFT, RIGHT = range(2)


def chain_mdp(
    *,
    right: int = 20,
    left: int = 40,
    noise: float = 0.05,
    gamma: float = 0.99,
    distractor: float = 0.0,
    terminal_goal: bool = False,
) -> TabularMDP:
    """The table of :class:`ChainEnv`, whose arguments see."""
    check_positive(right=right, left=left)
    check_probability(noise=noise)
    goal, end = left + right, left + right + 1
    exact = np.zeros((end + 1, 2, end + 1))
    for s in range(end):
        exact[s, LEFT, s - 1 if s else end] = 1
        exact[s, RIGHT, s + 1 if s < goal else (end if terminal_goal else goal)] = 1
    exact[end, :, end] = 1
    R = np.zeros((end + 1, 2))
    R[goal, RIGHT] = 1
    if distractor:
        R[left - 15, LEFT] = distractor
    marks = {"start": (left,), "goal": (goal,), "exit": (0,)}
    return TabularMDP(
        (1 - noise) * exact + noise * exact.mean(1, keepdims=True), R, np.eye(end + 1)[left], gamma,
        np.arange(end + 1) == end, ACTIONS, _row(end, marks),
    )  # fmt: skip


def corridor_mdp(cells: int = 12, *, noise: float = 0.1, gamma: float = 0.95) -> TabularMDP:
    """A corridor with a wall at its left end; ``right`` in the last cell is paid 1 and, unless it slips, is the end.

    Args:
        cells: at least 2.
        noise: probability of going the other way.
        gamma: discount.

    Returns:
        the table; episodes start in the first cell.
    """
    check_probability(noise=noise)
    end = cells
    P, R = np.zeros((end + 1, 2, end + 1)), np.zeros((end + 1, 2))
    P[end, :, end] = 1
    for s in range(end):
        ways = max(0, s - 1), s + 1
        for action in (LEFT, RIGHT):
            P[s, action, ways[action]] += 1 - noise
            P[s, action, ways[1 - action]] += noise
    R[end - 1, RIGHT] = 1
    marks = {"start": (0,), "goal": (end - 1,)}
    return TabularMDP(P, R, np.eye(end + 1)[0], gamma, np.arange(end + 1) == end, ACTIONS, _row(end, marks))


def _row(cells: int, marks: Mapping[str, tuple[int, ...]]) -> Layout:
    """Cells beside each other, and an end that is nowhere."""
    there = np.stack([np.arange(cells, dtype=float), np.zeros(cells)], 1)
    return Layout(np.vstack([there, [np.nan, np.nan]]), (), marks)


class ChainEnv(TabularEnv):
    """The chain of ExploRS (Devidze et al., NeurIPS 2022): ``right`` steps to a reward that random walks hardly meet.

    Episodes start ``left`` steps from the left end. ``left`` in the leftmost cell ends the episode, unpaid. ``right``
    in the rightmost cell is paid 1, *at every step*, and stays there: the reward is no end, unless ``terminal_goal``.

    Args:
        right: steps from the start to the rightmost cell, at least 1.
        left: steps from the start to the leftmost cell, at least 1; 15 with a distractor.
        noise: probability of a uniformly random action.
        gamma: discount.
        distractor: reward of ``left``, 15 steps left of the start; the paper has 0.01.
        terminal_goal: the rewarded action ends the episode, unless it slips.
        max_steps: decisions of an episode.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for a distractor that would lie outside, a noise that is no probability, or no steps to an end.
    """

    def __init__(
        self,
        *,
        right: int = 20,
        left: int = 40,
        noise: float = 0.05,
        gamma: float = 0.99,
        distractor: float = 0.0,
        terminal_goal: bool = False,
        max_steps: int = 40,
        render_mode: str | None = None,
    ) -> None:
        if distractor and left < 15:
            raise ValueError(f"left={left}: the distractor is 15 steps left of the start")
        mdp = chain_mdp(
            right=right, left=left, noise=noise, gamma=gamma, distractor=distractor, terminal_goal=terminal_goal
        )
        super().__init__(mdp, max_steps=max_steps, render_mode=render_mode)

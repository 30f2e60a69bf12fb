r"""A tabular Markov decision process, and what can be said of one exactly: values, gaps, occupancies.

Environments of reward design step it, and their teachers design rewards from it. Notation: ``S`` states, ``A`` actions,
``P [S, A, S]``, ``R [S, A]``, policies ``[S, A]`` of probabilities. Rewards are given apart where another one than the
process's own is meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TOLERANCE = 1e-8  # by which values may differ and count as equal: rounding must not make a tied action sub-optimal


@dataclass(frozen=True)
class Layout:
    """Where the states of a process are in the plane, for pictures.

    Attributes:
        cells: ``[S, 2]`` column and row of each state, row 0 at the bottom; NaN for a state that is nowhere.
        walls: segments between corners of cells, ``((x0, y0), (x1, y1))``.
        marks: states worth marking, by what they are: ``"goal"``, ``"start"``, ``"key"``, ``"exit"``.
    """

    cells: Array
    walls: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    marks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TabularMDP:
    """States, actions, and what they lead to.

    Attributes:
        P: ``[S, A, S]`` probabilities of the next state.
        R: ``[S, A]`` rewards.
        start: ``[S]`` probabilities of the first state.
        gamma: discount, in [0, 1).
        terminal: ``[S]`` bool, states in which an episode has ended: absorbing, and worth nothing.
        actions: names of the actions; ``left``, ``right``, ``up`` and ``down`` are drawn as directions.
        layout: where the states are, for pictures.

    Raises:
        ValueError: for shapes that do not fit, probabilities that do not sum to 1, or a terminal state that can be left
            or is rewarded.
    """

    P: Array
    R: Array
    start: Array
    gamma: float
    terminal: Flags
    actions: tuple[str, ...] = ()
    layout: Layout | None = None

    def __post_init__(self) -> None:
        for name, kind in (("P", np.float64), ("R", np.float64), ("start", np.float64), ("terminal", np.bool_)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        if self.R.ndim != 2:
            raise ValueError(f"R has shape {self.R.shape}, expected [S, A]")
        states, actions = self.R.shape
        for name, shape in (("P", (states, actions, states)), ("start", (states,)), ("terminal", (states,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for name in ("P", "start"):
            values = getattr(self, name)
            if (values < 0).any() or not np.allclose(values.sum(-1), 1, atol=1e-9):
                raise ValueError(f"{name} holds what is no distribution: its last axis must sum to 1")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma={self.gamma}: must be in [0, 1)")
        ended = np.flatnonzero(self.terminal)
        if self.R[ended].any() or (self.P[ended, :, ended] != 1).any():
            raise ValueError("a terminal state must lead to itself and pay nothing, or it would be worth something")

    @property
    def shape(self) -> tuple[int, int]:
        """``(S, A)``."""
        return self.R.shape


def policy_values(mdp: TabularMDP, policy: Array, rewards: Array | None = None) -> tuple[Array, Array]:
    """``V [S]`` and ``Q [S, A]`` of a policy, exactly, by solving the linear system.

    Args:
        mdp: the process.
        policy: ``[S, A]``.
        rewards: ``[S, A]`` instead of the process's own.
    """
    rewards = mdp.R if rewards is None else rewards
    steps = np.einsum("sa,sat->st", policy, mdp.P)
    values = np.linalg.solve(np.eye(len(steps)) - mdp.gamma * steps, (policy * rewards).sum(1))
    q: Array = rewards + mdp.gamma * mdp.P @ values
    return values, q


def optimal_values(mdp: TabularMDP, rewards: Array | None = None) -> tuple[Array, Array]:
    """``V* [S]`` and ``Q* [S, A]``, exactly, by policy iteration; arguments as in :func:`policy_values`."""
    states, actions = mdp.shape
    chosen = np.zeros(states, np.int64)
    while True:
        values, q = policy_values(mdp, np.eye(actions)[chosen], rewards)
        better = q.max(1) > q[np.arange(states), chosen] + 1e-12 * max(1.0, np.abs(q).max())
        if not better.any():
            return values, q
        chosen = np.where(better, q.argmax(1), chosen)


def start_value(mdp: TabularMDP, policy: Array, rewards: Array | None = None) -> float:
    """What a policy is worth where episodes start; arguments as in :func:`policy_values`."""
    return float(mdp.start @ policy_values(mdp, policy, rewards)[0])


def greedy(q: Array) -> Array:
    """The policy ``[S, A]`` that takes the first of the best actions."""
    return np.asarray(np.eye(q.shape[1])[q.argmax(1)])


def mixed(policy: Array, epsilon: float) -> Array:
    """The policy that takes a uniformly random action with probability ``epsilon``."""
    return np.asarray((1 - epsilon) * policy + epsilon / policy.shape[1])


def optimal_actions(q: Array, tolerance: float = TOLERANCE) -> Flags:
    """``[S, A]``, whether an action is worth as much as the best one; tied ones are all optimal."""
    return np.asarray(q >= q.max(1, keepdims=True) - tolerance)


def action_gaps(q: Array) -> Array:
    r""":math:`\delta(s, a) = \max_b Q(s, b) - Q(s, a)`, ``[S, A]``."""
    return np.asarray(q.max(1, keepdims=True) - q)


def state_gaps(q: Array, tolerance: float = TOLERANCE) -> Array:
    r""":math:`\delta(s)`, the gap of the best action that is not optimal, ``[S]``; 0 where all are."""
    gaps = np.where(optimal_actions(q, tolerance), np.inf, action_gaps(q)).min(1)
    return np.where(np.isfinite(gaps), gaps, 0.0)


def advantage_operators(
    mdp: TabularMDP, chosen: NDArray[np.int64], horizons: Sequence[int | None]
) -> list[Array]:
    r"""Matrices ``[S A, S A]`` that turn rewards into gaps of a deterministic policy, one a horizon.

    .. math::
        \delta_h(s, a) = Q_h(s, \pi(s)) - Q_h(s, a) = \big(A_h R\big)(s, a), \qquad
        A_h = (I_\pi - I) \sum_{k=0}^{h} (\gamma P_\pi)^k

    A horizon ``h`` sums the rewards of steps 0 to ``h``, that is ``h + 1`` of them, as in EXPRD; ExpAdaRD's code calls
    the same ``h + 1``. None is the whole future.

    Args:
        mdp: the process.
        chosen: ``[S]`` action of the policy in each state.
        horizons: ``h`` of each matrix, at least 0.
    """
    states, actions = mdp.shape
    size, rows = states * actions, np.arange(states)
    pairs = np.zeros((states, actions, states, actions))
    pairs[:, :, rows, chosen] = mdp.P
    step = mdp.gamma * pairs.reshape(size, size)
    following = np.zeros((states, actions, states, actions))
    following[rows, :, rows, chosen] = 1
    difference = following.reshape(size, size) - np.eye(size)
    found: dict[int | None, Array] = {}
    if None in horizons:
        found[None] = difference @ np.linalg.inv(np.eye(size) - step)
    power, total = np.eye(size), np.eye(size)
    for h in range(max((h for h in horizons if h is not None), default=-1) + 1):
        if h:
            power = power @ step
            total = total + power
        if h in horizons:
            found[h] = difference @ total
    return [found[h] for h in horizons]


def occupancy(mdp: TabularMDP, policy: Array) -> Array:
    r"""Discounted frequencies of the states that are not terminal, ``[S]``, which sum to 1.

    .. math:: \mu(s) \propto \sum_t \gamma^t \Pr(s_t = s), \qquad \mu(s) = 0 \text{ for terminal } s

    Args:
        mdp: the process.
        policy: ``[S, A]``.
    """
    steps = np.einsum("sa,sat->st", policy, mdp.P)
    visits = np.linalg.solve(np.eye(len(steps)) - mdp.gamma * steps.T, (1 - mdp.gamma) * mdp.start)
    visits = np.where(mdp.terminal, 0.0, visits)
    return np.asarray(visits / visits.sum())


def check_reward_table(table: Array, observation_space: Space[Any], action_space: Space[Any]) -> None:
    """Compare a table of rewards with the spaces of one environment.

    Raises:
        ValueError: where the states are not numbered, or the table has not a row for each and a column for each action.
    """
    if not isinstance(observation_space, spaces.Discrete):
        raise ValueError(
            f"a table of rewards is for numbered states, but those of the environment are {observation_space}"
        )
    expected = int(observation_space.n), int(getattr(action_space, "n", 0))
    if table.shape != expected:
        raise ValueError(f"the table of rewards has shape {table.shape}, expected [S, A] {expected} of the environment")


def pay_for(
    design: Callable[[Any, int, Any, bool], float], state: Any, action: int, next_state: Any, terminated: bool
) -> float:
    """What a design pays for a step.

    Raises:
        ValueError: if that is no finite number.
    """
    paid = design(state, action, next_state, terminated)
    try:
        finite = math.isfinite(paid)
    except TypeError:
        finite = False
    if not finite:
        raise ValueError(f"the design pays {paid!r} for action {action} in state {state}, expected a finite number")
    return float(paid)

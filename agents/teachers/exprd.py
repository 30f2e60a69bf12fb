r"""EXPRD: explicable reward design. Few states are rewarded, so that all gaps show early (NeurIPS 2021).

Rewards ``R`` on a set of states are chosen by a linear programme:

.. math::
    \max_R \; I(R) = -\frac{1}{|H||S|} \sum_{h \in H} \sum_s \max\Big(0, \max_{a \notin \Pi^*(s)}
    \delta^*(s) - \delta_h(s, a)\Big) \quad \text{s.t.} \quad \delta_\infty(s, a) \ge \delta^*(s) \;
    (a \notin \Pi^*(s)), \quad \delta_\infty(s, a) \ge 0, \quad |R| \le R_{max}

with gaps :math:`\delta_h` under ``R`` of one optimal policy (:func:`~aligngym.tabular.advantage_operators`) and
:math:`\delta^*` of the true reward. 0 is the best there is: every gap is as wide after ``h`` steps as it will ever be.
A set of ``B`` states beside the rewarded ones is grown greedily, by what it does for :math:`I`.

Choices: :math:`\delta^*` is divided by ``1 + 1e-5``, or rounding makes the programme infeasible. A horizon ``h`` sums
``h + 1`` rewards. Terminal states get none. ``gaps="state"`` is the authors' code, which compares the worst action of a
state with :math:`\delta^*(s)`; ``gaps="action"`` is the paper's sum over actions, each with its own
:math:`\delta^*(s, a)`. There is one target policy, and no penalty on the set or on ``|R|``, which the code weighs by 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from ...tabular import (
    Array,
    Flags,
    TabularMDP,
    action_gaps,
    advantage_operators,
    optimal_actions,
    optimal_values,
    state_gaps,
)

HORIZONS = (1, 4, 8, 16, 32)
SLACK = 1 + 1e-5


@dataclass(frozen=True)
class Design:
    """A designed reward.

    Attributes:
        reward: ``[S, A]``.
        value: of the objective.
        states: that were chosen, in this order, the truly rewarded ones first.
    """

    reward: Array
    value: float
    states: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a design must keep of the true reward: an optimal policy, and by how much others are worse.

    Attributes:
        chosen: ``[S]`` the policy.
        wrong: ``[S, A]`` bool, actions that are not optimal, of all states but the terminal ones.
        margins: ``[S, A]`` least gaps over the whole future: just below the state's where an action is wrong, else 0.
        operator: ``[S A, S A]``, from rewards to gaps over the whole future.
    """

    chosen: NDArray[np.int64]
    wrong: Flags
    margins: Array
    operator: Array

    @classmethod
    def of(cls, mdp: TabularMDP) -> Target:
        """That of a process."""
        _, q = optimal_values(mdp)
        wrong, chosen = ~optimal_actions(q), q.argmax(1)
        (operator,) = advantage_operators(mdp, chosen, [None])
        return cls(chosen, wrong, np.where(wrong, state_gaps(q)[:, None] / SLACK, 0.0), operator)


def rewarded_states(mdp: TabularMDP) -> tuple[int, ...]:
    """The states in which the true reward is not 0 for every action."""
    return tuple(np.flatnonzero(mdp.R.any(1)).tolist())


def state_features(mdp: TabularMDP, states: Sequence[int] | None = None) -> Array:
    """``[S A, D]``, one column for each action of some states; None takes all that are not terminal.

    Raises:
        ValueError: for a state that is terminal, or none.
    """
    chosen = np.flatnonzero(~mdp.terminal) if states is None else np.array(states, np.int64)
    if wrong := [s for s in chosen.tolist() if not 0 <= s < mdp.shape[0] or mdp.terminal[s]]:
        raise ValueError(f"states has {wrong}, expected states below {mdp.shape[0]} that are not terminal")
    size, actions = mdp.R.size, mdp.shape[1]
    return np.asarray(np.eye(size)[:, (chosen[:, None] * actions + np.arange(actions)).ravel()])


def solve_design(
    mdp: TabularMDP,
    features: Array,
    max_reward: float,
    gain: Array,
    hinges: Sequence[tuple[Array, Array]] = (),
    target: Target | None = None,
) -> Design:
    r"""The feasible reward ``R = F w`` that maximises a gain less some hinges.

    .. math:: \langle gain, R \rangle - \sum_j \max\big(0, \max_i (b_{ij} - (A_j R)_i)\big)

    Feasible: the target policy stays optimal by its margins, and no reward exceeds ``max_reward``.

    Args:
        mdp: the process.
        features: ``F [S A, D]``.
        max_reward: largest size of a reward.
        gain: ``[S, A]``.
        hinges: ``A_j [n, S A]`` and ``b_j [n]`` of each hinge.
        target: of the process, where it is known.

    Raises:
        ValueError: if nothing is feasible, or the features reward a terminal state, in which nothing is paid.
    """
    target = target or Target.of(mdp)
    if features.reshape(*mdp.shape, -1)[mdp.terminal].any():
        raise ValueError("features are not 0 in a terminal state, in which nothing is paid")
    width, count = features.shape[1], len(hinges)
    rows, limits = [np.hstack([-target.operator @ features, np.zeros((mdp.R.size, count))])], [-target.margins.ravel()]
    unit = bool((features.sum(0) == 1).all() and (features.max(0) == 1).all())  # each weight is one reward
    if not unit:
        rows += [np.hstack([sign * features, np.zeros((mdp.R.size, count))]) for sign in (1, -1)]
        limits += [np.full(mdp.R.size, max_reward)] * 2
    for j, (operator, least) in enumerate(hinges):
        excess = np.zeros((len(least), count))
        excess[:, j] = -1
        rows.append(np.hstack([-operator @ features, excess]))
        limits.append(-least)
    cost = np.concatenate([-gain.ravel() @ features, np.ones(count)])
    bounds = [(-max_reward, max_reward) if unit else (None, None)] * width + [(0, None)] * count
    found = linprog(cost, A_ub=csr_matrix(np.vstack(rows)), b_ub=np.concatenate(limits), bounds=bounds, method="highs")
    if found.status != 0:
        raise ValueError(f"no reward is feasible: {found.message} Allow more states, or a larger max_reward")
    weights = found.x[:width]
    if unit:  # what lies within the slack of the constraints is rounding, which a learner of zeros would run after
        weights = np.where(np.abs(weights) < (SLACK - 1) * max_reward, 0.0, weights)
    return Design((features @ weights).reshape(mdp.shape), -float(found.fun))


def grow(mdp: TabularMDP, budget: int, design: Callable[[tuple[int, ...]], Design]) -> list[Design]:
    """Designs on the rewarded states and 0 to ``budget`` others, each added for being the best next one.

    Args:
        mdp: the process.
        budget: how many at most.
        design: gives the best design on some states.

    Raises:
        ValueError: for a budget below 0, or a process that rewards nothing.
    """
    states = rewarded_states(mdp)
    if budget < 0:
        raise ValueError(f"budget={budget}: must be at least 0")
    if not states:
        raise ValueError("the process rewards nothing: there is nothing to design for")
    designs = [_on(states, design)]
    for _ in range(budget):
        others = [s for s in np.flatnonzero(~mdp.terminal).tolist() if s not in states]
        if not others:
            break
        designs.append(max((_on((*states, s), design) for s in others), key=lambda d: d.value))
        states = designs[-1].states
    return designs


def _on(states: tuple[int, ...], design: Callable[[tuple[int, ...]], Design]) -> Design:
    found = design(states)
    return Design(found.reward, found.value, states)


def hinge_terms(
    mdp: TabularMDP, target: Target, horizons: Sequence[int], gaps: Literal["state", "action"]
) -> list[tuple[Array, Array]]:
    """The terms of EXPRD's objective, one a horizon and state, or one a horizon, state and action; see the module."""
    _, q = optimal_values(mdp)
    least = (target.margins if gaps == "state" else action_gaps(q) / SLACK).ravel()
    groups: list[NDArray[np.int64]]
    if gaps == "state":
        groups = [s * mdp.shape[1] + np.flatnonzero(w) for s, w in enumerate(target.wrong) if w.any()]
    else:
        groups = [np.array([pair]) for pair in np.flatnonzero(target.wrong)]
    scale = 1 / (len(horizons) * mdp.shape[0])
    operators = advantage_operators(mdp, target.chosen, horizons)
    return [(scale * operator[group], scale * least[group]) for operator in operators for group in groups]


def informativeness(
    mdp: TabularMDP, rewards: Array, horizons: Sequence[int] = HORIZONS, gaps: Literal["state", "action"] = "state"
) -> float:
    """EXPRD's objective ``I(R)`` of rewards ``[S, A]``: 0 at best."""
    terms = hinge_terms(mdp, Target.of(mdp), horizons, gaps)
    return -float(sum(max(0.0, (least - operator @ rewards.ravel()).max()) for operator, least in terms))


def exprd(
    mdp: TabularMDP,
    budget: int | None = None,
    *,
    states: Sequence[int] | None = None,
    max_reward: float | None = None,
    horizons: Sequence[int] = HORIZONS,
    gaps: Literal["state", "action"] = "state",
    features: Array | None = None,
) -> list[Design]:
    """EXPRD's rewards, see the module.

    Args:
        mdp: the process.
        budget: states beside the rewarded ones, chosen greedily; None does not choose.
        states: without a budget, those that may be rewarded; None takes all that are not terminal.
        max_reward: largest size of a reward; None takes that of the true reward.
        horizons: ``H``.
        gaps: how gaps are compared.
        features: ``[S A, D]``, without a budget: rewards are their weighted sums.

    Returns:
        designs with 0 to ``budget`` added states; without a budget the only one.

    Raises:
        TypeError: for what is no table.
        ValueError: for a budget beside states or features, no horizons, and as :func:`grow`, :func:`state_features`
            and :func:`solve_design` do.
    """
    if not isinstance(mdp, TabularMDP):
        raise TypeError(f"mdp is {mdp}, expected a TabularMDP: of an environment, env.unwrapped.mdp")
    if budget is not None and (states is not None or features is not None):
        raise ValueError(f"budget={budget} chooses states by itself: give no states and no features beside it")
    if not horizons:
        raise ValueError("horizons is empty, expected one or more")
    target = Target.of(mdp)
    solve = partial(
        solve_design, mdp, max_reward=float(np.abs(mdp.R).max()) if max_reward is None else max_reward,
        gain=np.zeros(mdp.shape), hinges=hinge_terms(mdp, target, horizons, gaps), target=target,
    )  # fmt: skip
    if budget is not None:
        return grow(mdp, budget, lambda chosen: solve(features=state_features(mdp, chosen)))
    found: Any = solve(features=state_features(mdp, states) if features is None else features)
    return [found]

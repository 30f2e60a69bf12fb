"""Designs to compare with: shaping by a potential, rewards by hand, and any reward that keeps the optimal policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...tabular import Array, TabularMDP, optimal_actions, optimal_values
from .exprd import solve_design, state_features


def pbrs(mdp: TabularMDP, potential: Array | None = None) -> Array:
    r"""Potential-based shaping (Ng et al. 1999), ``[S, A]``.

    .. math:: R'(s, a) = R(s, a) + \gamma E[\Phi(s') | s, a] - \Phi(s)

    Q-values shift by :math:`-\Phi(s)`, so advantages of *every* policy stay what they are: an exact policy gradient is
    not helped at all, learners that bootstrap or sample are. With :math:`\Phi = V^*`, :math:`R' = A^*`.

    Args:
        mdp: the process.
        potential: ``[S]``, 0 in terminal states; None takes ``V*``.

    Raises:
        ValueError: for a potential that is not 0 in a terminal state, which would change what is optimal.
    """
    potential = optimal_values(mdp)[0] if potential is None else potential
    if potential[mdp.terminal].any():
        raise ValueError("the potential must be 0 in terminal states, or it changes which policy is optimal")
    return np.asarray(mdp.R + mdp.gamma * mdp.P @ potential - potential[:, None])


def hand_crafted(mdp: TabularMDP, states: Sequence[int], size: float = 1.0) -> Array:
    """The true reward, and ``size`` more for optimal actions and less for others in some states, ``[S, A]``.

    What one might do by hand, with its well-known bug: where a circle gains more than it loses, walking in circles is
    worth more than the goal.

    Args:
        mdp: the process.
        states: in which to reward.
        size: of these rewards.
    """
    extra = np.zeros(mdp.shape)
    extra[list(states)] = np.where(optimal_actions(optimal_values(mdp)[1])[list(states)], size, -size)
    return np.asarray(mdp.R + extra)


def invariance(mdp: TabularMDP, max_reward: float | None = None, features: Array | None = None) -> Array:
    """Some reward that keeps the optimal policy optimal by its true gaps, whichever the solver finds, ``[S, A]``.

    Args:
        mdp: the process.
        max_reward: largest size of a reward; None takes that of the true reward.
        features: ``[S A, D]``: rewards are their weighted sums; None leaves them free.
    """
    bound = float(np.abs(mdp.R).max()) if max_reward is None else max_reward
    return solve_design(
        mdp, state_features(mdp) if features is None else features, bound, gain=np.zeros(mdp.shape)
    ).reward

r"""ExpAdaRD: rewards that are informative for the learner as it is, designed anew as it learns (AAMAS 2024).

The derivative of one policy-gradient step of the learner :math:`\pi_L` towards the teacher's target is, for the
one-step horizon, linear in the reward:

.. math::
    I(R) = \sum_{s, a} \mu_T(s) \, \mu_L(s, a) \, \pi_L(a | s) \, \big(A_T(s, a) - A_T(s, \pi_L)\big)
    \big(R(s, a) - R(s, \pi_L)\big), \qquad f(s, \pi) = \sum_a \pi(a | s) f(s, a)

:math:`\mu_L(s, a) = \mu_L(s) \pi_L(a | s)`, so that the learner's policy enters squared. The reward that maximises it
solves a linear programme with the constraints of :mod:`.exprd`: the true optimal policy stays optimal by the true gaps.
A deterministic learner learns nothing from any reward: all are worth 0.

Without a limit on the reward the solution is at its bounds nearly everywhere, and not much better than that of EXPRD;
few states or few features make the difference. The authors' rooms have 40 features, their line none.

Choices: :math:`\mu_T` is of the optimal policy made epsilon-greedy, :math:`A_T` of the optimal one; states of the end
have none, and :math:`\mu` sums to 1 without them. With a budget of states they are chosen anew, greedily, by ``I``.
"""

from __future__ import annotations

import numpy as np

from ...tabular import Array, TabularMDP, greedy, mixed, occupancy, optimal_values
from .exprd import Design, Target, grow, solve_design, state_features
from .teacher import Probabilities, TableTeacher


def informativeness_weights(mdp: TabularMDP, learner: Array, epsilon: float = 0.4) -> Array:
    """``[S, A]`` weights ``c`` with which ``I(R)`` is the sum of ``c R``.

    Args:
        mdp: the process.
        learner: ``[S, A]`` its policy.
        epsilon: probability of a random action of the teacher's policy, where it visits states.
    """
    values, q = optimal_values(mdp)
    advantages = q - values[:, None]
    visits = occupancy(mdp, mixed(greedy(q), epsilon)) * occupancy(mdp, learner)
    centred = advantages - (learner * advantages).sum(1, keepdims=True)
    weights = visits[:, None] * learner**2 * centred
    return np.asarray(weights - learner * weights.sum(1, keepdims=True))


def expadard(
    mdp: TabularMDP,
    learner: Array,
    *,
    max_reward: float | None = None,
    epsilon: float = 0.4,
    budget: int | None = None,
    features: Array | None = None,
    target: Target | None = None,
) -> Design:
    """The most informative feasible reward for a learner's policy.

    Args:
        mdp: the process.
        learner: ``[S, A]``.
        max_reward: largest size of a reward; None takes that of the true reward.
        epsilon: see :func:`informativeness_weights`.
        budget: states beside the rewarded ones that may be rewarded, chosen greedily; None takes all.
        features: ``[S A, D]``, without a budget: rewards are their weighted sums.
        target: of the process, where it is known.

    Raises:
        ValueError: for a budget beside features, and as :func:`.exprd.solve_design` does.
    """
    if budget is not None and features is not None:
        raise ValueError(f"budget={budget} chooses states by itself: give no features beside it")
    gain = informativeness_weights(mdp, learner, epsilon)
    bound, target = float(np.abs(mdp.R).max()) if max_reward is None else max_reward, target or Target.of(mdp)
    if budget is not None:
        return grow(mdp, budget, lambda s: solve_design(mdp, state_features(mdp, s), bound, gain, target=target))[-1]
    return solve_design(mdp, state_features(mdp) if features is None else features, bound, gain, target=target)


class ExpAdaRD(TableTeacher):
    """The adaptive teacher; its first design is for a uniformly random learner.

    Args:
        mdp: the process.
        max_reward: largest size of a reward; None takes that of the true reward.
        epsilon: see :func:`informativeness_weights`.
        budget: see :func:`expadard`.
        features: see :func:`expadard`.
    """

    def __init__(
        self,
        mdp: TabularMDP,
        *,
        max_reward: float | None = None,
        epsilon: float = 0.4,
        budget: int | None = None,
        features: Array | None = None,
    ) -> None:
        self.mdp, self.max_reward, self.epsilon = mdp, max_reward, epsilon
        self.budget, self.features, self.target = budget, features, Target.of(mdp)
        super().__init__(np.zeros(mdp.shape))
        self._design(np.full(mdp.shape, 1 / mdp.shape[1]))

    def update(self, policy: Probabilities) -> None:
        """Design for the learner as it is."""
        self._design(policy(np.arange(self.mdp.shape[0])))

    def _design(self, learner: Array) -> None:
        self.table = expadard(
            self.mdp, learner, max_reward=self.max_reward, epsilon=self.epsilon, budget=self.budget,
            features=self.features, target=self.target,
        ).reward  # fmt: skip

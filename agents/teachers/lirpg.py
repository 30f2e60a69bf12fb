r"""LIRPG without its gradient through networks: the baseline of ExploRS that asks how often a step comes again.

It learns :math:`\phi`, which is added to the true reward as in :mod:`.explors`, but only where the learner acted, and
with what a reward there would be worth from there on, in the whole episode instead of in the step alone:

.. math::
    \Delta \phi(s, a) = \frac{\eta}{|D|} \sum \pi(a | s) \, \big(\bar G - V(s)\big) \, \big(n_a(s, a) - n_b(s, a)\big)

The sum is over the steps :math:`(s, a)` of the last :math:`|D|` episodes, :math:`\bar G` the true return from there on.
:math:`n_a` counts the visits of :math:`(s, a)`, discounted, in an episode that begins with it; :math:`n_b` the same in
one that begins in :math:`s` with an action of the learner's. So the difference is the advantage of :math:`(s, a)` when
it alone is rewarded, with 1. Without a way back to :math:`s` it is :math:`1 - \pi(a | s)`, as in ExploRS.

LIRPG is Zheng et al. 2018 (arXiv 1804.06459), this form of it Devidze et al., NeurIPS 2022. Deviation: the authors
sample an episode for each count; here counts are expectations, from the table, of a process without a limit of steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...tabular import Array, TabularMDP
from .explors import ExploRS


def count_differences(mdp: TabularMDP, policy: Array, gamma: float) -> Array:
    r"""Expected :math:`n_a(s, a) - n_b(s, a)`, ``[S, A]``; see the module.

    .. math::
        M = (I - \gamma P_\pi)^{-1}, \qquad
        n_a = 1 + \gamma \, \pi(a | s) \sum_{s'} P(s' | s, a) M(s', s), \qquad n_b = \pi(a | s) M(s, s)

    Args:
        mdp: the process.
        policy: ``[S, A]``, of the learner.
        gamma: discount of the counts, below 1.
    """
    steps = np.einsum("sa,sat->st", policy, mdp.P)
    visits = np.linalg.inv(np.eye(len(steps)) - gamma * steps)
    again = gamma * np.einsum("sat,ts->sa", mdp.P, visits)
    return np.asarray(1 + policy * (again - visits.diagonal()[:, None]))


class LIRPG(ExploRS):
    """The teacher for tables; what it keeps, and how V learns, is as in ExploRS without a bonus.

    Args:
        mdp: the process in which it counts; its rewards are not read.
        gamma: discount of the true return and of the counts, below 1.
        rate: of phi.
        value_rate: of V.
        clip: largest size of phi; None does not limit it.
        buffer: episodes that an update reads.

    Raises:
        ValueError: for a discount of 1, with which endless counts have no end.
    """

    def __init__(
        self,
        mdp: TabularMDP,
        gamma: float,
        *,
        rate: float = 0.01,
        value_rate: float = 0.01,
        clip: float | None = None,
        buffer: int = 10,
    ) -> None:
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma={gamma}: counts of visits need a discount in [0, 1)")
        super().__init__(
            mdp.shape, gamma, bonus=0.0, rate=rate, value_rate=value_rate, clip=clip, buffer=buffer
        )  # fmt: skip
        self.mdp, self.gamma = mdp, gamma

    def direction(
        self, states: NDArray[np.int64], actions: NDArray[np.int64], advantages: Array, policy: Array
    ) -> Array:
        """The module's equation without the rate."""
        gradient = np.zeros(policy.shape)
        np.add.at(gradient, (states, actions), advantages)
        return gradient * policy * count_differences(self.mdp, policy, self.gamma) / len(self.episodes.kept)

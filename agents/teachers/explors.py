r"""ExploRS: a learner's own exploration and success shape its reward, without any teacher's knowledge (NeurIPS 2022).

.. math::
    \hat r(s, a, s') = \bar R(s, a) + \phi(s, a) + B(s'), \qquad
    B(s) = \frac{\lambda}{\sqrt{(\lambda / B_{max})^2 + N(s)}}

``N`` counts how often a state was left; the bonus of a step is read before its own state is counted, and is 0 at the
end. :math:`\phi` follows the gradient of the learner's *true* return through one of its policy-gradient steps,
summed over the steps of the last episodes, whose true return from there on is :math:`\bar G`:

.. math::
    \Delta \phi(s, \cdot) = \eta \, \pi(a | s) \, \big(\bar G - V(s)\big) \, \big(e_a - \pi(\cdot | s)\big)

Then :math:`V` moves towards :math:`\bar G`, by ``eta`` times the mean over all steps. Without :math:`\phi` this is
ExploB, without the bonus SelfRS.

Choice: :math:`\pi` is the learner's policy when :math:`\phi` is updated; the authors' code takes that of each episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tabular import Array
from .teacher import Episodes, Probabilities, States, Teacher


def exploration_bonus(visits: Any, scale: float = 1.0, largest: float = 1.0) -> Any:
    """``B`` after ``visits``, a number or an array; ``scale`` is lambda. See the module."""
    return scale / ((scale / largest) ** 2 + visits) ** 0.5


def meta_gradient(states: NDArray[np.int64], actions: NDArray[np.int64], advantages: Array, policy: Array) -> Array:
    """The sum over steps in the module's second equation, ``[S, A]``, without the rate; its rows sum to 0.

    Args:
        states: ``[N]``.
        actions: ``[N]``.
        advantages: ``[N]`` true returns less V.
        policy: ``[S, A]``.
    """
    weights = policy[states, actions] * advantages
    gradient = np.zeros(policy.shape)
    np.add.at(gradient, (states, actions), weights)
    total = np.bincount(states, weights, len(policy))
    return gradient - policy * total[:, None]


class ExploRS(Teacher):
    """The self-supervised teacher for numbered states.

    Args:
        shape: numbers of states and actions.
        gamma: discount of the true return.
        bonus: lambda; 0 leaves the bonus out (SelfRS).
        largest_bonus: of a state that was never left.
        rate: of phi; 0 leaves it out (ExploB).
        value_rate: of V.
        clip: largest size of phi; None does not limit it. The paper limits it to 0.01 for Q-learning.
        buffer: episodes that an update reads.
    """

    mode = "add"

    def __init__(
        self,
        shape: tuple[int, int],
        gamma: float,
        *,
        bonus: float = 1.0,
        largest_bonus: float = 1.0,
        rate: float = 0.01,
        value_rate: float = 0.01,
        clip: float | None = None,
        buffer: int = 10,
    ) -> None:
        self.bonus, self.largest, self.rate, self.value_rate, self.clip = bonus, largest_bonus, rate, value_rate, clip
        self.phi, self.values, self.visits = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[0])
        self.episodes = Episodes(buffer, gamma)

    def __call__(self, state: Any, action: int, next_state: Any, terminated: bool) -> float:
        designed = self.phi[state, action]
        if self.bonus and not terminated:
            designed += exploration_bonus(self.visits[next_state], self.bonus, self.largest)
        self.visits[state] += 1
        return float(designed)

    def record(self, states: States, actions: NDArray[np.int64], rewards: Array) -> None:
        self.episodes.add(states, actions, rewards)

    def direction(
        self, states: NDArray[np.int64], actions: NDArray[np.int64], advantages: Array, policy: Array
    ) -> Array:
        """In which phi moves, ``[S, A]``: here the :func:`meta_gradient`, whose arguments see."""
        return meta_gradient(states, actions, advantages, policy)

    def update(self, policy: Probabilities) -> None:
        """Move phi, then V."""
        if not self.rate or not self.episodes.kept:
            return
        states, actions, returns = self.episodes.joined()
        advantages = returns - self.values[states]
        probabilities = policy(np.arange(len(self.values)))
        self.phi += self.rate * self.direction(states, actions, advantages, probabilities)
        if self.clip is not None:
            self.phi = self.phi.clip(-self.clip, self.clip)
        self.values += self.value_rate * np.bincount(states, advantages, len(self.values)) / len(states)

    def get_state(self) -> dict[str, Any]:
        tables = {name: getattr(self, name).tolist() for name in ("phi", "values", "visits")}
        return {**tables, "episodes": self.episodes.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.phi, self.values, self.visits = (np.array(state[name]) for name in ("phi", "values", "visits"))
        self.episodes.set_state(state["episodes"])


class SORS(Teacher):
    r"""Phi that ranks episodes as their true returns do, added to the true reward: the baseline SORS with R.

    Over pairs of the last episodes of which one returned more, phi's discounted sums follow the Bradley-Terry model:
    :math:`\Delta \phi = \eta \, \overline{(1 - \sigma(\Phi_i - \Phi_j)) \, \nabla (\Phi_i - \Phi_j)}`.

    Args:
        shape: numbers of states and actions.
        gamma: discount.
        rate: eta.
        pairs: read at an update, at most; drawn with replacement where there are more.
        buffer: episodes that an update reads.
        seed: of the draws.
    """

    mode = "add"

    def __init__(
        self,
        shape: tuple[int, int],
        gamma: float,
        *,
        rate: float = 0.01,
        pairs: int = 10,
        buffer: int = 10,
        seed: int = 0,
    ) -> None:
        self.gamma, self.rate, self.pairs = gamma, rate, pairs
        self.phi, self.episodes, self.rng = np.zeros(shape), Episodes(buffer, gamma), np.random.default_rng(seed)

    def __call__(self, state: Any, action: int, next_state: Any, terminated: bool) -> float:
        return float(self.phi[state, action])

    def record(self, states: States, actions: NDArray[np.int64], rewards: Array) -> None:
        self.episodes.add(states, actions, rewards)

    def update(self, policy: Probabilities) -> None:
        """One step on pairs; nothing happens where all returns are equal."""
        returns = np.array([g[0] for _, _, g in self.episodes.kept])
        better = np.argwhere(returns[:, None] > returns[None])
        if not len(better):
            return
        if len(better) > self.pairs:
            better = better[self.rng.integers(len(better), size=self.pairs)]
        sums = np.zeros((len(returns), *self.phi.shape))  # how often, discounted, each episode meets a state and action
        for total, (states, actions, _) in zip(sums, self.episodes.kept, strict=True):
            np.add.at(total, (states, actions), self.gamma ** np.arange(len(states)))
        differences = sums[better[:, 0]] - sums[better[:, 1]]
        margins = (differences * self.phi).sum((1, 2))
        self.phi += self.rate * (differences / (1 + np.exp(margins))[:, None, None]).mean(0)

    def get_state(self) -> dict[str, Any]:
        return {
            "phi": self.phi.tolist(), "episodes": self.episodes.get_state(), "rng": self.rng.bit_generator.state,
        }  # fmt: skip

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.phi = np.array(state["phi"])
        self.episodes.set_state(state["episodes"])
        self.rng.bit_generator.state = state["rng"]

r"""Q-learning in a table (Watkins 1989), with rewards that a teacher may design.

.. math:: Q(s, a) \leftarrow Q(s, a) + \alpha \big(\hat r + \gamma (1 - d) \max_b Q(s', b) - Q(s, a)\big)

Actions are epsilon-greedy; tied best ones are drawn alike, as in the program of ExploRS. That of EXPRD takes the first,
so that a table of zeros walks one way until something is found by chance. An episode that is cut by its limit of steps
goes on in the target: ``d`` is 1 for terminations only. Evaluation is greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from ..tabular import Array, mixed
from .policies.policy import Policy
from .policies.q_table import QTable
from .taught import TaughtAgent, TaughtConfig


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(TaughtConfig):
    """Options of Q-learning; the defaults are those of EXPRD.

    Attributes:
        learning_rate: alpha, in (0, 1].
        epsilon: probability of a random action in training (0.05 to 0.1).
    """

    learning_rate: float = 0.5
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("learning_rate",), lambda v: 0 < v <= 1, "in (0, 1]")
        self.require(("epsilon",), lambda v: 0 <= v <= 1, "in [0, 1]")


class QLearning(TaughtAgent):
    """Tabular Q-learning; see :class:`.taught.TaughtAgent` for its arguments."""

    config_class = QLearningConfig
    default_clip = 0.01  # of ExploRS for Q-learning
    config: QLearningConfig
    policy: QTable

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """A table of zeros.

        Raises:
            ValueError: for states that are not numbered, or a model's name.
        """
        states, actions = self.env.single_observation_space, self.env.single_action_space
        if model is not None or not isinstance(states, spaces.Discrete) or not isinstance(actions, spaces.Discrete):
            raise ValueError(f"QLearning has a table for numbered states and actions, not {model or (states, actions)}")
        return QTable(int(states.n), int(actions.n), self.config.epsilon)

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.policy, QTable) or self.policy.device.type != "cpu":
            raise ValueError(f"QLearning learns a QTable on the CPU, not a {type(self.policy).__name__}")
        self.q: NDArray[np.float32] = self.policy.logits.detach().numpy()  # the same memory

    def choose(self, state: Any) -> int:
        """The best action, or now and then a random one."""
        if self.rng.random() < self.config.epsilon:
            return int(self.rng.integers(self.q.shape[1]))
        values = self.q[state]
        best = np.flatnonzero(values == values.max())
        return int(best[0] if len(best) == 1 else best[self.rng.integers(len(best))])

    def probabilities(self, states: NDArray[Any]) -> Array:
        """``[n, A]`` of the epsilon-greedy policy."""
        best = (self.q[states] == self.q[states].max(1, keepdims=True)).astype(np.float64)
        return mixed(best / best.sum(1, keepdims=True), self.config.epsilon)

    def see_step(self, state: Any, action: int, reward: float, next_state: Any, terminated: bool) -> None:
        """Move the value of the step towards its target."""
        target = reward if terminated else reward + self.gamma * float(self.q[next_state].max())
        self.q[state, action] += self.config.learning_rate * (target - self.q[state, action])

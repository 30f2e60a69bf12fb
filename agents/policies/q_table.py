"""A table of action values, and the policy that takes the best action, or now and then a random one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .control import TabularPolicy
from .policy import Decision, RowNoise, sample_categorical


class QTable(TabularPolicy):
    """Epsilon-greedy on a table of action values, which is ``logits``.

    Tied best actions are drawn alike: in a table of zeros nothing is best. Without draws the first of them is taken.

    Args:
        num_states: rows of the table, >= 1.
        num_actions: columns of the table, >= 1.
        epsilon: probability of a uniformly random action where actions are drawn.
    """

    deterministic_evaluation = True

    def __init__(self, num_states: int, num_actions: int, epsilon: float = 0.1) -> None:
        super().__init__(num_states, num_actions, value=False)
        self.epsilon = epsilon

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Choose one action a row for states ``[B]``; consumes one uniform number a row, none if ``deterministic``."""
        values = self.logits[self._states(observation)]
        if deterministic:
            return Decision(values.argmax(-1), torch.zeros(len(values)))
        chances = self.chances(observation)
        actions = sample_categorical(chances.log(), noise.uniform(1)[:, 0])
        return Decision(actions, chances.log().gather(-1, actions[:, None])[:, 0])

    def chances(self, observation: Any) -> Tensor:
        """``[B, A]`` probabilities with which actions are drawn in states ``[B]``."""
        values = self.logits[self._states(observation)]
        best = (values == values.amax(-1, keepdim=True)).float()
        return self.epsilon / values.shape[1] + (1 - self.epsilon) * best / best.sum(-1, keepdim=True)

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        return dict(zip(("num_states", "num_actions"), self.logits.shape, strict=True)) | {"epsilon": self.epsilon}

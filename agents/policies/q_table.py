"""A table of action values, and the policy that takes the best action, or now and then a random one."""

from __future__ import annotations

from typing import Any

import torch

from .control import TabularPolicy
from .policy import Decision, RowNoise


class QTable(TabularPolicy):
    """Epsilon-greedy on a table of action values, which is ``logits``; the first of tied actions is the best.

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
        """Choose one action a row for states ``[B]``; consumes two uniform numbers a row, none if ``deterministic``."""
        values = self.logits[self._states(observation)]
        best, count = values.argmax(-1), values.shape[1]
        if deterministic:
            return Decision(best, torch.zeros(len(best)))
        uniform = noise.uniform(2)
        actions = torch.where(uniform[:, 0] < self.epsilon, (uniform[:, 1] * count).long(), best)
        chance = self.epsilon / count + (1 - self.epsilon) * (actions == best)
        return Decision(actions, chance.log())

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        return dict(zip(("num_states", "num_actions"), self.logits.shape, strict=True)) | {"epsilon": self.epsilon}

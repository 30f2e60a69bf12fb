"""A population of softmax policies that see nothing: a row of logits for each member."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...trajectories import Trajectories
from .policy import Decision, Evaluation, Policy, RowNoise, sample_categorical


class PopulationPolicy(Policy):
    r"""Member ``i`` acts in row ``i`` of a batch, by ``softmax(logits[i])`` whatever it observes.

    At first every member prefers the aligned action by a logit of ``alignment``: of two actions it takes the other one
    with probability :math:`\sigma(-b)`.

    Args:
        members: of the population, at least 1; as many as the environment has rows.
        actions: at least 2.
        alignment: ``b``.
        aligned_action: which one is preferred.
    """

    def __init__(self, members: int, actions: int, alignment: float = 0.0, aligned_action: int = 0) -> None:
        super().__init__()
        if members < 1 or not 0 <= aligned_action < actions or actions < 2:
            raise ValueError(f"members={members}, actions={actions}, aligned_action={aligned_action}: out of range")
        self.alignment, self.aligned_action = alignment, aligned_action
        self.logits = nn.Parameter(torch.zeros(members, actions, dtype=torch.float64))
        with torch.no_grad():
            self.logits[:, aligned_action] = alignment

    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """One action a member.

        Raises:
            ValueError: if there are not as many rows as members.
        """
        rows = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        if rows != len(self.logits):
            raise ValueError(f"the batch has {rows} rows, but the population has {len(self.logits)} members")
        with torch.no_grad():
            log_p = self.logits.log_softmax(-1)
            if deterministic:
                drawn = log_p.argmax(-1)
            else:
                drawn = sample_categorical(log_p, noise.uniform(1)[:, 0].to(log_p.device))
            return Decision(drawn, log_p.gather(1, drawn[:, None])[:, 0].float())

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score episodes, of which member ``i`` played row ``i``; arguments as the base's."""
        log_p = self.logits.log_softmax(-1)
        chosen = log_p.gather(1, trajectories.actions).masked_fill(~trajectories.mask, 0.0)
        spread: Tensor = -(log_p.exp() * log_p).sum(-1, keepdim=True).expand_as(chosen)
        return Evaluation(chosen.float(), spread.masked_fill(~trajectories.mask, 0.0).float())

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        members, actions = self.logits.shape
        return {
            "members": members, "actions": actions, "alignment": self.alignment, "aligned_action": self.aligned_action,
        }  # fmt: skip

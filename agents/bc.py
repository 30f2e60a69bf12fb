r"""Behaviour cloning: do what was done in a dataset.

.. math:: L = -\frac{1}{N} \sum_i \log \pi(a_i | s_i)

or, for means alone, the squared error :math:`\frac{1}{N} \sum_i |a_i - \mu(s_i)|^2`. Rewards are not read. It is IQL
with a beta of 0. Pomerleau 1988, "ALVINN".

Deviations: policy, learning rate and its schedule are IQL's, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from torch import Tensor

from .descent import descend
from .offline.agent import OfflineAgent, OfflineConfig
from .offline.transitions import Transitions


@dataclass(frozen=True, kw_only=True)
class BCConfig(OfflineConfig):
    """Options of behaviour cloning.

    Attributes:
        bc_loss: the negative log-likelihood of the actions, or the squared error of their means (mse), which leaves the
            standard deviation as it is.
    """

    bc_loss: Literal["log_likelihood", "mse"] = "log_likelihood"


class BC(OfflineAgent):
    """Behaviour cloning; arguments as :class:`~aligngym.agents.offline.agent.OfflineAgent`'s."""

    config_class = BCConfig
    config: BCConfig

    def _setup(self) -> None:
        super()._setup()
        if self.config.bc_loss == "mse" and not isinstance(self.env.single_action_space, spaces.Box):
            raise ValueError(f"bc_loss='mse' is for Box actions, but they are {self.env.single_action_space}")

    def update(self, batch: Transitions, dropout: torch.Generator) -> dict[str, Tensor]:
        outputs = self.outputs(batch, dropout)
        if self.config.bc_loss == "mse":
            loss = (outputs - batch.actions.flatten(1)).square().sum(1).mean()
        else:
            loss = -self.policy.log_prob(outputs, batch.actions).mean()
        descend(self.optimizer, loss, allow_unused=True)
        return {"train/actor_loss": loss.detach()}

r"""Implicit Q-learning: the best of a dataset, without ever asking what an action would bring that is not in it.

.. math::
    L_V &= E\, |\tau - 1(u < 0)|\, u^2, \quad u = \min_k \bar Q_k(s, a) - V(s) \\
    L_\pi &= -E \min(e^{\beta (\min_k \bar Q_k(s, a) - V(s))}, 100) \log \pi(a | s) \\
    L_Q &= \sum_k E \big(r + \gamma (1 - d) V(s') - Q_k(s, a)\big)^2

V is the :math:`\tau`-expectile of Q over the actions of the data: their mean at 0.5, and towards 1 the value of the
best of them. The policy imitates the actions that are better than that more. Each update fits V to the target critics,
then the policy and the critics with the new V, then moves the targets. Paper: arXiv 2110.06169 (ICLR 2022), and its
code.

The inverse temperature :math:`\beta` multiplies the advantage, as in the paper; robomimic and IPL divide by theirs. The
policy is a Gaussian with squashed means and a standard deviation that no state moves, and its density is not corrected
for tanh. An episode that was cut by a time limit goes on in the target: ``d`` is 1 for terminations only.

Deviations: the last layer of the policy starts a hundredth as large (the start of this package's other policies).
Discrete actions have a categorical policy, and are one-hot for the critics.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from .checkpoint import flatten_optimizer, restore_optimizer
from .descent import descend
from .offline.agent import OfflineAgent, OfflineConfig
from .offline.critics import Critics
from .offline.transitions import Transitions

WEIGHT_LIMIT = 100.0


@dataclass(frozen=True, kw_only=True)
class IQLConfig(OfflineConfig):
    r"""Options of IQL; the defaults are the paper's for locomotion.

    Attributes:
        expectile: tau. 0.7 to 0.75 for most, 0.9 where good ways must be stitched together (mazes).
        beta: inverse temperature, which multiplies the advantage: 0 is behaviour cloning. 3 for locomotion and
            Meta-World, 0.5 for demonstrations of robosuite and Adroit, 10 for mazes. It has the unit of one over the
            rewards, see return_range.
        gamma: discount.
        target_mix: share of the critics in each update of their targets.
    """

    expectile: float = 0.7
    beta: float = 3.0
    gamma: float = 0.99
    target_mix: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("expectile",), lambda v: 0 < v < 1, "in (0, 1)")
        self.require(("beta",), lambda v: v >= 0, "at least 0")
        self.require(("gamma",), lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(("target_mix",), lambda v: 0 < v <= 1, "in (0, 1]")


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    r""":math:`|\tau - 1(u < 0)| u^2`, whose mean over data is least where V is their :math:`\tau`-expectile.

    Args:
        difference: ``u = target - V``, any shape.
        expectile: tau in (0, 1); 0.5 is half the squared error.
    """
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def advantage_weights(advantages: Tensor, beta: float, limit: float = WEIGHT_LIMIT) -> Tensor:
    """``min(exp(beta * advantage), limit)``, the weight of each action in the policy's regression.

    Args:
        advantages: ``Q - V``, any shape.
        beta: the inverse temperature; 0 gives 1 for all.
        limit: largest weight.
    """
    return (beta * advantages).exp().clamp(max=limit)


class IQL(OfflineAgent):
    """Implicit Q-learning; arguments as :class:`~aligngym.agents.offline.agent.OfflineAgent`'s."""

    config_class = IQLConfig
    config: IQLConfig

    def _setup(self) -> None:
        super()._setup()
        c, generator = self.config, torch.Generator().manual_seed(self.seed + 1)
        states, actions = (spaces.flatdim(s) for s in (self.env.single_observation_space, self.env.single_action_space))
        device = self.policy.device
        self.value = Critics(states, c.hidden, 1, generator).to(device)
        self.critics = Critics(states + actions, c.hidden, 2, generator).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=c.learning_rate, fused=True)
        # Policy and critics need the same new V and nothing of each other: one backward pass and one step for both.
        self.optimizer.add_param_group({"params": list(self.critics.parameters())})

    def update(self, batch: Transitions, dropout: torch.Generator) -> dict[str, Tensor]:
        c = self.config
        pairs = torch.cat([batch.observations, self.action_features(batch.actions)], 1)
        with torch.no_grad():
            lowest = self.targets(pairs).amin(0)
        value_loss = expectile_loss(lowest - self.value(batch.observations)[0], c.expectile).mean()
        descend(self.value_optimizer, value_loss)

        with torch.no_grad():
            now, then = self.value(torch.cat([batch.observations, batch.next_observations]))[0].chunk(2)
            advantages = lowest - now
            weights = advantage_weights(advantages, c.beta)
            goals = batch.rewards + c.gamma * torch.where(batch.terminal, 0, then)
        actor_loss = -(weights * self.policy.log_prob(self.outputs(batch, dropout), batch.actions)).mean()
        critic_loss = (self.critics(pairs) - goals).square().mean(1).sum()
        descend(self.optimizer, actor_loss + critic_loss, allow_unused=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), c.target_mix)
        return {
            "train/value_loss": value_loss.detach(), "train/actor_loss": actor_loss.detach(),
            "train/critic_loss": critic_loss.detach(), "train/value": now.mean(),
            "train/advantage": advantages.mean(), "train/weight": weights.mean(),
            "train/weights_at_limit": (weights >= WEIGHT_LIMIT).float().mean(),
        }  # fmt: skip

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        networks = {"value": self.value, "critics": self.critics, "targets": self.targets}
        found = {name: dict(network.state_dict()) for name, network in networks.items()}
        return super()._tensors() | found | {"value_optimizer": flatten_optimizer(self.value_optimizer)[0]}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"value_optimizer": flatten_optimizer(self.value_optimizer)[1]}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        for name in ("value", "critics", "targets"):
            getattr(self, name).load_state_dict(tensors[name])
        restore_optimizer(self.value_optimizer, tensors["value_optimizer"], state["value_optimizer"])

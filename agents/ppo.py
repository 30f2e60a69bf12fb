r"""Proximal Policy Optimization with a critic and generalised advantage estimation.

.. math::
    \delta_t = R_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}, \qquad G_t = A_t + V_t

with :math:`R_t` the reward less the divergence penalty of the decision; :math:`V` after the last decision is 0, except
for an episode cut by a time limit when ``bootstrap_truncated`` is on. Returns :math:`G` are taken *before* advantages
are whitened. The loss is the clipped surrogate plus :math:`c_v` times half the clipped squared error of the critic.
Papers: arXiv 1707.06347 (PPO), 1506.02438 (GAE), 1909.08593 (the penalty in the reward, for language models).

Deviations: whole episodes are collected instead of fixed-length segments; for language models the penalty is
:math:`\beta\, k_1` in the reward, measured with the sampling policy and without gradient, as in InstructGPT and TRL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..trajectories import Trajectories
from .advantages import gae, whiten
from .objectives import clipped_value_loss
from .on_policy import Batch, Metrics, OnPolicyAgent, OnPolicyConfig
from .policies.policy import Evaluation


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnPolicyConfig):
    """Options of PPO; those of every on-policy agent included.

    Attributes:
        gamma: discount; 1 for episodes with one final reward, 0.99 for control.
        gae_lambda: 1 is the Monte-Carlo return less the value, 0 the one-step error.
        whiten_advantages: give the advantages of all decisions mean 0 and standard deviation 1.
        value_coef: weight of the critic's loss.
        value_clip: the critic moves at most this far from its old value in the loss; 0 is off.
        bootstrap_truncated: add the critic's value after a time limit. On for control tasks whose reward would have
            gone on; off where a truncated episode has already received its final reward, as generation does.
        learning_rate: the default suits the embedded language model.
        minibatch_size: episodes an optimiser step; 0 takes all of them.
        kl_coef: weight of the divergence; the default suits rewards of about unit size.
        kl_estimator: k1 by default, in the reward.
        kl_in: the reward by default.
    """

    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten_advantages: bool = True
    value_coef: float = 0.1
    value_clip: float = 0.2
    bootstrap_truncated: bool = False
    learning_rate: float = 1e-4
    minibatch_size: int = 16
    kl_coef: float = 0.02
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    kl_in: Literal["reward", "loss"] = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("gamma", "gae_lambda"), lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(("value_coef", "value_clip"), lambda v: v >= 0, "at least 0")


class PPO(OnPolicyAgent):
    """Proximal Policy Optimization on any environment."""

    config_class = PPOConfig
    config: PPOConfig
    needs_values = True

    def targets(self, episodes: Trajectories, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        c = self.config
        assert values is not None
        bootstrap = episodes.truncated & torch.tensor(c.bootstrap_truncated, device=values.device)
        advantages, returns = gae(episodes.rewards, values, episodes.mask, bootstrap, c.gamma, c.gae_lambda)
        if c.whiten_advantages:
            advantages = whiten(advantages, episodes.mask)
        return self.clipped(advantages), returns

    def loss(self, batch: Batch, now: Evaluation, weights: Tensor, share: Tensor) -> tuple[Tensor, Metrics]:
        loss, metrics = self.policy_loss(batch, now, weights, share)
        assert now.values is not None and batch.old_values is not None and batch.returns is not None
        errors = clipped_value_loss(
            now.values[:, :-1], batch.old_values[:, :-1], batch.returns, self.config.value_clip or None
        )
        value_loss = (errors * share).sum()
        metrics["train/value_loss"] = value_loss.item()
        return loss + self.config.value_coef * value_loss, metrics

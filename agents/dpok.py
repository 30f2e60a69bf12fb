r"""DPOK: online fine-tuning of denoisers with a divergence to the pretrained model and a learned baseline.

.. math:: L = \frac{1}{NT} \sum_{i,t} \left[ -A_{it}\, \mathrm{clip}(\rho_{it}, 1 - \epsilon, 1 + \epsilon)
    + \beta \frac{\|\mu_\theta - \mu_{pre}\|^2}{2 S_t^2} \right], \qquad A_{it} = r_i - V(x_t, t, c)

The critic :math:`V` is fitted to the reward of the final sample from every state on the way, by squared error, after
the policy's updates of each iteration. The clip is unconditional, unlike PPO's: outside its range the gradient is 0, on
whichever side the ratio is. The divergence of a step is exact; their sum bounds that of the final samples from above.
Paper: Fan et al. 2023, arXiv 2305.16381.

Deviations from its code: the critic is fitted last, since one that has seen an episode's reward explains its advantage
away (it is a table of prompts where each has one episode); whole episodes of the current policy are read, by the critic
too, not transitions shuffled out of a buffer of 1,000 that several policies filled; steps are weighted by their noise
(``step_weights="uniform"`` is the paper's loss); the divergence is that of the decisions, where the code's squared
difference of predicted noises leaves out a weight that depends on the step; the critic knows a prompt by its hash
instead of by a text encoder. The code's weights, 100 of the surrogate and 0.01 of the difference, are about 0.001 of
the exact divergence here. For its clip range of 1e-4 see ``ddpo.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..trajectories import Trajectories
from .checkpoint import flatten_optimizer, restore_optimizer
from .on_policy import Batch, Metrics
from .policies.denoiser_policy import DenoiserPolicy
from .ppo import PPO, PPOConfig


@dataclass(frozen=True, kw_only=True)
class DPOKConfig(PPOConfig):
    """Options of DPOK: those of PPO, with other defaults.

    Attributes:
        value_steps: optimiser steps of the critic in each iteration, after the policy's.
        value_batch: episodes, with all their states, in a step of the critic.
        value_learning_rate: of the critic's own Adam.
        value_coef: 0: the policy's optimiser leaves the critic alone.
        clip_form: clamp, without PPO's maximum.
        whiten_advantages: off: an advantage is the reward less the value.
        kl_coef: weight of the exact divergence; the default suits rewards of about unit size.
        kl_estimator: the closed form.
        kl_in: the loss; the reward is not allowed, since the critic predicts what the environment pays.
        step_weights: each step's share of the sampler's noise; see DDPO.
        decisions_per_update: denoising steps of each episode that an update of the policy reads.
        minibatch_size: episodes an optimiser step of the policy; 0 takes all of them.
        learning_rate: the default suits the embedded diffusion model.
    """

    value_steps: int = 20
    value_batch: int = 16
    value_learning_rate: float = 1e-3
    value_coef: float = 0.0
    clip_form: Literal["pessimistic", "clamp"] = "clamp"
    whiten_advantages: bool = False
    kl_coef: float = 0.001
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    kl_in: Literal["reward", "loss"] = "loss"
    step_weights: Literal["uniform", "noise", "inverse_step"] = "noise"
    decisions_per_update: int = 5
    minibatch_size: int = 0
    learning_rate: float = 3e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("value_batch", "value_learning_rate"), lambda v: v > 0, "above 0")
        self.require(("value_steps",), lambda v: v >= 0, "at least 0")
        if self.kl_coef and self.kl_in == "reward":
            raise ValueError("kl_in='reward' would change the returns that the critic predicts: take kl_in='loss'")


class DPOK(PPO):
    """DPOK with a denoising policy that has a critic."""

    config_class = DPOKConfig
    config: DPOKConfig

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.policy, DenoiserPolicy):
            raise ValueError(f"DPOK is for denoising, but the policy is a {type(self.policy).__name__}: take PPO")
        assert self.policy.critic is not None
        critic = self.policy.critic.parameters()
        self.value_optimizer = torch.optim.Adam(critic, lr=self.config.value_learning_rate)

    def update(self, batch: Batch) -> Metrics:
        metrics = super().update(batch)
        self._fit_critic(batch.episodes)
        return metrics

    def _fit_critic(self, episodes: Trajectories) -> None:
        """Least squares from states to final rewards, on random episodes of this iteration."""
        for _ in range(self.config.value_steps):
            some = episodes.select(torch.from_numpy(self.rng.permutation(len(episodes))[: self.config.value_batch]))
            values = self.policy.state_values(some)
            assert values is not None
            self.value_optimizer.zero_grad(set_to_none=True)
            (values[:, :-1] - some.returns[:, None]).square().mean().backward()
            self.value_optimizer.step()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {**super()._tensors(), "value_optimizer": flatten_optimizer(self.value_optimizer)[0]}

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "value_optimizer": flatten_optimizer(self.value_optimizer)[1]}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        restore_optimizer(self.value_optimizer, tensors["value_optimizer"], state["value_optimizer"])

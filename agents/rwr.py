r"""Reward-weighted regression: imitate one's own episodes, the better ones more.

.. math:: L = -\frac{1}{N} \sum_i w_i \log \pi(y_i), \qquad w_i = N \frac{\exp(r_i / \tau)}{\sum_j \exp(r_j / \tau)}

With enough episodes of :math:`\pi_0` and enough steps, one iteration ends at :math:`\pi_0 \exp(r / \tau) / Z`, and
:math:`k` iterations at :math:`\pi_0 \exp(k r / \tau) / Z`: nothing anchors it but its own last iterate. Paper: Peters &
Schaal 2007, "Reinforcement learning by reward-weighted regression for operational space control"; for denoisers, whose
likelihood is replaced by minus the denoising error, Lee et al. 2023, arXiv 2302.12192, and the baseline of DDPO, arXiv
2305.13301.

Deviations: weights are normalised over the iteration's episodes, or within each group, instead of by an estimate of the
normaliser; they may be clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..trajectories import Trajectories
from .gradient import GradientAgent, GradientConfig, Metrics, without_padding
from .policies.policy import RowNoise


@dataclass(frozen=True, kw_only=True)
class RWRConfig(GradientConfig):
    """Options of reward-weighted regression.

    Attributes:
        reward_temperature: tau, in the reward's unit: an episode that is better by tau weighs e times as much. Near the
            standard deviation of the rewards; lower is greedier.
        weights_over: over which episodes the weights are normalised: the whole batch, or each group, so that no state
            counts more because its rewards are higher.
        weight_clip: largest weight, whose mean is 1 before clipping; 0 is off.
        epochs: passes over the collected episodes: more fit the weighted episodes more closely.
        minibatch_size: episodes an optimiser step; 0 takes all of them.
        learning_rate: the default suits the embedded language model.
        reference: not read by the loss; the divergence from it is reported by evaluations.
    """

    reward_temperature: float = 0.2
    weights_over: Literal["batch", "group"] = "batch"
    weight_clip: float = 20.0
    epochs: int = 1
    minibatch_size: int = 16
    learning_rate: float = 1e-4
    reference: Literal["initial", "moving", "soup", "none"] = "initial"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("reward_temperature",), lambda v: v > 0, "above 0")
        self.require(("weight_clip",), lambda v: v >= 0, "at least 0")
        if self.weights_over == "group" and self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: weights_over='group' compares a group, give 2 or more")


@torch.no_grad()
def regression_weights(returns: Tensor, group: Tensor, temperature: float, clip: float = 0.0) -> Tensor:
    r"""Weights :math:`n \,\mathrm{softmax}(r / \tau)` within each group of size :math:`n`, at most ``clip``.

    Their mean over a group is 1 before clipping, so that the learning rate keeps its meaning; equal returns weigh 1,
    and a constant added to the returns of a group changes nothing.

    Args:
        returns: ``[B]`` float, finite.
        group: ``[B]`` integer; all equal to normalise over everything.
        temperature: above 0.
        clip: largest weight; 0 is off.

    Returns:
        ``[B]``, the dtype of ``returns``.
    """
    weights = torch.zeros_like(returns)
    for number in group.unique():
        rows = group == number
        weights[rows] = (returns[rows].double() / temperature).softmax(0).mul(rows.sum()).to(returns.dtype)
    return weights.clamp(max=clip) if clip else weights


class RWR(GradientAgent):
    """Reward-weighted regression on any policy with likelihoods and any environment."""

    config_class = RWRConfig
    config: RWRConfig

    def iterate(self) -> tuple[Trajectories, Metrics]:
        """Collect episodes, weigh them, imitate them."""
        c = self.config
        episodes = self.collect()
        valid = episodes.select(episodes.valid)
        metrics: Metrics = {}
        if len(valid):
            group = valid.group if c.weights_over == "group" else torch.zeros_like(valid.group)
            weights = regression_weights(valid.returns, group, c.reward_temperature, c.weight_clip)
            share = weights.sum().square() / weights.square().sum() / len(weights)
            metrics = {"train/effective_share": share.item()}
            metrics |= self.update(valid.lengths.cpu(), partial(self._losses, valid, weights))
        self.reference.step(self.policy, self.iteration + 1, c.reference_every, c.reference_mix)
        return episodes, metrics

    def _losses(
        self, episodes: Trajectories, weights: Tensor, rows: Tensor, seeds: list[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted negative log-likelihood of some episodes, and its plain value for the log."""
        likelihood = self.policy.log_likelihood(without_padding(episodes.select(rows)), RowNoise(seeds))
        losses = -weights[rows.to(weights.device)] * likelihood
        return losses, {"train/loss": losses, "train/log_likelihood": likelihood}

r"""Flow-GRPO and GRPO-Guard: GRPO with the options that these papers chose for flow models.

The policy's sampler turns the flow's deterministic ODE into an SDE with the same marginals (``flow_sde``), so that its
steps have probabilities; evaluations take the ODE. With :math:`g` the group of an episode and :math:`b` all episodes
of the iteration,

.. math:: A_i = \mathrm{clip}\left(\frac{r_i - \mathrm{mean}_g(r)}{\mathrm{std}_b(r) + \epsilon}, -5, 5\right), \qquad
    L = \frac{1}{NT} \sum_{i,t} \left[ -\min(\rho A, \mathrm{clip}(\rho) A)
    + \beta \frac{\|\mu_\theta - \mu_{ref}\|^2}{2 S_t^2} \right]

Paper: Liu et al. 2025, arXiv 2505.05470. GRPO-Guard (Wang et al. 2025, arXiv 2510.22319) replaces the ratio by
:math:`\hat\rho = \exp(S (\log\rho + \|\mu - \mu_{old}\|^2 / 2S^2))`, whose logarithm has mean 0 at every step, so that
the upper clip binds as often as the lower; and divides the surrogate of each step by its length :math:`h`, so that all
steps weigh alike.

Deviations: a group shares its initial noise too, see ``FlowAlign-v0``; episodes whose advantage is 0 stay in the mean;
every step that draws noise is trained, where the papers' code leaves out the last; the divergence is the exact one, of
which the code's is :math:`h / d`; no moving average of the weights is kept. Clip ranges are for log-probabilities that
are sums over dimensions; the papers' 1e-4 belongs to means (``log_prob="mean"`` of the policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .grpo import GRPO, GRPOConfig


@dataclass(frozen=True, kw_only=True)
class FlowGRPOConfig(GRPOConfig):
    """Options of Flow-GRPO: those of GRPO, with other defaults.

    Attributes:
        advantage: a group's returns less their mean, over the standard deviation of the iteration.
        advantage_clip: advantages are limited to plus and minus this.
        kl_coef: weight of the exact divergence.
        kl_estimator: the closed form.
        learning_rate: the default suits the embedded flow model.
    """

    advantage: Literal["zscore", "batch_zscore", "centered", "leave_one_out", "none"] = "batch_zscore"
    advantage_clip: float = 5.0
    kl_coef: float = 0.001
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    learning_rate: float = 1e-4


class FlowGRPO(GRPO):
    """GRPO with a flow policy; the options are all that differs."""

    config_class = FlowGRPOConfig
    config: FlowGRPOConfig


@dataclass(frozen=True, kw_only=True)
class GRPOGuardConfig(FlowGRPOConfig):
    """Options of GRPO-Guard: those of Flow-GRPO, with other defaults.

    Attributes:
        ratio: normalised over the denoising steps.
        step_weights: one over the step's length, which only flows have; uniform fits diffusion models.
        clip_low: below 1, in the unit of the normalised ratio, which is nearer to 1.
        clip_high: above 1.
    """

    ratio: Literal["token", "sequence", "normalized", "guard"] = "guard"
    step_weights: Literal["uniform", "noise", "inverse_step"] = "inverse_step"
    clip_low: float = 0.1
    clip_high: float = 0.1


class GRPOGuard(FlowGRPO):
    """Flow-GRPO with the guarded ratio; the options are all that differs."""

    config_class = GRPOGuardConfig
    config: GRPOGuardConfig

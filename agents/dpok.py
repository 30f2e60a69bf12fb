r"""DPOK: online fine-tuning of denoisers with a divergence to the pretrained model and a learned baseline.

.. math:: L = \frac{1}{NT} \sum_{i,t} \left[ -A_{it}\, \mathrm{clip}(\rho_{it}, 1 - \epsilon, 1 + \epsilon)
    + \beta \frac{\|\mu_\theta - \mu_{pre}\|^2}{2 S_t^2} \right] + \frac{c_v}{2NT} \sum_{i,t} (V(x_t, c, t) - r_i)^2,
    \qquad A_{it} = r_i - V(x_t, c, t)

The clip is unconditional, unlike PPO's: outside its range the gradient is 0 on whichever side the ratio is. The
divergence of a step is exact; their sum bounds that of the final samples from above. Paper: Fan et al. 2023,
arXiv 2305.16381.

Deviations from its code: whole episodes of the current policy are read, not transitions shuffled out of a buffer of
1,000 that several policies filled; the divergence is that of the decisions, where the code's squared difference of
predicted noises leaves out a weight that depends on the step; policy and critic share one optimiser and its learning
rate; the critic takes as many steps as the policy, and knows a prompt by its hash instead of by a text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ppo import PPO, PPOConfig


@dataclass(frozen=True, kw_only=True)
class DPOKConfig(PPOConfig):
    """Options of DPOK: those of PPO, with other defaults.

    Attributes:
        clip_form: clamp, without PPO's maximum.
        whiten_advantages: off: an advantage is the reward less the value.
        value_coef: weight of the critic's loss.
        value_clip: 0: the critic's loss is the plain squared error.
        kl_coef: weight of the exact divergence.
        kl_estimator: the closed form.
        kl_in: the loss.
        minibatch_size: episodes an optimiser step; 0 takes all of them.
        learning_rate: the default suits the embedded diffusion model.
    """

    clip_form: Literal["pessimistic", "clamp"] = "clamp"
    whiten_advantages: bool = False
    value_coef: float = 0.5
    value_clip: float = 0.0
    kl_coef: float = 0.01
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    kl_in: Literal["reward", "loss"] = "loss"
    minibatch_size: int = 32
    learning_rate: float = 1e-4


class DPOK(PPO):
    """DPOK with a denoising policy that has a critic."""

    config_class = DPOKConfig
    config: DPOKConfig

r"""Group Relative Policy Optimization: several episodes from one state, each judged against the others, no critic.

For a group :math:`g` of :math:`G` episodes from the same initial state with returns :math:`r_i`,

.. math:: A_i = \frac{r_i - \mathrm{mean}_g(r)}{\mathrm{std}_g(r) + \epsilon}

is the advantage of *every* decision of episode :math:`i`, and the loss is the clipped surrogate plus
:math:`\beta\, k_3(\pi\|\pi_{ref})` with its gradient. Paper: DeepSeekMath, arXiv 2402.03300.

Variants are values of the options:

- RLOO (arXiv 2402.14740): ``advantage="leave_one_out", ratio="sequence"``
- Dr. GRPO (arXiv 2503.20783): ``advantage="centered", aggregation="constant"``
- GSPO (arXiv 2507.18071): ``ratio="normalized", clip_low=3e-4, clip_high=4e-4``
- DAPO's loss (arXiv 2503.14476): ``clip_high=0.28, aggregation="token_mean", kl_coef=0``
- Flow-GRPO (arXiv 2505.05470), with a denoising policy: ``advantage="batch_zscore", advantage_clip=5,
  kl_estimator="exact"``, and clip ranges of 1e-4 where the policy's ``log_prob`` is ``mean``
- GRPO-Guard (arXiv 2510.22319): that with ``ratio="guard", step_weights="inverse_step"``

Deviations: the standard deviation is the sample one (n - 1), as in TRL and verl; a group whose rewards agree up to
rounding, or of which fewer than two episodes are valid, gives exactly zero advantage instead of amplified noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..trajectories import Trajectories
from .advantages import group_advantages
from .on_policy import OnPolicyAgent, OnPolicyConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(OnPolicyConfig):
    """Options of GRPO; those of every on-policy agent included.

    Attributes:
        group_size: episodes that share an initial state; 4 to 64.
        advantage: zscore (GRPO), batch_zscore (divides by the standard deviation of all episodes: Flow-GRPO), centered
            (no division), leave_one_out (RLOO) or none (the raw return).
        epsilon: added to the group's standard deviation; keep it well above float noise.
        aggregation: GRPO's own is the mean of sequence means.
        learning_rate: the default suits the embedded language model.
        kl_coef: weight of k3 to the reference, in the loss; the default suits rewards of about unit size.
    """

    group_size: int = 8
    advantage: Literal["zscore", "batch_zscore", "centered", "leave_one_out", "none"] = "zscore"
    epsilon: float = 1e-4
    aggregation: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"] = (
        "sequence_mean_token_mean"
    )
    learning_rate: float = 5e-5
    kl_coef: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("epsilon",), lambda v: v >= 0, "at least 0")
        if self.group_size < 2 and self.advantage != "none":
            raise ValueError(
                f"group_size={self.group_size}: advantage={self.advantage!r} compares a group, give 2 or more"
            )


class GRPO(OnPolicyAgent):
    """Group Relative Policy Optimization on any environment that repeats an initial state when given the same seed."""

    config_class = GRPOConfig
    config: GRPOConfig

    def targets(self, episodes: Trajectories, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        c = self.config
        advantage = group_advantages(episodes.returns, episodes.group, episodes.valid, c.advantage, c.epsilon)
        return self.clipped(advantage)[:, None] * episodes.mask, None

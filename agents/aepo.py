r"""Adaptive Exploration Policy Optimization: several answers a rollout, and a reward for finding the right one early.

For GUI grounding (InfiGUI-G1, Liu et al. 2025, arXiv 2508.05731). A rollout is a list of :math:`N` points of which the
first hit has rank :math:`k`. It is paid its efficiency :math:`\eta = U / C`, utility over the geometric mean of the
costs of proposing and of checking,

.. math:: \eta = \frac{1}{\sqrt{N k}} \text{ on a hit}, \qquad \eta = -\frac{1}{N} \text{ on a miss}

plus 1 for a well-formed answer; a malformed answer, or one with three points on a line, is paid -1 instead. One right
point is best, and where the first guess would be wrong, a further one is worth trying: a target that the policy would
never have clicked becomes reachable. Rewards are compared by leave-one-out (RLOO),

.. math:: A_i = r_i - \frac{1}{G - 1} \sum_{j \ne i} r_j

and enter the clipped surrogate with a higher upper clip and no divergence. The reward is ``adaptive_exploration`` of
:mod:`aligngym.rewards`, which this agent trains on by default, with answers of up to four points; evaluation keeps the
environment's own reward, whether the *first* point is right. All that AEPO is, is in these options.

Deviations: the learning rate is that of a small network trained as a whole. Answers are one decision, so that the
ratio is that of the whole answer, where the paper's is a token's. An empty answer is malformed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .grpo import GRPO, GRPOConfig


@dataclass(frozen=True, kw_only=True)
class AEPOConfig(GRPOConfig):
    """Options of AEPO: those of GRPO, with other defaults.

    Attributes:
        advantage: a rollout's reward less the mean of the others of its group.
        clip_high: above 1; the paper's 0.4.
        kl_coef: no divergence is subtracted.
        reference: none is kept, which saves its forward pass.
        learning_rate: the default suits the embedded clicker.
    """

    advantage: Literal["zscore", "batch_zscore", "centered", "leave_one_out", "none"] = "leave_one_out"
    clip_high: float = 0.4
    kl_coef: float = 0.0
    reference: Literal["initial", "moving", "soup", "none"] = "none"
    learning_rate: float = 1e-4


class AEPO(GRPO):
    """GRPO's loop with leave-one-out advantages, on lists of points and the adaptive exploration reward."""

    config_class = AEPOConfig
    config: AEPOConfig
    env_options: ClassVar[Mapping[str, Any]] = {"max_points": 4}
    training_reward: ClassVar[str | None] = "adaptive_exploration"

"""Options that PPO and GRPO, and every agent built on their loop, have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .agent import AgentConfig


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(AgentConfig):
    """What PPO and GRPO have in common. Every option is independent of the others.

    Attributes:
        episodes_per_iteration: episodes collected between two rounds of updates; a multiple of group_size. 32 to 1024.
        group_size: episodes that begin from the same state (share a prompt). GRPO needs 2 or more.
        epochs: passes over the collected episodes. 1 to 4 (PPO); 1 is the least stale.
        minibatch_size: episodes an optimiser step; 0 takes all of them.
        micro_batch_size: episodes a backward pass, for memory alone: the gradient does not depend on it. 0 takes all.
        learning_rate: Adam's. 1e-6 for billions of parameters, 1e-4 to 1e-3 for a few million or control.
        warmup_iterations: iterations over which the learning rate rises linearly from 0.
        adam_betas: Adam's decay rates.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradients are scaled down to this norm; 0 is off.
        ratio: importance ratio of each token, of the whole sequence (RLOO), its length-normalised form (GSPO), or of
            each Gaussian decision, normalised over denoising steps (GRPO-Guard).
        clip_low: the ratio is clipped below at 1 - clip_low. 0.1 to 0.3 for token ratios, about 3e-4 for normalized.
        clip_high: the ratio is clipped above at 1 + clip_high; larger than clip_low is DAPO's clip-higher.
        dual_clip: for negative advantages the loss is also capped at -A * dual_clip (usual 3); 0 is off.
        clip_form: pessimistic is PPO's, which clips only where that makes the loss larger; clamp (DPOK) always does.
        step_weights: weight of each decision in the policy loss: uniform, noise (its share of the sampler's noise:
            TempFlow-GRPO) or inverse_step (one over the step's length: GRPO-Guard).
        decisions_per_update: decisions of each episode that an iteration's updates read, drawn anew each time; 0 reads
            all. Fewer save time in proportion, for policies that score decisions apart (denoisers, control).
        advantage_clip: advantages are limited to plus and minus this; 5 in DDPO and Flow-GRPO, 0 is off.
        aggregation: how token losses become one number: mean over all tokens, mean of sequence means, mean of sequence
            sums, or sum over a constant (Dr. GRPO).
        kl_coef: weight of the divergence from the reference policy; 0 leaves it out.
        kl_estimator: k1 = log ratio (in the reward only), k2 = half its square, k3 = Schulman's non-negative one,
            exact = the closed form, for Gaussian decisions (in the loss only).
        kl_in: subtract the penalty from each decision's reward, or add it to the loss with its gradient.
        reference: policy that the divergence is measured from: the initial one, a moving copy, an average (soup) of
            the initial one and the checkpoints in reference_soup (SALSA), or none, which saves its forward pass.
        reference_every: iterations between two updates of a moving reference.
        reference_mix: share of the current policy in each update of a moving reference; 1 copies it.
        reference_soup: checkpoint folders averaged with the initial policy for reference="soup".
        entropy_coef: weight of an entropy bonus in the loss; 0 to 0.01.
        old_log_probs: denominators of the ratio: as recorded while sampling, or recomputed before the first update
            (costs a forward pass; makes the first ratio exactly 1 where sampling ran in lower precision).
    """

    episodes_per_iteration: int = 64
    group_size: int = 1
    epochs: int = 1
    minibatch_size: int = 0
    micro_batch_size: int = 0
    learning_rate: float = 3e-4
    warmup_iterations: int = 0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ratio: Literal["token", "sequence", "normalized", "guard"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    clip_form: Literal["pessimistic", "clamp"] = "pessimistic"
    step_weights: Literal["uniform", "noise", "inverse_step"] = "uniform"
    decisions_per_update: int = 0
    advantage_clip: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"] = "token_mean"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k3"
    kl_in: Literal["reward", "loss"] = "loss"
    reference: Literal["initial", "moving", "soup", "none"] = "initial"
    reference_every: int = 10
    reference_mix: float = 1.0
    reference_soup: tuple[str, ...] = ()
    entropy_coef: float = 0.0
    old_log_probs: Literal["recorded", "recomputed"] = "recorded"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("episodes_per_iteration", "group_size", "epochs", "learning_rate", "reference_every")
        self.require(positive, lambda v: v > 0, "above 0")
        sizes = ("minibatch_size", "micro_batch_size", "warmup_iterations", "weight_decay", "max_grad_norm")
        numbers = ("clip_low", "clip_high", "kl_coef", "decisions_per_update", "advantage_clip")
        self.require((*sizes, *numbers), lambda v: v >= 0, "at least 0")
        self.require(("reference_mix",), lambda v: 0 <= v <= 1, "in [0, 1]")
        self.require(("dual_clip",), lambda v: v == 0 or v > 1, "0 (off) or above 1")
        if self.episodes_per_iteration % self.group_size:
            raise ValueError(
                f"episodes_per_iteration={self.episodes_per_iteration} must be a multiple of "
                f"group_size={self.group_size}"
            )
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator='k1' with kl_in='loss' has zero expected gradient: "
                "use k2 or k3 in the loss, or kl_in='reward'"
            )
        if self.kl_coef and self.kl_in == "reward" and self.kl_estimator == "exact":
            raise ValueError("kl_estimator='exact' belongs in the loss: kl_in='loss', or another estimator")
        if self.dual_clip and self.clip_form == "clamp":
            raise ValueError(f"dual_clip={self.dual_clip} is an addition to clip_form='pessimistic': leave one out")
        if self.kl_coef and self.reference == "none":
            raise ValueError(f"kl_coef={self.kl_coef} needs a reference policy, but reference='none'")
        if (self.reference == "soup") != bool(self.reference_soup):
            raise ValueError(
                f"reference={self.reference!r} with reference_soup={self.reference_soup}: "
                "soup needs folders, and only soup takes them"
            )

"""The loop that PPO and GRPO share: collect whole episodes, compute advantages once, take clipped gradient steps."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent, AgentConfig
from .checkpoint import flatten_optimizer, restore_optimizer
from .divergences import kl_estimate, kl_reward_penalty
from .objectives import aggregation_weights, clipped_surrogate, log_ratios
from .policies.policy import Evaluation
from .references import Reference
from .rollouts import collect

Metrics = dict[str, float]


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
        ratio: importance ratio of each token, of the whole sequence (RLOO) or its length-normalised form (GSPO).
        clip_low: the ratio is clipped below at 1 - clip_low. 0.1 to 0.3 for token ratios, about 3e-4 for normalized.
        clip_high: the ratio is clipped above at 1 + clip_high; larger than clip_low is DAPO's clip-higher.
        dual_clip: for negative advantages the loss is also capped at -A * dual_clip (usual 3); 0 is off.
        aggregation: how token losses become one number: mean over all tokens, mean of sequence means, mean of sequence
            sums, or sum over a constant (Dr. GRPO).
        kl_coef: weight of the divergence from the reference policy; 0 leaves it out.
        kl_estimator: k1 = log ratio (in the reward only), k2 = half its square, k3 = Schulman's non-negative one.
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
    ratio: Literal["token", "sequence", "normalized"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"] = "token_mean"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
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
        self.require((*sizes, "clip_low", "clip_high", "kl_coef"), lambda v: v >= 0, "at least 0")
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
        if self.kl_coef and self.reference == "none":
            raise ValueError(f"kl_coef={self.kl_coef} needs a reference policy, but reference='none'")
        if (self.reference == "soup") != bool(self.reference_soup):
            raise ValueError(
                f"reference={self.reference!r} with reference_soup={self.reference_soup}: "
                "soup needs folders, and only soup takes them"
            )


@dataclass(frozen=True)
class Batch:
    """Valid episodes with all that their loss needs, rows aligned with ``episodes``; ``[B, T]`` unless said."""

    episodes: Trajectories
    advantages: Tensor
    old_log_probs: Tensor
    reference_log_probs: Tensor | None = None
    old_values: Tensor | None = None  # [B, T + 1]
    returns: Tensor | None = None

    def rows(self, index: Tensor) -> Batch:
        """Rows ``index``, cut to the longest episode among them."""
        episodes = self.episodes.select(index)
        last = episodes.mask.long() * torch.arange(1, episodes.mask.shape[1] + 1, device=episodes.mask.device)
        steps = max(1, int(last.max()))

        def cut(x: Tensor | None, extra: int = 0) -> Tensor | None:
            return None if x is None else x[index.to(x.device)][:, : steps + extra]

        names = ("actions", "log_probs", "mask", "rewards")
        return Batch(
            dataclasses.replace(episodes, **{n: getattr(episodes, n)[:, :steps] for n in names}),
            cut(self.advantages),  # type: ignore[arg-type]
            cut(self.old_log_probs),  # type: ignore[arg-type]
            cut(self.reference_log_probs),
            cut(self.old_values, 1),
            cut(self.returns),
        )


class OnPolicyAgent(Agent):
    """Collect, score, update. A subclass gives :meth:`targets` and :meth:`loss`; nothing here knows what acts."""

    config: OnPolicyConfig

    def _setup(self) -> None:
        """Build optimiser and reference; called once the policy exists."""
        c = self.config
        if self.needs_values and not self.policy.has_critic:
            raise ValueError(f"{type(self).__name__} needs a critic: give the policy one (LMPolicy: value_head=True)")
        settings = getattr(self.policy, "settings", None)
        if settings is not None and not settings.trainable:
            raise ValueError(
                f"cannot train with {settings}: top_k and top_p move with the parameters, so that drawn "
                "tokens fall out of the support and ratios are undefined. Train with top_k=0, top_p=1"
            )
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=c.learning_rate, betas=c.adam_betas, weight_decay=c.weight_decay
        )
        self.reference = Reference(self.policy, c.reference, c.reference_soup)

    @abstractmethod
    def targets(self, episodes: Trajectories, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Advantages ``[B, T]`` and, with a critic, its regression targets ``[B, T]``.

        Args:
            episodes: valid episodes; with ``kl_in="reward"`` their rewards are less the divergence of each decision.
            values: ``[B, T + 1]`` of the critic before any update; None without one.
        """

    @abstractmethod
    def loss(self, batch: Batch, now: Evaluation, weights: Tensor, share: Tensor) -> tuple[Tensor, Metrics]:
        """Loss and metrics of some rows of a minibatch; both are sums over micro-batches.

        Args:
            batch: the rows.
            now: their scores under the current parameters.
            weights: ``[B, T]`` weight of each decision in the minibatch's aggregate loss.
            share: ``[B, T]`` 1 / (decisions in the minibatch), 0 at padding: turns a sum into a mean over decisions.
        """

    def collect(self) -> Trajectories:
        """Play ``episodes_per_iteration`` episodes; a group is a reset seed repeated ``group_size`` times."""
        c = self.config
        groups = c.episodes_per_iteration // c.group_size
        seeds = np.repeat(self.rng.integers(2**31, size=groups), c.group_size)
        group = torch.arange(groups).repeat_interleave(c.group_size)
        episodes = collect(self.env, self.policy, seeds=seeds.tolist(), noise=self.row_noise(len(seeds)), group=group)
        return episodes.to(self.policy.device)

    def iterate(self) -> tuple[Trajectories, Metrics]:
        """One round: collect, compute targets, update. Returns the episodes and what happened."""
        episodes = self.collect()
        valid = episodes.select(episodes.valid)
        metrics: Metrics = {}
        if len(valid):
            batch, metrics = self.prepare(valid)
            metrics |= self.update(batch)
        self.reference.step(self.policy, self.iteration + 1, self.config.reference_every, self.config.reference_mix)
        return episodes, metrics

    @torch.no_grad()
    def prepare(self, episodes: Trajectories) -> tuple[Batch, Metrics]:
        """Everything about the episodes that does not change during the updates."""
        c, mask = self.config, episodes.mask
        old, values = episodes.log_probs, None
        if self.needs_values or c.old_log_probs == "recomputed":
            now = self.score(self.policy, episodes)
            values = now.values
            old = now.log_probs if c.old_log_probs == "recomputed" else old
        reference, metrics = None, {}
        if self.reference.kind != "none":
            with self.reference.policy(self.policy) as policy:
                reference = self.score(policy, episodes).log_probs
            per_token = kl_estimate(old, reference, "k3")[mask].mean()
            metrics = {
                "train/kl": kl_estimate(old, reference, "k1").mul(mask).sum(1).mean().item(),
                "train/kl_per_decision": per_token.item(),
            }
        shaped = episodes
        if c.kl_coef and c.kl_in == "reward" and reference is not None:
            rewards = kl_reward_penalty(episodes.rewards, old, reference, mask, c.kl_coef, c.kl_estimator)
            shaped = dataclasses.replace(episodes, rewards=rewards)
        advantages, returns = self.targets(shaped, values)
        return Batch(episodes, advantages, old, reference, values, returns), metrics

    def score(self, policy: Any, episodes: Trajectories) -> Evaluation:
        """``policy.evaluate_actions`` in pieces of ``micro_batch_size`` episodes, rejoined."""
        size = self.config.micro_batch_size or len(episodes)
        parts = [policy.evaluate_actions(episodes.select(torch.arange(i, min(i + size, len(episodes)))))
                 for i in range(0, len(episodes), size)]  # fmt: skip
        values = None if parts[0].values is None else torch.cat([p.values for p in parts])
        return Evaluation(torch.cat([p.log_probs for p in parts]), torch.cat([p.entropy for p in parts]), values)

    def update(self, batch: Batch) -> Metrics:
        """``epochs`` passes of clipped gradient steps over the episodes, in a fresh random order each."""
        c = self.config
        warm = min(1.0, (self.iteration + 1) / c.warmup_iterations) if c.warmup_iterations else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * warm
        totals: dict[str, list[float]] = {}
        for _ in range(c.epochs):
            for rows in self._minibatches(len(batch.episodes)):
                for name, value in self._step(batch, rows).items():
                    totals.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in totals.items()} | {
            "train/learning_rate": c.learning_rate * warm
        }

    def _minibatches(self, count: int) -> Iterator[Tensor]:
        size = self.config.minibatch_size or count
        order = torch.from_numpy(self.rng.permutation(count))
        for i in range(0, count, size):
            yield order[i : i + size]

    def _step(self, batch: Batch, rows: Tensor) -> Metrics:
        """One optimiser step on the minibatch ``rows``; micro-batches of similar length save padding."""
        c = self.config
        mask = batch.episodes.mask[rows.to(batch.episodes.mask.device)]
        weights = aggregation_weights(mask, c.aggregation, self.horizon or int(batch.episodes.lengths.max()))
        share = mask / mask.sum()
        order = mask.sum(1).argsort(stable=True) if c.micro_batch_size else torch.arange(len(rows))
        metrics: Metrics = {}
        self.optimizer.zero_grad(set_to_none=True)
        for some in order.split(c.micro_batch_size or len(rows)):
            part = batch.rows(rows[some.cpu()])
            now = self.policy.evaluate_actions(part.episodes, entropy=bool(c.entropy_coef))
            steps = part.advantages.shape[1]
            loss, sums = self.loss(part, now, weights[some][:, :steps], share[some][:, :steps])
            loss.backward()
            for name, value in sums.items():
                metrics[name] = metrics.get(name, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, c.max_grad_norm or float("inf"))
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {norm.item()} at iteration {self.iteration}: nothing was updated. "
                "Lower learning_rate, or look for extreme rewards in the last rollout"
            )
        self.optimizer.step()
        self.policy.version += 1
        return metrics | {"train/grad_norm": norm.item()}

    @torch.no_grad()
    def divergences(self, episodes: Trajectories) -> Tensor | None:
        if self.reference.kind == "none":
            return None
        with self.reference.policy(self.policy) as policy:
            reference = self.score(policy, episodes).log_probs
        return kl_estimate(episodes.log_probs, reference, "k1").mul(episodes.mask).sum(1)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"optimizer": flatten_optimizer(self.optimizer)[0], "reference": self.reference.tensors()}

    def _state(self) -> dict[str, Any]:
        return {"optimizer": flatten_optimizer(self.optimizer)[1]}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self.reference.load(tensors["reference"])

    def policy_loss(self, batch: Batch, now: Evaluation, weights: Tensor, share: Tensor) -> tuple[Tensor, Metrics]:
        r"""Clipped surrogate, plus the divergence in the loss, minus the entropy bonus.

        .. math::
            L = \sum_{i,t} w_{it} [ -\min(\rho A, clip(\rho, 1-\epsilon_l, 1+\epsilon_h) A)
                + \beta\, k(\pi\|\pi_{ref}) - c_H H ]
        """
        c, mask = self.config, batch.episodes.mask
        log_ratio = log_ratios(now.log_probs, batch.old_log_probs, mask, c.ratio)
        losses, clipped = clipped_surrogate(log_ratio, batch.advantages, c.clip_low, c.clip_high, c.dual_clip or None)
        metrics = {
            "train/policy_loss": (losses * weights).sum().item(),
            "train/clip_fraction": (clipped * share).sum().item(),
            "train/approx_kl": (kl_estimate(batch.old_log_probs, now.log_probs.detach(), "k3") * share).sum().item(),
        }
        if c.kl_coef and c.kl_in == "loss" and batch.reference_log_probs is not None:
            divergence = kl_estimate(now.log_probs, batch.reference_log_probs, c.kl_estimator)
            losses = losses + c.kl_coef * divergence
        if c.entropy_coef:
            losses = losses - c.entropy_coef * now.entropy
            metrics["train/entropy_bonus"] = (now.entropy * share).sum().item()
        return (losses * weights).sum(), metrics

"""The loop that PPO and GRPO share: collect whole episodes, compute advantages once, take clipped gradient steps."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent
from .checkpoint import flatten_optimizer, restore_optimizer
from .divergences import gaussian_kl, kl_estimate, kl_reward_penalty
from .objectives import aggregation_weights, clipped_surrogate, guard_log_ratio, log_ratios, step_weights
from .on_policy_config import OnPolicyConfig
from .policies.policy import Evaluation, join_gaussians
from .references import Reference
from .rollouts import collect

__all__ = ["Batch", "Metrics", "OnPolicyAgent", "OnPolicyConfig"]

Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """Valid episodes with all that their loss needs, rows aligned with ``episodes``; ``[B, T]`` unless said.

    The episodes' mask is that of the decisions which updates read. Means, ``[B, T, ...]``, are of Gaussian decisions.
    """

    episodes: Trajectories
    advantages: Tensor
    old_log_probs: Tensor
    reference_log_probs: Tensor | None = None
    old_means: Tensor | None = None
    reference_means: Tensor | None = None
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
        extras = {k: v[:, :steps] for k, v in episodes.extras.items()}
        return Batch(
            dataclasses.replace(episodes, extras=extras, **{n: getattr(episodes, n)[:, :steps] for n in names}),
            cut(self.advantages),  # type: ignore[arg-type]
            cut(self.old_log_probs),  # type: ignore[arg-type]
            cut(self.reference_log_probs),
            cut(self.old_means),
            cut(self.reference_means),
            cut(self.old_values, 1),
            cut(self.returns),
        )


class OnPolicyAgent(Agent):
    """Collect, score, update. A subclass gives :meth:`targets`, some :meth:`loss`; nothing here knows what acts."""

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
        if not self.policy.gaussian and (
            c.ratio == "guard" or c.kl_estimator == "exact" or c.step_weights != "uniform"
        ):
            raise ValueError(
                "ratio='guard', kl_estimator='exact' and step_weights other than 'uniform' are for Gaussian decisions "
                f"(DenoiserPolicy), but the policy is a {type(self.policy).__name__}"
            )
        if c.decisions_per_update and not self.policy.scores_apart:
            raise ValueError(
                f"decisions_per_update={c.decisions_per_update}, but {type(self.policy).__name__} scores an episode in "
                "one pass, so that leaving decisions out saves nothing: leave it 0"
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

    def loss(self, batch: Batch, now: Evaluation, weights: Tensor, share: Tensor) -> tuple[Tensor, Metrics]:
        """Loss and metrics of some rows of a minibatch, here :meth:`policy_loss`; both are sums over micro-batches.

        Args:
            batch: the rows.
            now: their scores under the current parameters.
            weights: ``[B, T]`` weight of each decision in the minibatch's aggregate loss.
            share: ``[B, T]`` 1 / (decisions in the minibatch), 0 at padding: turns a sum into a mean over decisions.
        """
        return self.policy_loss(batch, now, weights, share)

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
        kept, metrics = self.keep(episodes)
        if len(kept):
            batch, prepared = self.prepare(kept)
            metrics |= prepared | self.update(batch)
        self.reference.step(self.policy, self.iteration + 1, self.config.reference_every, self.config.reference_mix)
        return episodes, metrics

    def keep(self, episodes: Trajectories) -> tuple[Trajectories, Metrics]:
        """The episodes that the updates read, here all valid ones, and what to log of the choice."""
        return episodes.select(episodes.valid), {}

    def decisions(self, episodes: Trajectories) -> Tensor:
        """``[B, T]`` bool, the decisions that this iteration's updates read."""
        drawn, count = self.policy.drawn(episodes), self.config.decisions_per_update
        if not count:
            return drawn
        order = torch.from_numpy(self.rng.random(drawn.shape)).to(drawn.device).masked_fill(~drawn, 2.0)
        return drawn & (order.argsort(1).argsort(1) < count)

    @torch.no_grad()
    def prepare(self, episodes: Trajectories) -> tuple[Batch, Metrics]:
        """Everything about the episodes that does not change during the updates."""
        c = self.config
        read = dataclasses.replace(episodes, mask=self.decisions(episodes))
        old, means, values = episodes.log_probs, episodes.extras.get("mean"), None
        if c.old_log_probs == "recomputed":
            now = self.score(self.policy, read)
            old, values = now.log_probs, now.values
            means = now.gaussian.mean if now.gaussian else None
        elif self.needs_values:
            values = torch.cat(
                [v for part in self._parts(episodes) if (v := self.policy.state_values(part)) is not None]
            )
        reference, reference_means, metrics, shaped = None, None, dict[str, float](), episodes
        if self.reference.kind != "none":
            penalised = bool(c.kl_coef) and c.kl_in == "reward"
            scored = episodes if penalised else read
            with self.reference.policy(self.policy) as policy:
                now = self.score(policy, scored)
            reference = now.log_probs
            metrics = self._divergence(scored, old, means, now)
            reference_means = now.gaussian.mean if now.gaussian and c.kl_estimator == "exact" else None
            if penalised:
                rewards = kl_reward_penalty(episodes.rewards, old, reference, episodes.mask, c.kl_coef, c.kl_estimator)  # type: ignore[arg-type]
                shaped = dataclasses.replace(episodes, rewards=rewards)
        advantages, returns = self.targets(shaped, values)
        return Batch(read, advantages, old, reference, means, reference_means, values, returns), metrics

    def _divergence(self, read: Trajectories, old: Tensor, means: Tensor | None, reference: Evaluation) -> Metrics:
        """Divergence from the reference an episode and a decision; of some decisions only, the former is scaled up."""
        mask, g = read.mask, reference.gaussian
        if not mask.any():
            return {}
        per_decision = kl_estimate(old, reference.log_probs, "k3")[mask].mean().item()
        whole = kl_estimate(old, reference.log_probs, "k1").mul(mask).sum(1).mean().item()
        if g is not None and means is not None:
            per_decision = gaussian_kl(means, g.mean, g.std)[mask].mean().item()
            whole = per_decision * self.policy.drawn(read).sum().item() / len(read)
        return {"train/kl": whole, "train/kl_per_decision": per_decision}

    def clipped(self, advantages: Tensor) -> Tensor:
        """Advantages within plus and minus ``advantage_clip``."""
        limit = self.config.advantage_clip
        return advantages.clamp(-limit, limit) if limit else advantages

    def _parts(self, episodes: Trajectories) -> list[Trajectories]:
        """Pieces of ``micro_batch_size`` episodes."""
        size = self.config.micro_batch_size or len(episodes)
        return [episodes.select(torch.arange(i, min(i + size, len(episodes)))) for i in range(0, len(episodes), size)]

    def score(self, policy: Any, episodes: Trajectories) -> Evaluation:
        """``policy.evaluate_actions`` in pieces of ``micro_batch_size`` episodes, rejoined."""
        parts = [policy.evaluate_actions(part) for part in self._parts(episodes)]
        values = None if parts[0].values is None else torch.cat([p.values for p in parts])
        log_probs, entropy = torch.cat([p.log_probs for p in parts]), torch.cat([p.entropy for p in parts])
        return Evaluation(log_probs, entropy, values, join_gaussians([p.gaussian for p in parts]))

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
        if not self.policy.drawn(episodes).any():
            return None  # deterministic episodes have no density
        with self.reference.policy(self.policy) as policy:
            reference = self.score(policy, episodes)
        if reference.gaussian is not None:
            return gaussian_kl(episodes.extras["mean"], reference.gaussian.mean, reference.gaussian.std).sum(1)
        return kl_estimate(episodes.log_probs, reference.log_probs, "k1").mul(episodes.mask).sum(1)

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
        c, mask, gaussian = self.config, batch.episodes.mask, now.gaussian
        if c.ratio == "guard":
            assert gaussian is not None and batch.old_means is not None
            plain = log_ratios(now.log_probs, batch.old_log_probs, mask, "token")
            log_ratio = guard_log_ratio(plain, gaussian.mean, batch.old_means, gaussian.std, gaussian.divisor)
        else:
            log_ratio = log_ratios(now.log_probs, batch.old_log_probs, mask, c.ratio)
        losses, clipped = clipped_surrogate(
            log_ratio, batch.advantages, c.clip_low, c.clip_high, c.dual_clip or None, c.clip_form
        )
        if gaussian is not None:
            losses = losses * step_weights(c.step_weights, gaussian.noise_weight, gaussian.step_size, mask)
        moved = kl_estimate(batch.old_log_probs, now.log_probs.detach(), "k3").where(mask, 0.0)
        if gaussian is not None and batch.old_means is not None:
            moved = gaussian_kl(gaussian.mean.detach(), batch.old_means, gaussian.std)  # estimates overflow in images
        metrics = {
            "train/policy_loss": (losses * weights).sum().item(),
            "train/clip_fraction": (clipped * share).sum().item(),
            "train/approx_kl": (moved * share).sum().item(),
        }
        if c.kl_coef and c.kl_in == "loss" and c.kl_estimator == "exact":
            assert gaussian is not None and batch.reference_means is not None
            kl = gaussian_kl(gaussian.mean, batch.reference_means, gaussian.std, gaussian.divisor)
            losses = losses + c.kl_coef * kl
        elif c.kl_coef and c.kl_in == "loss" and batch.reference_log_probs is not None:
            divergence = kl_estimate(now.log_probs, batch.reference_log_probs, c.kl_estimator)  # type: ignore[arg-type]
            losses = losses + c.kl_coef * divergence
        if c.entropy_coef:
            losses = losses - c.entropy_coef * now.entropy
            metrics["train/entropy_bonus"] = (now.entropy * share).sum().item()
        return (losses * weights).sum(), metrics

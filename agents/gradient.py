"""What agents that learn by gradient steps share: groups of episodes, minibatches, one guarded step, their state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent, AgentConfig
from .checkpoint import flatten_optimizer, restore_optimizer
from .divergences import gaussian_kl, kl_estimate
from .policies.policy import Policy
from .references import Reference
from .rollouts import collect

Metrics = dict[str, float]
RowLosses = Callable[[Tensor, list[int]], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class GradientConfig(AgentConfig):
    """What agents that take gradient steps have in common, whatever their loss.

    Attributes:
        episodes_per_iteration: episodes of an iteration; a multiple of group_size. 16 to 1024.
        group_size: episodes that begin from the same state (share a prompt).
        epochs: passes over the data of an iteration. 1 to 4.
        minibatch_size: rows (episodes, or pairs of them) an optimiser step; 0 takes all of them.
        micro_batch_size: rows a backward pass, for memory alone: the gradient does not depend on it. 0 takes all.
        learning_rate: Adam's. 1e-6 for billions of parameters, 1e-4 to 1e-3 for a few million or control.
        warmup_iterations: iterations over which the learning rate rises linearly from 0.
        adam_betas: Adam's decay rates.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradients are scaled down to this norm; 0 is off.
        reference: policy that the divergence is measured from: the initial one, a moving copy, an average (soup) of
            the initial one and the checkpoints in reference_soup, or none.
        reference_every: iterations between two updates of a moving reference.
        reference_mix: share of the current policy in each update of a moving reference; 1 copies it.
        reference_soup: checkpoint folders averaged with the initial policy for reference="soup".
    """

    episodes_per_iteration: int = 64
    group_size: int = 1
    epochs: int = 1
    minibatch_size: int = 0
    micro_batch_size: int = 0
    learning_rate: float = 1e-4
    warmup_iterations: int = 0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    reference: Literal["initial", "moving", "soup", "none"] = "initial"
    reference_every: int = 10
    reference_mix: float = 1.0
    reference_soup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("episodes_per_iteration", "group_size", "epochs", "learning_rate", "reference_every")
        self.require(positive, lambda v: v > 0, "above 0")
        sizes = ("minibatch_size", "micro_batch_size", "warmup_iterations", "weight_decay", "max_grad_norm")
        self.require(sizes, lambda v: v >= 0, "at least 0")
        self.require(("reference_mix",), lambda v: 0 <= v <= 1, "in [0, 1]")
        if self.episodes_per_iteration % self.group_size:
            raise ValueError(
                f"episodes_per_iteration={self.episodes_per_iteration} must be a multiple of "
                f"group_size={self.group_size}"
            )
        if (self.reference == "soup") != bool(self.reference_soup):
            raise ValueError(
                f"reference={self.reference!r} with reference_soup={self.reference_soup}: "
                "soup needs folders, and only soup takes them"
            )


class GradientAgent(Agent):
    """An optimiser, a reference policy, and the updates; a subclass gives :meth:`iterate`."""

    config: GradientConfig

    def _setup(self) -> None:
        """Build optimiser and reference; called once the policy exists."""
        c = self.config
        settings = getattr(self.policy, "settings", None)
        if not getattr(settings, "trainable", True):
            raise ValueError(
                f"cannot train with {settings}: top_k and top_p move with the parameters, so that drawn "
                "tokens fall out of the support and have no likelihood. Train with top_k=0, top_p=1"
            )
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=c.learning_rate, betas=c.adam_betas, weight_decay=c.weight_decay
        )
        self.reference = Reference(self.policy, c.reference, c.reference_soup)

    def collect(self, policy: Policy | None = None) -> Trajectories:
        """Play ``episodes_per_iteration`` episodes; a group is a reset seed repeated ``group_size`` times.

        Args:
            policy: who plays; None is the trained one.
        """
        c = self.config
        groups = c.episodes_per_iteration // c.group_size
        seeds = np.repeat(self.rng.integers(2**31, size=groups), c.group_size).tolist()
        group = torch.arange(groups).repeat_interleave(c.group_size)
        noise = self.row_noise(len(seeds))
        return collect(self.env, policy or self.policy, seeds=seeds, noise=noise, group=group).to(self.policy.device)

    def update(self, sizes: Tensor, losses: RowLosses) -> Metrics:
        """``epochs`` passes of clipped gradient steps over rows of data, in a fresh random order each.

        Args:
            sizes: ``[N]`` the length of each row: rows of a micro-batch are alike in it, which saves padding.
            losses: called with rows ``[n]`` and a noise seed for each; gives the loss of each row, ``[n]``, whose mean
                over the minibatch is minimised, and metrics, ``[n]`` each, that are averaged in the same way.

        Returns:
            the metrics, averaged over the steps, ``train/grad_norm`` and ``train/learning_rate``.
        """
        c = self.config
        warm = min(1.0, (self.iteration + 1) / c.warmup_iterations) if c.warmup_iterations else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * warm
        totals: dict[str, list[float]] = {}
        for _ in range(c.epochs):
            for rows in self._minibatches(len(sizes)):
                for name, value in self.take_step(self._micro_batches(rows, sizes, losses)).items():
                    totals.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in totals.items()} | {
            "train/learning_rate": c.learning_rate * warm
        }

    def _minibatches(self, count: int) -> Iterator[Tensor]:
        order = torch.from_numpy(self.rng.permutation(count))
        yield from order.split(self.config.minibatch_size or count)

    def _micro_batches(self, rows: Tensor, sizes: Tensor, losses: RowLosses) -> Iterator[tuple[Tensor, Metrics]]:
        # All seeds at once: what a row's surrogate draws must not depend on how the minibatch is split.
        seeds = self.rng.integers(2**62, size=len(rows)).tolist()
        order = torch.arange(len(rows))
        if self.config.micro_batch_size:
            order = sizes[rows].argsort(stable=True)
        for some in order.split(self.config.micro_batch_size or len(rows)):
            values, metrics = losses(rows[some], [seeds[i] for i in some.tolist()])
            yield values.sum() / len(rows), {k: v.detach().sum().item() / len(rows) for k, v in metrics.items()}

    def take_step(self, parts: Iterable[tuple[Tensor, Metrics]]) -> Metrics:
        """One optimiser step on the sum of the losses of ``parts``; their metrics are summed too.

        Args:
            parts: losses and metrics of the micro-batches; each is computed once the one before it was differentiated.

        Raises:
            FloatingPointError: if the gradient is not finite; nothing is updated then.
        """
        metrics: Metrics = {}
        self.optimizer.zero_grad(set_to_none=True)
        for loss, sums in parts:
            loss.backward()
            for name, value in sums.items():
                metrics[name] = metrics.get(name, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm or float("inf"))
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {norm.item()} at iteration {self.iteration}: nothing was updated. "
                "Lower learning_rate, or look for extreme values in the last episodes"
            )
        self.optimizer.step()
        self.policy.version += 1
        return metrics | {"train/grad_norm": norm.item()}

    @torch.no_grad()
    def divergences(self, episodes: Trajectories) -> Tensor | None:
        if self.reference.kind == "none" or not self.policy.drawn(episodes).any():
            return None  # deterministic episodes have no density
        parts = []
        with self.reference.policy(self.policy) as policy:
            for rows in torch.arange(len(episodes)).split(self.config.micro_batch_size or len(episodes)):
                part = episodes.select(rows)
                now = policy.evaluate_actions(part)
                if now.gaussian is None:
                    parts.append(kl_estimate(part.log_probs, now.log_probs, "k1").mul(part.mask).sum(1))
                else:
                    parts.append(gaussian_kl(part.extras["mean"], now.gaussian.mean, now.gaussian.std).sum(1))
        return torch.cat(parts)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"optimizer": flatten_optimizer(self.optimizer)[0], "reference": self.reference.tensors()}

    def _state(self) -> dict[str, Any]:
        return {"optimizer": flatten_optimizer(self.optimizer)[1]}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self.reference.load(tensors["reference"])


def without_padding(episodes: Trajectories) -> Trajectories:
    """The same episodes, the time axis cut to the longest of them."""
    columns = episodes.mask.any(0).nonzero()
    steps = int(columns.max()) + 1 if len(columns) else 1
    names = ("actions", "log_probs", "mask", "rewards")
    return dataclasses.replace(
        episodes,
        **{n: getattr(episodes, n)[:, :steps] for n in names},
        extras={k: v[:, :steps] for k, v in episodes.extras.items()},
    )

"""What evaluation episodes say: returns with their standard error, divergence, lengths, reward terms, samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..trajectories import Trajectories


@dataclass(frozen=True)
class EvaluationResult:
    """Returns of evaluation episodes and what they looked like.

    Attributes:
        returns: ``[n]`` float64, NaN where the reward failed.
        lengths: ``[n]`` decisions.
        terminated: ``[n]`` bool, ended by itself.
        divergences: ``[n]`` estimate of KL(policy || reference) of each episode in nats (k1); empty without reference.
        terms: mean of each reward term over the episodes it applies to.
        info: lists of length ``n``: ``prompt``, ``completion``, ...
    """

    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    divergences: np.ndarray
    terms: dict[str, float] = field(default_factory=dict)
    info: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean return of the valid episodes."""
        return float(np.nanmean(self.returns)) if self.valid else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`."""
        return float(np.nanstd(self.returns, ddof=1) / math.sqrt(self.valid)) if self.valid > 1 else math.nan

    @property
    def valid(self) -> int:
        """Episodes whose reward did not fail."""
        return int(np.isfinite(self.returns).sum())

    @property
    def kl(self) -> float:
        """Mean of :attr:`divergences`; NaN without reference."""
        return float(np.mean(self.divergences)) if len(self.divergences) else math.nan

    def metrics(self) -> dict[str, float]:
        """Numbers for a log."""
        return {
            "eval/reward_mean": self.mean, "eval/reward_se": self.standard_error, "eval/kl": self.kl,
            "eval/length_mean": float(self.lengths.mean()), "eval/terminated_fraction": float(self.terminated.mean()),
            "eval/invalid": float(len(self.returns) - self.valid),
            **{f"eval/term/{k}": v for k, v in self.terms.items()},
        }  # fmt: skip


def rollout_metrics(episodes: Trajectories) -> dict[str, float]:
    """What a batch of episodes looked like, before any update; of the invalid ones only their share."""
    valid = episodes.select(episodes.valid)
    metrics = {"rollout/invalid_fraction": 1 - len(valid) / len(episodes)}
    if not len(valid):
        return metrics
    returns = valid.returns
    metrics |= {
        "rollout/length_mean": valid.lengths.float().mean().item(),
        "rollout/terminated_fraction": valid.terminated.float().mean().item(),
        "rollout/entropy": -(valid.log_probs * valid.mask).sum().item() / max(1, int(valid.mask.sum())),
        "rollout/reward_mean": returns.mean().item(),
        "rollout/reward_std": returns.std().item() if len(valid) > 1 else 0.0,
    }
    groups = [returns[valid.group == g] for g in valid.group.unique()]
    if equal := [float(bool((g == g[0]).all())) for g in groups if len(g) > 1]:
        metrics["rollout/equal_groups_fraction"] = float(np.mean(equal))
    terms = {k: v[torch.isfinite(v)] for k, v in valid.terms.items()}
    return metrics | {f"rollout/term/{k}": v.mean().item() for k, v in terms.items() if len(v)}


def summarize(episodes: Trajectories, divergences: Tensor | None) -> EvaluationResult:
    """The result of one batch of episodes."""
    return EvaluationResult(
        returns=episodes.returns.double().cpu().numpy(),
        lengths=episodes.lengths.cpu().numpy(),
        terminated=episodes.terminated.cpu().numpy(),
        divergences=np.empty(0) if divergences is None else divergences.double().cpu().numpy(),
        info={**episodes.info, **{f"term/{k}": v.tolist() for k, v in episodes.terms.items()}},
    )


def join(parts: list[EvaluationResult], count: int) -> EvaluationResult:
    """The first ``count`` episodes of several batches; the terms' means are taken over them."""
    keys = {k: None for p in parts for k in p.info}  # episodes played step by step have what their ends reported
    info = {k: [x for p in parts for x in p.info.get(k, [None] * len(p.returns))][:count] for k in keys}
    terms = {k.removeprefix("term/"): np.asarray(info.pop(k), float) for k in list(info) if k.startswith("term/")}
    arrays = {
        n: np.concatenate([getattr(p, n) for p in parts])[:count]
        for n in ("returns", "lengths", "terminated", "divergences")
    }
    return EvaluationResult(
        **arrays, terms={k: float(np.nanmean(v)) for k, v in terms.items() if np.isfinite(v).any()}, info=info
    )


def reward_text(reward: float | None) -> str:
    """A reward for people."""
    return "invalid" if reward is None or not math.isfinite(reward) else f"{reward:.2f}"

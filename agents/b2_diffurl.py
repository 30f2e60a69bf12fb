r"""B2-DiffuRL: for sparse rewards, train the last denoising steps first and compare branches of one prefix.

- *Backward progressive training*: iteration :math:`i` updates the last :math:`n_i` of the :math:`T` steps only,

  .. math:: n_i = \min\left(T,\ n_0 + \left\lfloor (T - n_0 + 1)\, i / \mathrm{stages} \right\rfloor\right)

  with :math:`n_0 = 0.7\, T`: 14 to 20 of 20 steps over 100 iterations.
- *Branch-based sampling*: the episodes of a group share everything up to the interval, bit for bit, and draw their own
  noise in it.
- *Selection*: with :math:`z_i = (r_i - m_p) / (s_p + \epsilon)` over the returns of the episode's prompt in this and up
  to 8 earlier iterations (not over its group), a group's best episode is kept if :math:`z \ge z_0` and its worst if
  :math:`z < -z_0`. The loss is the clipped surrogate of the kept ones with :math:`A = \mathrm{clip}(z, -5, 5)`; if none
  is kept, nothing is updated.

Paper: Hu et al. 2025, arXiv 2503.11240.

Deviations: steps are weighted by their noise (``step_weights="uniform"`` is the paper's loss), and an update reads some
steps of each episode at once, where its code goes through all of them one by one; a prompt's returns are known once
there are two, before which :math:`z = 0`; positive and negative episodes weigh alike, as in the paper's runs. For its
clip range see ``ddpo.py``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..trajectories import Trajectories
from .advantages import prompt_scores
from .ddpo import prompts_of
from .on_policy import Metrics, OnPolicyAgent, OnPolicyConfig
from .policies.denoiser_policy import DenoiserPolicy
from .policies.policy import RowNoise


@dataclass(frozen=True, kw_only=True)
class B2DiffuRLConfig(OnPolicyConfig):
    """Options of B2-DiffuRL; those of every on-policy agent included.

    Attributes:
        group_size: branches of a prefix; 1 keeps an episode if it is good or bad enough by itself.
        episodes_per_iteration: episodes collected between two rounds of updates; a multiple of group_size.
        first_interval: share of the denoising steps that the first iteration trains, in (0, 1]; 1 trains all, always.
        stages: iterations until all steps are trained.
        history: earlier iterations whose returns count in a prompt's mean and deviation.
        threshold: z_0, how many deviations from its prompt's mean an episode must lie to be kept.
        epsilon: added to the standard deviation.
        advantage_clip: advantages are limited to plus and minus this.
        step_weights: each step's share of the sampler's noise; see DDPO.
        decisions_per_update: denoising steps of each episode, within the interval, that an update reads.
        epochs: passes over the kept episodes.
        learning_rate: the default suits the embedded diffusion model.
        reference: none, as there is no divergence in the loss; another is paid for, and reported.
    """

    group_size: int = 5
    episodes_per_iteration: int = 80
    first_interval: float = 0.7
    stages: int = 100
    history: int = 8
    threshold: float = 0.5
    epsilon: float = 1e-8
    advantage_clip: float = 5.0
    step_weights: Literal["uniform", "noise", "inverse_step"] = "noise"
    decisions_per_update: int = 5
    epochs: int = 2
    learning_rate: float = 3e-5
    reference: Literal["initial", "moving", "soup", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("first_interval",), lambda v: 0 < v <= 1, "in (0, 1]")
        self.require(("stages",), lambda v: v >= 1, "at least 1")
        self.require(("history", "threshold", "epsilon"), lambda v: v >= 0, "at least 0")
        if self.kl_coef and self.kl_in == "reward":
            raise ValueError("kl_in='reward' would change returns after the choice of episodes: take kl_in='loss'")


class B2DiffuRL(OnPolicyAgent):
    """B2-DiffuRL with a denoising policy; see the module."""

    config_class = B2DiffuRLConfig
    config: B2DiffuRLConfig
    policy: DenoiserPolicy

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.policy, DenoiserPolicy):
            raise ValueError(f"B2DiffuRL branches denoising, but the policy is a {type(self.policy).__name__}")
        self.rounds: list[dict[str, list[float]]] = []  # returns by prompt: earlier iterations, then this one

    @property
    def prefix(self) -> int:
        """Denoising steps before the interval that this iteration trains."""
        c, steps = self.config, self.policy.num_steps
        return steps - interval_length(self.iteration, steps, c.first_interval, c.stages)

    def row_noise(self, rows: int) -> RowNoise:
        """One stream a row, and one a group until the interval begins."""
        size = self.config.group_size
        shared = self.rng.integers(2**62, size=rows // size).repeat(size)
        draws = int((self.policy.table.std[: self.prefix] > 0).sum())
        return RowNoise(super().row_noise(rows).seeds, shared.tolist(), draws)

    def keep(self, episodes: Trajectories) -> tuple[Trajectories, Metrics]:
        """Of each group the best episode and the worst, if far enough from what their prompt usually pays."""
        valid, _ = super().keep(episodes)
        now: dict[str, list[float]] = {}
        for prompt, value in zip(prompts_of(valid), valid.returns.tolist(), strict=True):
            now.setdefault(prompt, []).append(value)
        self.rounds = [*self.rounds, now][-1 - self.config.history :]
        chosen = extremes(self._scores(valid), valid.group, self.config.threshold)
        kept = chosen.sum().item() / len(episodes)
        return valid.select(chosen), {
            "train/kept_fraction": kept,
            "train/interval": float(self.policy.num_steps - self.prefix),
        }

    def decisions(self, episodes: Trajectories) -> Tensor:
        inside = torch.arange(episodes.mask.shape[1], device=episodes.mask.device) >= self.prefix
        return super().decisions(dataclasses.replace(episodes, mask=episodes.mask & inside))

    def targets(self, episodes: Trajectories, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.clipped(self._scores(episodes))[:, None] * episodes.mask, None

    def _scores(self, episodes: Trajectories) -> Tensor:
        """The z of each episode, over its prompt's returns in :attr:`rounds`."""
        prompts = prompts_of(episodes)
        seen = {p: [value for returns in self.rounds for value in returns.get(p, [])] for p in set(prompts)}
        return prompt_scores(episodes.returns, prompts, seen, min_count=0, ddof=1, eps=self.config.epsilon)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "rounds": self.rounds}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        self.rounds = [{prompt: list(v) for prompt, v in returns.items()} for returns in state["rounds"]]


def interval_length(iteration: int, num_steps: int, first: float, stages: int) -> int:
    """Denoising steps, the last ones, that an iteration trains; see the module.

    Args:
        iteration: from 0.
        num_steps: T of an episode.
        first: share of T that iteration 0 trains, at least one step.
        stages: iterations until it is all of them.
    """
    start = max(1, round(first * num_steps))
    return min(num_steps, start + math.floor((num_steps - start + 1) * iteration / stages))


def extremes(scores: Tensor, group: Tensor, threshold: float) -> Tensor:
    """``[B]`` bool: of each group the highest score if at least ``threshold``, the lowest if below minus that.

    Args:
        scores: ``[B]`` float.
        group: ``[B]`` integer.
        threshold: at least 0.
    """
    chosen = torch.zeros_like(group, dtype=torch.bool)
    for number in group.unique():
        rows = (group == number).nonzero()[:, 0]
        best, worst = rows[scores[rows].argmax()], rows[scores[rows].argmin()]
        chosen[best] |= scores[best] >= threshold
        chosen[worst] |= scores[worst] < -threshold
    return chosen

"""What every policy is: it acts, it may generate whole episodes, and it scores episodes again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from ...trajectories import Trajectories


@dataclass(frozen=True)
class Decision:
    """One decision for a batch: ``actions [B, ...]``, ``log_probs [B]``, and ``extras`` to record, ``[B, ...]``."""

    actions: Tensor
    log_probs: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Episodes scored by the current parameters, differentiable.

    Attributes:
        log_probs: ``[B, T]`` log-probability of each recorded action; 0 at padding.
        entropy: ``[B, T]`` entropy in nats of the distribution it was drawn from; 0 at padding.
        values: ``[B, T + 1]`` value of the state after ``t`` actions, column ``t``; None without critic.
        gaussian: of the Gaussians that the actions were drawn from; None for other distributions.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    gaussian: Gaussian | None = None


@dataclass(frozen=True)
class Gaussian:
    """Isotropic Gaussian decisions of an episode, ``N(mean, std^2 I)``.

    Attributes:
        mean: ``[B, T, ...]``, differentiable; 0 where nothing was scored.
        std: ``[B, T]``, which no parameter moves; 0 where the decision is deterministic.
        noise_weight: ``[B, T]`` ``std`` over its mean over all steps of the sampler.
        step_size: ``[B, T]`` length ``h`` of the step in time, for stochastic differential equations; else None.
        divisor: what sums over dimensions are divided by, so that all terms of a loss agree: 1 for the true
            log-probability, the number of dimensions where log-probabilities are means over them.
    """

    mean: Tensor
    std: Tensor
    noise_weight: Tensor
    step_size: Tensor | None
    divisor: float


def join_gaussians(parts: Sequence[Gaussian | None]) -> Gaussian | None:
    """Rows of several evaluations below one another; None where they have none."""
    found = [p for p in parts if p is not None]
    if not found:
        return None
    sizes = [p.step_size for p in found if p.step_size is not None]
    return Gaussian(
        torch.cat([p.mean for p in found]),
        torch.cat([p.std for p in found]),
        torch.cat([p.noise_weight for p in found]),
        torch.cat(sizes) if sizes else None,
        found[0].divisor,
    )


class RowNoise:
    """Random numbers of a batch of episodes, one independent stream a row.

    A row's numbers depend on its seed alone, not on the batch around it, the order of rows or the size of the pieces
    in which they are drawn: the step face, the rollout face and any number of workers see the same ones.

    Args:
        seeds: one non-negative integer a row.
        prefix_seeds: of the streams that the first ``prefix_draws`` draws come from, one a row: rows that share a
            prefix seed act alike until then, and branch. None: no prefix.
        prefix_draws: calls of :meth:`uniform` or :meth:`normal` that belong to the prefix.
    """

    def __init__(self, seeds: Sequence[int], prefix_seeds: Sequence[int] | None = None, prefix_draws: int = 0) -> None:
        if prefix_seeds is not None and len(prefix_seeds) != len(seeds):
            raise ValueError(f"prefix_seeds has {len(prefix_seeds)} entries, expected {len(seeds)}, one a row")
        self.seeds = [int(s) for s in seeds]
        self._rows = [np.random.default_rng(s) for s in self.seeds]
        self._prefix = [np.random.default_rng(int(s)) for s in prefix_seeds or []]
        self._prefix_draws = prefix_draws if prefix_seeds is not None else 0

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, rows: slice) -> RowNoise:
        """The streams of some rows, where they stand: drawing from the part advances the whole."""
        part = RowNoise([])
        part.seeds, part._rows = self.seeds[rows], self._rows[rows]
        part._prefix, part._prefix_draws = self._prefix[rows], self._prefix_draws
        return part

    def _streams(self) -> list[np.random.Generator]:
        """Those that the next draw comes from."""
        if self._prefix_draws <= 0:
            return self._rows
        self._prefix_draws -= 1
        return self._prefix

    def uniform(self, steps: int) -> Tensor:
        """``[B, steps]`` float64 in [0, 1)."""
        return torch.from_numpy(np.stack([row.random(steps) for row in self._streams()]))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """``[B, *shape]`` float32 standard normal."""
        drawn = [row.standard_normal(tuple(shape), dtype=np.float32) for row in self._streams()]
        return torch.from_numpy(np.stack(drawn))


class Policy(nn.Module):
    """Base of all policies.

    Attributes:
        first_observation_only: True where states are rebuilt from an episode's first observation and its actions, so
            that only that observation is recorded (text, images); False where every observation is (control).
        scores_apart: True where ``evaluate_actions`` scores each decision of the mask by itself, so that an update may
            read some of an episode's decisions and save the work of the others; False for one pass over a sequence.
        gaussian: whether ``evaluate_actions`` returns the Gaussians of the decisions and ``extras`` hold their means.
        deterministic_evaluation: whether evaluation plays the policy's deterministic counterpart unless told otherwise.
        version: optimiser updates seen; the agent sets it and trajectories carry it.
    """

    first_observation_only: bool = False
    scores_apart: bool = False
    gaussian: bool = False
    deterministic_evaluation: bool = False
    version: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampler's settings, JSON-able; trajectories carry them and refuse to be scored under others."""
        return {}

    @property
    def has_critic(self) -> bool:
        """Whether ``evaluate_actions`` returns values."""
        return False

    @property
    def has_adapters(self) -> bool:
        """Whether :meth:`adapters_off` gives back the initial policy, so that a reference needs no copy."""
        return False

    def adapters_off(self) -> AbstractContextManager[Policy]:
        """The initial policy, by switching off the adapters that are trained."""
        raise TypeError(f"{type(self).__name__} has no adapters to switch off")

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which ``from_spec`` rebuilds the policy around saved tensors."""
        return {}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the parameters."""
        return cls(**spec)

    def check_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Raise a ValueError where the policy was made for other spaces than those of one environment."""

    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        """Choose one action for every row of a batched observation."""
        raise TypeError(f"{type(self).__name__} does not implement act")

    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Play whole episodes of an environment whose transition appends the action; rewards are left 0.

        Args:
            observation: the environment's first batched observation.
            noise: one stream a row; consumed exactly as ``act`` would, step by step.
            max_steps: decisions after which an episode is truncated.
            terminal_actions: actions that end an episode.
            deterministic: take the likeliest action.
        """
        raise TypeError(f"{type(self).__name__} plays step by step only: it does not implement generate")

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score recorded episodes under the current parameters, in one differentiable pass.

        Args:
            trajectories: episodes this policy's sampler drew.
            entropy: whether the entropies are needed; else they may be 0.
        """
        raise TypeError(f"{type(self).__name__} does not implement evaluate_actions")

    def log_likelihood(self, trajectories: Trajectories, noise: RowNoise | None = None) -> Tensor:
        r"""How likely what an episode made is, given where it began; differentiable.

        Here the exact value of the decisions, :math:`\sum_t \log \pi(a_t | s_t)`, summed and not averaged over them:
        preference losses and weighted regression are defined by it. A policy whose exact value would cost a pass a
        decision (a denoiser) overrides this with the surrogate of its method family, which may be an estimate from
        random numbers and equal a log-likelihood only up to a constant and a scale. So only differences between two
        policies, at equal noise, mean anything that does not depend on the policy's class.

        Args:
            trajectories: episodes, of which the actions (of a surrogate: those that make up the final output) count.
            noise: one stream a row for a surrogate that draws; rows with equal streams share what is drawn. None takes
                streams that are the same at every call. Not read here.

        Returns:
            ``[B]``, float.
        """
        return self.evaluate_actions(trajectories).log_probs.sum(1)

    def state_values(self, trajectories: Trajectories) -> Tensor | None:
        """``[B, T + 1]`` of the critic alone; None without one."""
        return self.evaluate_actions(trajectories).values

    def drawn(self, trajectories: Trajectories) -> Tensor:
        """``[B, T]`` bool, the decisions that were drawn at random: those that a policy gradient can read."""
        return trajectories.mask

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def one_turn(policy: Policy, observation: Any, decision: Decision, max_steps: int) -> Trajectories:
    """Episodes of the one ``decision`` that ends them, as :meth:`Policy.generate` returns them.

    Raises:
        ValueError: if ``max_steps`` is not 1.
    """
    if max_steps != 1:
        name = type(policy).__name__
        raise ValueError(f"max_steps is {max_steps}, but {name} generates episodes of one decision only")
    rows = torch.ones_like(decision.log_probs, dtype=torch.bool)
    return Trajectories(
        observations={k: torch.as_tensor(v, device=policy.device) for k, v in observation.items()},
        actions=decision.actions[:, None],
        log_probs=decision.log_probs[:, None],
        mask=rows[:, None],
        rewards=torch.zeros_like(decision.log_probs)[:, None],
        terminated=rows.clone(),
        truncated=~rows,
        valid=rows.clone(),
        group=torch.arange(len(rows), device=rows.device),
        sampling=policy.sampling,
        version=policy.version,
        extras={name: values[:, None] for name, values in decision.extras.items()},
    )


def sample_categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution of ``softmax(logits [B, K])`` at ``uniform [B]``; int64 ``[B]``.

    The first index whose cumulative probability exceeds ``uniform`` times the total. One pass of cumsum and a count is
    several times cheaper than ``multinomial``; the total replaces 1 so that rounding cannot leave the support.
    """
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    threshold = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)

r"""Fitting reward models to preferences, and giving episodes the rewards they learned.

Plain models minimise the cross-entropy :math:`CE(z, P) = -z \log P - (1 - z) \log (1 - P)` of soft labels
:math:`z`, with :math:`P = \sigma(\ell(x) - \ell(x'))`. Models with Gaussian rewards minimise PEARL's robust loss
(arXiv 2306.03615)

.. math::
    L = CE(z, P_\mu) + \lambda_1 \, E_{\epsilon \sim N(0, 1)}\, CE\big(z, \sigma(m + s \epsilon)\big)
        + \lambda_2 \, \mathrm{mean}_t \max(0, \eta - \tfrac12 \log 2 \pi e \sigma_t^2)

with the gap :math:`m` of the two logits and its variance :math:`s^2`, the sum of those of both. That is the expectation
over :math:`r_t = \mu_t + \sigma_t \epsilon_t` with independent noise at every step, since a logit is linear in the
rewards; one number a pair in place of one a step leaves the expected gradient and lowers its variance.

By Jensen the middle term is never below the first one, and equal to it only without noise: it pulls the standard
deviations of informative steps down. The last term is a floor under the entropy. Deviations: the paper's text says only
that the uncertainty is kept from vanishing; the floor, its level and the weights are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...trajectories import Trajectories
from ..agent import AgentConfig
from ..offline.transitions import return_spread
from ..randomness import seeded
from .dataset import PreferenceDataset
from .reward_model import RewardModel, RewardOutput

Schedule = Literal["cosine", "constant"]
UNIT_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a Gaussian with a standard deviation of 1
EPISODES = 16  # relabelled at once


@dataclass(frozen=True, kw_only=True)
class RewardTrainingConfig(AgentConfig):
    """Options of :func:`fit_reward_model`; the defaults are the Preference Transformer's but for the updates.

    Attributes:
        updates: at most, 1 or more; each member of an ensemble takes part in every one.
        batch_size: pairs of an update.
        learning_rate: of AdamW, at its peak.
        min_learning_rate: that a cosine schedule starts and ends with.
        schedule: cosine, after a linear warm-up; or constant.
        warmup: share of the updates, in [0, 1).
        weight_decay: of AdamW.
        stop_accuracy: stop after an epoch in which this share of the pairs was told right, as PEBBLE does at 0.97; None
            never does.
        standardize: whether the inputs are standardised with the steps of the preferences' segments.
        lambda_1: weight of the sampled term, for models with Gaussian rewards; as are all that follow.
        lambda_2: weight of the entropy floor.
        eta: the floor, in nats a step; the default is the entropy at a standard deviation of 1.
        mc_samples: of the sampled term, a pair and update.
    """

    updates: int = 1000
    batch_size: int = 256
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    weight_decay: float = 1e-4
    stop_accuracy: float | None = None
    standardize: bool = True
    lambda_1: float = 0.5
    lambda_2: float = 0.01
    eta: float = UNIT_ENTROPY
    mc_samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("updates", "batch_size", "mc_samples"), lambda v: v >= 1, "at least 1")
        not_negative = ("min_learning_rate", "weight_decay", "lambda_1", "lambda_2")
        self.require(not_negative, lambda v: v >= 0, "at least 0")
        self.require(("learning_rate",), lambda v: v > 0, "above 0")
        self.require(("warmup",), lambda v: 0 <= v < 1, "in [0, 1)")
        self.require(("stop_accuracy",), lambda v: v is None or 0.5 < v <= 1, "in (0.5, 1], or None")


def preference_loss(gap: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``[P]`` of the labels ``[P]`` and the preference ``sigmoid(gap [P])`` for the first segment."""
    return F.binary_cross_entropy_with_logits(gap, labels, reduction="none")


def sampled_preference_loss(gap: Tensor, variance: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """Monte Carlo estimate ``[P]`` of the expected :func:`preference_loss` of a gap ``N(gap, variance)``.

    Args:
        gap: ``[P]`` mean difference of the logits.
        variance: ``[P]`` its variance, 0 or above.
        labels: ``[P]`` in [0, 1].
        noise: ``[S, P]`` standard normal numbers.
    """
    # The square root has no derivative at 0.
    gaps = gap + variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt() * noise
    return preference_loss(gaps, labels.expand_as(gaps)).mean(0)


def entropy_floor(std: Tensor, mask: Tensor, eta: float) -> Tensor:
    """How far Gaussians ``[B, L]`` fall below an entropy of ``eta`` nats, a scalar mean over real steps."""
    entropy = UNIT_ENTROPY + std.log()
    return F.relu(eta - entropy)[mask].mean()


def reward_loss(
    output: RewardOutput, labels: Tensor, mask: Tensor, config: RewardTrainingConfig
) -> tuple[Tensor, dict[str, float]]:
    """The scalar loss of a batch of pairs, and its parts; see the top of this module.

    Args:
        output: rewards ``[2 P, L]`` of the first segments, and below them of the second.
        labels: ``[P]``, the probability that the first is preferred.
        mask: ``[2 P, L]`` real steps.
        config: weights of the terms.
    """
    first, second = output.logit.chunk(2)
    gap = first - second
    loss = preference_loss(gap, labels).mean()
    metrics = {"loss": float(loss.detach()), "accuracy": agreement(gap.detach(), labels)}
    if output.std is None:
        return loss, metrics
    noise = torch.randn(config.mc_samples, len(gap), device=gap.device)
    variance = torch.stack(output.variance.chunk(2)).sum(0)
    sampled = sampled_preference_loss(gap, variance, labels, noise).mean()
    floor = entropy_floor(output.std, mask, config.eta)
    parts = {"loss_sampled": sampled, "loss_entropy": floor, "std": output.std[mask].mean()}
    metrics |= {name: float(value.detach()) for name, value in parts.items()}
    return loss + config.lambda_1 * sampled + config.lambda_2 * floor, metrics


def agreement(gap: Tensor, labels: Tensor) -> float:
    """Share of pairs with ``gap`` on the side of its label; labels of 0.5 are left out, NaN if no other is there."""
    decided = labels != 0.5
    return float(((gap > 0) == (labels > 0.5))[decided].double().mean())


def preference_accuracy(model: RewardModel, preferences: PreferenceDataset) -> float:
    """Share of the pairs that the model tells right; pairs labelled 0.5 are left out."""
    scores = model.segment_scores(preferences.segments).to(preferences.pairs.device)
    return agreement(scores[preferences.pairs[:, 0]] - scores[preferences.pairs[:, 1]], preferences.labels)


def fit_reward_model(
    model: RewardModel,
    preferences: PreferenceDataset,
    config: RewardTrainingConfig | None = None,
    *,
    rng: np.random.Generator,
    further: Callable[[], Tensor] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` where it stands, on its device, with a new optimiser.

    The same model, pairs, config and ``rng`` give the same parameters; global random numbers are left as they were.

    Args:
        model: is trained.
        preferences: that it is fitted to.
        config: options; None takes the defaults.
        rng: of the orders of the pairs, and of dropout.
        further: gives a scalar of the model's parameters, which is added to the loss of every update.

    Returns:
        metrics of each epoch, means over its updates and the members: ``loss`` and ``accuracy`` of the pairs; for
        Gaussian rewards ``loss_sampled``, ``loss_entropy`` and the mean ``std`` too.

    Raises:
        ValueError: if there are no pairs.
        FloatingPointError: if the loss is not finite.
    """
    config, pairs = config or RewardTrainingConfig(), preferences.pairs
    if not len(pairs):
        raise ValueError("preferences have no pairs, expected at least one")
    if config.standardize:
        model.standardize(preferences.segments.select(pairs.unique()))
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    history: list[dict[str, float]] = []
    update = 0
    model.train()
    with seeded(int(rng.integers(2**62)), model.device):  # dropout, orders and samples
        while update < config.updates:
            found = []
            for batches in islice(_epoch(len(pairs), config.batch_size, model.size), config.updates - update):
                optimizer.param_groups[0]["lr"] = learning_rate(update, config)
                found += _update(model, optimizer, preferences, batches, config, further)
                update += 1
            history.append({name: _mean([m[name] for m in found]) for name in found[0]})
            if config.stop_accuracy is not None and history[-1]["accuracy"] >= config.stop_accuracy:
                break
    model.eval()
    return history


def learning_rate(update: int, config: RewardTrainingConfig) -> float:
    """Of update 0, 1, ...: from the least to the peak in a line, and back along half a cosine."""
    if config.schedule == "constant":
        return config.learning_rate
    low, span = config.min_learning_rate, config.learning_rate - config.min_learning_rate
    warm = config.warmup * config.updates
    if update < warm:
        return low + span * update / warm
    return low + span * 0.5 * (1 + math.cos(math.pi * (update - warm) / max(config.updates - warm, 1)))


def relabel(model: RewardModel, episodes: Trajectories) -> Trajectories:
    """The same episodes with the model's rewards: mean rewards only, however uncertain; 0 at padding.

    Raises:
        TypeError: if observations are no single tensor.
        ValueError: if they lack the states of some steps.
    """
    observations, steps = episodes.observations, episodes.mask.shape[1]
    if isinstance(observations, dict):
        raise TypeError(f"observations are a dict with {sorted(observations)}, but a reward model takes one tensor")
    if observations.ndim != 3 or observations.shape[1] < steps:
        raise ValueError(f"observations have shape {tuple(observations.shape)}, expected [B, {steps} + 1, D]")
    rewards = torch.zeros_like(episodes.rewards)
    for rows in torch.arange(len(episodes)).split(EPISODES):
        part = (observations[rows, :steps], episodes.actions[rows], episodes.mask[rows])
        rewards[rows] = model.step_rewards(*(values.to(model.device) for values in part)).to(rewards)
    return replace(episodes, rewards=rewards)


def normalize_returns(episodes: Trajectories, horizon: int) -> Trajectories:
    """Rewards divided by the range of the returns, times ``horizon``: returns then span that many, as IQL expects.

    Rewards learned from preferences have no scale of their own. As in the Preference Transformer's code, with the
    longest episode's steps (500 for Meta-World and robosuite) as the horizon; rewards are not shifted.

    Raises:
        ValueError: if fewer than two different returns are there, or the horizon is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon}: must be at least 1")
    spread = return_spread(episodes)
    if not spread > 0:
        raise ValueError(
            f"all {int(episodes.valid.sum())} valid episodes have the same return, there is no range to divide by"
        )
    return replace(episodes, rewards=episodes.rewards * (horizon / spread))


def _epoch(count: int, size: int, members: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of the numbers of ``count`` pairs, one for each member, which has an order of its own."""
    return zip(*(torch.randperm(count).split(size) for _ in range(members)), strict=True)


def _update(
    model: RewardModel,
    optimizer: torch.optim.Optimizer,
    preferences: PreferenceDataset,
    batches: tuple[Tensor, ...],
    config: RewardTrainingConfig,
    further: Callable[[], Tensor] | None,
) -> list[dict[str, float]]:
    """One step on the sum of the members' losses; the metrics of each."""
    losses, metrics = [], []
    for number, batch in enumerate(batches):
        pairs = preferences.pairs[batch]
        both = preferences.segments.select(pairs.T.flatten()).to(model.device)
        output = model.member(number, both.observations, both.actions, both.mask)
        loss, found = reward_loss(output, preferences.labels[batch].to(model.device), both.mask, config)
        losses.append(loss)
        metrics.append(found)
    if further is not None:
        losses.append(further())
    total = torch.stack(losses).sum()
    if not total.isfinite():
        raise FloatingPointError(f"the loss of a reward model is {total.item()}: lower learning_rate or check the data")
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return metrics


def _mean(values: list[float]) -> float:
    """The mean of what is not NaN: a batch of equal labels has no accuracy."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

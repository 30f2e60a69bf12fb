"""Alarms: a run that cannot learn, or is breaking its policy, says so while there is time, and says what to do."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..trajectories import Trajectories
from .callbacks import Callback

if TYPE_CHECKING:
    from .agent import Agent

KINDS = ("no_signal", "truncated", "kl", "entropy", "invalid")


class AlarmWarning(UserWarning):
    """Training goes wrong in a known way; the message says what to do."""


class Alarms(Callback):
    """Watch every iteration, warn once a kind, and count in the metric ``alarm/<kind>`` how often it has held.

    ========= ===========================================================================================
    no_signal nearly all groups have equal rewards, so that their advantages are 0
    truncated nearly all episodes spend their budget although the reward comes at the end only, and they did not do so
              at first, or it earns them nothing: all rewards are equal. The time limit of a task that is rewarded at
              every step is no alarm, nor is a budget that cuts every episode from the start but separates their rewards
    kl        the policy is further than ``kl_limit`` nats an episode from its reference
    entropy   discrete actions only: the entropy of a decision fell below ``entropy_fraction`` of what it was at first
    invalid   the reward of more than ``invalid_fraction`` of the episodes failed
    ========= ===========================================================================================

    Args:
        kl_limit: nats an episode. Exact rewards of long texts bear 50; a learned reward is often over-optimised at 10.
        entropy_fraction: in [0, 1].
        invalid_fraction: in [0, 1].
        nearly: fraction of groups, or of episodes, that counts as nearly all.
        patience: an alarm is raised once its condition held for so many iterations in a row.
    """

    def __init__(
        self,
        *,
        kl_limit: float = 50.0,
        entropy_fraction: float = 0.2,
        invalid_fraction: float = 0.2,
        nearly: float = 0.95,
        patience: int = 2,
    ) -> None:
        if kl_limit <= 0 or patience < 1:
            raise ValueError(
                f"kl_limit={kl_limit}, patience={patience}: expected a limit above 0, patience of at least 1"
            )
        for name, value in {
            "entropy_fraction": entropy_fraction,
            "invalid_fraction": invalid_fraction,
            "nearly": nearly,
        }.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected a fraction between 0 and 1")
        self.kl_limit, self.entropy_fraction, self.invalid_fraction = kl_limit, entropy_fraction, invalid_fraction
        self.nearly, self.patience = nearly, patience
        self.first: dict[str, float] = {}  # what the first iteration was like
        self.streak = dict.fromkeys(KINDS, 0)
        self.counts = dict.fromkeys(KINDS, 0)

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        """Check, warn and count; never stops training. Without whole episodes there is nothing to check."""
        if episodes is None:
            return True
        if not self.first:
            self.first = {"entropy": sampled_entropy(episodes), "truncated": episodes.truncated.float().mean().item()}
        found = self.check(episodes, metrics)
        for kind in KINDS:
            self.streak[kind] = self.streak[kind] + 1 if kind in found else 0
            if self.streak[kind] >= self.patience:
                self.counts[kind] += 1
                if self.counts[kind] == 1:
                    warnings.warn(f"after {agent.episodes} episodes: {found[kind]}", AlarmWarning, stacklevel=2)
            metrics[f"alarm/{kind}"] = self.counts[kind]
        return True

    def check(self, episodes: Trajectories, metrics: dict[str, float]) -> dict[str, str]:
        """What is wrong with this iteration: kind to message."""
        found = {}
        valid = episodes.select(episodes.valid)
        equal = equal_groups(valid)
        if equal is not None and equal >= self.nearly:
            found["no_signal"] = (
                f"{equal:.0%} of the groups have equal rewards, so nothing is learned from them: use a finer reward, "
                "prompts that are solved sometimes but not always, a larger group_size or a higher temperature"
            )
        truncated = episodes.truncated.float().mean().item()
        new = self.first["truncated"] < self.nearly
        if truncated >= self.nearly and final_reward_only(valid) and (new or equal == 1.0):
            was = f", up from {self.first['truncated']:.0%} at first" if new else " and all rewards are equal"
            found["truncated"] = (
                f"{truncated:.0%} of the episodes are cut by their budget{was}: raise max_new_tokens, or make "
                "the reward favour ending in time"
            )
        kl = metrics.get("train/kl", 0.0)
        if kl > self.kl_limit:
            found["kl"] = (
                f"the policy is {kl:.1f} nats an episode from its reference (limit {self.kl_limit:g}), where rewards "
                "are often gamed: raise kl_coef, lower learning_rate, or go back to an earlier checkpoint"
            )
        entropy = sampled_entropy(episodes)
        discrete = (
            not episodes.actions.is_floating_point()
        )  # the entropy of a density may be negative: no fraction of it
        if discrete and entropy < self.entropy_fraction * self.first["entropy"]:
            found["entropy"] = (
                f"the entropy of a decision fell to {entropy:.3f} nats from {self.first['entropy']:.3f}, so episodes "
                "hardly differ: raise entropy_coef or kl_coef, or lower learning_rate"
            )
        invalid = 1 - len(valid) / len(episodes)
        if invalid > self.invalid_fraction:
            reasons = Counter(str(r) for r in episodes.info.get("invalid", []) if r is not None)
            most = f", mostly because: {reasons.most_common(1)[0][0]}" if reasons else ""
            found["invalid"] = (
                f"the reward of {invalid:.0%} of the episodes failed, and they were left out{most}; repair the reward, "
                "or give it more time"
            )
        return found

    def get_state(self) -> dict[str, Any]:
        """First measurements, streaks and counts."""
        return {"first": self.first, "streak": self.streak, "counts": self.counts} if self.first else {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_state`."""
        if state:
            self.first, self.streak, self.counts = dict(state["first"]), dict(state["streak"]), dict(state["counts"])


def equal_groups(valid: Trajectories) -> float | None:
    """Fraction of groups whose returns agree up to rounding; without groups, whether those of all episodes do.

    None where there are fewer than two episodes to compare.
    """
    groups = [g for g in (valid.returns[valid.group == i] for i in valid.group.unique()) if len(g) > 1]
    if not groups:
        groups = [valid.returns] if len(valid) > 1 else []
    equal = [bool((g.amax() - g.amin()) <= 1e-6 * (1 + g.abs().amax())) for g in groups]
    return sum(equal) / len(equal) if equal else None


def final_reward_only(episodes: Trajectories) -> bool:
    """Whether every decision but an episode's last earns 0."""
    last = episodes.mask.cumsum(1) == episodes.lengths[:, None]
    return not bool(((episodes.rewards != 0) & episodes.mask & ~last).any())


def sampled_entropy(episodes: Trajectories) -> float:
    """Mean of minus the log-probability of the decisions taken: an unbiased estimate of their entropy in nats."""
    return -(episodes.log_probs * episodes.mask).sum().item() / max(1, int(episodes.mask.sum()))

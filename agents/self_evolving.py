r"""Self-evolution: a population acts, remembers what that paid, and shifts towards what paid more. arXiv 2510.04860.

An iteration is a round of evolution: every member plays an episode by a softmax over actions that prefers the aligned
one by a logit ``b`` at first. It remembers, of the last rounds, how often it took each action and what those episodes
paid, and, weighed by ``imitation``, the same of the peers that it sees. Then

.. math:: z_a \leftarrow z_a + \eta \, (\hat u_a - \bar u) - \kappa \, (z_a - z_a^0),

with the mean pay :math:`\hat u_a` of a step at which ``a`` was taken, their mean :math:`\bar u`, and the aligned start
:math:`z^0`. The gain is 0 for actions that it has not seen taken, and for all where it has seen but one; the pull is
always there. With exact pay and no :math:`\kappa` this is the replicator equation, with it the logit equilibrium for
:math:`\eta / \kappa` (:mod:`aligngym.envs.society.game`). Nothing else erodes the alignment: without pay that differs,
and without memory, the rate of violations stays.

Defences: ``reference_pull``, the way back to the aligned start; ``forget_violations``, a memory without other
actions than the aligned one; ``penalty``, taken off their pay before it is remembered; a stronger ``alignment``.

The paper's agents are language models that read their history; these are its smallest form, whose equilibria are known.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ..trajectories import Trajectories
from .agent import Agent, AgentConfig
from .policies.policy import Policy
from .policies.population import PopulationPolicy
from .rollouts import collect

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SelfEvolvingConfig(AgentConfig):
    """Options of self-evolution.

    Attributes:
        alignment: b, the logit by which the aligned action is preferred at first; 0 to 6.
        aligned_action: which action that is.
        learning_rate: eta, of a round; pay of 0.1 more at 10 shifts the logit by 1. 0 to 50.
        memory: rounds that are remembered, at least 1; 0 remembers nothing.
        imitation: weight of what a visible peer went through, beside one's own 1. 0 is self-interest alone.
        reference_pull: kappa, the share of the way back to the start that a round takes, in [0, 1).
        forget_violations: whether actions other than the aligned one are left out of memory.
        penalty: that they are charged, at least 0.
        members: of the population where the environment is made from its id.
    """

    alignment: float = 2.0
    aligned_action: int = 0
    learning_rate: float = 5.0
    memory: int = 5
    imitation: float = 0.0
    reference_pull: float = 0.0
    forget_violations: bool = False
    penalty: float = 0.0
    members: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("learning_rate", "imitation", "penalty"), lambda v: 0 <= v < np.inf, "at least 0")
        self.require(("alignment",), np.isfinite, "finite")
        self.require(("memory", "aligned_action"), lambda v: v >= 0, "at least 0")
        self.require(("reference_pull",), lambda v: 0 <= v < 1, "in [0, 1)")
        self.require(("members",), lambda v: v >= 1, "at least 1")

    @property
    def rows(self) -> int:
        return self.members


class SelfEvolving(Agent):
    """A population that evolves on its own pay; see the module. Rows of the environment are its members.

    On ``AlignmentTipping-v0`` each of them is alone. On ``StrategyDiffusion-v0`` they are the players of one or more
    games, and see the peers that the environment's ``visibility`` lets them see; where it says nothing, everybody.

    Raises:
        ValueError: for actions that are not numbered, or a policy that is no ``PopulationPolicy``.
    """

    config_class = SelfEvolvingConfig
    config: SelfEvolvingConfig
    policy: PopulationPolicy

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """A population as large as the environment has rows.

        Raises:
            ValueError: for a model's name, or actions that are not numbered.
        """
        actions = self.env.single_action_space
        if model is not None or not isinstance(actions, spaces.Discrete):
            raise ValueError(f"SelfEvolving has its own policies for numbered actions, not {model or actions}")
        return PopulationPolicy(
            self.env.num_envs, int(actions.n), self.config.alignment, self.config.aligned_action
        )  # fmt: skip

    def _setup(self) -> None:
        if not isinstance(self.policy, PopulationPolicy):
            raise ValueError(f"SelfEvolving evolves a PopulationPolicy, not a {type(self.policy).__name__}")
        self.start = self.policy.logits.detach().clone().cpu()
        self.remembered: deque[tuple[Array, Array]] = deque(maxlen=self.config.memory)

    def iterate(self) -> tuple[Trajectories, dict[str, float]]:
        """Act, remember, shift."""
        c, members = self.config, len(self.policy.logits)
        episodes = collect(
            self.env, self.policy, seeds=self.rng.integers(2**31, size=members).tolist(),
            noise=self.row_noise(members), group=torch.arange(members),
        )  # fmt: skip
        self.remembered.append(self._experience(episodes))
        counts, pay = self._memory()
        gap = advantage(counts, pay)
        logits = self.policy.logits.detach().cpu().numpy()
        with torch.no_grad():
            moved = logits + c.learning_rate * gap - c.reference_pull * (logits - self.start.numpy())
            self.policy.logits.copy_(torch.from_numpy(moved))
        self.policy.version += 1
        chances = self.policy.logits.detach().softmax(-1)[:, c.aligned_action]
        return episodes, {
            "train/violation": float(1 - chances.mean()), "train/gap": float(np.abs(gap).mean()),
        }  # fmt: skip

    def _experience(self, episodes: Trajectories) -> tuple[Array, Array]:
        """How often each member took each action, and what that paid in all, both ``[members, actions]``."""
        c, size = self.config, self.policy.logits.shape[1]
        actions, mask = episodes.actions.cpu().numpy(), (episodes.mask & episodes.valid[:, None]).cpu().numpy()
        rewards = np.nan_to_num(episodes.rewards.cpu().double().numpy())  # of valid episodes only, by the mask
        taken = (actions[..., None] == np.arange(size)) & mask[..., None]
        if c.forget_violations:
            taken = taken & (np.arange(size) == c.aligned_action)
        charged = rewards - c.penalty * (actions != c.aligned_action)
        return taken.sum(1).astype(np.float64), np.where(taken, charged[..., None], 0.0).sum(1)

    def _memory(self) -> tuple[Array, Array]:
        """Sums over the rounds that are remembered, with what visible peers went through."""
        shape = tuple(self.policy.logits.shape)
        own = [sum((kept[i] for kept in self.remembered), np.zeros(shape)) for i in range(2)]
        if not self.config.imitation:
            return own[0], own[1]
        weight = self.config.imitation
        return own[0] + weight * self._peers(own[0]), own[1] + weight * self._peers(own[1])

    def _peers(self, values: Array) -> Array:
        """The sum of ``values [members, actions]`` over the peers that each member sees."""
        core = getattr(self.env.unwrapped, "core", None)  # the games, where there are any
        core = core if hasattr(core, "visible") else None
        size = core.agents if core is not None else len(values)
        games = values.reshape(-1, size, values.shape[1])
        if core is None or core.visible is None:
            return np.asarray((games.sum(1, keepdims=True) - games).reshape(values.shape))
        return np.asarray((core.visible[:size, :size] @ games).reshape(values.shape))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        kept = {
            f"{name}-{i}": torch.from_numpy(r[j]) for i, r in enumerate(self.remembered) for j, name in enumerate("np")
        }
        return {"memory": {"start": self.start, **kept}}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        kept = tensors["memory"]
        self.start = kept["start"].clone()
        for i in range((len(kept) - 1) // 2):
            self.remembered.append((kept[f"n-{i}"].numpy().copy(), kept[f"p-{i}"].numpy().copy()))


def advantage(counts: Array, pay: Array) -> Array:
    """Mean pay of each action less the mean over those that were taken, ``[N, A]``; 0 where fewer than two were.

    Args:
        counts: ``[N, A]``, how often each was taken.
        pay: ``[N, A]``, what it paid in all.
    """
    taken = counts > 0
    mean = np.divide(pay, counts, out=np.zeros_like(pay), where=taken)
    kinds = taken.sum(1, keepdims=True)
    overall = mean.sum(1, keepdims=True) / np.maximum(kinds, 1)
    return np.where(taken & (kinds > 1), mean - overall, 0.0)

r"""REINFORCE (Williams 1992) as the papers on teachers have it: no baseline, the last episodes again and again.

.. math:: \Delta \theta = \alpha \, \overline{\hat G_t \, \nabla \log \pi_\theta(a_t | s_t)}, \qquad
    \hat G_t = \sum_{k \ge t} \gamma^{k - t} \hat r_k

Every ``learn_every`` episodes the policy learns from the last ``learn_from``, some of which older policies played;
their probabilities are not corrected for. A table takes one step on the mean over all their steps; a network takes a
step of Adam for each episode.
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

from ..tabular import Array, mixed
from .checkpoint import flatten_optimizer, restore_optimizer
from .descent import descend
from .policies.control import ControlPolicy, TabularPolicy
from .policies.policy import Policy
from .taught import Episode, TaughtAgent, TaughtConfig
from .teachers.teacher import returns_to_go


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(TaughtConfig):
    """Options of REINFORCE; the defaults are those of ExploRS in tables.

    Attributes:
        learning_rate: alpha: 0.1 (ExploRS) or 0.01 (ExpAdaRD) in tables; Adam's, about 1e-5 to 1e-3, in networks.
        learn_every: episodes between updates.
        learn_from: of the last episodes, how many an update reads.
        mix: probability of a uniformly random action in training (0, or 0.05 for networks).
    """

    learning_rate: float = 0.1
    learn_every: int = 2
    learn_from: int = 5
    mix: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(("learning_rate",), lambda v: 0 < v < np.inf, "above 0")
        self.require(("learn_every", "learn_from"), lambda v: v >= 1, "at least 1")
        self.require(("mix",), lambda v: 0 <= v <= 1, "in [0, 1]")


class Reinforce(TaughtAgent):
    """REINFORCE on a table or a network; see :class:`.taught.TaughtAgent` for its arguments."""

    config_class = ReinforceConfig
    config: ReinforceConfig

    def default_policy(self, model: str | None, generator: torch.Generator) -> Policy:
        """A table for numbered states, else a network with one layer of 256 ReLUs.

        Raises:
            ValueError: for a model's name.
        """
        if model is not None:
            raise ValueError(f"policy={model!r} names a model, but Reinforce makes its own policies")
        states, actions = self.env.single_observation_space, self.env.single_action_space
        if isinstance(states, spaces.Discrete) and isinstance(actions, spaces.Discrete):
            return TabularPolicy(int(states.n), int(actions.n), value=False)
        return ControlPolicy(states, actions, hidden=(256,), activation="relu", value=False, generator=generator)

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.policy, TabularPolicy | ControlPolicy):
            raise ValueError(f"Reinforce trains a TabularPolicy or a ControlPolicy, not a {type(self.policy).__name__}")
        self.optimizer: torch.optim.Optimizer | None = None
        if isinstance(self.policy, ControlPolicy):
            self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self.recent: deque[tuple[NDArray[Any], NDArray[np.int64], Array]] = deque(maxlen=self.config.learn_from)
        self._refresh()

    def _refresh(self) -> None:
        """The table's probabilities, which every step of training reads."""
        if isinstance(self.policy, TabularPolicy):
            self.table = mixed(softmax(self.policy.logits.detach().cpu().double().numpy()), self.config.mix)
            self.cumulative = self.table.cumsum(1)

    def choose(self, state: Any) -> int:
        """An action drawn from the policy."""
        if isinstance(self.policy, TabularPolicy):
            sums = self.cumulative[state]
        else:
            sums = self.probabilities(np.asarray(state)[None])[0].cumsum()
        return int(sums[:-1].searchsorted(self.rng.random() * sums[-1], side="right"))

    @torch.no_grad()
    def probabilities(self, states: NDArray[Any]) -> Array:
        """``[n, A]`` of the policy that acts in training."""
        if isinstance(self.policy, TabularPolicy):
            return np.asarray(self.table[states])
        return mixed(softmax(self._logits(states).cpu().double().numpy()), self.config.mix)

    def _logits(self, states: NDArray[Any]) -> Tensor:
        assert isinstance(self.policy, ControlPolicy)
        return self.policy.outputs(self.policy.features(states))

    def see_episode(self, episode: Episode) -> None:
        """Keep the episode, and learn from the last ones now and then."""
        self.recent.append((episode.states, episode.actions, returns_to_go(episode.given, self.gamma)))
        if self.played % self.config.learn_every:
            return
        if isinstance(self.policy, TabularPolicy):
            states, actions, returns = (np.concatenate(parts) for parts in zip(*self.recent, strict=True))
            current = softmax(self.policy.logits.detach().cpu().double().numpy())
            step = policy_gradient(states, actions, returns, current)
            with torch.no_grad():
                self.policy.logits.add_(torch.as_tensor(self.config.learning_rate * step).to(self.policy.logits))
            self._refresh()
            return
        assert self.optimizer is not None
        for states, actions, returns in self.recent:
            chosen = torch.as_tensor(actions, device=self.policy.device)[:, None]
            log_probs = self._logits(states).log_softmax(-1).gather(1, chosen)[:, 0]
            descend(self.optimizer, -(log_probs * torch.as_tensor(returns).to(log_probs)).mean())

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {} if self.optimizer is None else {"optimizer": flatten_optimizer(self.optimizer)[0]}

    def _state(self) -> dict[str, Any]:
        recent = [[array.tolist() for array in episode] for episode in self.recent]
        optimizer = {} if self.optimizer is None else {"optimizer": flatten_optimizer(self.optimizer)[1]}
        return {**super()._state(), "recent": recent, **optimizer}

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        super()._restore(tensors, state)
        dtype = self.env.single_observation_space.dtype
        self.recent.extend((np.array(s, dtype), np.array(a, np.int64), np.array(g)) for s, a, g in state["recent"])
        if self.optimizer is not None:
            restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self._refresh()


def softmax(logits: Array) -> Array:
    """Probabilities ``[n, A]``."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def policy_gradient(states: NDArray[np.int64], actions: NDArray[np.int64], returns: Array, policy: Array) -> Array:
    r"""Mean over steps of :math:`G \nabla_\theta \log \pi(a | s)` for a table of logits, ``[S, A]``.

    Args:
        states: ``[N]``.
        actions: ``[N]``.
        returns: ``[N]``.
        policy: ``[S, A]`` probabilities.
    """
    gradient = np.zeros(policy.shape)
    np.add.at(gradient, (states, actions), returns)
    gradient -= policy * np.bincount(states, returns, len(policy))[:, None]
    return gradient / len(states)

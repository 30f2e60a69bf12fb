"""The policy of agents that learn a world model: it acts on what it believes, which every observation moves."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..randomness import seeded
from ..world_model.networks import MLP, make_decoder, make_encoder, normalized
from ..world_model.objectives import tanh_log_prob
from ..world_model.rssm import RSSM, Normal, State
from .policy import Decision, Policy, RowNoise

MEAN_SCALE, MIN_STD = 5.0, 0.1  # of the actor's Gaussian, before its tanh


@dataclass(frozen=True)
class Belief:
    """What a policy knows in the middle of episodes: the state ``[B, ...]``, and the action ``[B, A]`` taken in it."""

    state: State
    action: Tensor

    def forget(self, rows: Tensor) -> Belief:
        """Nothing in the ``rows`` ``[B]`` whose episodes ended."""
        keep = 1 - rows.to(self.action)[:, None]
        return Belief(State(self.state.deterministic * keep, self.state.stochastic * keep), self.action * keep)


class WorldModelPolicy(Policy):
    """Encoder, recurrent state-space model, reward head, actor and critic; with a decoder if asked for.

    Beliefs belong to episodes, and so to their streams of random numbers: observations that come with the same
    :class:`.policy.RowNoise` continue its episodes.

    Args:
        shape: of an observation: ``[H, W, C]`` of pictures, ``[D]`` of vectors.
        low: least actions, ``[A]``.
        high: greatest actions.
        deterministic: numbers of the state's deterministic part.
        stochastic: of its stochastic part.
        hidden: width of all hidden layers of the model and the actor and critic.
        embedding: numbers of an encoded observation.
        depth: channels of the first convolution.
        initial_std: about the standard deviation that the actor's Gaussian begins with.
        decoder: with one.
        seed: of the initial weights.
    """

    deterministic_evaluation = True

    def __init__(
        self,
        shape: Sequence[int],
        low: Sequence[float],
        high: Sequence[float],
        *,
        deterministic: int = 200,
        stochastic: int = 30,
        hidden: int = 200,
        embedding: int = 1024,
        depth: int = 32,
        initial_std: float = 5.0,
        decoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._spec = {
            "shape": list(shape), "low": list(low), "high": list(high), "deterministic": deterministic,
            "stochastic": stochastic, "hidden": hidden, "embedding": embedding, "depth": depth, "decoder": decoder,
            "initial_std": initial_std,
        }  # fmt: skip
        self.initial_std = initial_std
        features, actions = deterministic + stochastic, len(low)
        with seeded(seed):
            self.encoder = make_encoder(shape, embedding, depth, hidden)
            self.rssm = RSSM(actions, embedding, deterministic, stochastic, hidden)
            self.reward = MLP(features, hidden, 3, 1)
            self.actor = MLP(features, hidden, 4, 2 * actions)
            self.critic = MLP(features, hidden, 3, 1)
            self.decoder = make_decoder(features, shape, depth, hidden) if decoder else None
        self.centre: Tensor
        self.reach: Tensor
        lowest, highest = torch.tensor(low), torch.tensor(high)
        self.register_buffer("centre", (highest + lowest) / 2, persistent=False)
        self.register_buffer("reach", (highest - lowest) / 2, persistent=False)
        self._beliefs: weakref.WeakKeyDictionary[RowNoise, Belief] = weakref.WeakKeyDictionary()

    def spec(self) -> dict[str, Any]:
        return dict(self._spec)

    def initial(self, rows: int) -> Belief:
        """Before anything was seen."""
        return Belief(self.rssm.initial(rows), torch.zeros(rows, len(self.centre), device=self.device))

    def actions(self, features: Tensor) -> Normal:
        """The Gaussian of actions before their tanh."""
        mean, std = self.actor(features).float().chunk(2, -1)
        std = functional.softplus(std + math.log(math.expm1(self.initial_std))) + MIN_STD
        return Normal(MEAN_SCALE * torch.tanh(mean / MEAN_SCALE), std)

    def decide(self, belief: Belief, observation: Tensor, noise: Tensor, action_noise: Tensor) -> tuple[Belief, Tensor]:
        """What is believed after an observation, the action included, and that one's log-density.

        Args:
            belief: before.
            observation: ``[B, ...]``.
            noise: ``[B, Z]`` standard normal; zeros believe in the likeliest state.
            action_noise: ``[B, A]`` standard normal; zeros take the likeliest action.
        """
        h = self.rssm.advance(belief.state, belief.action)
        posterior = self.rssm.look(h, self.encoder(normalized(observation)))
        state = State(h, posterior.sample(noise))
        gaussian = self.actions(state.features)
        raw = gaussian.sample(action_noise)
        return Belief(state, raw.tanh()), tanh_log_prob(gaussian.mean, gaussian.std, raw)

    def scaled(self, actions: Tensor) -> Tensor:
        """Actions in [-1, 1] as the environment takes them."""
        return self.centre + self.reach * actions

    @torch.no_grad()
    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        seen = torch.as_tensor(observation, device=self.device)
        belief = self._beliefs.get(noise) or self.initial(len(seen))
        sizes = self.rssm.sizes[1], len(self.centre)
        drawn = [torch.zeros(len(seen), n) if deterministic else noise.normal((n,)) for n in sizes]
        belief, log_probs = self.decide(belief, seen, *(d.to(self.device) for d in drawn))
        self._beliefs[noise] = belief
        return Decision(self.scaled(belief.action), log_probs)

r"""The recurrent state-space model: what a world does, in a space of its own, and what a picture says about it.

A state is a deterministic part :math:`h_t` and a Gaussian part :math:`z_t`:

.. math::

   h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), \qquad
   \text{prior } p(z_t | h_t), \qquad
   \text{posterior } q(z_t | h_t, e_t),

with ``e`` the embedding of an observation and ``a_{t-1}`` the action that led to it. All random numbers are arguments,
so that every function here is pure. Paper: PlaNet, arXiv 1811.04551; sizes as in RePo, arXiv 2309.00082.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_STD = 0.1  # of priors and posteriors


@dataclass(frozen=True)
class Normal:
    """Independent Gaussians, ``[..., Z]``."""

    mean: Tensor
    std: Tensor

    def detach(self) -> Normal:
        """The same without a gradient."""
        return Normal(self.mean.detach(), self.std.detach())

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise``."""
        return self.mean + self.std * noise


@dataclass(frozen=True)
class State:
    """A belief about the world: ``deterministic [..., H]`` and ``stochastic [..., Z]``."""

    deterministic: Tensor
    stochastic: Tensor

    @property
    def features(self) -> Tensor:
        """Both, ``[..., H + Z]``: what heads, actor and critic read."""
        return torch.cat([self.deterministic, self.stochastic], -1)

    def detach(self) -> State:
        """The same without a gradient."""
        return State(self.deterministic.detach(), self.stochastic.detach())

    def flatten(self) -> State:
        """``[B, T, ...]`` as ``[B * T, ...]``."""
        return State(self.deterministic.flatten(0, 1), self.stochastic.flatten(0, 1))

    @classmethod
    def stack(cls, states: list[Self]) -> Self:
        """States ``[B, ...]`` one after the other, as ``[B, T, ...]``."""
        return cls(*(torch.stack([getattr(s, f.name) for s in states], 1) for f in fields(cls)))


class RSSM(nn.Module):
    """The model; see the module.

    Args:
        actions: numbers of an action.
        embedding: of an observation.
        deterministic: ``H``.
        stochastic: ``Z``.
        hidden: units of the one hidden layer of prior and posterior.
    """

    def __init__(self, actions: int, embedding: int, deterministic: int, stochastic: int, hidden: int) -> None:
        super().__init__()
        self.sizes = deterministic, stochastic
        self.inputs = nn.Linear(stochastic + actions, deterministic)
        self.cell = nn.GRUCell(deterministic, deterministic)
        self.prior = _mlp(deterministic, hidden, 2 * stochastic)
        self.posterior = _mlp(deterministic + embedding, hidden, 2 * stochastic)

    def initial(self, rows: int) -> State:
        """The state before anything was seen: zeros."""
        like = next(self.parameters())
        return State(*(torch.zeros(rows, size, device=like.device) for size in self.sizes))

    def advance(self, state: State, action: Tensor) -> Tensor:
        """``h`` after an action ``[B, A]``."""
        inputs = functional.elu(self.inputs(torch.cat([state.stochastic, action], -1)))
        return self.cell(inputs, state.deterministic)  # type: ignore[no-any-return]

    def expect(self, deterministic: Tensor) -> Normal:
        """The prior of ``z``."""
        return _normal(self.prior(deterministic))

    def look(self, deterministic: Tensor, embedding: Tensor) -> Normal:
        """The posterior of ``z``: what an observation adds."""
        return _normal(self.posterior(torch.cat([deterministic, embedding], -1)))

    def observe(
        self, embeddings: Tensor, actions: Tensor, first: Tensor, noise: Tensor, state: State | None = None
    ) -> tuple[State, Normal, Normal]:
        """States along recorded steps, each seen.

        Args:
            embeddings: ``[B, T, E]`` of the observations.
            actions: ``[B, T, A]``, the one that led to each observation.
            first: ``[B, T]`` bool, where an episode begins: state and action before count as zeros.
            noise: ``[B, T, Z]`` standard normal.
            state: ``[B, ...]`` before the first step; None: the initial one.

        Returns:
            states ``[B, T, ...]``, posteriors and priors ``[B, T, Z]``.
        """
        state = state or self.initial(len(embeddings))
        goes_on = (~first).to(actions)[..., None]
        actions = actions * goes_on
        states, posteriors = [], []
        for t, keep in enumerate(goes_on.unbind(1)):
            before = State(state.deterministic * keep, state.stochastic * keep)
            deterministic = self.advance(before, actions[:, t])
            posterior = self.look(deterministic, embeddings[:, t])
            state = State(deterministic, posterior.sample(noise[:, t]))
            states.append(state)
            posteriors.append(posterior)
        found = State.stack(states)
        posterior = Normal(*(torch.stack([getattr(p, k) for p in posteriors], 1) for k in ("mean", "std")))
        return found, posterior, self.expect(found.deterministic)

    def imagine(
        self, state: State, act: Callable[[Tensor, Tensor], Tensor], noise: Tensor, action_noise: Tensor
    ) -> tuple[State, Tensor]:
        """States that the model expects if a policy acts, none seen.

        Args:
            state: ``[B, ...]`` to begin with.
            act: from features ``[B, H + Z]`` and noise ``[B, A]`` to actions ``[B, A]``.
            noise: ``[B, T, Z]`` standard normal.
            action_noise: ``[B, T, A]`` standard normal.

        Returns:
            states ``[B, T + 1, ...]``, the first one included, and actions ``[B, T, A]``.
        """
        states, actions = [state], []
        for t in range(noise.shape[1]):
            # Dreamer's actor learns from where its actions lead, not from having been told where it is.
            action = act(state.features.detach(), action_noise[:, t])
            deterministic = self.advance(state, action)
            state = State(deterministic, self.expect(deterministic).sample(noise[:, t]))
            states.append(state)
            actions.append(action)
        return State.stack(states), torch.stack(actions, 1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, outputs))


def _normal(raw: Tensor) -> Normal:
    mean, std = raw.float().chunk(2, -1)
    return Normal(mean, functional.softplus(std) + MIN_STD)

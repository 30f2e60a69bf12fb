"""Single steps of recorded episodes, and minibatches of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ...trajectories import Trajectories
from .episodes import step_counts


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """``N`` steps, in no need of an order.

    Attributes:
        observations: ``[N, ...]`` states that the actions were chosen in.
        actions: ``[N, ...]``.
        rewards: ``[N]`` float32.
        next_observations: ``[N, ...]`` states that followed.
        terminal: ``[N]`` bool, nothing is to be gained after this step. False at a time limit: the state that the
            episode was cut in is worth what it would have brought.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminal: Tensor

    @classmethod
    def of(cls, episodes: Trajectories) -> Transitions:
        """The steps of the valid episodes, one episode after the other.

        Raises:
            ValueError: if no episode is valid, one lacks its final state, or the observations are a dict.
        """
        if isinstance(episodes.observations, dict):
            raise ValueError(f"the observations are a dict of {sorted(episodes.observations)}, expected one tensor")
        if not bool(episodes.valid.any()):
            raise ValueError(f"none of the {len(episodes)} episodes is valid: their rewards failed")
        episodes = episodes.select(episodes.valid)
        step_counts(episodes)
        mask, steps = episodes.mask, episodes.mask.shape[1]
        last = torch.arange(steps, device=mask.device) == episodes.lengths[:, None] - 1
        states: Tensor = episodes.observations  # type: ignore[assignment]
        return cls(
            observations=states[:, :steps][mask],
            actions=episodes.actions[mask],
            rewards=episodes.rewards[mask].float(),
            next_observations=states[:, 1 : steps + 1][mask],
            terminal=(last & episodes.terminated[:, None])[mask],
        )

    def __len__(self) -> int:
        return len(self.rewards)

    def select(self, index: Tensor) -> Transitions:
        """Steps ``index [n]`` int64."""
        return replace(self, **{f.name: getattr(self, f.name).index_select(0, index) for f in fields(self)})

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """``count`` steps, drawn uniformly and with replacement."""
        index = torch.from_numpy(rng.integers(len(self), size=count))
        return self.select(index.to(self.rewards.device))

    def to(self, device: torch.device | str) -> Transitions:
        """The same steps with every tensor on ``device``."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def fingerprint(self) -> str:
        """SHA-256 of everything in them; equal for equal steps in equal order."""
        digest = hashlib.sha256()
        for field in fields(self):
            values = getattr(self, field.name)
            digest.update(f"{tuple(values.shape)}{values.dtype}".encode())
            digest.update(np.ascontiguousarray(values.cpu().numpy()).data)
        return digest.hexdigest()


def return_spread(episodes: Trajectories) -> float:
    """Best less worst return of the valid episodes; 0 where there are none."""
    returns = episodes.returns[episodes.valid]
    return float(returns.max() - returns.min()) if len(returns) else 0.0

r"""Replay without the environment's rewards: learned ones, relabelled as they change, or the entropy of states.

The intrinsic reward of PEBBLE's unsupervised phase (arXiv 2106.05091) is a particle estimate of the entropy of visited
states, :math:`r(s) = \lVert s - s^{(k)} \rVert / \hat\sigma`, the distance to the ``k``-th nearest of all states in the
buffer over the running standard deviation of such distances.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from ...trajectories import Episode
from .reward_model import RewardModel

CHUNK = 4096  # transitions relabelled at once
Array = NDArray[Any]


class EpisodeRecord:
    """What a teacher is shown: the newest whole episodes with their true rewards. No learner reads it.

    Args:
        rows: of the environment.
        keep: episodes.

    Attributes:
        episodes: the finished ones, oldest first; their rewards are the true ones.
    """

    def __init__(self, rows: int, keep: int) -> None:
        self.episodes: deque[Episode] = deque(maxlen=keep)
        self._open: list[list[tuple[Array, Array, float]]] = [[] for _ in range(rows)]

    def add(
        self, obs: Array, next_obs: Array, actions: Array, rewards: Array, done: Array, infos: Sequence[dict[str, Any]]
    ) -> None:
        """One step of every row; the true reward is ``info["true_reward"]``, where there is none the step's reward.

        Episodes of simulations that diverged are left out.
        """
        for i, (steps, info) in enumerate(zip(self._open, infos, strict=True)):
            steps.append((obs[i].copy(), actions[i].copy(), float(info.get("true_reward", rewards[i]))))
            if not done[i]:
                continue
            states, taken, truth = _columns(steps)
            steps.clear()
            if info.get("invalid") is None and np.isfinite(truth).all():
                states = np.concatenate([states, next_obs[i][None]])
                ended = not info.get("TimeLimit.truncated", False)
                self.episodes.append(Episode(observations=states, actions=taken, rewards=truth, terminated=ended))

    def mean_step_reward(self, last: int = 10) -> float:
        """Mean over the newest episodes of their true reward a step; 0 where there are none."""
        newest = list(self.episodes)[-last:]
        return float(np.mean([e.rewards.mean() for e in newest])) if newest else 0.0

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Finished and open episodes, as tensors and JSON."""
        tensors: dict[str, Tensor] = {}
        for i, e in enumerate(self.episodes):
            parts = {"observations": e.observations, "actions": e.actions, "rewards": e.rewards}
            tensors |= {f"episode.{i}.{k}": torch.from_numpy(v) for k, v in parts.items()}
        for i, steps in enumerate(self._open):
            if steps:
                parts = dict(zip(("observations", "actions", "rewards"), _columns(steps), strict=True))
                tensors |= {f"open.{i}.{k}": torch.from_numpy(v) for k, v in parts.items()}
        return tensors, {"terminated": [e.terminated for e in self.episodes]}

    def set_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`."""

        def parts(name: str) -> list[Array]:
            keys = (f"{name}.{k}" for k in ("observations", "actions", "rewards"))
            return [tensors[k].numpy() for k in keys if k in tensors]

        self.episodes.clear()
        for i, terminated in enumerate(plain["terminated"]):
            states, taken, truth = parts(f"episode.{i}")
            self.episodes.append(Episode(observations=states, actions=taken, rewards=truth, terminated=terminated))
        for i, steps in enumerate(self._open):
            steps[:] = [(s, a, float(r)) for s, a, r in zip(*parts(f"open.{i}"), strict=True)]


def _columns(steps: Sequence[tuple[Array, Array, float]]) -> tuple[Array, Array, Array]:
    states, taken, truth = zip(*steps, strict=True)
    return np.stack(states), np.stack(taken), np.array(truth)


@dataclass
class RunningDeviation:
    """Standard deviation of all numbers seen so far, started at 1 with next to no weight."""

    mean: float = 0.0
    variance: float = 1.0
    count: float = 1e-4

    def update(self, values: Tensor) -> None:
        """Add numbers."""
        mean, variance, count = float(values.mean()), float(values.var(correction=0)), values.numel()
        total, gap = self.count + count, mean - self.mean
        squares = self.variance * self.count + variance * count + gap**2 * self.count * count / total
        self.mean, self.variance, self.count = self.mean + gap * count / total, squares / total, total

    @property
    def std(self) -> float:
        """Of what was added."""
        return float(np.sqrt(self.variance))


class RewardlessReplayBuffer(ReplayBuffer):
    """A replay buffer of Stable-Baselines3 whose rewards are never the environment's.

    Args:
        buffer_size: transitions, as all arguments of Stable-Baselines3's own.
        observation_space: Box.
        action_space: Box; actions come scaled to [-1, 1], the reward model reads them in the space's units.
        device: of samples.
        n_envs: rows.
        reward_model: of observations and actions.
        record: of true rewards, for the teacher.
        neighbors: ``k`` of the state entropy.
        options: Stable-Baselines3's others.

    Attributes:
        exploring: whether samples have the state entropy as their reward; what is stored then is 0.
    """

    action_space: spaces.Box

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        *,
        reward_model: RewardModel,
        record: EpisodeRecord,
        neighbors: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs, **options)
        self.reward_model, self.record, self.neighbors = reward_model, record, neighbors
        self.exploring, self.deviation = True, RunningDeviation()

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """Store a step of every row; the environment's reward goes to the record only."""
        self.record.add(obs, next_obs, self.unscaled(action), reward, done, infos)
        learned = np.zeros(self.n_envs, np.float32) if self.exploring else self.learned_rewards(obs, action)
        super().add(obs, next_obs, action, learned, done, infos)

    def relabel(self) -> None:
        """Give every transition the reward that the model has for it now."""
        size = self.size()
        for start in range(0, size, CHUNK):
            part = slice(start, min(start + CHUNK, size))
            self.rewards[part] = self.learned_rewards(self.observations[part], self.actions[part])

    def learned_rewards(self, observations: Array, actions: Array) -> NDArray[np.float32]:
        """``[...]`` of observations ``[..., *shape]`` and scaled actions ``[..., A]``."""
        leading = actions.shape[:-1]
        device = self.reward_model.device
        states = torch.as_tensor(observations, device=device).float().reshape(-1, 1, self.reward_model.observation_dim)
        taken = torch.as_tensor(self.unscaled(actions), device=device).reshape(-1, 1, actions.shape[-1])
        mask = torch.ones(len(states), 1, dtype=torch.bool, device=device)
        rewards: NDArray[np.float32] = self.reward_model.step_rewards(states, taken, mask)[:, 0].cpu().numpy()
        return rewards.reshape(leading)

    def unscaled(self, actions: Array) -> NDArray[np.float32]:
        """Actions ``[..., A]`` as the environment takes them, flattened."""
        low, high = self.action_space.low.reshape(-1), self.action_space.high.reshape(-1)
        scaled = actions.reshape(*actions.shape[: actions.ndim - len(self.action_space.shape)], -1)
        return np.asarray(low + 0.5 * (scaled + 1.0) * (high - low), np.float32)

    def _get_samples(self, batch_inds: NDArray[np.intp], env: Any = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        if not self.exploring:
            return samples
        visited = self.observations[: self.size()].reshape(self.size() * self.n_envs, -1)
        states = torch.as_tensor(visited, device=self.device).float()
        distances = neighbor_distances(samples.observations.flatten(1).float(), states, self.neighbors)
        self.deviation.update(distances)
        return samples._replace(rewards=(distances / self.deviation.std)[:, None])


def neighbor_distances(points: Tensor, among: Tensor, k: int) -> Tensor:
    """``[B]`` Euclidean distance of ``points [B, D]`` to their ``k``-th nearest of ``among [N, D]``.

    The points are among those: the nearest, which is the point itself, is not counted. Where there are too few, the
    farthest is taken.
    """
    center = among.mean(0)  # distances come from inner products, whose rounding errors grow with the norms
    distances = torch.cdist(points - center, among - center)
    return distances.topk(min(k + 1, len(among)), largest=False).values[:, -1]

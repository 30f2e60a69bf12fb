"""Episodes of Gymnasium's Pendulum under various controllers, and what a flawless teacher says of their segments."""

import gymnasium as gym
import numpy as np
import torch

from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.segments import sample_segments
from aligngym.trajectories import Trajectories


def pendulum(count, seed, steps=100):
    """Episodes of ``steps``; each has a controller of its own, and so its own way of swinging.

    The rewards are not Pendulum's but a linear one: upright, to the right, fast, and pushed hard.
    """
    env = gym.make_vec("Pendulum-v1", num_envs=count, vectorization_mode="sync")
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    observations, actions = [observation], []
    push, gain = rng.uniform(-2, 2, (count, 1)), rng.uniform(-1, 1, (count, 1))
    for _ in range(steps):
        action = (push + gain * observation[:, 2:] + rng.normal(size=(count, 1))).clip(-2, 2).astype(np.float32)
        observation, *_ = env.step(action)
        observations.append(observation)
        actions.append(action)
    mask = torch.ones(count, steps, dtype=torch.bool)
    states, pushes = (torch.from_numpy(np.stack(values, 1)).float() for values in (observations, actions))
    rewards = states[:, :-1] @ torch.tensor([1.0, 0.5, 0.1]) + 0.2 * pushes[..., 0]
    return Trajectories(
        observations=states, actions=pushes, rewards=rewards, log_probs=torch.zeros(count, steps), mask=mask,
        terminated=~mask[:, 0], truncated=mask[:, 0], valid=mask[:, 0], group=torch.arange(count),
    )  # fmt: skip


def preferences(episodes, count, seed, length=20):
    """``count`` pairs of different segments; the one with the larger sum of rewards is preferred."""
    segments, rewards = sample_segments(episodes, length, 2 * count, np.random.default_rng(seed))
    pairs = torch.arange(2 * count).reshape(-1, 2)
    sums = rewards.sum(1)[pairs]
    return PreferenceDataset(segments=segments, pairs=pairs, labels=(sums[:, 0] > sums[:, 1]).float())

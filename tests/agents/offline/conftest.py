"""Recorded episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies import RowNoise, build_policy
from aligngym.agents.rollouts import collect


def play(env_id, count, **kwargs):
    env = gym.make_vec(env_id, num_envs=count, vectorization_mode="sync", **kwargs)
    policy = build_policy(env, None, value=False, generator=torch.Generator().manual_seed(0))
    seeds = list(range(count))
    return collect(env, policy, seeds=seeds, noise=RowNoise(seeds), group=torch.arange(count) // 2)


@pytest.fixture(scope="session")
def record():
    """``record(env_id, count, **kwargs)`` plays episodes with an untrained policy."""
    return play


@pytest.fixture
def episodes():
    """Four, of 12, 7, 3 and 12 steps; those in the middle terminated, the others were cut."""
    found = play("MountainCarContinuous-v0", 4, max_episode_steps=12)
    found.mask[1, 7:] = found.mask[2, 3:] = False
    for name in ("actions", "log_probs", "rewards"):
        getattr(found, name)[~found.mask] = 0
    found.observations[1, 8:] = found.observations[2, 4:] = 0
    found.terminated[:] = torch.tensor([False, True, True, False])
    found.truncated[:] = ~found.terminated
    found.info = {"policy": ["a", "b", None, "ü"], "seed": [3, 4, 5, 6], "goal": [np.arange(3.0)] * 4}
    found.terms = {"true_return": torch.tensor([0.5, -1.0, torch.nan, 2.0])}
    found.extras = {"true_reward": torch.rand(found.mask.shape, generator=torch.Generator()) * found.mask}
    return found


def check_same(one, two):
    names = ("observations", "actions", "mask", "rewards", "terminated", "truncated", "valid", "group")
    for name in names:
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("terms", "extras"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k].nan_to_num(9e9), theirs[k].nan_to_num(9e9)) for k in mine)
    assert one.info.keys() == two.info.keys()
    for column, other in zip(one.info.values(), two.info.values(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(column, other, strict=True))


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(one, two)``: equal records, but for the log-probabilities, which formats do not keep."""
    return check_same

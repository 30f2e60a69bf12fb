"""Recorded episodes for the tests of what learns from them."""

import gymnasium as gym
import numpy as np
import torch

from aligngym.agents.checkpoint import MANIFEST, load_json
from aligngym.agents.policies import RowNoise, build_policy
from aligngym.agents.rollouts import collect
from aligngym.trajectories import Trajectories


def make(env_id, count=4, **kwargs):
    return gym.make_vec(env_id, num_envs=count, vectorization_mode="sync", **kwargs)


def play(env_id, count, **kwargs):
    """Episodes of an untrained policy."""
    env = make(env_id, count, **kwargs)
    policy = build_policy(env, None, value=False, generator=torch.Generator().manual_seed(0))
    seeds = list(range(count))
    return collect(env, policy, seeds=seeds, noise=RowNoise(seeds), group=torch.arange(count) // 2)


def steps(observations, actions, rewards, following, terminated):
    """One-step episodes from arrays ``[N, ...]``."""
    states = torch.stack([torch.as_tensor(observations), torch.as_tensor(following)], 1)
    rewards, terminated = torch.as_tensor(rewards).float()[:, None], torch.as_tensor(terminated)
    return Trajectories(
        observations=states,
        actions=torch.as_tensor(actions)[:, None],
        log_probs=torch.zeros_like(rewards),
        mask=torch.ones_like(rewards, dtype=torch.bool),
        rewards=rewards,
        terminated=terminated,
        truncated=~terminated,
        valid=torch.ones_like(terminated),
        group=torch.arange(len(rewards)),
    )


def everything(agent, folder):
    """Hashes of all that a checkpoint holds: equal for agents that go on alike."""
    agent.save(folder)
    return load_json((folder / MANIFEST).read_text("utf-8"))["sha256"]


def same(one, two):
    """Assert that records are equal, but for the log-probabilities, which the formats do not keep."""
    for name in ("observations", "actions", "mask", "rewards", "terminated", "truncated", "valid", "group"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("terms", "extras"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k].nan_to_num(9e9), theirs[k].nan_to_num(9e9)) for k in mine)
    assert one.info.keys() == two.info.keys()
    for column, other in zip(one.info.values(), two.info.values(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(column, other, strict=True))

"""What the tests of the simulators share: episodes of random actions, the memory of this process, a learner."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import torch


def roll(env, seed: int | None, steps: int = 20) -> list[np.ndarray]:
    """What random actions lead to: observations, rewards and true rewards, until the episode ends."""
    rng = np.random.default_rng(5)
    observation, _ = env.reset(seed=seed)
    frames, rewards, truths = [flat(observation)], [], []
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        frames.append(flat(observation))
        rewards.append(reward)
        truths.append(info["true_reward"])
        if terminated or truncated:
            break
    return [np.array(values) for values in (frames, rewards, truths)]


def flat(observation) -> np.ndarray:
    """A copy of an observation as one array, whatever its space."""
    if isinstance(observation, dict):
        return np.concatenate([np.ravel(values) for values in observation.values()])
    return observation.copy()


def same(one, other) -> bool:
    """Whether two episodes are equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def resident_mb() -> float:
    """Memory that this process has in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def check_vectoriser(env, singles, seed: int, steps: int) -> None:
    """Rows of a vector environment (autoreset in the same step) play the single environments' episodes."""
    observations, _ = env.reset(seed=seed)
    expected = np.stack([single.reset(seed=seed + i)[0] for i, single in enumerate(singles)])
    assert np.array_equal(observations, expected)
    env.action_space.seed(0)
    ends = 0
    for _ in range(steps):
        actions = env.action_space.sample()
        observations, rewards, terminated, truncated, infos = env.step(actions)
        for i, single in enumerate(singles):
            observation, reward, *over, info = single.step(actions[i])
            assert (reward, *over) == (rewards[i], terminated[i], truncated[i])
            if any(over):
                ends += 1
                assert np.array_equal(infos["final_obs"][i], observation)
                assert {k: v[i] for k, v in infos["final_info"].items() if k[0] != "_"} == info
                observation, _ = single.reset()
            assert np.array_equal(observations[i], observation)
    assert ends


def check_learner(name: str, env, policy: str = "MlpPolicy", steps: int = 300) -> None:
    """Stable-Baselines3's algorithm of that name takes steps in the environment, and they change its actions."""
    import stable_baselines3

    own = {"SAC": {"learning_starts": 100, "buffer_size": 1000}, "PPO": {"n_steps": 100, "batch_size": 50}}[name]
    learner = getattr(stable_baselines3, name)(policy, env, seed=0, device="cpu", **own)
    observation, _ = env.reset(seed=3)
    before = learner.predict(observation, deterministic=True)[0]
    learner.learn(steps)
    after = learner.predict(observation, deterministic=True)[0]
    assert learner.num_timesteps >= steps and after in env.action_space
    assert not np.array_equal(before, after)
    assert all(torch.isfinite(p).all() for p in learner.policy.parameters())

"""The base, seen through an environment whose actions are vectors: nothing in it is about tokens."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from aligngym.agents.policies.policy import RowNoise
from aligngym.envs.generation import EpisodeScores, GenerationEnv, GenerationVectorEnv
from aligngym.trajectories import Trajectories

LOW, HIGH = np.float32(0.1), np.float32(1.0)


class Walk(GenerationVectorEnv):
    """Steps are added up; past 1.5 in either coordinate the walk ends. Zero, the padding, is no legal step."""

    def __init__(self, num_envs: int, steps: int = 4) -> None:
        box = spaces.Box(0, 10, (2,), np.float32)
        super().__init__(num_envs, box, spaces.Box(LOW, HIGH, (2,), np.float32), max_steps=steps)
        self.position = np.zeros((num_envs, 2), np.float32)
        self.faulty = False

    def _start(self, rows, options):
        self.position[rows] = 0

    def _observe(self):
        return self.position.copy()

    def _apply(self, actions, active):
        self.position[active] += actions[active]
        terminated = active & (self.position > 1.5).any(1)
        return terminated, active & (self.steps >= self.max_steps) & ~terminated | (terminated & self.faulty)

    def _score(self, rows):
        return EpisodeScores(self.position[rows].sum(1).astype(np.float64), {"x": self.position[rows, 0]})

    def _render_row(self, row):
        return str(self.position[row])


def generate(observation, noise, *, max_steps, terminal_actions, deterministic):
    """Uniform steps; the walker knows when its walk is over."""
    steps = LOW + (HIGH - LOW) * noise.uniform(2 * max_steps).view(-1, max_steps, 2).float()
    over = (steps.cumsum(1) > 1.5).any(2)
    mask = over.cumsum(1) - over.long() == 0
    rows = len(mask)
    return Trajectories(
        observations=torch.as_tensor(observation), actions=steps * mask[..., None], log_probs=torch.zeros(mask.shape),
        mask=mask, rewards=torch.zeros(mask.shape), terminated=over.any(1), truncated=~over.any(1),
        valid=torch.ones(rows, dtype=torch.bool), group=torch.arange(rows),
    )  # fmt: skip


POLICY = SimpleNamespace(generate=generate)


def test_vector_actions_step_as_they_roll_out() -> None:
    env = Walk(32)
    whole = env.rollout(POLICY, noise=RowNoise(range(32)), seed=0)
    assert whole.terminated.any() and whole.truncated.any() and not (whole.terminated & whole.truncated).any()
    env.reset(seed=0)
    running, returns = np.ones(32, bool), np.zeros(32)
    for t in range(whole.mask.shape[1]):
        actions = np.where(running[:, None], whole.actions[:, t].numpy(), LOW)
        _, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    np.testing.assert_allclose(whole.returns, returns, rtol=1e-6)
    np.testing.assert_array_equal(whole.lengths, whole.mask.sum(1))
    assert whole.terms["x"].dtype == whole.rewards.dtype


def test_seeds_make_groups() -> None:
    env = Walk(4)
    groups = [env.rollout(POLICY, noise=RowNoise(range(4)), seed=s).group.tolist() for s in (7, None, [5, 9, 5, None])]
    assert groups == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 2]]


@pytest.mark.parametrize("action", [[0.05, 0.5], [0.5, np.nan], [np.inf, 0.5]])
def test_actions_outside_a_box_are_refused(action: list[float]) -> None:
    env = Walk(2)
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=r"is not in Box.*1 of 2 are not"):
        env.step(np.array([[0.5, 0.5], action]))
    with pytest.raises(gym.error.InvalidAction, match="expected 2 actions of Box"):
        env.step(np.array([action]))
    env.step(torch.full((2, 2), 0.5))


def test_an_episode_cannot_end_twice() -> None:
    env = Walk(2)
    env.reset(seed=0)
    env.faulty = True
    with pytest.raises(RuntimeError, match=r"Walk terminated and truncated rows \[0, 1\]"):
        for _ in range(2):
            env.step(np.full((2, 2), 0.9))


def test_the_single_environment_is_a_batch_of_one() -> None:
    with pytest.raises(ValueError, match="num_envs=2, expected 1"):
        GenerationEnv(Walk(2))
    env = GenerationEnv(Walk(1))
    env.reset(seed=3)
    assert env.np_random is env.batch.np_random[0] and env.render() is None
    env.set_state(env.get_state())
    assert env.np_random is env.batch.np_random[0]
    for _ in range(4):
        observation, reward, terminated, truncated, info = env.step(np.array([0.2, 0.3], np.float32))
    assert truncated and not terminated and reward == pytest.approx(2) and info == {"reward/x": pytest.approx(0.8)}
    assert observation in env.observation_space
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([0.2, 0.3], np.float32))


def test_a_policy_that_ends_elsewhere_is_refused() -> None:
    env = Walk(8)

    def spoiled(change):
        def played(*args, **kwargs):
            episodes = generate(*args, **kwargs)
            change(episodes)
            return episodes

        return SimpleNamespace(generate=played)

    def cut(episodes):
        episodes.mask[0, int(episodes.lengths[0]) - 1] = False

    def swap(episodes):
        episodes.terminated, episodes.truncated = episodes.truncated, episodes.terminated

    def nothing(episodes):
        episodes.mask[3] = False

    def outside(episodes):
        episodes.actions[0, 0, 1] = 7.0

    for change, error, message in (
        (cut, ValueError, "row 0 has .* in the policy's record"),
        (swap, ValueError, "row 0 has terminated = "),
        (nothing, ValueError, "row 3 has terminated = "),
        (outside, gym.error.InvalidAction, "is not in Box"),
    ):
        with pytest.raises(error, match=message):
            env.rollout(spoiled(change), noise=RowNoise(range(8)), seed=0)

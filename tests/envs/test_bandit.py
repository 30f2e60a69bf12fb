"""The bandit: its closed forms against brute force, its table and its noise."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from aligngym.envs.bandit import kl_optimal_value, kl_optimum


def objective(policy, reference, rewards, beta):
    return (policy * rewards).sum(-1) - beta * (policy * np.log(policy / reference)).sum(-1)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_optimum_beats_every_other_policy(beta: float) -> None:
    rng = np.random.default_rng(0)
    reference, rewards = rng.dirichlet(np.ones(6), size=3), rng.normal(size=(3, 6))
    best = kl_optimum(reference, rewards, beta)
    np.testing.assert_allclose(best.sum(-1), 1)
    value = objective(best, reference, rewards, beta)
    np.testing.assert_allclose(kl_optimal_value(reference, rewards, beta), value)
    others = rng.dirichlet(np.ones(6), size=(2000, 1))
    near = np.exp(np.log(best) + 0.01 * rng.normal(size=(2000, 3, 6)))
    for policies in (others, near / near.sum(-1, keepdims=True)):
        assert (objective(policies, reference, rewards, beta) <= value + 1e-12).all()


def test_optimum_at_its_limits() -> None:
    reference, rewards = np.array([0.5, 0.25, 0.25]), np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(kl_optimum(reference, rewards, 1e9), reference, atol=1e-8)
    np.testing.assert_allclose(kl_optimum(reference, rewards, 1e-4), [0, 0, 1], atol=1e-8)  # no overflow
    np.testing.assert_allclose(kl_optimum([0.5, 0.5, 0.0], [0.0, 0.0, 9.0], 1.0), [0.5, 0.5, 0.0])
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0"):
            kl_optimum(reference, rewards, beta)


def test_rewards_are_the_table() -> None:
    table = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    env = gym.make_vec("TabularBandit-v0", num_envs=3, rewards=table)
    observation, _ = env.reset(options={"prompt_index": np.array([0, 1, 1])})
    assert observation.tolist() == [0, 1, 1]
    _, rewards, terminated, truncated, infos = env.step([2, 0, 1])
    assert rewards.tolist() == [2.0, 3.0, 4.0] and terminated.all() and not truncated.any()
    assert infos["final_info"]["arm"].tolist() == [2, 0, 1]


def test_noise_has_its_standard_deviation_and_leaves_the_term_alone() -> None:
    env = gym.make_vec("TabularBandit-v0", num_envs=2000, rewards=[[1.0]], noise_std=0.5)
    env.reset(seed=0)
    _, rewards, _, _, infos = env.step(np.zeros(2000, int))
    assert rewards.mean() == pytest.approx(1, abs=0.05) and rewards.std() == pytest.approx(0.5, abs=0.03)
    assert (infos["final_info"]["reward/table"] == 1).all()


def test_drawn_table_depends_on_its_seed_alone() -> None:
    a, b, c = (gym.make("TabularBandit-v0", seed=s).unwrapped.batch.table for s in (1, 1, 2))
    assert a.shape == (4, 8) and (a == b).all() and (a != c).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [1.0, 2.0]}, "rewards has shape"),
        ({"rewards": [[float("nan")]]}, "expected a finite"),
        ({"num_arms": 0}, "num_arms is 0"),
        ({"num_prompts": 2.5}, "num_prompts is 2.5"),
        ({"noise_std": -1.0}, "noise_std is -1.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("TabularBandit-v0", **arguments)

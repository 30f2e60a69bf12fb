"""Reward-weighted regression: the weights by hand, the tilt that it converges to, and that it learns."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents import rwr as rwr_module
from aligngym.agents.callbacks import Callback
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.rwr import RWR, RWRConfig, regression_weights
from aligngym.envs.bandit import kl_optimum

from .toy_denoiser import toy_env, toy_policy

RETURNS = torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0, 4.0])
ONE, TWO = torch.zeros(6, dtype=torch.int64), torch.tensor([3, 3, 3, 8, 8, 8])


def test_weights_are_a_softmax_of_mean_one():
    weights = regression_weights(RETURNS, ONE, 0.5)
    torch.testing.assert_close(weights, 6 * (2 * RETURNS).softmax(0))
    assert weights.mean().item() == pytest.approx(1)
    pair = regression_weights(torch.tensor([1.0, 0.7]), ONE[:2], 0.3)
    assert (pair[0] / pair[1]).item() == pytest.approx(math.e), "better by tau weighs e times as much"


def test_groups_are_normalised_apart():
    weights = regression_weights(RETURNS, TWO, 1.0)
    for rows in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(weights[rows], 3 * RETURNS[rows].softmax(0))
    shifted = regression_weights(RETURNS + 10.0 * (TWO == 8), TWO, 1.0)
    torch.testing.assert_close(shifted, weights)
    order = torch.tensor([5, 0, 3, 2, 1, 4])
    torch.testing.assert_close(regression_weights(RETURNS[order], TWO[order], 1.0), weights[order])


def test_equal_returns_weigh_one_and_extreme_ones_stay_finite():
    assert (regression_weights(torch.full((6,), 0.3), ONE, 0.01) == 1).all()
    torch.testing.assert_close(regression_weights(RETURNS, ONE, 1e8), torch.ones(6))
    greedy = regression_weights(RETURNS * 1e6, ONE, 1e-3)
    assert greedy.tolist() == [0, 0, 0, 3, 3, 0]


def test_clipping():
    assert regression_weights(RETURNS, ONE, 0.1, clip=2.0).max() == 2
    assert torch.equal(regression_weights(RETURNS, ONE, 1.0, clip=100.0), regression_weights(RETURNS, ONE, 1.0))


def agent_on(table, seed=0, noise=0.0, **options):
    env = gym.make_vec("TabularBandit-v0", num_envs=options["episodes_per_iteration"], rewards=table, noise_std=noise)
    return RWR(env, TabularPolicy(*np.shape(table), value=False), RWRConfig(**options), seed=seed)


@pytest.mark.parametrize("over", ["batch", "group"])
def test_the_gradient_by_hand(over):
    table = np.random.default_rng(0).standard_normal((3, 5))
    agent = agent_on(table, episodes_per_iteration=24, group_size=4, weights_over=over, minibatch_size=0, weight_clip=0)
    with torch.no_grad():
        agent.policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    logits = agent.policy.logits.detach().clone().requires_grad_()
    episodes = agent.collect()
    agent.collect, agent.optimizer.step = lambda: episodes, lambda *_: None
    agent.config = dataclasses.replace(agent.config, max_grad_norm=0.0)
    _, metrics = agent.iterate()
    states, arms = episodes.observations[:, 0], episodes.actions[:, 0]
    weights = torch.zeros(24)
    for rows in [torch.arange(24)] if over == "batch" else torch.arange(24).split(4):
        weights[rows] = len(rows) * (episodes.returns[rows] / 0.2).softmax(0)
    loss = -(weights * logits.log_softmax(-1)[states, arms]).mean()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(agent.policy.logits.grad, expected, atol=1e-6, rtol=1e-5)
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    share = weights.sum() ** 2 / (weights**2).sum() / 24
    assert metrics["train/effective_share"] == pytest.approx(share.item(), rel=1e-5) and share < 1


@pytest.mark.parametrize("iterations", [1, 2])
def test_every_iteration_tilts_the_policy_by_its_rewards(iterations):
    """It ends at the weighted frequencies of its episodes, which for many episodes are pi_0 exp(k r / tau) / Z."""
    table = np.random.default_rng(1).uniform(size=(2, 4))
    options = {"epochs": 40, "minibatch_size": 0, "learning_rate": 0.1, "max_grad_norm": 0, "weight_clip": 0}
    agent = agent_on(table, episodes_per_iteration=2000, reward_temperature=0.4, **options)
    for _ in range(iterations):
        episodes, _ = agent.iterate()
    learned = agent.policy.logits.detach().double().softmax(-1).numpy()
    weighted = np.zeros((2, 4))
    np.add.at(
        weighted,
        (episodes.observations[:, 0].numpy(), episodes.actions[:, 0].numpy()),
        (episodes.returns.double() / 0.4).exp(),
    )
    weighted /= weighted.sum(-1, keepdims=True)
    tilted = kl_optimum(np.full((2, 4), 0.25), iterations * table, 0.4)

    def distance(one, two):
        return np.abs(one - two).sum(-1).max() / 2

    assert distance(learned, weighted) < 0.01
    assert distance(learned, tilted) < 0.06 and distance(learned, np.full((2, 4), 0.25)) > 0.25 * iterations


def gain(seed, **options):
    """Expected reward after training less that before."""
    table = np.random.default_rng(100 + seed).standard_normal((4, 8))
    common = {"episodes_per_iteration": 64, "group_size": 8, "learning_rate": 0.05, "reward_temperature": 0.5}
    agent = agent_on(table, seed, noise=0.1, **common | options).learn(64 * 15)
    return float((agent.policy.logits.detach().softmax(-1).numpy() * table).sum(-1).mean() - table.mean())


@pytest.mark.parametrize("over", ["batch", "group"])
def test_the_reward_rises_on_every_seed(over):
    assert min(gain(seed, weights_over=over) for seed in range(4)) > 0.5


def test_with_the_rewards_negated_it_falls(monkeypatch):
    right = regression_weights
    monkeypatch.setattr(rwr_module, "regression_weights", lambda returns, *args: right(-returns, *args))
    assert max(gain(seed) for seed in range(4)) < -0.5


def test_without_a_difference_in_reward_it_imitates_itself():
    """No reward to follow: over seeds the reward goes nowhere."""
    gains = [gain(seed, reward_temperature=1e6) for seed in range(6)]
    assert abs(np.mean(gains)) < 0.3


def test_a_tiny_language_model_learns_on_every_seed(tiny_env, tiny_policy):
    for seed in range(3):
        config = RWRConfig(episodes_per_iteration=32, learning_rate=1e-2, reward_temperature=0.5, epochs=2)
        agent = RWR(tiny_env(32), tiny_policy(), config, seed=seed)
        before = agent.evaluate(episodes=64)
        after = agent.learn(32 * 10).evaluate(episodes=64)
        assert after.mean - before.mean > 3 * np.hypot(before.standard_error, after.standard_error)


def test_episodes_that_failed_weigh_nothing(tiny_env, tiny_policy):
    """The mean weight of the valid episodes is 1 whatever the others are."""

    class Weights(Callback):
        def on_iteration(self, agent, episodes, metrics):
            assert 0 < metrics["rollout/invalid_fraction"] < 1 and 0 < metrics["train/effective_share"] <= 1
            return True

    env = tiny_env(16, reward=lambda completions, **_: [None if "w1" in c else len(c) / 9 for c in completions])
    RWR(env, tiny_policy(), RWRConfig(episodes_per_iteration=16)).learn(32, Weights())


def on_the_right(completions, **_):
    """1 in the half-plane x > 0."""
    return [float(point[0] > 0) for point in completions]


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_a_denoiser_imitates_its_better_samples(kind, monkeypatch):
    """The baseline of DDPO: denoising errors weighted by the reward."""

    def share_on_the_right():
        options = {"episodes_per_iteration": 128, "epochs": 4, "minibatch_size": 32, "learning_rate": 3e-3}
        agent = RWR(toy_env(kind, 128, reward=on_the_right), toy_policy(kind), RWRConfig(**options))
        return [agent.evaluate(episodes=256).mean, agent.learn(128 * 10).evaluate(episodes=256).mean]

    before, after = share_on_the_right()
    assert 0.4 < before < 0.6 and after > 0.75, (before, after)
    right = regression_weights
    monkeypatch.setattr(rwr_module, "regression_weights", lambda returns, *args: right(-returns, *args))
    before, after = share_on_the_right()
    assert after < 0.3, (before, after)

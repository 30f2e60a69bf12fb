"""Learning, and that these tests would notice if there were none: closed-form optima, CartPole, language models."""

import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents import grpo as grpo_module
from aligngym.agents import ppo as ppo_module
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.ppo import PPO, PPOConfig
from aligngym.envs.bandit import kl_optimum

AGENTS = {"ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig)}
BETA = 0.5


def sign_flip_p(differences):
    """One-sided permutation test that paired differences are not above 0: the share of sign flips with such a sum."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return float((flips @ np.abs(differences) >= np.sum(differences) - 1e-12).mean())


def test_the_permutation_test_itself():
    assert sign_flip_p(np.ones(6)) == 1 / 64 and sign_flip_p(-np.ones(6)) == 1
    assert sign_flip_p(np.array([1.0, -1.0])) == 0.75


def distance_to_optimum(cls, config, seed):
    """Total variation, over all prompts at worst, of what is learned to the closed form."""
    table = np.random.default_rng(seed).standard_normal((3, 8))
    env = gym.make_vec("TabularBandit-v0", num_envs=1200, rewards=table)
    agent = cls(env, TabularPolicy(3, 8), config(episodes_per_iteration=1200, max_grad_norm=0), seed=seed)
    for rate, iterations in ((0.05, 60), (0.01, 30), (0.002, 20)):
        agent.config = dataclasses.replace(agent.config, learning_rate=rate)
        agent.learn(1200 * iterations)
    learned = agent.policy.logits.detach().double().softmax(-1).numpy()
    return 0.5 * np.abs(learned - kl_optimum(np.full((3, 8), 1 / 8), table, BETA)).sum(-1).max()


OPTIMA = {
    "ppo, k1 in the reward": (PPO, lambda **k: PPOConfig(kl_coef=BETA, epochs=1, minibatch_size=0, **k)),
    "grpo, k1 in the reward": (
        GRPO,
        lambda **k: GRPOConfig(
            kl_coef=BETA, kl_estimator="k1", kl_in="reward", advantage="leave_one_out", group_size=8, **k
        ),
    ),
    "grpo, k2 in the loss": (
        GRPO,
        lambda **k: GRPOConfig(kl_coef=BETA, kl_estimator="k2", advantage="leave_one_out", group_size=8, **k),
    ),
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "grpo, k1 in the reward" else n for n in OPTIMA]
)
def test_the_bandit_converges_to_its_kl_regularised_optimum(name, seed):
    assert distance_to_optimum(*OPTIMA[name], seed) < 0.02


def bandit_gain(seed, cls=GRPO, shift=0.0, **options):
    """Expected reward after training less that before; the rewards of the prompts are ``shift`` apart."""
    table = np.random.default_rng(100 + seed).standard_normal((4, 8)) + shift * np.arange(4)[:, None]
    env = gym.make_vec("TabularBandit-v0", num_envs=64, rewards=table)
    options = {"episodes_per_iteration": 64, "group_size": 8, "learning_rate": 0.1, "kl_coef": 0} | options
    agent = cls(env, TabularPolicy(4, 8), {PPO: PPOConfig, GRPO: GRPOConfig}[cls](**options), seed=seed)
    agent.learn(64 * 15)
    return float((agent.policy.logits.detach().softmax(-1).numpy() * table).sum(-1).mean() - table.mean())


def test_both_agents_learn_the_bandit_on_every_seed():
    for cls in (PPO, GRPO):
        gains = np.array([bandit_gain(seed, cls) for seed in range(6)])
        assert sign_flip_p(gains) < 0.05 and gains.mean() > 0.5


def test_with_the_sign_of_the_advantage_flipped_reward_falls(monkeypatch):
    right, gae = grpo_module.group_advantages, ppo_module.gae
    monkeypatch.setattr(grpo_module, "group_advantages", lambda *args: -right(*args))
    monkeypatch.setattr(ppo_module, "gae", lambda *args: (-gae(*args)[0], gae(*args)[1]))
    for cls in (PPO, GRPO):
        gains = np.array([bandit_gain(seed, cls) for seed in range(6)])
        assert sign_flip_p(gains) == 1 and sign_flip_p(-gains) < 0.05


def test_groups_shuffled_before_they_are_compared_are_noticed(monkeypatch):
    """Prompts whose rewards lie 5 apart: only comparing within a prompt tells good arms from easy prompts."""
    right = grpo_module.group_advantages

    def shuffled(returns, group, *args):
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(group)))
        return right(returns, group[order], *args)

    learned = np.array([bandit_gain(seed, shift=5.0) for seed in range(6)])
    monkeypatch.setattr(grpo_module, "group_advantages", shuffled)
    broken = np.array([bandit_gain(seed, shift=5.0) for seed in range(6)])
    assert sign_flip_p(learned - broken) < 0.05 and learned.mean() > 2 * broken.mean()


CARTPOLE = {
    "ppo": (
        PPO,
        PPOConfig(
            episodes_per_iteration=16, epochs=6, minibatch_size=4, learning_rate=1e-3, gamma=0.99, value_coef=0.5,
            bootstrap_truncated=True, reference="none", kl_coef=0, value_clip=0,
        ),
        40,
    ),
    "grpo": (
        GRPO,
        GRPOConfig(
            episodes_per_iteration=16, group_size=16, epochs=6, minibatch_size=4, learning_rate=2e-3, kl_coef=0,
            reference="none", aggregation="token_mean",
        ),
        20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_cartpole_is_solved(name):
    cls, config, iterations = CARTPOLE[name]
    agent = cls("CartPole-v1", config=config)
    before = agent.evaluate(episodes=16).mean
    agent.learn(16 * iterations)
    after = agent.evaluate(episodes=32, deterministic=True).mean
    assert before < 60 and after > 475  # what Gymnasium calls solved


def language_gain(make_env, policy, cls=GRPO, seed=0, iterations=10, **options):
    """Reward on evaluation episodes after less before, and the standard error of the difference."""
    options = {"episodes_per_iteration": 32, "group_size": 8, "learning_rate": 1e-2, "kl_coef": 0} | options
    agent = cls(make_env(32), policy, {PPO: PPOConfig, GRPO: GRPOConfig}[cls](**options), seed=seed)
    before = agent.evaluate(episodes=64)
    agent.learn(32 * iterations)
    after = agent.evaluate(episodes=64)
    return after.mean - before.mean, float(np.hypot(before.standard_error, after.standard_error)), after


@pytest.mark.parametrize("name", AGENTS)
def test_a_tiny_language_model_learns_on_every_seed(name, tiny_env, tiny_policy):
    cls = AGENTS[name][0]
    gains = [
        language_gain(tiny_env, tiny_policy(value_head=cls.needs_values), cls, seed)[0] for seed in range(6)
    ]
    assert sign_flip_p(np.array(gains)) < 0.05 and np.mean(gains) > 0.5


def test_a_tiny_language_model_unlearns_with_the_sign_flipped(tiny_env, tiny_policy, monkeypatch):
    right = grpo_module.group_advantages
    monkeypatch.setattr(grpo_module, "group_advantages", lambda *args: -right(*args))
    gains = np.array([language_gain(tiny_env, tiny_policy(), seed=seed)[0] for seed in range(6)])
    assert sign_flip_p(gains) == 1 and sign_flip_p(-gains) < 0.05


def test_a_stronger_penalty_keeps_the_policy_nearer(tiny_env, tiny_policy):
    options = {"kl_estimator": "k1", "kl_in": "reward", "advantage": "centered"}
    divergences = [
        language_gain(tiny_env, tiny_policy(), kl_coef=beta, **options)[2].kl for beta in (0.0, 0.3, 3.0)
    ]
    assert divergences[0] > divergences[1] > divergences[2]


def letter_e(completions, **_):
    """Percentage of the letters that are an e."""
    return [100 * c.count("e") / max(20, len(c)) for c in completions]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "ppo" else n for n in AGENTS])
def test_the_embedded_model_learns_a_letter(name):
    def make_env(count):
        return gym.make_vec("LLMAlign-v0", num_envs=count, max_new_tokens=16, reward=letter_e)

    gain, error, after = language_gain(make_env, "stories", AGENTS[name][0], learning_rate=1e-3, iterations=12)
    assert gain > 3 * error and after.valid == 64 and after.kl > 0

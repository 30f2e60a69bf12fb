"""Does DPO learn what is preferred, and would the tests notice if it did not: closed form, tables, language models."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.preference import dpo as dpo_module
from aligngym.agents.preference.dpo import DPO, DPOConfig
from aligngym.agents.preference.pairs import Preferences, best_and_worst
from aligngym.agents.rollouts import collect
from aligngym.envs.bandit import kl_optimum
from aligngym.trajectories import Trajectories


def flipped(pairs):
    return Preferences(pairs.rejected, pairs.chosen)


def choices(states, arms):
    """One-decision episodes of a table."""
    count = len(states)
    flags, states = torch.ones(count, dtype=torch.bool), torch.tensor(states)
    return Trajectories(
        observations=torch.stack([states, states], 1), actions=torch.tensor(arms)[:, None],
        log_probs=torch.zeros(count, 1), mask=flags[:, None], rewards=torch.zeros(count, 1), terminated=flags,
        truncated=~flags, valid=flags, group=states,
    )  # fmt: skip


def bradley_terry(strengths):
    """Every pair of arms as often as Bradley-Terry has it: arm ``a`` beats ``b`` in ``k_a`` of ``k_a + k_b`` cases."""
    wins = [
        (state, a, b)
        for state, row in enumerate(strengths)
        for a, k in enumerate(row)
        for b in range(len(row))
        if a != b
        for _ in range(k)
    ]
    states, winners, losers = map(list, zip(*wins, strict=True))
    return Preferences(choices(states, winners), choices(states, losers))


STRENGTHS = np.array([[1, 2, 3, 4], [4, 1, 1, 2], [2, 5, 1, 3]])


def table_after(pairs, beta, **options):
    """The probabilities that DPO ends at from a reference that is not uniform, and those of the reference."""
    policy = TabularPolicy(3, 4, value=False)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    reference = policy.logits.detach().double().softmax(-1).numpy()
    env = gym.make_vec("TabularBandit-v0", num_envs=4, num_prompts=3, num_arms=4)
    config = DPOConfig(beta=beta, max_grad_norm=0, group_size=2, episodes_per_iteration=2 * len(pairs), **options)
    agent = DPO(env, policy, config, pairs=pairs)
    for rate, iterations in ((0.2, 60), (0.02, 50), (0.002, 30)):
        agent.config = dataclasses.replace(agent.config, learning_rate=rate)
        agent.learn(2 * len(pairs) * iterations)
    return policy.logits.detach().double().softmax(-1).numpy(), reference


@pytest.mark.parametrize("beta", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_bradley_terry_preferences_lead_to_the_kl_regularised_optimum(beta):
    """The optimum that PPO and GRPO approach with the reward itself: pi_ref exp(r / beta) / Z, r = log strength."""
    learned, reference = table_after(bradley_terry(STRENGTHS), beta)
    optimum = kl_optimum(reference, np.log(STRENGTHS), beta)
    assert np.abs(learned - optimum).sum(-1).max() / 2 < 2e-3
    assert np.abs(reference - optimum).sum(-1).max() / 2 > 0.1
    mirrored, _ = table_after(flipped(bradley_terry(STRENGTHS)), beta)
    worst = kl_optimum(reference, -np.log(STRENGTHS), beta)
    assert np.abs(mirrored - worst).sum(-1).max() / 2 < 2e-3


def test_clean_labels_have_no_finite_optimum_but_ipo_has():
    """One pair: IPO ends at a difference of log-ratios of 1 / (2 beta); DPO goes on."""
    pairs = Preferences(choices([0, 1, 2], [1, 1, 1]), choices([0, 1, 2], [0, 0, 0]))

    def difference(loss):
        learned, reference = table_after(pairs, 0.25, loss=loss)
        ratio = np.log(learned / reference)
        return ratio[:, 1] - ratio[:, 0]

    np.testing.assert_allclose(difference("ipo"), 2.0, atol=0.02)
    assert (difference("sigmoid") > 8).all()


def bandit_gain(seed, **options):
    """Expected reward after training on sampled pairs, less that before."""
    table = np.random.default_rng(100 + seed).standard_normal((4, 8))
    env = gym.make_vec("TabularBandit-v0", num_envs=64, rewards=table)
    config = DPOConfig(**{"group_size": 8, "learning_rate": 0.1} | options)
    agent = DPO(env, TabularPolicy(4, 8, value=False), config, seed=seed).learn(64 * 15)
    return float((agent.policy.logits.detach().softmax(-1).numpy() * table).sum(-1).mean() - table.mean())


@pytest.mark.parametrize("source", ["policy", "reference"])
def test_sampled_pairs_raise_the_reward_on_every_seed(source):
    gains = [bandit_gain(seed, sample_from=source) for seed in range(4)]
    assert min(gains) > 0.5


def test_with_best_and_worst_swapped_the_reward_falls(monkeypatch):
    monkeypatch.setattr(dpo_module, "best_and_worst", lambda episodes: flipped(best_and_worst(episodes)))
    assert max(bandit_gain(seed) for seed in range(4)) < -0.5


def test_a_tiny_language_model_learns_on_every_seed(tiny_env, tiny_policy):
    for seed in range(3):
        config = DPOConfig(episodes_per_iteration=32, group_size=8, learning_rate=1e-2)
        agent = DPO(tiny_env(32), tiny_policy(), config, seed=seed)
        before = agent.evaluate(episodes=64)
        after = agent.learn(32 * 10).evaluate(episodes=64)
        assert after.mean - before.mean > 3 * np.hypot(before.standard_error, after.standard_error)


def letter_e(completions, **_):
    """Percentage of the letters that are an e."""
    return [100 * c.count("e") / max(20, len(c)) for c in completions]


@pytest.mark.slow
def test_the_embedded_model_prefers_held_out_texts_as_it_was_taught():
    env = gym.make_vec("LLMAlign-v0", num_envs=64, max_new_tokens=16, reward=letter_e)
    config = DPOConfig(episodes_per_iteration=32, learning_rate=3e-4)
    untrained = DPO(env, "stories").policy

    def pairs(first):
        """32 pairs of stories with many and with few letters e; other states and other noise at each ``first``."""
        group = torch.arange(32).repeat_interleave(8)
        noise = RowNoise(range(first, first + len(group)))
        return best_and_worst(collect(env, untrained, seeds=(group + first).tolist(), noise=noise, group=group))

    training, held_out = pairs(0), pairs(5000)
    agent = DPO(env, "stories", config, pairs=training)
    assert agent.compare(held_out)["margin"] == 0
    found = agent.learn(32 * 6).compare(held_out)
    assert found["accuracy"] > 0.6 and found["margin"] > 0.2, found
    taught_wrong = DPO(env, "stories", config, pairs=flipped(training)).learn(32 * 6).compare(held_out)
    assert taught_wrong["accuracy"] < 0.4 and taught_wrong["margin"] < -0.2, taught_wrong

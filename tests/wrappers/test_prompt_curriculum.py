"""PromptCurriculum: what it knows of prompts, and which it draws."""

import gymnasium as gym
import numpy as np
import pytest

from aligngym.agents.policies.policy import RowNoise
from aligngym.wrappers import PromptCurriculum, PromptStatistics, vector

TABLE = [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.2, 0.8]]


def bandit(num_envs=8, **kwargs):
    return gym.make_vec("TabularBandit-v0", num_envs=num_envs, rewards=TABLE, **kwargs)


def visit(env, rounds=20, seed=0):
    """Play every prompt with both arms alike."""
    for _ in range(rounds):
        for arms in ([0, 1] * 4, [1, 0] * 4):
            env.reset(seed=seed, options={"prompt_index": np.repeat(np.arange(4), 2)})
            env.step(np.array(arms))


def test_statistics_are_means_and_then_forget():
    statistics = PromptStatistics.empty(2)
    rewards = [0.2, 0.9, 0.4, 0.7]
    for reward in rewards:
        statistics.add(1, reward, reward > 0.5, 0.0)
    assert statistics.visits.tolist() == [0, 4] and statistics.success[1] == 0.5
    assert statistics.mean[1] == pytest.approx(np.mean(rewards)) and statistics.std[1] == pytest.approx(np.std(rewards))
    for _ in range(400):
        statistics.add(1, 5.0, True, 0.05)
    assert statistics.mean[1] == pytest.approx(5.0) and statistics.std[1] < 1e-3


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("spread", [0, 0.5, 0, 0.3]),
        ("intermediate", [0, 0.25, 0, 0.25]),
        ("hardest", [1, 1 / 2, 1 / 4, 1 / 3]),
        (lambda s: s.mean, [0, 0.5, 1, 0.5]),
    ],
)
def test_weights_of_each_strategy(strategy, expected):
    env = vector.PromptCurriculum(bandit(), strategy, explore=0.0, rate=0.0)
    np.testing.assert_allclose(env.weights, 0.25)  # nothing known yet
    visit(env)
    np.testing.assert_allclose(env.statistics.mean, np.mean(TABLE, 1), atol=1e-6)
    np.testing.assert_allclose(env.weights, np.array(expected) / np.sum(expected), atol=1e-6)
    mixed = vector.PromptCurriculum(bandit(), strategy, explore=0.4, rate=0.0)
    visit(mixed)
    np.testing.assert_allclose(mixed.weights, 0.6 * env.weights + 0.1, atol=1e-6)


def test_prompts_are_drawn_by_the_weights_at_reset_and_at_restart():
    env = vector.PromptCurriculum(bandit(64), "spread", explore=0.2, rate=0.0)
    env.statistics.visits[:] = 10
    env.statistics.variance[:] = np.square([0.0, 0.5, 0.0, 0.3])
    env.update_statistics = False
    env._apply()
    drawn = []
    observation, _ = env.reset(seed=0)
    for _ in range(100):
        drawn.append(observation)
        observation, *_ = env.step(np.zeros(64, int))  # an episode of one step: every step restarts every row
    share = np.bincount(np.concatenate(drawn), minlength=4) / 6400
    np.testing.assert_allclose(share, env.weights, atol=0.02)


def test_equal_seeds_are_groups_and_nothing_known_is_like_no_curriculum():
    env = vector.PromptCurriculum(bandit(), "hardest")
    visit(env)
    prompts, _ = env.reset(seed=[3, 3, 3, 3, 9, 9, 9, 9])
    assert len(set(prompts[:4].tolist())) == len(set(prompts[4:].tolist())) == 1


def test_unknown_prompts_get_the_largest_weight():
    env = vector.PromptCurriculum(bandit(2), "spread", explore=0.0, rate=0.0)
    for _ in range(2):
        env.reset(options={"prompt_index": np.array([1, 3])})
        env.step(np.array([0, 1]))
        env.reset(options={"prompt_index": np.array([1, 3])})
        env.step(np.array([1, 0]))
    np.testing.assert_allclose(env.weights, np.array([0.5, 0.5, 0.5, 0.3]) / 1.8, atol=1e-6)


def test_all_weights_zero_is_uniform():
    env = vector.PromptCurriculum(bandit(), lambda statistics: np.zeros(4))
    visit(env, 1)
    np.testing.assert_allclose(env.weights, 0.25)


def test_failed_and_given_prompts_teach_nothing(make):
    env = vector.PromptCurriculum(make(2, reward=lambda completions, **_: [np.nan] * len(completions)))
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.array([5, 5]))
    assert env.statistics.visits.sum() == 0
    env = vector.PromptCurriculum(make(2))
    env.reset(options={"prompt": "something else"})
    for _ in range(8):
        env.step(np.array([5, 5]))
    assert env.statistics.visits.sum() == 0


def test_prompts_open_in_order(make, make_one):
    env = vector.PromptCurriculum(make(4), "uniform", order_by="level", order_episodes=16, order_start=0.2)
    level = np.array([3, 1, 2, 5, 4])
    for episodes, limit in ((0, 1), (4, 2), (8, 3), (12, 4), (16, 5), (40, 5)):
        env.episodes = episodes
        env._apply()
        assert set(level[env.weights > 0]) == set(range(1, limit + 1))
        np.testing.assert_allclose(env.weights[env.weights > 0], 1 / limit)
    assert PromptCurriculum(make_one(), order_by=[5, 4, 3, 2, 1], order_start=0.2).weights.tolist() == [0, 0, 0, 0, 1]


def test_harder_prompts_come_more_often_when_played(make, play):
    env = vector.PromptCurriculum(make(8, reward=lambda level, **_: [float(k) for k in level]), "hardest", min_visits=1)
    for start in range(0, 80, 8):
        play(env, list(range(start, start + 8)))
    assert env.statistics.visits.sum() == 80 and (env.statistics.visits > 0).all()
    assert np.argmax(env.weights) == 1 and np.argmin(env.weights) == 3  # levels 1 and 5
    assert env.statistics.visits[1] > env.statistics.visits[3]


def test_state_brings_back_the_weights(make, play):
    env = vector.PromptCurriculum(make(4), "spread", order_by="level", order_episodes=20)
    for seed in range(4):
        play(env, [seed * 4, seed * 4, seed * 4 + 1, seed * 4 + 1])
    twin = vector.PromptCurriculum(make(4), "spread", order_by="level", order_episodes=20)
    twin.set_state(env.get_state())
    np.testing.assert_array_equal(twin.weights, env.weights)
    with pytest.raises(ValueError, match="the state is of 5 prompts, but there are 2"):
        vector.PromptCurriculum(make(4, prompts=["a", "b"])).set_state(env.get_state())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"strategy": "easy"}, "strategy is 'easy'"),
        ({"explore": 1.5}, "explore is 1.5"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"order_start": 0}, "order_start is 0"),
        ({"min_visits": 0}, "min_visits=0"),
        ({"order_by": "nothing"}, "columns are \\['level', 'reference'\\]"),
        ({"order_by": "reference"}, "order_by must name or hold numbers"),
        ({"order_by": [1.0, 2.0]}, "expected 5 finite numbers"),
        ({"strategy": lambda statistics: [1.0]}, "strategy must return 5 finite weights"),
        ({"strategy": lambda statistics: -np.ones(5)}, "strategy must return 5 finite weights"),
    ],
)
def test_refuses(make, bad, message):
    with pytest.raises(ValueError, match=message):
        vector.PromptCurriculum(make(), **bad)


def test_needs_an_environment_with_prompts(make_sync):
    with pytest.raises(ValueError, match="draws no prompts from a table"):
        PromptCurriculum(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="wrapped one by one"):
        vector.PromptCurriculum(make_sync("NextStep", lambda env: env))


def test_noise_streams_are_not_touched(make, policy):
    env = vector.PromptCurriculum(make(2), "spread")
    first = env.rollout(policy, noise=RowNoise([1, 2]), seed=[4, 4])
    assert first.info["prompt"][0] == first.info["prompt"][1]

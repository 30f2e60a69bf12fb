"""What evaluation and a batch of episodes report, by hand."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents import agent as agent_module
from aligngym.agents.evaluation import EvaluationResult, join, rollout_metrics, summarize
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.control import TabularPolicy
from aligngym.trajectories import Trajectories


def record(returns, lengths, group, terms=None, info=None):
    """Episodes with the given returns (NaN: invalid), every log-probability -0.5 a decision."""
    count, steps = len(returns), max(lengths)
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(count, steps)
    rewards[torch.arange(count), torch.tensor(lengths) - 1] = torch.tensor(returns)
    flags = torch.arange(count) % 2 == 0
    return Trajectories(
        observations=torch.zeros(count, 1), actions=torch.zeros(count, steps, dtype=torch.long), mask=mask,
        log_probs=-0.5 * mask, rewards=rewards, terminated=flags, truncated=~flags,
        valid=~torch.tensor(returns).isnan(), group=torch.tensor(group),
        terms={k: torch.tensor(v) for k, v in (terms or {}).items()}, info=info or {},
    )  # fmt: skip


def test_metrics_of_a_rollout():
    nan = math.nan
    terms = {"a": [1.0, nan, 50.0, 3.0, 2.0, nan]}
    episodes = record([1.0, 3.0, nan, 2.0, 2.0, nan], [1, 2, 9, 3, 4, 9], [0, 0, 0, 1, 1, 2], terms)
    assert rollout_metrics(episodes) == pytest.approx(
        {
            "rollout/invalid_fraction": 2 / 6, "rollout/length_mean": 2.5, "rollout/terminated_fraction": 0.5,
            "rollout/entropy": 0.5, "rollout/reward_mean": 2.0, "rollout/reward_std": np.std([1, 3, 2, 2], ddof=1),
            "rollout/equal_groups_fraction": 0.5, "rollout/term/a": 2.0,
        }
    )  # fmt: skip


def test_metrics_of_nothing_valid_and_of_one():
    assert rollout_metrics(record([math.nan] * 2, [1, 1], [0, 0])) == {"rollout/invalid_fraction": 1.0}
    one = rollout_metrics(record([4.0], [3], [0]))
    assert one["rollout/reward_mean"] == 4 and one["rollout/reward_std"] == 0
    assert "rollout/equal_groups_fraction" not in one


def test_result_by_hand():
    nan = math.nan
    result = EvaluationResult(
        returns=np.array([1.0, nan, 3.0, 5.0]), lengths=np.array([2, 2, 4, 4]),
        terminated=np.array([True, False, True, True]), divergences=np.array([0.1, 0.2, 0.3, 0.4]), terms={"a": 1.5},
    )  # fmt: skip
    assert result.mean == 3 and result.valid == 3 and result.kl == pytest.approx(0.25)
    assert result.standard_error == pytest.approx(2 / math.sqrt(3))
    assert result.metrics() == pytest.approx(
        {
            "eval/reward_mean": 3, "eval/reward_se": 2 / math.sqrt(3), "eval/kl": 0.25, "eval/length_mean": 3,
            "eval/terminated_fraction": 0.75, "eval/invalid": 1, "eval/term/a": 1.5,
        }
    )  # fmt: skip


def test_result_of_nothing_valid_is_nan_without_a_warning(recwarn):
    result = summarize(record([math.nan] * 3, [1, 1, 1], [0, 1, 2]), None)
    assert math.isnan(result.mean) and math.isnan(result.standard_error) and math.isnan(result.kl)
    assert result.metrics()["eval/invalid"] == 3 and not recwarn.list


def test_parts_are_joined_cut_and_keep_what_only_some_report():
    first = record([1.0, 2.0], [1, 2], [0, 1], {"a": [1.0, 2.0]}, {"name": ["x", "y"]})
    second = record([3.0, 9.0], [3, 3], [0, 1], {"b": [5.0, 6.0]}, {"name": ["z", "cut"], "late": [1, 2]})
    whole = join([summarize(first, torch.tensor([0.1, 0.2])), summarize(second, torch.tensor([0.3, 9.0]))], 3)
    assert whole.returns.tolist() == [1, 2, 3] and whole.lengths.tolist() == [1, 2, 3]
    assert whole.divergences.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert whole.terms == {"a": 1.5, "b": 5.0}
    assert whole.info == {"name": ["x", "y", "z"], "late": [None, None, 1]}


def bandit(num_envs=16, **env):
    env = gym.make_vec("TabularBandit-v0", num_envs=num_envs, noise_std=0.5, **env)
    return GRPO(env, TabularPolicy(4, 8, value=False), GRPOConfig(episodes_per_iteration=16, group_size=4))


def test_evaluation_repeats_itself_whatever_the_batch():
    agent = bandit()
    agent.learn(32)
    first = agent.evaluate(episodes=100)
    agent.rng.random(17)
    again = agent.evaluate(episodes=100)
    other = agent.evaluate(gym.make_vec("TabularBandit-v0", num_envs=7, noise_std=0.5), episodes=100)
    for result in (again, other):
        assert np.array_equal(first.returns, result.returns) and first.info == result.info
        assert np.allclose(first.divergences, result.divergences) and first.terms == result.terms
    assert len(first.returns) == len(first.lengths) == len(first.info["prompt"]) == 100
    assert not np.array_equal(first.returns, agent.evaluate(episodes=100, seed=5).returns)


def test_evaluation_is_what_the_policy_earns():
    agent, table = bandit(rewards=np.arange(32.0).reshape(4, 8)), np.arange(32.0).reshape(4, 8)
    with torch.no_grad():
        agent.policy.logits.copy_(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    probs = agent.policy.logits.detach().softmax(-1).double().numpy()
    result = agent.evaluate(episodes=6400)
    assert abs(result.mean - (probs * table).sum(1).mean()) < 4 * result.standard_error
    kl = (probs * np.log(probs * 8)).sum(1).mean()
    assert abs(result.kl - kl) < 4 * result.divergences.std() / 80
    greedy = agent.evaluate(episodes=64, deterministic=True)
    assert all(a == probs[p].argmax() for p, a in zip(greedy.info["prompt"], greedy.info["arm"], strict=True))
    with pytest.raises(ValueError, match="episodes=0"):
        agent.evaluate(episodes=0)


def test_states_and_actions_of_an_evaluation_are_independent(monkeypatch):
    """A row's environment and its action noise must not be seeded alike: both would draw the same numbers."""
    seen = []

    def spy(env, policy, *, seeds, noise, **kwargs):
        seen.extend(zip(seeds, noise.seeds, strict=True))
        return collect(env, policy, seeds=seeds, noise=noise, **kwargs)

    collect = agent_module.collect
    monkeypatch.setattr(agent_module, "collect", spy)
    bandit().evaluate(episodes=32)
    assert len(seen) == 32 and not {a for a, _ in seen} & {b for _, b in seen}


def test_a_failing_evaluation_leaves_the_environment_as_it_was(tiny_env, tiny_policy):
    agent = GRPO(tiny_env(16), tiny_policy(), GRPOConfig(episodes_per_iteration=16, group_size=4))
    agent.learn(16)
    before = agent.env.get_state()
    agent.divergences = lambda episodes: 1 / 0
    with pytest.raises(ZeroDivisionError):
        agent.evaluate(episodes=16)
    assert agent.env.get_state() == before

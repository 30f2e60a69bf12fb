"""Rewards that fail and gradients that are not finite: counted, left out, and nothing is lost."""

import math

import pytest
import torch

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.ppo import PPO, PPOConfig

AGENTS = {"ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig)}


def state(agent):
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}


def unchanged(agent, before):
    return all(torch.equal(v, before[k]) for k, v in agent.policy.state_dict().items())


def some_fail(completions, **_):
    """None, which does not apply, for completions of an even number of words."""
    return [None if len(c.split()) % 2 == 0 else len(set(c.split())) for c in completions]


@pytest.mark.parametrize("name", AGENTS)
def test_invalid_rows_are_counted_and_otherwise_left_out(make, name):
    agent = make(name, env={"reward": some_fail}, kl_coef=0.1)
    episodes = agent.collect()
    invalid = int((~episodes.valid).sum())
    assert 0 < invalid < 16 and episodes.returns[~episodes.valid].isnan().all()
    kept = episodes.select(episodes.valid)
    batch, expected = agent.prepare(kept)
    agent.collect = lambda: episodes
    fed = []
    update = agent.update
    agent.update = lambda batch: fed.append(batch) or update(batch)
    logged = {}
    agent.log = logged.update
    agent.learn(1)
    assert len(fed[0].episodes) == 16 - invalid and torch.isfinite(fed[0].advantages).all()
    assert torch.equal(fed[0].advantages, batch.advantages)
    assert logged["rollout/invalid_fraction"] == invalid / 16
    assert logged["rollout/reward_mean"] == pytest.approx(kept.returns.mean().item())
    assert logged["rollout/length_mean"] == pytest.approx(kept.lengths.float().mean().item())
    assert logged["train/kl"] == expected["train/kl"]
    assert all(math.isfinite(v) for v in logged.values()), logged
    assert agent.episodes == 16, "invalid episodes were played and count"


def test_a_group_is_compared_with_its_valid_members_only(make):
    agent = make("grpo", env={"reward": some_fail})
    episodes = agent.collect()
    batch, _ = agent.prepare(episodes.select(episodes.valid))
    for group in range(4):
        rows = batch.episodes.group == group
        returns, advantages = batch.episodes.returns[rows], batch.advantages[rows, 0]
        if len(returns) > 1 and returns.std() > 0:
            z = (returns - returns.mean()) / (returns.std() + 1e-4)
            torch.testing.assert_close(advantages, z, atol=1e-4, rtol=1e-4)
        else:
            assert (advantages == 0).all()


@pytest.mark.parametrize("name", AGENTS)
def test_nothing_valid_means_no_update_and_no_crash(make, name, tmp_path):
    agent = make(name, env={"reward": lambda completions, **_: [None] * len(completions)}, folder=tmp_path)
    before, logged = state(agent), []
    log = agent.log
    agent.log = lambda metrics: logged.append(metrics) or log(metrics)
    agent.learn(32)
    assert unchanged(agent, before) and agent.episodes == 32 and agent.policy.version == 0
    assert logged[0]["rollout/invalid_fraction"] == 1 and "train/policy_loss" not in logged[0]
    assert not any(math.isnan(v) for v in logged[0].values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", AGENTS)
def test_a_gradient_that_is_not_finite_stops_before_any_change(make, name, value):
    agent = make(name)
    episodes = agent.collect()
    batch, _ = agent.prepare(episodes.select(episodes.valid))
    batch.advantages[3, 0] = value
    before = state(agent)
    with pytest.raises(FloatingPointError, match="gradient norm is"):
        agent.update(batch)
    assert unchanged(agent, before) and agent.policy.version == 0

"""Every alarm is raised by what it is for, once, and by nothing healthy."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch

from aligngym.agents.alarms import KINDS, Alarms, AlarmWarning
from aligngym.agents.ppo import PPO, PPOConfig
from aligngym.trajectories import Trajectories


@dataclass
class Agent:
    """As much of an agent as alarms read."""

    episodes: int = 64


def episodes(seed=0, groups=8, size=4, steps=6):
    """A healthy batch of generation episodes: rewards differ within groups, half of the episodes end by themselves."""
    generator = torch.Generator().manual_seed(seed)
    batch = groups * size
    rewards = torch.zeros(batch, steps)
    rewards[:, -1] = torch.randn(batch, generator=generator)
    terminated = torch.arange(batch) % 2 == 0
    return Trajectories(
        observations=torch.zeros(batch, 3),
        actions=torch.zeros(batch, steps, dtype=torch.int64),
        log_probs=torch.full((batch, steps), -1.5),
        mask=torch.ones(batch, steps, dtype=torch.bool),
        rewards=rewards,
        terminated=terminated,
        truncated=~terminated,
        valid=torch.ones(batch, dtype=torch.bool),
        group=torch.arange(groups).repeat_interleave(size),
        info={"invalid": [None] * batch},
    )


def ends(batch, truncated):
    flags = torch.full((len(batch),), truncated)
    return replace(batch, truncated=flags, terminated=~flags)


def invalid(batch, count):
    reasons = ["timed out"] * (count - 1) + ["division by zero"] + [None] * (len(batch) - count)
    rewards = batch.rewards.clone()
    rewards[:count, -1] = torch.nan
    return replace(batch, rewards=rewards, valid=torch.arange(len(batch)) >= count, info={"invalid": reasons})


def constant(batch):
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, -1] = batch.group.float()  # groups differ, episodes of a group do not
    return replace(batch, rewards=rewards)


def watch(batches, metrics=None, **kwargs):
    """Metrics after the last batch, and the messages."""
    alarms, found = Alarms(**kwargs), {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches:
            found = dict(metrics or {"train/kl": 3.0})
            assert alarms.on_iteration(Agent(), batch, found) is True
    assert all(issubclass(w.category, AlarmWarning) for w in caught)
    return {kind for kind in KINDS if found[f"alarm/{kind}"]}, [str(w.message) for w in caught], found


def test_nothing_is_wrong_with_healthy_episodes():
    kinds, messages, metrics = watch([episodes(seed) for seed in range(20)])
    assert kinds == set() and messages == []
    assert [metrics[f"alarm/{kind}"] for kind in KINDS] == [0] * 5


def test_equal_rewards_within_nearly_all_groups():
    kinds, (message,), metrics = watch([constant(episodes(seed)) for seed in range(5)])
    assert kinds == {"no_signal"}
    assert "100% of the groups have equal rewards" in message and "group_size" in message
    assert metrics["alarm/no_signal"] == 4  # of 5 iterations; the first one may be chance


def test_equal_rewards_of_some_groups_are_no_alarm():
    batch = constant(episodes())
    batch.rewards[:8, -1] = torch.randn(8, generator=torch.Generator().manual_seed(1))
    assert watch([batch] * 3)[0] == set()


def test_rounding_does_not_hide_equal_rewards():
    batch = constant(episodes())
    batch.rewards[:, -1] += 1e-8 * torch.arange(len(batch))
    assert watch([batch] * 2)[0] == {"no_signal"}


def test_without_groups_all_rewards_are_compared():
    alone = replace(episodes(), group=torch.arange(32))
    assert watch([alone] * 2)[0] == set()
    assert watch([replace(alone, rewards=torch.ones_like(alone.rewards))] * 2)[0] == {"no_signal"}


def test_truncation_that_came_during_training():
    kinds, (message,), _ = watch([episodes(0), *(ends(episodes(s), True) for s in range(1, 4))])
    assert kinds == {"truncated"}
    assert "up from 50% at first" in message and "max_new_tokens" in message


def test_truncation_that_earns_nothing():
    zero = ends(replace(episodes(), rewards=torch.zeros(32, 6)), True)
    kinds, messages, _ = watch([zero] * 3)
    assert kinds == {"no_signal", "truncated"}
    assert len(messages) == 2


def test_a_budget_that_always_cuts_but_separates_rewards_is_no_alarm():
    assert watch([ends(episodes(s), True) for s in range(5)])[0] == set()


def test_living_to_the_time_limit_of_a_control_task_is_no_alarm():
    solved = ends(episodes(1), True)
    solved.rewards[:] = torch.rand(32, 6, generator=torch.Generator().manual_seed(2))
    assert watch([ends(episodes(0), False), solved, solved, solved])[0] == set()


def test_divergence_beyond_the_limit():
    kinds, (message,), _ = watch([episodes(s) for s in range(3)], {"train/kl": 51.0})
    assert kinds == {"kl"}
    assert "51.0 nats" in message and "kl_coef" in message
    assert watch([episodes(s) for s in range(3)], {"train/kl": 51.0}, kl_limit=60)[0] == set()
    assert watch([episodes(s) for s in range(3)], {"train/policy_loss": 1.0})[0] == set()


def test_entropy_far_below_its_start():
    low = [replace(episodes(s), log_probs=torch.full((32, 6), -0.2)) for s in range(3)]
    kinds, (message,), _ = watch([episodes(9), *low])
    assert kinds == {"entropy"}
    assert "0.200 nats from 1.500" in message and "entropy_coef" in message
    assert watch(low)[0] == set()  # it began there


def test_the_entropy_of_a_density_has_no_fraction():
    def continuous(level):
        return replace(episodes(), actions=torch.zeros(32, 6, 2), log_probs=torch.full((32, 6), level))

    assert watch([continuous(-1.5), continuous(2.0), continuous(2.0)])[0] == set()


def test_failed_rewards_with_their_most_frequent_reason():
    kinds, (message,), metrics = watch([invalid(episodes(s), 16) for s in range(3)])
    assert kinds == {"invalid"}
    assert "50%" in message and "timed out" in message and "division" not in message
    assert metrics["alarm/invalid"] == 2
    assert watch([invalid(episodes(s), 2) for s in range(3)])[0] == set()


def test_all_rewards_failed():
    assert watch([invalid(episodes(), 32)] * 2)[0] == {"invalid"}


def test_one_bad_iteration_is_no_alarm_and_patience_is_settable():
    bad, good = constant(episodes()), episodes()
    assert watch([bad, good, bad, good, bad])[0] == set()
    assert watch([bad], patience=1)[0] == {"no_signal"}


def test_the_state_goes_on_after_a_resume():
    before = Alarms()
    before.on_iteration(Agent(), episodes(), {})
    after = Alarms()
    after.set_state(before.get_state())
    low = replace(episodes(), log_probs=torch.full((32, 6), -0.1))
    after.on_iteration(Agent(), low, {})
    with pytest.warns(AlarmWarning, match="entropy"):
        after.on_iteration(Agent(), low, {})
    assert Alarms().get_state() == {}


@pytest.mark.parametrize("wrong", [{"kl_limit": 0}, {"patience": 0}, {"nearly": 1.5}, {"entropy_fraction": -1}])
def test_impossible_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Alarms(**wrong)


def test_a_real_run_that_learns_raises_no_alarm():
    alarms = Alarms()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AlarmWarning)
        PPO("CartPole-v1", config=PPOConfig(episodes_per_iteration=16, kl_coef=0.0)).learn(160, alarms)
    assert set(alarms.counts.values()) == {0}

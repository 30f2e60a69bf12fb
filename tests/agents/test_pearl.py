"""PEARL: what it learns from, what it never sees, and that it resumes; on the embedded episodes of Meta-World."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.offline.robomimic import read_robomimic
from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.segments import sample_segments
from aligngym.agents.pearl import PEARL, PEARLConfig
from aligngym.assets import robot_data_path

SMALL = {
    "reward_updates": 20, "reward_batch_size": 16, "reward_width": 16, "labels": 40, "target_segments": 40, "starts": 2,
    "updates_per_iteration": 10, "batch_size": 32, "hidden": (16,), "total_updates": 40,
}  # fmt: skip


def make():
    return gym.make_vec("ManipulationAlign-v0", num_envs=2, vectorization_mode="sync", task="door-close", max_steps=10)


def preferences(task, seed=0, length=10):
    """All pairs of 20 segments, labelled by their true returns."""
    segments, rewards = sample_segments(read_robomimic(robot_data_path(task)), length, 20, np.random.default_rng(seed))
    pairs = torch.triu_indices(20, 20, 1).T
    returns = rewards.sum(1)[pairs]
    return PreferenceDataset(segments=segments, pairs=pairs, labels=(returns[:, 0] > returns[:, 1]).float())


@pytest.fixture(scope="module")
def episodes():
    played = read_robomimic(robot_data_path("door-close"))
    cut = {name: getattr(played, name)[:, :30] for name in ("actions", "log_probs", "mask", "rewards")}
    return dataclasses.replace(played, **cut, observations=played.observations[:, :31])


def agent(episodes, source, seed=0, **options):
    config = PEARLConfig(**SMALL | options)
    return PEARL(make(), config=config, dataset=episodes, preferences=source, seed=seed)


def learned(*arguments, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*opposite labels", UserWarning)
        return agent(*arguments, **options).learn(20)


def weights(agent):
    return torch.cat([p.detach().flatten() for p in (*agent.policy.parameters(), *agent.critics.parameters())])


@pytest.fixture(scope="module")
def source():
    return preferences("faucet-close")


def test_true_rewards_of_the_target_are_never_seen(episodes, source):
    misleading = dataclasses.replace(episodes, rewards=-7 * episodes.rewards.flip(0), terms={}, info={})
    for transfer in ("cpa", "similarity", "distance"):
        one, other = (learned(data, source, transfer=transfer) for data in (episodes, misleading))
        assert torch.equal(weights(one), weights(other)), transfer


def test_the_ways_of_transfer_and_the_kinds_of_reward_differ(episodes, source):
    options = [{"transfer": t} for t in ("cpa", "similarity", "distance", "none")] + [{"gaussian": False}]
    found = [weights(learned(episodes, source, **o)) for o in options]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_report_of_the_transfer_is_kept(episodes, source):
    assert learned(episodes, source, transfer="similarity").alignment is None
    report = learned(episodes, source).alignment
    assert report.problems == len(report.values) >= 10 and report.value == pytest.approx(np.mean(report.values))


def test_iql_reads_the_learned_rewards_on_their_scale(episodes, source):
    made = learned(episodes, source, return_range=123.0)
    rewards = made.data.rewards.reshape(episodes.mask.shape)
    returns = rewards.sum(1)
    assert (returns.max() - returns.min()).item() == pytest.approx(123, rel=1e-4)
    one = made.predict_rewards(episodes.observations[3, :30].numpy(), episodes.actions[3].numpy())
    scale = rewards[3] / torch.from_numpy(one).float()
    torch.testing.assert_close(scale, scale[:1].expand(30), rtol=1e-3, atol=1e-3)
    assert np.isnan(agent(episodes, source).predict_rewards(one[:, None], one[:, None])).all()


def test_resume_is_exact_and_does_not_learn_the_reward_again(episodes, source, tmp_path, monkeypatch):
    whole, half = learned(episodes, source).learn(20), learned(episodes, source)
    half.save(tmp_path / "half")
    monkeypatch.setattr(PEARL, "_learn_reward", None)
    again = PEARL.load(tmp_path / "half", make(), dataset=episodes).learn(20)
    assert torch.equal(weights(again), weights(whole)) and again.episodes == 40
    assert again.alignment == half.alignment
    played = PEARL.load(tmp_path / "half", make())
    assert played.evaluate(episodes=2).returns.tolist() == half.evaluate(episodes=2).returns.tolist()


def test_from_files(episodes, source, tmp_path):
    path = source.save(tmp_path / "source.safetensors")
    given = learned(episodes, source)
    read = learned(episodes, None, preferences=str(path))
    assert torch.equal(weights(given), weights(read))
    with pytest.raises(ValueError, match="given twice"):
        agent(episodes, source, preferences=str(path))
    with pytest.raises(ValueError, match="nothing to learn a reward from"):
        agent(episodes, None).learn(10)
    with pytest.raises(ValueError, match="nothing to learn from"):
        agent(None, source).learn(10)


def test_the_table_of_preferences():
    pairs, labels = torch.tensor([[0, 1], [1, 0], [2, 3]]), torch.tensor([1.0, 0.5, 0.25])
    table = dataclasses.replace(preferences("faucet-close"), pairs=pairs, labels=labels).table()
    assert table[0, 1] == 0.75 and table[1, 0] == 0.25 and table[2, 3] == 0.25 and table[3, 2] == 0.75
    assert np.isfinite(table).sum() == 4

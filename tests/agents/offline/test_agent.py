"""What agents of datasets share: where the dataset comes from, which one fits, standardisation, checkpoints."""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.bc import BC, BCConfig
from aligngym.agents.callbacks import Callback
from aligngym.agents.iql import IQL, IQLConfig
from aligngym.agents.offline.minari_data import write_minari
from aligngym.agents.offline.robomimic import write_robomimic

from ..recorded import everything, make, play

SMALL = {"hidden": (8,), "batch_size": 16, "updates_per_iteration": 5}


@pytest.fixture(scope="module")
def pendulum():
    return play("Pendulum-v1", 4, max_episode_steps=20)


def test_files_and_objects_are_the_same_dataset(pendulum, tmp_path):
    pytest.importorskip("minari")
    env = gym.make("Pendulum-v1")
    write_robomimic(tmp_path / "a.hdf5", pendulum, env_args={})
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    write_minari(tmp_path / "b", pendulum, dataset_id="tests/b-v0", **spaces)
    prints = [BC("Pendulum-v1", config=BCConfig(dataset=str(tmp_path / name))).fingerprint for name in ("a.hdf5", "b")]
    assert prints == [BC("Pendulum-v1", dataset=pendulum).fingerprint] * 2


def test_observation_keys_are_joined(pendulum, tmp_path):
    parts = {"b": pendulum.observations[..., :1], "a": pendulum.observations[..., 1:]}
    write_robomimic(tmp_path / "a.hdf5", dataclasses.replace(pendulum, observations=parts), env_args={})
    agent = BC("Pendulum-v1", config=BCConfig(dataset=str(tmp_path / "a.hdf5"), observation_keys=("b", "a")))
    assert agent.fingerprint == BC("Pendulum-v1", dataset=pendulum).fingerprint
    with pytest.raises(ValueError, match="an observation of the dataset has 1 numbers"):
        BC("Pendulum-v1", config=BCConfig(dataset=str(tmp_path / "a.hdf5"), observation_keys=("b",)))


def test_exactly_one_dataset(pendulum, tmp_path):
    with pytest.raises(ValueError, match=r"given twice: as an argument and as the file x.hdf5"):
        BC("Pendulum-v1", config=BCConfig(dataset="x.hdf5"), dataset=pendulum)
    with pytest.raises(FileNotFoundError, match=r"nowhere.hdf5 does not exist"):
        BC("Pendulum-v1", config=BCConfig(dataset=str(tmp_path / "nowhere.hdf5")))
    agent = BC(make("Pendulum-v1", max_episode_steps=5))
    assert agent.evaluate(episodes=4).valid == 4  # which takes none
    with pytest.raises(ValueError, match="nothing to learn from"):
        agent.learn(5)


def test_the_dataset_must_fit_the_environment(pendulum):
    with pytest.raises(ValueError, match="an observation of the dataset has 3 numbers, but one of the environment is"):
        BC("MountainCarContinuous-v0", dataset=pendulum)
    with pytest.raises(ValueError, match="an action of the dataset has 2 numbers"):
        wide = dataclasses.replace(pendulum, actions=pendulum.actions.repeat(1, 1, 2))
        BC("Pendulum-v1", dataset=wide)


def test_load_wants_the_same_dataset(pendulum, tmp_path):
    IQL("Pendulum-v1", config=IQLConfig(**SMALL), dataset=pendulum).learn(5).save(tmp_path / "saved")
    other = dataclasses.replace(pendulum, rewards=pendulum.rewards + pendulum.mask)
    with pytest.raises(ValueError, match="saved with another dataset"):
        IQL.load(tmp_path / "saved", dataset=other)
    loaded = IQL.load(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"load\(..., dataset=episodes\)"):
        loaded.learn(5)
    loaded.save(tmp_path / "again")  # which still says what it was trained on
    with pytest.raises(ValueError, match="saved with another dataset"):
        IQL.load(tmp_path / "again", dataset=other)
    assert IQL.load(tmp_path / "again", dataset=pendulum).learn(5).episodes == 10


def test_a_file_is_read_again_and_must_not_have_changed(pendulum, tmp_path):
    write_robomimic(tmp_path / "a.hdf5", pendulum, env_args={})
    config = BCConfig(**SMALL, dataset=str(tmp_path / "a.hdf5"))
    straight = BC("Pendulum-v1", config=config).learn(20)
    BC("Pendulum-v1", config=config).learn(10).save(tmp_path / "saved")
    resumed = BC.load(tmp_path / "saved").learn(10)
    assert everything(straight, tmp_path / "x") == everything(resumed, tmp_path / "y")
    with pytest.raises(ValueError, match="give no other"):
        BC.load(tmp_path / "saved", dataset=pendulum)
    pendulum.rewards[0, 0] += 1
    write_robomimic(tmp_path / "a.hdf5", pendulum, env_args={})
    with pytest.raises(ValueError, match="saved with another dataset"):
        BC.load(tmp_path / "saved")


def test_updates_are_counted_and_reported(pendulum, tmp_path):
    class Count(Callback):
        seen = []

        def on_iteration(self, agent, episodes, metrics):
            self.seen.append((agent.episodes, episodes, metrics["train/actor_loss"]))
            return True

    agent = BC("Pendulum-v1", config=BCConfig(**SMALL), dataset=pendulum, folder=tmp_path)
    agent.learn(12, Count())
    assert [seen[:2] for seen in Count.seen] == [(5, None), (10, None), (15, None)]
    assert agent.unit == "updates" and agent.policy.version == 15
    assert json.loads((tmp_path / "config.json").read_text())["hidden"] == [8]
    assert "time/updates_per_second" in (tmp_path / "progress.csv").read_text().splitlines()[0]


def test_standardized_observations(pendulum, tmp_path):
    """Networks see mean 0 and deviation 1, also in evaluation and after loading; what does not vary is only shifted."""
    constant = dataclasses.replace(pendulum, observations=pendulum.observations.clone())
    constant.observations[..., 0] = 0.25
    agent = IQL("Pendulum-v1", config=IQLConfig(**SMALL, standardize=True), dataset=constant)
    seen = agent.data.observations
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0)[1:], torch.ones(2))
    assert (seen[:, 0] == 0).all()
    raw = constant.observations[0, :5]
    torch.testing.assert_close(agent.policy.features(raw.numpy()), seen[:5])
    agent.learn(5).save(tmp_path)
    loaded = IQL.load(tmp_path)
    assert torch.equal(loaded.policy.features(raw), agent.policy.features(raw))
    assert np.array_equal(loaded.predict(raw.numpy())[0], agent.predict(raw.numpy())[0])


def test_numbers_of_states_are_not_standardized():
    with pytest.raises(ValueError, match="standardize=True is for vectors"):
        BC(
            "CliffWalking-v1",
            config=BCConfig(standardize=True),
            dataset=play("CliffWalking-v1", 2, max_episode_steps=5),
        )


def test_rewards_on_the_scale_of_returns(pendulum):
    agent = IQL("Pendulum-v1", config=IQLConfig(return_range=200), dataset=pendulum)
    returns = pendulum.returns
    expected = pendulum.rewards[pendulum.mask] * 200 / (returns.max() - returns.min())
    torch.testing.assert_close(agent.data.rewards, expected)
    alike = dataclasses.replace(pendulum, rewards=torch.ones_like(pendulum.rewards))
    with pytest.raises(ValueError, match="all returns of the dataset are equal"):
        IQL("Pendulum-v1", config=IQLConfig(return_range=200), dataset=alike)


def test_dropout_is_reproducible_and_only_in_training(pendulum):
    one, two, other = (
        BC("Pendulum-v1", config=BCConfig(**SMALL, actor_dropout=rate), dataset=pendulum).learn(20)
        for rate in (0.5, 0.5, 0.0)
    )
    first, again, without = ([p.detach() for p in a.policy.parameters()] for a in (one, two, other))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], without[0])
    features = one.data.observations[:200]
    generator = torch.Generator().manual_seed(0)
    hidden = one.policy.actor[1](one.policy.actor[0](features))
    kept = one.policy.actor[2](
        hidden * (torch.rand(hidden.shape, generator=torch.Generator().manual_seed(0)) >= 0.5) * 2
    )
    torch.testing.assert_close(one.policy.outputs(features, 0.5, generator), 2 * kept.tanh())
    assert torch.equal(one.policy.outputs(features), one.policy.outputs(features))


def test_global_generators_are_left_alone(pendulum):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    IQL("Pendulum-v1", config=IQLConfig(**SMALL, actor_dropout=0.1), dataset=pendulum).learn(10)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002

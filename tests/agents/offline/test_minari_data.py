"""Minari datasets: Minari opens ours, and we read its."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.offline.minari_data import read_minari, write_minari
from aligngym.trajectories import Trajectories

from ..recorded import play, same

minari = pytest.importorskip("minari")


def described(env_id):
    env = gym.make(env_id)
    return {
        "observation_space": env.observation_space, "action_space": env.action_space, "env_spec": env.spec,
        "dataset_id": "tests/any-v0",
    }  # fmt: skip


def test_round_trip_is_exact(episodes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_minari("deep/data", episodes, **described("MountainCarContinuous-v0"))
    back = read_minari("deep/data")
    back.info = {key: back.info[key] for key in episodes.info}
    same(back, episodes)
    assert back.log_probs[back.mask].isnan().all()


def test_minari_opens_it(episodes, tmp_path):
    write_minari(tmp_path / "data", episodes, **described("MountainCarContinuous-v0"))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    dataset = minari.MinariDataset(tmp_path / "data")
    assert dataset.total_episodes == 4 and dataset.total_steps == 12 + 7 + 3 + 12
    assert dataset.recover_environment().spec.id == "MountainCarContinuous-v0"
    second = dataset[1]
    assert second.observations.dtype == np.float32 and dataset.observation_space.contains(second.observations[-1])
    assert np.array_equal(second.observations, episodes.observations[1, :8])
    assert np.array_equal(second.actions, episodes.actions[1, :7])
    assert second.terminations.tolist() == [False] * 6 + [True] and not second.truncations.any()
    first = dataset[0]
    assert first.truncations.tolist() == [False] * 11 + [True] and not first.terminations.any()
    assert np.array_equal(first.infos["true_reward"][1:], episodes.extras["true_reward"][0])
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(4))] == [3, 4, 5, 6]


def test_discrete_spaces(tmp_path):
    for env_id, dtype in (("CartPole-v1", torch.float32), ("CliffWalking-v1", torch.int64)):
        episodes = play(env_id, 4, max_episode_steps=20)
        episodes.info = {}
        write_minari(tmp_path / env_id, episodes, **described(env_id))
        back = read_minari(tmp_path / env_id)
        assert back.observations.dtype == dtype and back.actions.dtype == torch.int64
        same(back, episodes)


def test_we_read_what_others_recorded(tmp_path):
    """A dataset of Minari's own collector: dict observations, infos, and a last episode that was left unfinished."""

    class Observed(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            low, high = env.observation_space.low, env.observation_space.high
            parts = {"speed": gym.spaces.Box(low[1:], high[1:]), "position": gym.spaces.Box(low[:1], high[:1])}
            self.observation_space = gym.spaces.Dict(parts)

        def observation(self, observation):
            return {"speed": observation[1:], "position": observation[:1]}

        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info | {"true_reward": 0.5}

        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            return observation, info | {"true_reward": 0.0}

    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    env = Observed(gym.make("MountainCarContinuous-v0", max_episode_steps=5))
    storage = MinariStorage.new(tmp_path, env.observation_space, env.action_space)
    seen = []
    for steps in (5, 3):
        observation, info = env.reset(seed=steps)
        buffer = EpisodeBuffer(
            observations={k: [v] for k, v in observation.items()}, actions=[], infos={k: [v] for k, v in info.items()}
        )
        seen.append([observation])
        for _ in range(steps):
            action = np.array([0.3], np.float32)
            observation, reward, terminated, truncated, info = env.step(action)
            seen[-1].append(observation)
            for key, value in observation.items():
                buffer.observations[key].append(value)
            for key, value in info.items():
                buffer.infos[key].append(value)
            for values, value in (
                (buffer.actions, action), (buffer.rewards, reward), (buffer.terminations, terminated),
                (buffer.truncations, truncated),
            ):  # fmt: skip
                values.append(value)
        storage.update_episodes([buffer])
    back = read_minari(tmp_path)
    assert back.lengths.tolist() == [5, 3] and not back.terminated.any() and back.truncated.all()
    # The order of the space, which sorts its keys.
    expected = [[torch.tensor([*o["position"], *o["speed"]]) for o in part] for part in seen]
    assert torch.equal(back.observations[0], torch.stack(expected[0]))
    assert torch.equal(back.observations[1, :4], torch.stack(expected[1]))
    assert (back.extras["true_reward"][back.mask] == 0.5).all()
    assert back.group.tolist() == [0, 1]


def test_what_is_refused(episodes, tmp_path, monkeypatch):
    options = described("MountainCarContinuous-v0")
    with pytest.raises(ValueError, match="No data found"):
        read_minari(tmp_path)
    bad = Trajectories(**{**vars(episodes), "info": {"total_steps": [1] * 4}})
    with pytest.raises(ValueError, match=r"info\['total_steps'\] of episode 0 is 1"):
        write_minari(tmp_path / "a", bad, **options)
    assert not (tmp_path / "a").exists()
    bad = Trajectories(**{**vars(episodes), "observations": {"x": episodes.observations}})
    with pytest.raises(ValueError, match=r"a dict of \['x'\]"):
        write_minari(tmp_path / "a", bad, **options)
    write_minari(tmp_path / "a", episodes, **options)  # what the failed attempt left is in nobody's way
    with pytest.raises(ValueError, match="is not empty"):
        write_minari(tmp_path / "a", episodes, **options)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"aligngym\[robot\]"):
        read_minari(tmp_path / "a")

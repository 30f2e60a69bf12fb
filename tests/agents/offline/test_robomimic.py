"""robomimic's layout: written and read back bit for bit, with ends told from time limits; its own reader opens it."""

import json
import sys

import numpy as np
import pytest
import torch

from aligngym.agents.offline.robomimic import read_env_args, read_robomimic, write_robomimic
from aligngym.assets import robot_data_path
from aligngym.trajectories import Trajectories

from ..recorded import play, same

h5py = pytest.importorskip("h5py")
ENV_ARGS = {"env_name": "Pendulum-v1", "type": 2, "env_kwargs": {"g": 9.81}}


def test_round_trip_is_exact(episodes, tmp_path):
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS)
    back = read_robomimic(tmp_path / "a.hdf5")
    back.info = {key: back.info[key] for key in episodes.info}
    same(back, episodes)
    assert back.log_probs[back.mask].isnan().all() and (back.log_probs[~back.mask] == 0).all()
    assert read_env_args(tmp_path / "a.hdf5") == ENV_ARGS
    write_robomimic(tmp_path / "b.hdf5", back, env_args=ENV_ARGS)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_layout(episodes, tmp_path):
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS, key="flat", masks={"train": [0, 2], "valid": [3]})
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data"].attrs["total"] == 12 + 7 + 3 + 12
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        demo = file["data/demo_1"]
        assert demo.attrs["num_samples"] == 7 and demo["actions"].shape == (7, 1)
        assert np.array_equal(demo["obs/flat"][1:], demo["next_obs/flat"][:-1])
        assert np.array_equal(demo["next_obs/flat"][-1], episodes.observations[1, 7])
        assert file["mask/train"][:].tolist() == [b"demo_0", b"demo_2"]
        assert file["mask/valid"][:].tolist() == [b"demo_3"]
        assert demo["obs/flat"].compression == "gzip" and demo["obs/flat"].shuffle


def test_a_time_limit_is_no_end(episodes, tmp_path):
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert [int(file[f"data/demo_{i}/dones"][:].sum()) for i in range(4)] == [0, 1, 1, 0]
        assert file["data/demo_1/dones"][-1] == 1
        assert [bool(file[f"data/demo_{i}"].attrs["truncated"]) for i in range(4)] == [True, False, False, True]


def test_splits_and_many_demonstrations(tmp_path):
    episodes = play("Pendulum-v1", 12, max_episode_steps=2)
    del episodes.info["invalid"]
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS, masks={"valid": [11, 2]})
    same(read_robomimic(tmp_path / "a.hdf5"), episodes)  # demo_10 comes after demo_9
    same(read_robomimic(tmp_path / "a.hdf5", mask="valid"), episodes.select(torch.tensor([2, 11])))
    with pytest.raises(ValueError, match=r"no split 'train'; there are: valid"):
        read_robomimic(tmp_path / "a.hdf5", mask="train")
    with pytest.raises(ValueError, match=r"masks\['valid'\] holds 12, expected numbers from 0 to 11"):
        write_robomimic(tmp_path / "b.hdf5", episodes, env_args=ENV_ARGS, masks={"valid": [12]})


def test_observation_keys_are_joined_in_the_order_given(episodes, tmp_path):
    position, speed = episodes.observations[..., :1], episodes.observations[..., 1:]
    episodes = Trajectories(**{**vars(episodes), "observations": {"position": position, "speed": speed}})
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS)
    backwards = read_robomimic(tmp_path / "a.hdf5", keys=["speed", "position"])
    assert torch.equal(backwards.observations, torch.cat([speed, position], -1))
    assert torch.equal(read_robomimic(tmp_path / "a.hdf5").observations, torch.cat([position, speed], -1))
    with pytest.raises(ValueError, match=r"demo_0 has no observation \['pose'\]; it has position, speed"):
        read_robomimic(tmp_path / "a.hdf5", keys=["pose"])


def test_files_of_others(episodes, tmp_path):
    """Without our attributes the last of the dones decides; without next_obs a cut episode has lost its last state."""
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS)
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        for demo in file["data"].values():
            for name in [n for n in demo.attrs if n != "num_samples"]:
                del demo.attrs[name]
            del demo["extras"]
        file["data/demo_0/dones"][3] = 1
    back = read_robomimic(tmp_path / "a.hdf5")
    assert back.terminated.tolist() == [False, True, True, False] and back.lengths.tolist() == [12, 7, 3, 12]
    assert back.group.tolist() == [0, 1, 2, 3] and back.info == {} and back.extras == {}
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        del file["data/demo_1/next_obs"]
    assert torch.equal(read_robomimic(tmp_path / "a.hdf5").observations[1, :7], episodes.observations[1, :7])
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        del file["data/demo_0/next_obs"]
    with pytest.raises(ValueError, match=r"demo_0 has no next_obs"):
        read_robomimic(tmp_path / "a.hdf5")


def test_what_is_refused(episodes, tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_robomimic(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(ValueError, match="no demonstrations"):
        read_robomimic(path)
    bad = Trajectories(**{**vars(episodes), "info": {"seed": [{}] * 4}})
    with pytest.raises(ValueError, match=r"info\['seed'\] of episode 0 is \{\}"):
        write_robomimic(path, bad, env_args=ENV_ARGS)
    bad = Trajectories(**{**vars(episodes), "info": {"terminated": [1] * 4}})
    with pytest.raises(ValueError, match=r"info\['terminated'\]"):
        write_robomimic(path, bad, env_args=ENV_ARGS)
    bad = Trajectories(**{**vars(episodes), "observations": episodes.observations[:, :-1]})
    with pytest.raises(ValueError, match=r"expected \[4, 12 \+ 1, ...\]"):
        write_robomimic(path, bad, env_args=ENV_ARGS)
    mask = episodes.mask.clone()
    mask[0, 3] = False
    with pytest.raises(ValueError, match="gaps"):
        write_robomimic(path, Trajectories(**{**vars(episodes), "mask": mask}), env_args=ENV_ARGS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"aligngym\[robot\]"):
        read_robomimic(path)


def by_robomimic(path, mask=None):
    """What robomimic's own reader finds: the columns of all steps, demonstrations one after the other."""
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": []}})
    data = SequenceDataset(
        hdf5_path=str(path), obs_keys=("state",), dataset_keys=("actions", "rewards", "dones"), load_next_obs=True,
        hdf5_cache_mode="low_dim", filter_by_attribute=mask,
    )  # fmt: skip
    steps = [data[i] for i in range(len(data))]
    found = {name: np.concatenate([step[name] for step in steps]) for name in ("actions", "rewards", "dones")}
    return found | {name: np.concatenate([step[name]["state"] for step in steps]) for name in ("obs", "next_obs")}


def columns(episodes):
    """The same of our record."""
    mask, states = episodes.mask, episodes.observations
    ends = torch.zeros_like(mask)
    ends[torch.arange(len(mask)), episodes.lengths - 1] = episodes.terminated
    found = {"actions": episodes.actions, "rewards": episodes.rewards, "dones": ends.float()}
    found |= {"obs": states[:, :-1], "next_obs": states[:, 1:]}
    return {name: values[mask].numpy() for name, values in found.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name, strict=True)


def test_robomimics_own_reader_opens_it(episodes, tmp_path):
    pytest.importorskip("robomimic")
    write_robomimic(tmp_path / "a.hdf5", episodes, env_args=ENV_ARGS, masks={"train": [0, 2], "valid": [1, 3]})
    everything = by_robomimic(tmp_path / "a.hdf5")
    assert len(everything["dones"]) == 12 + 7 + 3 + 12 and everything["dones"].sum() == 2
    assert_equal(everything, columns(episodes))
    assert_equal(by_robomimic(tmp_path / "a.hdf5", "valid"), columns(episodes.select(torch.tensor([1, 3]))))


def test_robomimics_own_reader_opens_the_embedded_episodes():
    pytest.importorskip("robomimic")
    path = robot_data_path("drawer-open")
    assert len(by_robomimic(path)["rewards"]) == 4800
    assert_equal(by_robomimic(path), columns(read_robomimic(path)))

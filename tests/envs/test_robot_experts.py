"""Scripted experts, the behaviours made with them, and the embedded episodes, on Meta-World's own simulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.offline.robomimic import read_env_args, read_robomimic
from aligngym.assets import robot_data_path
from aligngym.envs.robot.experts import BEHAVIOURS, collect_behaviour, scripted_policy
from aligngym.envs.robot.manipulation import ManipulationAlignEnv
from aligngym.trajectories import Trajectories

pytest.importorskip("metaworld")
pytest.importorskip("h5py")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_robot_data.py"
EMBEDDED = ("button-press", "faucet-close", "window-open", "drawer-open", "door-close")


def equal(one: Trajectories, other: Trajectories, rows: slice) -> bool:
    names = ("observations", "actions", "rewards", "mask", "truncated")
    return all(torch.equal(getattr(one, name)[rows], getattr(other, name)[rows]) for name in names)


@pytest.mark.parametrize("task", ["drawer-open", "faucet-close", "push"])
def test_experts_succeed_and_random_actions_do_not(task: str) -> None:
    expert, random = (collect_behaviour(task, name, 3, max_steps=130, noise=0.0) for name in ("expert", "random"))
    assert expert.terms["success_any"].tolist() == [1, 1, 1]
    assert random.terms["success_any"].tolist() == [0, 0, 0]
    assert expert.returns.min() > 2 * random.returns.max()


def test_an_expert_keeps_nothing_and_leaves_its_input_alone() -> None:
    act = scripted_policy("door-close")
    state = ManipulationAlignEnv(task="door-close").reset(seed=0)[0]
    before = state.copy()
    action = act(state)
    assert np.array_equal(act(state), action) and np.array_equal(state, before)
    assert action.dtype == np.float32 and action.shape == (4,) and (np.abs(action) <= 1).all()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_an_episode_depends_on_its_number_and_on_no_other(behaviour: str) -> None:
    options = {"task": "window-open", "behaviour": behaviour, "max_steps": 15}
    few, more = collect_behaviour(episodes=1, **options), collect_behaviour(episodes=2, **options)
    assert equal(few, more, slice(1))
    assert not torch.equal(more.actions[0], more.actions[1])
    assert not torch.equal(collect_behaviour(episodes=1, seed=1, **options).actions, few.actions)
    assert few.info["seed"] == more.info["seed"][:1] and more.info["behaviour"] == [behaviour] * 2
    assert more.observations.shape == (2, 16, 39) and more.actions.shape == (2, 15, 4) and more.mask.all()
    assert more.truncated.all() and not more.terminated.any() and more.log_probs.isnan().all()
    assert more.info["true_return"] == pytest.approx(more.returns.tolist(), rel=1e-5)


def test_no_two_tasks_or_behaviours_share_noise() -> None:
    """Equal noise would make episodes of two tasks alike for a reason that has nothing to do with the tasks."""
    actions = [collect_behaviour(task, "random", 1, max_steps=5).actions for task in ("window-open", "drawer-open")]
    assert not torch.equal(*actions)
    seeds = [collect_behaviour("window-open", name, 1, max_steps=2).info["seed"][0] for name in BEHAVIOURS]
    assert len(set(seeds)) == 4


def test_the_misled_expert_goes_for_another_place() -> None:
    """Without noise the expert's hand ends at the button; the misled one's at a button that is somewhere else."""
    good, misled = (collect_behaviour("button-press", name, 6, max_steps=120, noise=0.0) for name in BEHAVIOURS[:2])

    def sideways(episodes: Trajectories) -> torch.Tensor:
        return (episodes.observations[:, -1, 0] - episodes.observations[:, -1, 4]).abs()  # from hand to button

    assert (sideways(good) < 0.015).all()
    assert (sideways(misled) > 0.03).sum() >= 3
    assert misled.terms["success_any"].mean() < good.terms["success_any"].mean() == 1


def test_noise_is_gaussian_and_is_clipped() -> None:
    act = scripted_policy("button-press")
    episodes = collect_behaviour("button-press", "expert", 2, max_steps=200, noise=0.5)
    wanted = np.array([act(state) for state in episodes.observations[:, :-1].reshape(-1, 39).numpy()])
    added = (episodes.actions.reshape(-1, 4).numpy() - wanted)[:, 3]  # the gripper's effort, 0 in this task
    inside = np.abs(added) < 1
    assert 0.02 < 1 - inside.mean() < 0.08  # 4.6 % of a Gaussian lie outside two standard deviations
    assert added[inside].std() == pytest.approx(0.44, abs=0.04)  # of what is left


def test_bad_arguments_are_named() -> None:
    for options, message in (
        ({"behaviour": "good"}, "behaviour is 'good', expected one of"),
        ({"task": "press"}, "task is 'press'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": float("nan")}, "noise is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_behaviour(**{"task": "reach", "behaviour": "random", "episodes": 1, **options})
    with pytest.raises(ValueError, match="task is 'reach', expected one of button-press, door-close"):
        robot_data_path("reach")


@pytest.mark.slow
def test_the_script_writes_what_the_function_plays(tmp_path: Path) -> None:
    """One run, one file a task; a second run leaves the file alone; a larger set begins with the smaller one."""
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--tasks", "reach-v3", "--max-steps", "8"]
    for _ in range(2):
        done = subprocess.run([*command, "--episodes", "2"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "stays as it is" in done.stdout
    path = tmp_path / "reach.hdf5"
    assert list(tmp_path.iterdir()) == [path]
    episodes = read_robomimic(path)
    assert episodes.info["behaviour"] == [name for name in BEHAVIOURS for _ in range(2)]
    assert len(set(episodes.group.tolist())) == 8
    for name in BEHAVIOURS:
        played = collect_behaviour("reach", name, 3, max_steps=8)
        assert equal(read_robomimic(path, mask=name), played.select(torch.arange(2)), slice(None))
    wrong = subprocess.run([*command[:4], "--tasks", "raech"], capture_output=True, text=True, check=False)
    assert wrong.returncode and "task is 'raech', expected one of" in wrong.stderr


@pytest.mark.parametrize("task", EMBEDDED)
def test_embedded_episodes_are_what_they_say(task: str) -> None:
    episodes = read_robomimic(robot_data_path(task))
    assert len(episodes) == 24 and episodes.mask.shape == (24, 200) and episodes.mask.all()
    assert episodes.observations.shape == (24, 201, 39) and episodes.rewards.min() >= 0 and episodes.rewards.max() <= 10
    means = {name: read_robomimic(robot_data_path(f"{task}-v3"), mask=name) for name in BEHAVIOURS}
    success = {name: float(part.terms["success_any"].mean()) for name, part in means.items()}
    assert success["expert"] > 0.8 and success["random"] == success["other_task"] == 0
    assert means["expert"].returns.mean() > 1.5 * means["random"].returns.mean()
    assert episodes.info["true_return"] == pytest.approx(episodes.returns.tolist(), rel=1e-5)
    assert episodes.info["success_any"] == episodes.terms["success_any"].tolist()


@pytest.mark.parametrize("task", EMBEDDED)
def test_embedded_episodes_can_be_played_again(task: str) -> None:
    """The file says how to make the environment; seed and actions then give the recorded states and rewards."""
    arguments = read_env_args(robot_data_path(task))
    env = gym.make(arguments["env_name"], **arguments["env_kwargs"])
    episodes = read_robomimic(robot_data_path(task))
    for i in (0, 6, 12, 18):
        state, _ = env.reset(seed=episodes.info["seed"][i])
        np.testing.assert_allclose(state, episodes.observations[i, 0], atol=1e-4)
        for t in range(40):  # later ones depend on the last bit, which is the machine's own
            state, reward, _, _, _ = env.step(episodes.actions[i, t].numpy())
            np.testing.assert_allclose(state, episodes.observations[i, t + 1], atol=1e-3)
            assert reward == pytest.approx(float(episodes.rewards[i, t]), abs=0.05)


def test_embedded_episodes_are_small() -> None:
    assert sum(robot_data_path(task).stat().st_size for task in EMBEDDED) < 4_000_000

"""Simulators in processes that are killed: their episodes are invalid, others go on, nothing hangs."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import aligngym  # noqa: F401
from aligngym.agents.policies.control import ControlPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.rollouts import collect
from aligngym.envs.robot import RecoveringAsyncVectorEnv, make_async
from aligngym.envs.robot.control import ControlAlignEnv

OPTIONS = {"domain": "cartpole", "task": "swingup", "max_steps": 12}
REPLACED = pytest.mark.filterwarnings("ignore:the process of row")
KILLED = "the process of row 1 was killed by SIGKILL and was replaced"


@pytest.fixture
def three():
    env = make_async("ControlAlign-v0", 3, **OPTIONS)
    yield env
    env.close()


def kill(env, row: int) -> None:
    """What the kernel does to a process that takes too much memory."""
    os.kill(env.processes[row].pid, signal.SIGKILL)
    env.processes[row].join(10)


def actions(step: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(step).uniform(-1, 1, (rows, 1)).astype(np.float32)


@REPLACED
def test_a_killed_row_ends_as_an_invalid_sample_and_others_play_on(three) -> None:
    singles = [ControlAlignEnv(**OPTIONS) for _ in range(3)]
    observations, _ = three.reset(seed=5)
    last = [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
    for t in range(20):
        if t == 4:
            kill(three, 1)
        observations, rewards, terminated, truncated, infos = three.step(actions(t))
        for i in (0, 2) if t >= 4 else range(3):
            last[i], reward, _, over, _ = singles[i].step(actions(t)[i])
            assert (rewards[i], truncated[i], terminated[i]) == (reward, over, False)
            if over:
                assert np.array_equal(infos["final_obs"][i], last[i])
                assert infos["final_info"]["reward/true_return"][i] > 0
                last[i], _ = singles[i].reset()
            assert np.array_equal(observations[i], last[i])
        assert math.isnan(rewards[1]) == (t == 4)
        if t == 4:
            assert (terminated[1], truncated[1]) == (False, True)
            assert infos["final_info"]["invalid"].tolist() == [None, KILLED, None]
            assert infos["final_info"]["_invalid"].tolist() == [False, True, False]
            assert np.array_equal(infos["final_obs"][1], last[1]), "its last observation"
            assert not np.array_equal(observations[1], last[1]), "an episode's start"
            seed = int(np.random.SeedSequence([6, 1]).generate_state(1)[0])
            last[1], _ = singles[1].reset(seed=seed)
            assert np.array_equal(observations[1], last[1])
        if t > 4:
            last[1], reward, _, over, _ = singles[1].step(actions(t)[1])
            assert (rewards[1], truncated[1]) == (reward, over)
            if over:
                assert np.array_equal(infos["final_obs"][1], last[1])
                last[1], _ = singles[1].reset()
            assert np.array_equal(observations[1], last[1])


@REPLACED
def test_a_process_that_dies_while_it_works_is_noticed(three) -> None:
    three.reset(seed=0)
    three.step_async(actions(0))
    kill(three, 1)
    _, rewards, _, truncated, _ = three.step_wait(timeout=60)
    # It may have answered before it died; then the next step finds it dead.
    if not math.isnan(rewards[1]):
        _, rewards, _, truncated, _ = three.step(actions(1))
    assert np.isnan(rewards).tolist() == truncated.tolist() == [False, True, False]


@REPLACED
def test_next_step_tells_the_end_first_and_starts_after() -> None:
    env = make_async("ControlAlign-v0", 2, autoreset_mode=AutoresetMode.NEXT_STEP, **OPTIONS)
    env.reset(seed=0)
    before, *_ = env.step(actions(0, 2))
    kill(env, 1)
    observations, rewards, terminated, truncated, infos = env.step(actions(1, 2))
    assert math.isnan(rewards[1]) and (terminated[1], truncated[1]) == (False, True)
    assert infos["invalid"][1] == KILLED and np.array_equal(observations[1], before[1])
    start, rewards, _, truncated, infos = env.step(actions(2, 2))
    assert (rewards[1], truncated[1]) == (0, False) and "invalid" not in infos
    single = ControlAlignEnv(**OPTIONS)
    expected, _ = single.reset(seed=int(np.random.SeedSequence([1, 1]).generate_state(1)[0]))
    assert np.array_equal(start[1], expected)
    for t in range(3, 3 + 12):
        observations, rewards, _, truncated, _ = env.step(actions(t, 2))
        expected, reward, _, over, _ = single.step(actions(t, 2)[1])
        assert np.array_equal(observations[1], expected) and (rewards[1], truncated[1]) == (reward, over)
    assert over
    env.close()


@REPLACED
def test_without_autoreset_the_caller_resets_the_lost_row() -> None:
    env = make_async("ControlAlign-v0", 2, autoreset_mode=AutoresetMode.DISABLED, **OPTIONS)
    env.reset(seed=0)
    kill(env, 1)
    _, rewards, _, truncated, infos = env.step(actions(1, 2))
    assert math.isnan(rewards[1]) and truncated.tolist() == [False, True] and infos["invalid"][1] == KILLED
    observations, _ = env.reset(seed=[None, 7], options={"reset_mask": np.array([False, True])})
    assert np.array_equal(observations[1], ControlAlignEnv(**OPTIONS).reset(seed=7)[0])
    _, rewards, _, truncated, _ = env.step(actions(2, 2))
    assert np.isfinite(rewards).all() and not truncated.any()
    env.close()


@REPLACED
def test_a_reset_after_a_death_is_the_seeds(three) -> None:
    expected, _ = three.reset(seed=3)
    kill(three, 1)
    kill(three, 2)
    assert np.array_equal(three.reset(seed=3)[0], expected)
    rewards = three.step(actions(0))[1]
    assert np.isfinite(rewards).all()


@REPLACED
def test_calls_and_attributes_survive_and_the_loss_is_told_later() -> None:
    env = make_async("ControlAlign-v0", 2, render_mode="rgb_array", context="forkserver", **OPTIONS)
    env.reset(seed=0)
    env.set_attr("reward", "none")
    kill(env, 1)
    assert env.get_attr("reward") == ("none", "none") and len(env.render()) == 2
    _, rewards, _, truncated, infos = env.step(actions(0, 2))
    assert rewards[0] == 0 and math.isnan(rewards[1]) and truncated.tolist() == [False, True]
    assert infos["final_info"]["invalid"][1] == KILLED
    _, rewards, *_ = env.step(actions(1, 2))
    assert rewards.tolist() == [0, 0]
    env.close()


def test_every_replacement_warns(three) -> None:
    three.reset(seed=0)
    for _ in range(2):
        kill(three, 1)
        with pytest.warns(UserWarning, match=KILLED):
            three.step(actions(0))


def short_lived(deaths: str):
    """An environment, but a process that makes one exits while ``deaths``, a file, says so."""
    if os.path.exists(deaths):
        os._exit(3)
    return ControlAlignEnv(**OPTIONS)


@REPLACED
def test_a_row_that_dies_every_time_is_given_up(tmp_path) -> None:
    deaths = tmp_path / "deaths"
    env = RecoveringAsyncVectorEnv([lambda: short_lived(str(deaths))] * 2)
    env.reset(seed=0)
    deaths.touch()
    kill(env, 1)
    with pytest.raises(RuntimeError, match="process of row 1 exited with code 3 while it started, 3 times in a row"):
        env.step(actions(0, 2))
    env.close()
    assert not any(process.is_alive() for process in env.processes)


@pytest.mark.filterwarnings("ignore")
def test_errors_of_an_environment_are_raised_as_before(three) -> None:
    three.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="is not in Box"):
        three.step(np.full((3, 1), 2, np.float32))


def test_closing_leaves_no_process_whoever_is_dead() -> None:
    env = make_async("ControlAlign-v0", 3, **OPTIONS)
    env.reset(seed=0)
    kill(env, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.close()
    assert not any(process.is_alive() for process in env.processes)


@REPLACED
def test_an_agents_episodes_say_which_is_invalid(three) -> None:
    """The policy's own act kills the row, in the middle of the episode."""

    class Killer(ControlPolicy):
        acted = 0

        def act(self, *arguments, **options):
            self.acted += 1
            if self.acted == 6:
                kill(three, 1)
            return super().act(*arguments, **options)

    policy = Killer(three.single_observation_space, three.single_action_space)
    episodes = collect(three, policy, seeds=[1, 2, 3], noise=RowNoise([1, 2, 3]), group=torch.arange(3))
    assert episodes.valid.tolist() == [True, False, True] and episodes.mask.sum(1).tolist() == [12, 6, 12]
    assert episodes.truncated.all() and episodes.info["invalid"] == [None, KILLED, None]
    assert torch.isfinite(episodes.rewards[[0, 2]]).all() and episodes.rewards[1, 5].isnan()


def test_a_checkpoint_can_name_it(three) -> None:
    spec = gym.envs.registration.EnvSpec.from_json(three.spec.to_json())
    again = gym.make_vec(spec)
    assert again.num_envs == 3 and again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert np.array_equal(again.reset(seed=1)[0], three.reset(seed=1)[0])
    again.close()
    with pytest.raises(ValueError, match="num_envs is 0"):
        make_async("ControlAlign-v0", 0)


@pytest.mark.slow
@REPLACED
@pytest.mark.parametrize("env_id", ["ManipulationAlign-v0", "RobosuiteAlign-v0"])
def test_other_simulators_too_with_pixels(env_id: str) -> None:
    env = make_async(env_id, 2, context="forkserver", observation="pixels", max_steps=50)
    env.reset(seed=0)
    kill(env, 0)
    began = time.monotonic()
    observations, rewards, _, truncated, infos = env.step(np.zeros(env.action_space.shape, np.float32))
    assert time.monotonic() - began < 120 and observations[0].std() > 10
    assert math.isnan(rewards[0]) and truncated.tolist() == [True, False]
    assert "killed by SIGKILL" in infos["final_info"]["invalid"][0]
    _, rewards, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
    assert np.isfinite(rewards).all()
    env.close()

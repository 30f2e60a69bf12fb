"""ControlAlignMJX-v0: the suite's tasks on MJX, against the suite on MuJoCo."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

import aligngym  # noqa: F401
from aligngym.envs.robot.control import ControlAlignEnv

from .robots import resident_mb

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'aligngym[mjx]'")
mjx = pytest.importorskip("mujoco.mjx", reason="MJX is not installed: pip install 'aligngym[mjx]'")

from aligngym.envs.robot.mjx import ControlAlignMJXVectorEnv  # noqa: E402
from aligngym.envs.robot.traced import Traced, trace_task  # noqa: E402

NAME = "ControlAlignMJX-v0"
SMALL = {"domain": "pendulum", "task": "swingup", "max_steps": 7}
ROWS = 4
# One of every way that the suite's tasks compute observations and rewards.
TASKS = [
    ("ball_in_cup", "catch"), ("cartpole", "swingup"), ("cartpole", "balance_sparse"), ("cheetah", "run"),
    ("finger", "turn_easy"), ("hopper", "hop"), ("humanoid", "walk"), ("manipulator", "insert_peg"),
    ("quadruped", "fetch"), ("reacher", "easy"), ("stacker", "stack_2"), ("walker", "run"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """Compile in two thirds of the time, to slower programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def env():
    """One that is compiled once for all tests."""
    made = gym.make_vec(NAME, num_envs=ROWS, **SMALL)
    yield made
    made.close()


def play(env, seed, steps: int = 20) -> list[np.ndarray]:
    """What random actions lead to, all rows taking the same ones."""
    rng = np.random.default_rng(5)
    frames, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        action = np.tile(rng.uniform(-1, 1, env.single_action_space.shape), (env.num_envs, 1)).astype(np.float32)
        observation, reward, *_ = env.step(action)
        frames.append(observation)
        rewards.append(reward)
    return [np.array(frames), np.array(rewards)]


def alike(one, other) -> None:
    """The infos of vector environments have the same keys, kinds and masks, and nearly the same numbers."""
    assert one.keys() == other.keys()
    for key in one:
        if isinstance(one[key], dict):
            alike(one[key], other[key])
        elif key == "final_obs":
            for a, b in zip(one[key], other[key], strict=True):
                assert (a is None) == (b is None) and (a is None or a.dtype == b.dtype)
                np.testing.assert_allclose(0 if a is None else a, 0 if b is None else b, atol=1e-4)
        else:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_allclose(one[key], other[key], atol=1e-4)


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_observations_and_rewards_are_the_suites_at_equal_states(domain: str, task: str) -> None:
    single = ControlAlignEnv(domain=domain, task=task)
    physics, paid = single.simulator.physics, set()
    names = [field.name for field in dataclasses.fields(mjx.Data)]
    for seed in range(4):
        single.reset(seed=seed)
        physics.data.qvel[:] += np.random.default_rng(seed).normal(size=physics.data.qvel.shape)
        expected, reward, *_ = single.step(single.action_space.sample() * (seed > 1))
        arrays = {name: getattr(physics.data, name, None) for name in names}
        data = SimpleNamespace(**{k: jax.numpy.asarray(v) for k, v in arrays.items() if isinstance(v, np.ndarray)})
        observation, rewarded = trace_task(single.simulator, data, {})
        np.testing.assert_allclose(observation, expected, rtol=1e-5, atol=1e-5)  # single precision
        assert rewarded.dtype == np.float32 and rewarded == pytest.approx(reward, rel=1e-5, abs=1e-6)
        paid.add(round(reward, 6))
    sparse = {"ball_in_cup", "finger", "hopper", "manipulator", "pendulum", "reacher", "stacker", "point_mass"}
    assert len(paid) > 1 or domain in sparse or task == "balance_sparse"


@pytest.mark.parametrize(
    ("domain", "task", "place"),
    [
        ("finger", "spin", {"qvel": [0, 0, -20]}),
        ("ball_in_cup", "catch", {"qpos": [0, 0, 0, 0.35]}),
        ("pendulum", "swingup", {"qpos": [0]}),
        ("hopper", "stand", {"qpos": [0] * 7}),
        ("point_mass", "easy", {"qpos": [0.001, 0.002]}),
    ],
)
def test_sparse_rewards_are_the_suites_where_there_are_some(domain: str, task: str, place) -> None:
    single = ControlAlignEnv(domain=domain, task=task)
    single.reset(seed=0)
    physics = single.simulator.physics
    with physics.reset_context():
        for name, values in place.items():
            getattr(physics.data, name)[:] = values
    reward = single.simulator.task.get_reward(physics)
    arrays = {f.name: getattr(physics.data, f.name, None) for f in dataclasses.fields(mjx.Data)}
    data = SimpleNamespace(**{k: jax.numpy.asarray(v) for k, v in arrays.items() if isinstance(v, np.ndarray)})
    assert reward > 0 and trace_task(single.simulator, data, {})[1] == pytest.approx(reward, rel=1e-5)


def test_traced_arrays_are_computed_with_as_numpys_are() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3)), rng.normal(size=3)
    x, y = Traced(jax.numpy.asarray(a)), Traced(jax.numpy.asarray(b))
    for theirs, ours in (
        (a @ b + 2 * b[:2], x @ y + 2 * y[[0, 1]]),
        (np.float64(3) - abs(b), np.float64(3) - abs(y)),
        (np.hstack([b, 1.0, a.ravel()]), np.hstack([y, 1.0, x.ravel()])),
        (np.linalg.norm(a, axis=1), np.linalg.norm(x, axis=1)),
        (np.where(b > 0, b, -1), np.where(y > 0, y, -1)),
        (a[:, [2, 0]].dot(b[:2]).mean(), x[:, [2, 0]].dot(y[:2]).mean()),
        (a.T[1], x.T[1]),
    ):
        assert isinstance(ours, Traced)
        np.testing.assert_allclose(ours.values, theirs, rtol=1e-6)
    assert len(list(x)) == 2
    with pytest.raises(TypeError, match="cannot trace"):
        bool(y[0] > 0)


def test_the_suites_modules_are_left_as_they_were() -> None:
    from dm_control.suite import reacher

    before = dict(vars(reacher))
    test_observations_and_rewards_are_the_suites_at_equal_states("reacher", "easy")
    assert vars(reacher) == before and reacher.np is np


def test_mujoco_and_mjx_simulate_the_same(env) -> None:
    """Without contacts: single precision is all that differs, and grows slowly."""
    check_agreement(env, [ControlAlignEnv(**SMALL) for _ in range(ROWS)], steps=30, tolerance=1e-4)


@pytest.mark.slow
def test_mujoco_and_mjx_simulate_the_same_with_contacts() -> None:
    """The solvers stop within a tolerance of 1e-8 of each other's costs, in single precision here."""
    options = {"domain": "cheetah", "task": "run", "max_steps": 12, "action_repeat": 2}
    env = gym.make_vec(NAME, num_envs=2, **options)
    check_agreement(env, [ControlAlignEnv(**options) for _ in range(2)], steps=25, tolerance=2e-3)


def check_agreement(env, singles, steps: int, tolerance: float) -> None:
    """Rows play the single environments' episodes, with the same infos, over some ends of episodes."""
    makes = [lambda single=single: single for single in singles]
    theirs = SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP)
    observation, infos = env.reset(seed=3)
    expected, _ = theirs.reset(seed=3)
    assert np.array_equal(observation, expected) and infos == {}
    env.action_space.seed(1)
    moved, ended = 0.0, 0
    for _ in range(steps):
        action = env.action_space.sample()
        (observation, *ours), (after, *others) = env.step(action), theirs.step(action)
        np.testing.assert_allclose(observation, after, rtol=tolerance, atol=tolerance)
        for mine, other in zip(ours[:3], others[:3], strict=True):
            assert mine.dtype == other.dtype
            np.testing.assert_allclose(mine, other, atol=tolerance)
        alike(ours[3], others[3])
        ended += ours[2].sum()
        moved, expected = max(moved, np.abs(after - expected).max()), after
    assert ended == env.num_envs * (steps // env.max_steps) and moved > 100 * tolerance


def test_spaces_metadata_and_id(env) -> None:
    single = ControlAlignEnv(**SMALL)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.num_envs == ROWS
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert env.observation_space == batch_space(single.observation_space, ROWS)
    assert env.action_space == batch_space(single.action_space, ROWS)
    assert env.spec.id == NAME and len(env.np_random) == ROWS and env.max_steps == 7
    with pytest.raises(gym.error.Error, match="entry_point"):
        gym.make(NAME)
    assert isinstance(gym.make_vec("ControlAlign-v0", num_envs=1).unwrapped, SyncVectorEnv), "the default needs no JAX"


def test_observations_are_copies_in_the_space(env) -> None:
    env.reset(seed=0)
    action = np.ones((ROWS, 1), np.float32)
    kept, then = [], []
    for _ in range(8):
        kept.append(env.step(action)[0])
        then.append(kept[-1].copy())
    assert all(np.array_equal(observation, before) for observation, before in zip(kept, then, strict=True))
    for observation in kept:
        assert observation in env.observation_space and observation.dtype == np.float32
        observation[:] = 0
    assert env.step(action)[0].all(), "an observation that was given away is used"


def test_a_rows_episodes_are_its_seeds(env) -> None:
    first = play(env, [5, 6, 7, 8])
    assert all(np.array_equal(a, b) for a, b in zip(first, play(env, [5, 6, 7, 8]), strict=True))
    for frames, others in zip(first, play(env, [8, 5, 6, 6]), strict=True):
        assert np.array_equal(frames[:, 0], others[:, 1]) and np.array_equal(frames[:, 3], others[:, 0])
        assert np.array_equal(others[:, 2], others[:, 3])
    assert not np.array_equal(first[0][:, 0], first[0][:, 1])
    assert np.array_equal(first[0], play(env, 5)[0]), "an integer s seeds row i with s + i"
    assert not np.array_equal(env.reset()[0], env.reset()[0]), "generators do not run on"
    assert not np.array_equal(first[0][0], first[0][7]), "the second episode starts as the first"


def test_nothing_is_compiled_twice(env) -> None:
    play(env, 0)
    env.reset(options={"reset_mask": np.array([True, False, False, True])})
    play(env, None)
    assert env.unwrapped._advance._cache_size() == 1


def test_a_reset_mask_leaves_other_rows_alone(env) -> None:
    action = np.full((ROWS, 1), 0.5, np.float32)
    env.reset(seed=1)
    undisturbed = [env.step(action)[0] for _ in range(3)]
    env.reset(seed=1)
    env.step(action)
    mask = np.array([False, True, False, False])
    fresh, _ = env.reset(seed=[0, 9, 0, 0], options={"reset_mask": mask})
    assert np.array_equal(fresh[~mask], undisturbed[0][~mask]) and np.array_equal(fresh[1], env_start(9))
    assert env.unwrapped.steps.tolist() == [1, 0, 1, 1]
    after = [env.step(action)[0] for _ in range(2)]
    assert np.array_equal(after[1][~mask], undisturbed[2][~mask])
    ends = [env.step(action)[3].tolist() for _ in range(5)]
    assert ends[3] == [True, False, True, True] and ends[4] == [False, True, False, False]


def env_start(seed: int) -> np.ndarray:
    return ControlAlignEnv(**SMALL).reset(seed=seed)[0]


def test_a_simulation_that_diverges_is_an_invalid_sample(env) -> None:
    expected = play(env, 2, 5)
    env.reset(seed=2)
    state, action = env.unwrapped._state, np.zeros((ROWS, 1), np.float32)
    state["data"] = state["data"].replace(qvel=state["data"].qvel.at[1].set(1e30))
    observation, rewards, terminated, truncated, infos = env.step(action)
    bad = np.array([False, True, False, False])
    assert np.array_equal(np.isnan(rewards), bad) and np.array_equal(truncated, bad) and not terminated.any()
    assert "pendulum swingup diverged in decision 1" in infos["final_info"]["invalid"][1]
    assert math.isnan(infos["final_info"]["true_reward"][1]) and "reward/true_return" not in infos["final_info"]
    assert np.array_equal(infos["_true_reward"], ~bad) and np.isfinite(infos["true_reward"]).all()
    assert infos["final_obs"][1] in env.single_observation_space and observation in env.observation_space
    for _ in range(6):
        _, rewards, _, truncated, infos = env.step(action)
        assert np.isfinite(rewards).all(), "the next episode is not clean"
    assert np.array_equal(truncated, ~bad) and np.isfinite(infos["final_info"]["reward/true_return"]).all()
    assert all(np.array_equal(a, b) for a, b in zip(expected, play(env, 2, 5), strict=True))


def test_observations_as_tensors_and_actions_too(env) -> None:
    core = env.unwrapped
    core.device, before = "cpu", core.device
    try:
        tensors, _ = env.reset(seed=0)
        kept = tensors.clone()
        step = env.step(torch.zeros(ROWS, 1))
        assert isinstance(step[0], torch.Tensor) and torch.equal(tensors, kept)
    finally:
        core.device = before
    assert np.array_equal(kept.numpy(), env.reset(seed=0)[0])
    assert np.array_equal(step[0].numpy(), env.step(np.zeros((ROWS, 1), np.float32))[0])


def test_without_a_reward_only_the_info_tells(env) -> None:
    single = env.unwrapped.single
    paid = play(env, 0, 3)[1]
    single.reward = "none"
    try:
        env.reset(seed=0)
        _, rewards, _, _, infos = env.step(np.zeros((ROWS, 1), np.float32))
        assert (rewards == 0).all() and infos["true_reward"].shape == (ROWS,)
        assert (play(env, 0, 3)[1] == 0).all()
    finally:
        single.reward = "task"
    assert paid.shape == (3, ROWS)


def test_bad_arguments_are_named(env) -> None:
    for options, message in (
        ({"observation": "pixels"}, "observation is 'pixels', but MJX draws none"),
        ({"observation": "image"}, "observation is 'image'"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"domain": "walkers"}, "domain is 'walkers'"),
        ({"task": "hop"}, "task is 'hop'"),
        ({"reward": "dense"}, "reward is 'dense'"),
        ({"domain": "lqr", "task": "lqr_2_1"}, "MJX does not simulate lqr: its episodes end themselves"),
        ({"domain": "dog", "task": "walk"}, "MJX does not simulate dog: .*ELLIPSOID"),
        ({"domain": "swimmer", "task": "swimmer6"}, "MJX does not simulate swimmer"),
        ({"domain": "point_mass", "task": "hard"}, "point_mass hard: each episode draws wrap_prm"),
    ):
        with pytest.raises(ValueError, match=message):
            ControlAlignMJXVectorEnv(**options)
    fresh = ControlAlignMJXVectorEnv(2, **SMALL)
    with pytest.raises(gym.error.ResetNeeded):
        fresh.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="reset all rows first"):
        fresh.reset(options={"reset_mask": np.array([True, False])})
    for given, message in (({"seed": [1, 2]}, "seed has 2 entries"), ({"options": {"goal": 1}}, "unknown keys")):
        with pytest.raises(ValueError, match=message):
            env.reset(**given)
    env.reset(seed=0)
    for action in (np.full((ROWS, 1), 1.5), np.full((ROWS, 1), np.nan), np.zeros((ROWS, 2)), np.zeros(ROWS)):
        with pytest.raises(gym.error.InvalidAction):
            env.step(action)
    assert (env.unwrapped.steps == 0).all(), "refused actions are no steps"


def test_a_missing_library_is_named() -> None:
    code = (
        "import sys; sys.modules['jax'] = None; import gymnasium as gym, aligngym\n"
        f"try: gym.make_vec('{NAME}')\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'aligngym[robot,mjx]'" in done.stdout


def test_thousands_of_steps_leak_nothing(env) -> None:
    action = np.zeros((ROWS, 1), np.float32)

    def run(steps: int) -> float:
        for _ in range(steps):
            env.step(action)
        return resident_mb()

    env.reset(seed=0)
    before = run(200)
    assert run(1000) - before < 5


def test_closing_twice_is_fine(env) -> None:
    other = ControlAlignMJXVectorEnv(1, **SMALL)
    other.close()
    other.close()
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros((1, 1), np.float32))

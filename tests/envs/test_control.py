"""ControlAlign-v0 on dm_control's own tasks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import aligngym  # noqa: F401
from aligngym.envs.robot.control import ControlAlignEnv, control_tasks

from .robots import check_learner, check_vectoriser, resident_mb, roll, same

NAME = "ControlAlign-v0"
EVERY = [(domain, task) for domain, tasks in control_tasks().items() for task in tasks]
SOME = [("walker", "walk"), ("reacher", "hard"), ("quadruped", "escape"), ("lqr", "lqr_6_2"), ("dog", "fetch")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"domain": "quadruped", "task": "fetch", "max_steps": 5},
        {"domain": "cheetah", "task": "run", "reward": "none", "action_repeat": 4},
        {"observation": "pixels", "render_mode": "rgb_array", "size": 32},
    ],
    ids=str,
)
def test_check_env_finds_nothing(options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(NAME, **options).unwrapped)


@pytest.mark.parametrize(("domain", "task"), SOME)
def test_a_seed_is_an_episode_whatever_was_before(domain: str, task: str) -> None:
    fresh, used = (ControlAlignEnv(domain=domain, task=task) for _ in range(2))
    roll(used, 3, 40)
    expected = roll(fresh, 8)
    assert same(roll(used, 8), expected)
    assert not same(roll(used, 9), expected)
    assert not np.array_equal(fresh.reset()[0], fresh.reset()[0]), "the generator does not run on"


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "task"), EVERY)
def test_every_task_is_played_and_drawn_and_is_its_seeds(domain: str, task: str) -> None:
    for observation in ("state", "pixels"):
        fresh, used = (ControlAlignEnv(domain=domain, task=task, observation=observation) for _ in range(2))
        roll(used, 3, 12)
        assert same(roll(used, 8, 5), roll(fresh, 8, 5))
        for env in (fresh, used):
            env.close()
    assert fresh.max_steps == 1000


@pytest.mark.parametrize(("domain", "task"), [("cheetah", "run"), ("finger", "turn_hard"), ("humanoid", "walk")])
def test_states_rewards_and_limits_are_the_suites(domain: str, task: str) -> None:
    from dm_control import suite

    env = ControlAlignEnv(domain=domain, task=task)
    drawn = int(np_random(4)[0].integers(2**32))
    theirs = suite.load(domain, task, task_kwargs={"random": drawn})
    observation, taken = env.reset(seed=4)[0], theirs.reset()
    rng, over, steps, total = np.random.default_rng(0), False, 0, 0.0
    while not over:
        for name, values in taken.observation.items():
            np.testing.assert_allclose(observation[env.observables[name]], np.ravel(values), rtol=1e-6, atol=1e-6)
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        taken = theirs.step(action)
        observation, reward, terminated, over, info = env.step(action)
        assert reward == info["true_reward"] == taken.reward and not terminated and over == taken.last()
        steps, total = steps + 1, total + reward
    assert steps == env.max_steps == 1000 and info["reward/true_return"] == pytest.approx(total)
    assert set(info) == {"true_reward", "reward/true_return"}


def test_actions_are_stretched_to_the_suites_bounds() -> None:
    for domain, task, spread in (("quadruped", "walk", 2.1), ("lqr", "lqr_2_1", 20), ("swimmer", "swimmer6", 2)):
        env = ControlAlignEnv(domain=domain, task=task)
        env.reset(seed=0)
        seen = []
        for value in (-1, 1):
            env.step(np.full(env.action_space.shape, value, np.float32))
            seen.append(env.simulator.physics.data.ctrl.copy())
        spec = env.simulator.action_spec()
        assert np.ptp(seen) == pytest.approx(spread)
        if domain != "lqr":
            np.testing.assert_allclose(seen, [spec.minimum, spec.maximum])


def test_a_repeated_action_is_so_many_steps_and_their_sum() -> None:
    one = ControlAlignEnv(max_steps=1000)
    repeated = ControlAlignEnv(action_repeat=3)
    assert repeated.max_steps == 334
    one.reset(seed=1)
    repeated.reset(seed=1)
    over, decisions, rng = False, 0, np.random.default_rng(2)
    while not over:
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        observation, reward, _, over, _ = repeated.step(action)
        decisions += 1
        times = 1 if over else 3  # 1000 is 333 times 3, and 1
        taken = [one.step(action) for _ in range(times)]
        assert reward == math.fsum(step[1] for step in taken) and np.array_equal(observation, taken[-1][0])
    assert decisions == 334 and taken[-1][3]


def test_lqr_terminates_at_its_goal_and_is_cut_before() -> None:
    cut = ControlAlignEnv(domain="lqr", task="lqr_2_1", max_steps=3)
    cut.reset(seed=0)
    assert [cut.step(np.zeros(1, np.float32))[2:4] for _ in range(3)][-1] == (False, True)
    env = ControlAlignEnv(domain="lqr", task="lqr_2_1", max_steps=5000)
    env.reset(seed=0)
    with env.simulator.physics.reset_context():
        env.simulator.physics.data.qpos[:] = env.simulator.physics.data.qvel[:] = 1e-9
    _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (True, False) and info["reward/true_return"] == reward
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_a_simulation_that_diverges_is_an_invalid_sample() -> None:
    for reward in ("task", "none"):
        env = ControlAlignEnv(reward=reward)
        env.reset(seed=0)
        env.simulator.physics.data.qvel[:] = 1e30
        observation, given, terminated, truncated, info = env.step(np.zeros(6, np.float32))
        assert math.isnan(given) and math.isnan(info["true_reward"]) and (terminated, truncated) == (False, True)
        assert "walker walk diverged in control step 1" in info["invalid"] and "reward/true_return" not in info
        assert observation in env.observation_space
        assert same(roll(env, 8), roll(ControlAlignEnv(reward=reward), 8)), "the next episode is not clean"


def test_without_a_reward_only_the_info_tells() -> None:
    ours, theirs = roll(ControlAlignEnv(), 1), roll(ControlAlignEnv(reward="none"), 1)
    assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[2], theirs[2])
    assert (theirs[1] == 0).all() and (ours[1] == ours[2]).all() and (ours[1] > 0).all()


def test_bad_arguments_are_named() -> None:
    for options, message in (
        ({"domain": "walkers"}, "domain is 'walkers', expected one of .*'walker'"),
        ({"task": "hop"}, r"task is 'hop', expected one of \['stand', 'walk', 'run'\]"),
        ({"observation": "image"}, "observation is 'image'"),
        ({"reward": "dense"}, "reward is 'dense'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"action_repeat": 1.5}, "action_repeat is 1.5"),
        ({"size": 0}, "size is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ):
        with pytest.raises(ValueError, match=message):
            ControlAlignEnv(**options)
    env = ControlAlignEnv(max_steps=2, observation="pixels", camera="front")
    with pytest.raises(ValueError, match=r"camera is 'front', expected one of \['side', 'back'\], a number below 2"):
        env.reset(seed=0)
    env = ControlAlignEnv(max_steps=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="unknown keys"):
        env.reset(options={"goal": 1})
    env.reset(seed=0)
    for action in (np.full(6, 1.5), np.full(6, np.nan), np.zeros(5), np.zeros((1, 6))):
        with pytest.raises(gym.error.InvalidAction):
            env.step(action)
    assert [env.step(np.zeros(6))[3] for _ in range(2)] == [False, True], "refused actions are no steps"


@pytest.mark.parametrize(("domain", "task", "camera"), [("walker", "walk", 0), ("cheetah", "run", "side")])
def test_pixels_show_what_dm_control_draws(domain: str, task: str, camera) -> None:
    env = ControlAlignEnv(domain=domain, task=task, observation="pixels", camera=camera)
    frame = env.reset(seed=0)[0].astype(float)
    physics = env.simulator.physics
    physics.model.mat_reflectance[:] = physics.model.light_castshadow[:] = 0
    theirs = physics.render(64, 64, camera_id=camera).astype(float)
    assert np.abs(frame - theirs).mean() < 4, "theirs has smoothed edges"
    assert np.abs(frame - theirs[::-1]).mean() > 20 and np.abs(frame - theirs[:, ::-1]).mean() > 5
    env.close()


def test_pictures_follow_the_body_and_the_terrain() -> None:
    env = ControlAlignEnv(observation="pixels", render_mode="rgb_array", render_size=96)
    first, _ = env.reset(seed=0)
    assert env.render().shape == (96, 96, 3) and np.array_equal(env.render(), env.render())
    for _ in range(5):
        last, *_ = env.step(np.ones(6, np.float32))
    assert (first != last).any(-1).mean() > 0.01
    again, _ = env.reset(seed=0)
    assert np.array_equal(first, again), "what was drawn before shows"
    used, fresh = (ControlAlignEnv(domain="quadruped", task="escape", observation="pixels") for _ in range(2))
    before, _ = used.reset(seed=0)
    after, _ = used.reset(seed=1)
    assert np.array_equal(after, fresh.reset(seed=1)[0]) and not np.array_equal(before, after)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("observation", ["state", "pixels"])
def test_vectorisers_play_the_single_environments_episodes(kind, observation: str) -> None:
    options = {"domain": "cartpole", "task": "swingup", "max_steps": 6, "observation": observation}
    singles = [ControlAlignEnv(**options) for _ in range(2)]
    context = {"context": "forkserver"} if kind is AsyncVectorEnv else {}
    env = kind([lambda: gym.make(f"aligngym:{NAME}", **options)] * 2, autoreset_mode=AutoresetMode.SAME_STEP, **context)
    try:
        check_vectoriser(env, singles, seed=11, steps=13)
    finally:
        env.close()


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_stable_baselines_learns_on_it(name: str) -> None:
    check_learner(name, ControlAlignEnv(max_steps=100))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Box observation space")
def test_stable_baselines_learns_from_pixels() -> None:
    check_learner("PPO", ControlAlignEnv(max_steps=100, observation="pixels"), "CnnPolicy", steps=100)


def test_closing_twice_is_fine_and_a_reset_reopens() -> None:
    env = ControlAlignEnv(observation="pixels")
    expected = roll(env, 2, 3)
    env.close()
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(6, np.float32))
    assert same(roll(env, 2, 3), expected)


def test_a_program_that_closes_nothing_ends_quietly() -> None:
    code = (
        "import gymnasium as gym; "
        "envs = [gym.make('aligngym:ControlAlign-v0', observation='pixels') for _ in range(2)]; "
        "print([int(env.reset(seed=0)[0].sum()) > 0 for env in envs])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


def test_a_fork_of_a_program_that_has_drawn_says_why_it_cannot_draw() -> None:
    env = ControlAlignEnv(observation="pixels")
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="context='forkserver'"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = AsyncVectorEnv([lambda: ControlAlignEnv(observation="pixels")], context="fork")
        try:
            rows.reset(seed=0)
        finally:
            rows.close(terminate=True)


@pytest.mark.slow
@pytest.mark.parametrize("observation", ["state", "pixels"])
def test_ten_thousand_steps_leak_nothing(observation: str) -> None:
    env = ControlAlignEnv(observation=observation, max_steps=100)
    action = np.zeros(6, np.float32)

    def play(steps: int) -> float:
        for t in range(steps):
            if t % 100 == 0:
                env.reset(seed=t)
            env.step(action)
        return resident_mb()

    before = play(2000)
    assert play(10_000) - before < 5


@pytest.mark.slow
def test_making_and_closing_leaks_nothing() -> None:
    def make(count: int) -> float:
        for _ in range(count):
            env = ControlAlignEnv(observation="pixels")
            env.reset(seed=0)
            env.close()
        return resident_mb()

    before = make(10)
    assert make(40) - before < 40, "a model takes 13 MB, a renderer more"

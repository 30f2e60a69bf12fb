"""RobosuiteAlign-v0 on robosuite's own simulator."""

from __future__ import annotations

import logging
import math
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
from aligngym.envs.robot.robosuite import CONTROLLER, TASKS, RobosuiteAlignEnv

from .robots import check_learner, check_vectoriser, flat, resident_mb, roll, same

NAME = "RobosuiteAlign-v0"
STILL = np.zeros(7, np.float32)


@pytest.fixture(scope="module")
def made():
    """One environment a task, used by many tests."""
    envs = {task: RobosuiteAlignEnv(task=task) for task in TASKS}
    yield envs
    for env in envs.values():
        env.close()


def lift(env, seed: int, steps: int = 60) -> dict:
    """Grasp the cube and lift it; the info of the last step."""
    observation, _ = env.reset(seed=seed)
    for t in range(steps):
        to_cube = -observation[7:10]
        near = np.abs(to_cube[:2]).max() < 0.01
        down = to_cube[2] if near else 0.0
        move = np.array([*to_cube[:2], down]) / 0.05 if t < 40 else np.array([0, 0, 1.0])
        action = np.clip([*move, 0, 0, 0, 1 if t >= 30 else -1], -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return {**info, "reward": reward, "terminated": terminated, "truncated": truncated, "steps": t + 1}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),  # a cube of another size is another model: seconds each time
        {"task": "Can", "flatten": False, "reward": "success"},
        pytest.param(
            {"task": "Square", "reward": "none", "max_steps": 3, "terminate_on_success": True}, marks=pytest.mark.slow
        ),
        pytest.param({"observation": "pixels", "render_mode": "rgb_array", "task": "Can"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_check_env_finds_nothing(options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(NAME, **options).unwrapped
        check_env(env)
    env.close()


@pytest.mark.parametrize("task", ["Can", "Square", pytest.param("Lift", marks=pytest.mark.slow)])
def test_a_seed_is_an_episode_whatever_was_before(made, task: str) -> None:
    fresh, used = RobosuiteAlignEnv(task=task), made[task]
    roll(used, 3, 25)
    expected = roll(fresh, 8)
    assert same(roll(used, 8), expected)
    assert not same(roll(used, 9), expected)
    assert not np.array_equal(fresh.reset()[0], fresh.reset()[0]), "the generator does not run on"
    fresh.close()


@pytest.mark.slow
def test_the_cubes_size_is_the_seeds_too(made) -> None:
    sizes = {}
    for seed in (0, 1, 0, 2):
        made["Lift"].reset(seed=seed)
        model = made["Lift"].simulator.sim.model._model
        size = model.geom("cube_g0").size.copy()
        assert np.array_equal(sizes.setdefault(seed, size), size) and (size > 0.0199).all() and (size < 0.0221).all()
    assert len({tuple(size) for size in sizes.values()}) == 3


@pytest.mark.parametrize("task", TASKS)
def test_physics_rewards_and_states_are_robosuites(made, task: str) -> None:
    """Against an environment of robosuite that is asked for its own observations, as they are now."""
    import robosuite

    env = made[task]
    logging.disable(logging.WARNING)
    theirs = robosuite.make(
        TASKS[task][0], robots="Panda", controller_configs=CONTROLLER, control_freq=20, lite_physics=False,
        ignore_done=True, hard_reset=True, reward_shaping=True, has_renderer=False, has_offscreen_renderer=False,
        use_camera_obs=False, renderer="mujoco",
    )  # fmt: skip
    drawn = int(np_random(4)[0].integers(2**63))
    theirs.rng.bit_generator.state = np.random.default_rng(drawn).bit_generator.state
    theirs.reset()
    logging.disable(logging.NOTSET)
    env.reset(seed=4)
    rng = np.random.default_rng(1)
    name = {"Lift": "cube", "Can": "Can", "Square": "SquareNut"}[task]
    for _ in range(10):
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        _, expected, _, _ = theirs.step(action)
        for _ in range(2):  # the first leaves relative poses of before
            seen = theirs._get_observations(force_update=True)
        assert reward == info["true_reward"] == pytest.approx(expected, abs=1e-6)
        assert info["success"] == theirs._check_success() == 0
        keys = [f"{name}_pos", f"{name}_quat"]
        if task == "Lift":
            relative = [-seen["gripper_to_cube_pos"]]
        else:
            relative = [seen[f"{name}_to_robot0_eef_{part}"] for part in ("pos", "quat")]
        proprioception = [seen[f"robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        whole = np.concatenate([*[seen[key] for key in keys], *relative, *proprioception])
        np.testing.assert_allclose(observation, whole, atol=2e-6)
    theirs.close()


@pytest.mark.parametrize("task", TASKS)
def test_relative_places_are_there_from_the_start(made, task: str) -> None:
    observation, _ = made[task].reset(seed=2)
    count = TASKS[task][2]
    place, hand = observation[:3].astype(float), observation[count : count + 3].astype(float)
    relative = observation[7:10]
    assert np.linalg.norm(relative) == pytest.approx(np.linalg.norm(hand - place), abs=1e-5)
    if task == "Lift":
        np.testing.assert_allclose(relative, hand - place, atol=1e-6)
    else:
        assert np.linalg.norm(observation[10:14]) == pytest.approx(1, abs=1e-5)


def test_flat_and_dictionary_hold_the_same(made) -> None:
    env = RobosuiteAlignEnv(task="Can", flatten=False)
    observation, _ = env.reset(seed=7)
    assert list(observation) == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert {k: v.shape for k, v in observation.items()} == {k: v.shape for k, v in env.observation_space.items()}
    assert np.array_equal(flat(observation), made["Can"].reset(seed=7)[0])
    env.close()


@pytest.mark.slow
def test_lifting_succeeds_and_is_told_in_every_way() -> None:
    env = RobosuiteAlignEnv(max_steps=60)
    for seed in range(3):
        told = lift(env, seed)
        assert told["success"] == told["true_reward"] == told["reward"] == 1 and told["steps"] == 60
        assert told["reward/success_any"] == told["reward/success_last"] == 1
        assert (told["terminated"], told["truncated"]) == (False, True) and 1 < told["reward/true_return"] < 60
    env.close()
    ending = RobosuiteAlignEnv(terminate_on_success=True, reward="success")
    told = lift(ending, 0)
    assert told["terminated"] and not told["truncated"] and told["reward"] == 1 and 40 < told["steps"] < 60
    ending.close()


def test_a_cube_that_is_dropped_has_succeeded_some_time_but_not_last() -> None:
    env = RobosuiteAlignEnv(max_steps=75)
    lift(env, 0)
    for _ in range(15):
        _, reward, _, truncated, info = env.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
    assert truncated and info["reward/success_any"] == 1 and info["reward/success_last"] == info["success"] == 0
    assert reward < 1
    env.close()


def test_rewards_are_given_as_asked_and_the_truth_is_told(made) -> None:
    dense = roll(made["Lift"], 1)
    for reward in ("success", "none"):
        env = RobosuiteAlignEnv(reward=reward)
        given = roll(env, 1)
        assert same([given[0], given[2]], [dense[0], dense[2]]) and (given[1] == 0).all()
        env.close()
    assert (dense[1] == dense[2]).all() and (dense[1] > 0).all()


def test_a_simulation_that_diverges_is_an_invalid_sample(made) -> None:
    env = made["Can"]
    expected = roll(env, 8)
    env.reset(seed=0)
    env.simulator.sim.data._data.qvel[:] = 1e30
    observation, reward, terminated, truncated, info = env.step(STILL)
    assert math.isnan(reward) and math.isnan(info["true_reward"]) and (terminated, truncated) == (False, True)
    assert info["invalid"] == "the simulation of Can diverged in step 1" and "reward/true_return" not in info
    assert observation in env.observation_space
    assert same(roll(env, 8), expected), "the next episode is not clean"


def test_bad_arguments_are_named(made) -> None:
    for options, message in (
        ({"task": "Stack"}, r"task is 'Stack', expected one of \['Lift', 'Can', 'Square'\]"),
        ({"observation": "image"}, "observation is 'image'"),
        ({"flatten": "yes"}, "flatten is 'yes'"),
        ({"reward": "dense"}, "reward is 'dense'"),
        ({"camera": "front"}, "camera is 'front', expected one of .*'agentview'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"size": 0}, "size is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ):
        with pytest.raises(ValueError, match=message):
            RobosuiteAlignEnv(**options)
    env = made["Square"]
    with pytest.raises(ValueError, match="unknown keys"):
        env.reset(options={"goal": 1})
    env.reset(seed=0)
    for action in (np.full(7, 1.5), np.full(7, np.nan), np.zeros(6), np.zeros((1, 7))):
        with pytest.raises(gym.error.InvalidAction):
            env.step(action)


@pytest.mark.parametrize("task", [pytest.param(t, marks=pytest.mark.slow) if t == "Lift" else t for t in TASKS])
def test_pixels_show_what_robosuite_draws(task: str) -> None:
    """robosuite smooths edges and has reflections; where both are flat, the pictures agree."""
    env = RobosuiteAlignEnv(task=task, observation="pixels", render_mode="rgb_array", render_size=128)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (84, 84, 3) and np.array_equal(frame, env.reset(seed=0)[0])
    ours = env.render().astype(int)
    assert ours.shape == (128, 128, 3)
    logging.disable(logging.WARNING)
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    logging.disable(logging.NOTSET)
    simulation = env.simulator.sim
    simulation.add_render_context(MjRenderContextOffscreen(simulation, device_id=-1))
    simulation._render_context_offscreen.vopt.geomgroup[0] = 0
    theirs = simulation.render(height=128, width=128, camera_name="agentview")[::-1].astype(int)
    assert np.median(np.abs(ours - theirs)) <= 1 and np.abs(ours - theirs).mean() < 8
    assert np.abs(ours - theirs[::-1]).mean() > 15
    red = (ours[..., 0] > 80) & (ours[..., 0] > 2 * ours[..., 1:].max(-1))
    assert (red.mean() > 0.001) == (task != "Square"), "cube and can are red, the nut is not"
    env.close()


@pytest.mark.parametrize("kind", [pytest.param(SyncVectorEnv, marks=pytest.mark.slow), AsyncVectorEnv])
def test_vectorisers_play_the_single_environments_episodes(kind) -> None:
    options = {"task": "Can", "max_steps": 4}
    singles = [RobosuiteAlignEnv(**options) for _ in range(2)]
    env = kind([lambda: gym.make(NAME, **options)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        check_vectoriser(env, singles, seed=11, steps=9)
    finally:
        for each in (env, *singles):
            each.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_stable_baselines_learns_on_it(name: str) -> None:
    env = RobosuiteAlignEnv(task="Can", max_steps=100)
    check_learner(name, env, steps=200)
    env.close()


@pytest.mark.slow
def test_closing_twice_is_fine_and_a_reset_reopens() -> None:
    env = RobosuiteAlignEnv(task="Can", observation="pixels")
    expected = roll(env, 2, 2)
    env.close()
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(STILL)
    assert same(roll(env, 2, 2), expected)
    env.close()


def test_robosuite_is_quiet_but_its_errors_are_not() -> None:
    code = (
        "import logging, gymnasium as gym; "
        "env = gym.make('aligngym:RobosuiteAlign-v0', observation='pixels', task='Can'); "
        "env.reset(seed=0); env.reset(); print('played'); logging.getLogger('robosuite_logs').warning('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "played\n"
    assert len(done.stderr.splitlines()) == 1 and "after" in done.stderr, "its logger is as it was"


def test_without_robosuite_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['robosuite'] = None; import gymnasium as gym; gym.make('aligngym:RobosuiteAlign-v0')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: RobosuiteAlign-v0 needs robosuite 1.5" in done.stderr
    assert "pip install --no-deps robosuite==1.5.2 mink==0.0.13" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "observation", "steps", "episode"),
    [("Can", "state", 10_000, 400), ("Can", "pixels", 2000, 400), ("Lift", "state", 400, 8)],
)
def test_ten_thousand_steps_and_fifty_models_leak_nothing(task, observation, steps, episode) -> None:
    env = RobosuiteAlignEnv(task=task, observation=observation)

    def play(count: int) -> float:
        for t in range(count):
            if t % episode == 0:
                env.reset(seed=t)
            env.step(STILL)
        return resident_mb()

    before = play(steps // 4)
    assert play(steps) - before < 20
    env.close()

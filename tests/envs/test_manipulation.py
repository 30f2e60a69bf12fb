"""``ManipulationAlign-v0`` on Meta-World's own simulator."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import aligngym  # noqa: F401
from aligngym.envs.robot.manipulation import ManipulationAlignEnv, full_task_name, task_names

pytest.importorskip("metaworld")
NAME = "ManipulationAlign-v0"


def roll(env, seed: int | None, steps: int = 40) -> list[np.ndarray]:
    """Observations, rewards and true rewards of an episode of random actions."""
    rng = np.random.default_rng(5)
    observation, _ = env.reset(seed=seed)
    observations, rewards, truths = [observation], [], []
    for _ in range(steps):
        observation, reward, _, _, info = env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        observations.append(observation)
        rewards.append(reward)
        truths.append(info["true_reward"])
    assert all(o in env.observation_space for o in observations)
    return [np.array(values) for values in (observations, rewards, truths)]


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task": "push", "goal_observable": False},
        {"goal": "fixed", "reward": "success", "max_steps": 3},
        {"observation": "pixels", "render_mode": "rgb_array"},
    ],
    ids=str,
)
def test_check_env_finds_nothing(options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(NAME, **options).unwrapped)


@pytest.mark.parametrize("task", ["button-press", "push", "bin-picking"])
def test_a_seed_is_an_episode_whatever_was_before(task: str) -> None:
    fresh, used = (ManipulationAlignEnv(task=task) for _ in range(2))
    roll(used, 3, 70)
    expected = roll(fresh, 8)
    assert same(roll(used, 8), expected)
    assert not same(roll(used, 9), expected)
    assert not np.array_equal(fresh.reset()[0], fresh.reset()[0]), "the generator does not run on"


def test_fixed_goals_are_the_same_for_every_seed_and_random_ones_are_not() -> None:
    for task in ("button-press", "reach"):
        fixed, random = (ManipulationAlignEnv(task=task, goal=goal) for goal in ("fixed", "random"))
        expected = roll(fixed, 0)
        assert same(roll(fixed, 1), expected) and same(roll(fixed, None), expected)
        goals = np.array([random.reset(seed=seed)[0][-3:] for seed in range(10)])
        assert len(np.unique(goals, axis=0)) == 10


@pytest.mark.parametrize("task", ["drawer-open", "pick-place", "button-press-topdown-wall"])
def test_physics_rewards_and_success_are_metaworlds(task: str) -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ManipulationAlignEnv(task=task)
    observations, rewards, _ = roll(env, 4)
    theirs = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=0)
    theirs._last_rand_vec = env.simulator._last_rand_vec
    theirs._freeze_rand_vec = True
    theirs.reset()  # as ours, which knows nothing of the episode it made the goal in
    state, _ = theirs.reset()
    rng = np.random.default_rng(5)
    for t in range(len(rewards)):
        np.testing.assert_allclose(observations[t], state, atol=1e-6)
        state, reward, *_ = theirs.step(rng.uniform(-1, 1, 4).astype(np.float32))
        assert reward == pytest.approx(rewards[t], abs=1e-6)


def test_a_hidden_goal_changes_only_what_is_seen() -> None:
    seen, hidden = (ManipulationAlignEnv(task="reach", goal_observable=shown) for shown in (True, False))
    ours, theirs = roll(seen, 1), roll(hidden, 1)
    assert np.array_equal(ours[0][:, :-3], theirs[0][:, :-3]) and same(ours[1:], theirs[1:])
    assert (theirs[0][:, -3:] == 0).all() and (ours[0][:, -2] > 0.5).all()


def test_bad_arguments_are_named() -> None:
    for options, message in {
        ("task", "press-button"): "task is 'press-button', expected one of assembly-v3",
        ("observation", "image"): "observation is 'image'",
        ("goal", "moving"): "goal is 'moving'",
        ("reward", "dense"): "reward is 'dense'",
        ("camera", "corner9"): "camera is 'corner9'",
        ("max_steps", 0): "max_steps is 0",
        ("size", 0): "size is 0",
        ("render_mode", "human"): "render_mode is 'human'",
    }.items():
        with pytest.raises(ValueError, match=message):
            ManipulationAlignEnv(**dict([options]))
    env = ManipulationAlignEnv(max_steps=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="unknown keys"):
        env.reset(options={"goal": 1})
    env.reset(seed=0)
    for action in (np.full(4, 1.5), np.full(4, np.nan), np.zeros(3), np.zeros((1, 4))):
        with pytest.raises(gym.error.InvalidAction):
            env.step(action)
    assert [env.step(np.zeros(4))[3] for _ in range(2)] == [False, True], "refused actions are no steps"
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4, np.float32))


def test_names() -> None:
    assert (
        len(task_names()) == 50 and full_task_name("sweep-into") == full_task_name("sweep-into-v3") == "sweep-into-v3"
    )


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_vectorisers_play_the_single_environments_episodes(kind) -> None:
    options = {"task": "faucet-close", "max_steps": 6}
    singles = [ManipulationAlignEnv(**options) for _ in range(2)]
    env = kind([lambda: gym.make(NAME, **options)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        observations, _ = env.reset(seed=11)
        expected = np.stack([single.reset(seed=11 + i)[0] for i, single in enumerate(singles)])
        assert np.array_equal(observations, expected)
        env.action_space.seed(0)
        for _ in range(13):
            actions = env.action_space.sample()
            observations, rewards, _, truncated, infos = env.step(actions)
            for i, single in enumerate(singles):
                observation, reward, _, over, info = single.step(actions[i])
                assert (reward, over) == (rewards[i], truncated[i])
                if over:
                    assert np.array_equal(infos["final_obs"][i], observation)
                    assert {k: v[i] for k, v in infos["final_info"].items() if k[0] != "_"} == info
                    observation, _ = single.reset()
                assert np.array_equal(observations[i], observation)
    finally:
        env.close()

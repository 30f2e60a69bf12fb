"""``ManipulationAlign-v0`` on Meta-World's own simulator."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import aligngym  # noqa: F401
from aligngym.envs.robot.experts import scripted_policy
from aligngym.envs.robot.manipulation import ManipulationAlignEnv, full_task_name, task_names

from .robots import check_learner, check_vectoriser, resident_mb, roll, same

pytest.importorskip("metaworld")
NAME = "ManipulationAlign-v0"


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
@pytest.mark.parametrize("options", [{}, {"observation": "pixels", "size": 32}], ids=["state", "pixels"])
def test_vectorisers_play_the_single_environments_episodes(kind, options) -> None:
    options = {"task": "faucet-close", "max_steps": 6, **options}
    context = {"context": "forkserver"} if kind is AsyncVectorEnv else {}  # a fork of a program that drew cannot draw
    env = kind([lambda: gym.make(f"aligngym:{NAME}", **options)] * 2, autoreset_mode=AutoresetMode.SAME_STEP, **context)
    try:
        check_vectoriser(env, [ManipulationAlignEnv(**options) for _ in range(2)], seed=11, steps=13)
    finally:
        env.close()


def play(env, policy, seed: int = 0) -> list[tuple]:
    """What the steps of an episode return."""
    state, _ = env.reset(seed=seed)
    outcomes = []
    while not outcomes or not (outcomes[-1][2] or outcomes[-1][3]):
        outcomes.append(env.step(policy(state)))
        state = outcomes[-1][0]
    return outcomes


def there_and_back(task: str, forth: int):
    """The task's expert for so many steps; then up and away, or whatever lets the object go."""
    expert, step = scripted_policy(task), iter(range(10**6))
    return lambda state: expert(state) if next(step) < forth else np.array([0, -1, 1, -1], np.float32)


def test_success_of_any_step_and_of_the_last_are_two_things() -> None:
    """A button that is let go comes out again."""
    kept = play(ManipulationAlignEnv(max_steps=150), scripted_policy("button-press"))
    lost = play(ManipulationAlignEnv(max_steps=150), there_and_back("button-press", 90))
    never = play(ManipulationAlignEnv(max_steps=5), scripted_policy("button-press"))
    for outcomes, any_step, last in ((kept, 1, 1), (lost, 1, 0), (never, 0, 0)):
        infos = [info for *_, info in outcomes]
        assert max(info["success"] for info in infos) == infos[-1]["reward/success_any"] == any_step
        assert infos[-1]["success"] == infos[-1]["reward/success_last"] == last
        assert infos[-1]["reward/true_return"] == pytest.approx(sum(info["true_reward"] for info in infos))
        assert all(info.keys() == {"true_reward", "success"} for info in infos[:-1])


@pytest.mark.parametrize("reward", ["task", "success", "none"])
def test_the_reward_is_an_option_and_the_truth_is_not(reward: str) -> None:
    expert = scripted_policy("drawer-open")
    expected = play(ManipulationAlignEnv(task="drawer-open", max_steps=130), expert)
    outcomes = play(ManipulationAlignEnv(task="drawer-open", max_steps=130, reward=reward), expert)
    assert [info for *_, info in outcomes] == [info for *_, info in expected]
    given, truths, successes = (
        np.array(values)
        for values in zip(*((o[1], o[4]["true_reward"], o[4]["success"]) for o in outcomes), strict=True)
    )
    assert np.array_equal(given, {"task": truths, "success": successes, "none": np.zeros(130)}[reward])
    assert set(successes) == {0.0, 1.0} and truths.max() > 5 and all(type(o[1]) is float for o in outcomes)


def test_episodes_are_truncated_and_terminate_only_where_that_is_wanted() -> None:
    expert = scripted_policy("drawer-open")
    *before, last = play(ManipulationAlignEnv(task="drawer-open", terminate_on_success=True), expert)
    assert last[2:4] == (True, False) and last[4]["reward/success_last"] == 1
    assert all(o[2:4] == (False, False) and o[4]["success"] == 0 for o in before)
    steps = len(before) + 1  # a success in the last step that there is is no truncation
    exact = ManipulationAlignEnv(task="drawer-open", terminate_on_success=True, max_steps=steps)
    assert play(exact, expert)[-1][2:4] == (True, False)
    assert play(ManipulationAlignEnv(task="drawer-open", max_steps=steps), expert)[-1][2:4] == (False, True)
    long = play(ManipulationAlignEnv(max_steps=510), lambda _: np.zeros(4))  # Meta-World itself refuses the 501st
    assert len(long) == 510 and long[-1][3]


def test_a_simulation_that_diverges_is_no_reward_of_zero(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    env = ManipulationAlignEnv()
    env.reset(seed=0)
    env.step(np.zeros(4))
    env.simulator.data.qvel[:] = np.nan
    observation, reward, terminated, truncated, info = env.step(np.zeros(4))
    assert np.isnan(reward) and np.isnan(info["true_reward"]) and (terminated, truncated) == (False, True)
    assert "diverged in step 2" in info["invalid"] and not any(key.startswith("reward/") for key in info)
    assert observation in env.observation_space
    assert same(roll(env, 4), roll(ManipulationAlignEnv(), 4)), "the next episode is not as if nothing had been"


def test_pictures_show_the_scene() -> None:
    """What Meta-World's own renderer shows, but for shadows and edges; and the button, red and yellow, where it is."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ManipulationAlignEnv(task="button-press", render_mode="rgb_array", render_size=128, camera="corner4")
    theirs = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE["button-press-v3-goal-observable"](seed=0, render_mode="rgb_array")
    env.reset(seed=0)
    theirs._last_rand_vec = env.simulator._last_rand_vec
    theirs.reset()
    theirs.reset()
    camera = theirs.model.camera("corner4").id
    theirs.mujoco_renderer.camera_id = camera
    theirs.mujoco_renderer.width = theirs.mujoco_renderer.height = 128
    ours, plain = env.render(), theirs.render()[::-1, ::-1]
    theirs.close()
    assert ours.shape == plain.shape == (128, 128, 3) and ours.dtype == np.uint8

    def coarse(picture):
        return picture.reshape(16, 8, 16, 8, 3).mean((1, 3))

    assert np.abs(coarse(ours) - coarse(plain)).mean() < 15
    assert np.abs(coarse(ours) - coarse(plain[::-1, ::-1])).mean() > 30
    red, green, blue = ours.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 120) & (green > 0.6 * red) & (blue < 0.3 * red))  # the button's yellow box
    assert len(rows) > 100 and 32 < rows.mean() < 96 and columns.mean() > 64


def test_looking_changes_nothing_but_the_observation() -> None:
    options = {"task": "push", "max_steps": 30}
    blind, watched = ManipulationAlignEnv(**options), ManipulationAlignEnv(**options, render_mode="rgb_array")
    seeing = ManipulationAlignEnv(**options, observation="pixels", size=16)
    expected = roll(blind, 2)
    watched.reset(seed=2)
    watched.render()
    rng = np.random.default_rng(5)
    for truth in expected[2]:
        assert watched.step(rng.uniform(-1, 1, 4).astype(np.float32))[4]["true_reward"] == truth
        watched.render()
    frames, *rewards = roll(seeing, 2)
    assert same(rewards, expected[1:])
    assert frames.shape == (len(rewards[0]) + 1, 16, 16, 3) and frames.dtype == np.uint8 and frames.std() > 20
    assert not np.array_equal(frames[0], frames[-1])
    assert blind.render() is None
    for env in (watched, seeing):
        env.close()
        env.close()
        env.reset(seed=2)
    assert np.array_equal(seeing.reset(seed=2)[0], frames[0])


def test_the_goals_mark_is_where_the_goal_is_unless_it_is_hidden() -> None:
    """Seen from above, the green dot of the task is as far to the right as the goal."""
    places, dots = [], []
    options = {"task": "push", "camera": "topview", "render_mode": "rgb_array"}
    env, hidden = ManipulationAlignEnv(**options), ManipulationAlignEnv(**options, goal_observable=False)

    def green(picture):
        red, level, blue = picture.astype(int).transpose(2, 0, 1)
        return np.nonzero((level > 100) & (red < level / 2) & (blue < level / 2))[1]

    for seed in range(6):
        places.append(env.reset(seed=seed)[0][-3])
        dots.append(green(env.render()).mean())
        hidden.reset(seed=seed)
        assert not len(green(hidden.render()))
    assert np.corrcoef(places, dots)[0, 1] > 0.99
    with pytest.raises(gym.error.ResetNeeded):
        ManipulationAlignEnv(render_mode="rgb_array").render()


@pytest.mark.parametrize("algorithm", [pytest.param("SAC", marks=pytest.mark.slow), "PPO"])
def test_stable_baselines_learns_on_it(algorithm: str) -> None:
    check_learner(algorithm, gym.make(NAME, task="reach", max_steps=50))


@pytest.mark.slow
@pytest.mark.parametrize("observation", ["state", "pixels"])
def test_ten_thousand_steps_leak_no_memory(observation: str) -> None:
    env = ManipulationAlignEnv(observation=observation, max_steps=100)

    def steps(count: int) -> None:
        for _ in range(count):
            if env._over:
                env.reset()
            env.step(env.action_space.sample())

    steps(1000)
    before = resident_mb()
    steps(10_000 if observation == "state" else 3000)
    assert resident_mb() - before < 10


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names())
def test_every_task_is_its_seeds_and_stays_in_its_space(task: str) -> None:
    fresh, used = (ManipulationAlignEnv(task=task) for _ in range(2))
    roll(used, 3, 100)
    assert same(roll(used, 8), roll(fresh, 8))
    state, _ = fresh.reset(seed=1)
    expert = scripted_policy(task)
    for _ in range(150):
        state, reward, *_ = fresh.step(expert(state))
        assert state in fresh.observation_space and 0 <= reward <= 10

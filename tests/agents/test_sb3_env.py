"""The face that Stable-Baselines3 sees: observations, ends and seeds, against environments that are stepped by hand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aligngym.agents.sb3_env import SeededVecEnv

MODES = list(AutoresetMode)
LIMIT = 14  # CartPole falls after 9 steps or more of random actions: some episodes end so, some by the limit


def make(env_id="CartPole-v1", rows=3, mode=AutoresetMode.NEXT_STEP, seed=0, kind="sync", **options):
    env = gym.make_vec(
        env_id, num_envs=rows, vectorization_mode=kind, vector_kwargs={"autoreset_mode": mode}, **options
    )
    rng = np.random.default_rng(seed)
    return SeededVecEnv(env, lambda count: rng.integers(2**31, size=count).tolist())


def actions_of(env, seed=1):
    """Random actions for ever, not drawn from the environment's own space."""
    rng = np.random.default_rng(seed)
    space = env.action_space
    while True:
        if isinstance(space, gym.spaces.Discrete):
            yield rng.integers(space.n, size=env.num_envs)
        else:
            yield rng.uniform(space.low, space.high, (env.num_envs, *space.shape)).astype(np.float32)


class ByHand:
    """The same episodes in single environments, one a row, reset with the seeds that the adapter used."""

    def __init__(self, env_id, env, **options):
        self.rows = [gym.make(env_id, **options) for _ in range(env.num_envs)]

    def reset(self, row, seed):
        return self.rows[row].reset(seed=seed)[0]

    def step(self, row, action):
        return self.rows[row].step(action)


def check_against_by_hand(env, env_id, steps, **options):
    """Step both; returns how many episodes terminated and how many were truncated."""
    alone, taken = ByHand(env_id, env, **options), actions_of(env)
    observation, ends = env.reset(), [0, 0]
    for row in range(env.num_envs):
        np.testing.assert_array_equal(observation[row], alone.reset(row, env.seeds[row]))
    for _ in range(steps):
        actions = next(taken)
        observation, rewards, done, infos = env.step(actions)
        assert rewards.dtype == np.float32 and done.dtype == bool
        for row in range(env.num_envs):
            expected, reward, terminated, truncated, _ = alone.step(row, actions[row])
            assert rewards[row] == np.float32(reward)
            assert done[row] == (terminated or truncated)
            assert infos[row]["TimeLimit.truncated"] is (truncated and not terminated)
            assert ("terminal_observation" in infos[row]) == done[row]
            if done[row]:
                np.testing.assert_array_equal(infos[row]["terminal_observation"], expected)
                expected = alone.reset(row, env.seeds[row])
                assert not np.array_equal(infos[row]["terminal_observation"], observation[row])
                ends[int(truncated and not terminated)] += 1
            np.testing.assert_array_equal(observation[row], expected)
    return ends


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize("rows", [1, 3])
def test_episodes_are_those_of_single_environments(mode, rows):
    env = make(rows=rows, mode=mode, max_episode_steps=LIMIT)
    terminated, truncated = check_against_by_hand(env, "CartPole-v1", 150, max_episode_steps=LIMIT)
    assert terminated > 2 and truncated > 2
    assert len(env.finished) == terminated + truncated
    assert [e["length"] for e in env.finished] == [e["return"] for e in env.finished]
    assert sum(e["terminated"] for e in env.finished) == terminated


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_episodes_in_processes_are_the_same(mode):
    env = make(rows=2, mode=mode, kind="async", max_episode_steps=LIMIT)
    try:
        assert min(check_against_by_hand(env, "CartPole-v1", 60, max_episode_steps=LIMIT)) > 0
    finally:
        env.close()


def test_an_end_in_the_step_of_the_limit_is_an_end():
    """Nothing is to be bootstrapped where an episode terminates in the very step in which its time passes."""
    single = gym.make("CartPole-v1")
    single.reset(seed=7)
    length = 1
    while not single.step(1)[2]:
        length += 1
    env = make(rows=1, max_episode_steps=length)
    env.draw = lambda count: [7] * count
    env.reset()
    for _ in range(length):
        _, _, done, infos = env.step(np.array([1]))
    assert done[0] and infos[0]["TimeLimit.truncated"] is False
    assert env.finished[0] | {"terminated": 1.0, "length": float(length)} == env.finished[0]


def test_arrays_that_were_handed_out_do_not_change():
    env = make(rows=2, mode=AutoresetMode.NEXT_STEP, max_episode_steps=3)
    env.env.unwrapped.copy = False  # the environment then writes into one array for ever
    kept = [env.reset()]
    copies = [kept[0].copy()]
    for actions, _ in zip(actions_of(env), range(6), strict=False):
        observation, _, _, infos = env.step(actions)
        kept += [observation, *(i["terminal_observation"] for i in infos if "terminal_observation" in i)]
        copies = copies + [k.copy() for k in kept[len(copies) :]]
    for one, two in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(one, two)


def played(env, steps, taken):
    """What ``steps`` further steps look like."""
    seen = []
    for _ in range(steps):
        observation, rewards, done, _ = env.step(next(taken))
        seen += [observation, rewards, done]
    return seen


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("steps", [0, 1, 23, 40])
def test_a_replay_leads_back_to_where_training_stood(mode, env_id, steps):
    env, other = (make(env_id, mode=mode, max_episode_steps=LIMIT) for _ in range(2))
    taken, ours = actions_of(env), actions_of(other)
    env.reset(), other.reset()
    played(env, steps, taken), played(other, steps, ours)
    env.env.reset(seed=3)  # somebody else plays in the environment
    for _ in range(5):
        env.env.step(env.env.action_space.sample())
        if mode is AutoresetMode.DISABLED:
            env.env.reset()
    env.moved = True
    env.replay()
    for one, two in zip(played(env, 60, taken), played(other, 60, ours), strict=True):
        np.testing.assert_array_equal(one, two)
    assert env.finished == other.finished


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_rows_whose_episode_has_just_begun_are_replayed_too(mode):
    env, other = (make(rows=3, mode=mode, max_episode_steps=LIMIT) for _ in range(2))
    taken, ours = actions_of(env), actions_of(other)
    env.reset(), other.reset()
    for _ in range(200):
        done = played(env, 1, taken)[2]
        played(other, 1, ours)
        if 0 < done.sum() < 3:
            break
    assert {0} < {len(a) for a in env.actions}
    env.env.reset(seed=3)
    env.moved = True
    env.replay()
    for one, two in zip(played(env, 30, taken), played(other, 30, ours), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_a_state_moves_to_another_environment(mode):
    env, other = make(mode=mode, max_episode_steps=LIMIT), make(mode=mode, seed=9, max_episode_steps=LIMIT)
    taken = actions_of(env)
    env.reset()
    played(env, 31, taken)
    tensors, plain = env.get_state()
    other.set_state(tensors, plain)
    assert other.moved
    other.replay()
    rng = np.random.default_rng(4)
    env.draw = lambda count: [5] * count
    other.draw = lambda count: [5] * count
    for _ in range(40):
        actions = rng.integers(2, size=3)
        (one, reward, done, _), (two, same, also, _) = env.step(actions), other.step(actions)
        np.testing.assert_array_equal(one, two)
        assert (reward == same).all() and (done == also).all()
    assert env.finished[-3:] == other.finished[-3:]
    with pytest.raises(ValueError, match="has 2 rows, the checkpoint's had 3"):
        make(rows=2).set_state(tensors, plain)


def test_a_state_before_the_first_episode_is_empty():
    env = make()
    tensors, plain = env.get_state()
    assert tensors == {}
    env.set_state(tensors, plain)
    assert env.observation is None and not env.moved


def test_dictionaries_of_observations():
    env_id = "CartPole-v1"
    env = make(env_id, rows=2, max_episode_steps=3, wrappers=[Split])
    first = env.reset()
    assert set(first) == {"cart", "pole"}
    single = gym.make(env_id)
    expected = [single.reset(seed=env.seeds[0])[0]]
    expected += [single.step(0)[0] for _ in range(3)]
    for _ in range(3):
        observation, _, done, infos = env.step(np.zeros(2, int))
    assert done.all()
    final = infos[0]["terminal_observation"]
    np.testing.assert_array_equal(np.concatenate([final["cart"], final["pole"]]), expected[-1])
    restored = single.reset(seed=env.seeds[0])[0]
    np.testing.assert_array_equal(observation["cart"][0], restored[:2])
    tensors, plain = env.get_state()
    again = make(env_id, rows=2, max_episode_steps=3, wrappers=[Split])
    again.set_state(tensors, plain)
    again.replay()
    np.testing.assert_array_equal(again.observation["pole"], observation["pole"])


class Split(gym.ObservationWrapper):
    """CartPole's observation in two parts."""

    def __init__(self, env):
        super().__init__(env)
        low, high = env.observation_space.low, env.observation_space.high
        parts = {"cart": slice(0, 2), "pole": slice(2, 4)}
        self.observation_space = gym.spaces.Dict({k: gym.spaces.Box(low[v], high[v]) for k, v in parts.items()})

    def observation(self, observation):
        return {"cart": observation[:2], "pole": observation[2:]}


class Forgetful(gym.Wrapper):
    """An environment that pays no heed to its seed."""

    def reset(self, *, seed=None, options=None):
        return self.env.reset(options=options)


def test_an_environment_that_does_not_repeat_itself_is_reported():
    env = make(rows=1, wrappers=[Forgetful])
    env.reset()
    played(env, 4, actions_of(env))
    env.moved = True
    with pytest.warns(UserWarning, match="does not repeat an episode from its seed"):
        env.replay()


class Maskless(gym.vector.VectorWrapper):
    """A wrapper that knows no masks."""

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)


def test_an_environment_that_resets_all_rows_at_once_is_refused():
    env = make(rows=2, max_episode_steps=LIMIT)
    env.env = Maskless(env.env)
    env.reset()
    with pytest.raises(ValueError, match="make it with vectorization_mode='sync'"):
        played(env, 100, actions_of(env))


class Diverging(gym.Wrapper):
    """A simulation that diverges in its fourth step, or merely a reward that fails there."""

    def __init__(self, env, truncated=True, at=4):
        super().__init__(env)
        self.truncated, self.at, self.steps = truncated, at, 0

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at:
            return observation, np.nan, False, self.truncated, info | {"invalid": "diverged"}
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_a_simulation_that_diverges_ends_its_episode_and_is_paid_like_the_step_before(mode):
    env = make("Pendulum-v1", rows=2, mode=mode, wrappers=[Diverging])
    env.reset()
    taken, rewards = actions_of(env), []
    for t in range(8):
        _, paid, done, infos = env.step(next(taken))
        rewards.append(paid)
        assert done.all() == (t % 4 == 3) and infos[1]["TimeLimit.truncated"] is (t % 4 == 3)
    for t in (3, 7):
        assert np.isfinite(rewards[t]).all() and (rewards[t] == rewards[t - 1]).all()
    assert (rewards[2] != rewards[1]).all()
    assert [e["invalid"] for e in env.finished] == [1.0] * 4


@pytest.mark.parametrize("options", [{"truncated": False}, {"at": 1}])
def test_other_failed_rewards_are_reported(options):
    env = make("Pendulum-v1", rows=1, wrappers=[lambda e: Diverging(e, **options)])
    env.reset()
    with pytest.raises(ValueError, match="cannot leave an episode out"):
        played(env, 4, actions_of(env))


def test_terms_of_the_last_step_are_kept():
    class Terms(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            ends = {"reward/true_return": 3.5} if terminated or truncated else {}
            return observation, reward, terminated, truncated, info | ends | {"success": 0.0}

    for mode in MODES:
        env = make(rows=2, mode=mode, wrappers=[Terms], max_episode_steps=4)
        env.reset()
        for _ in range(4):
            _, _, done, infos = env.step(np.array([0, 1]))
            assert infos[0]["success"] == 0.0  # of SAME_STEP too, where the info is the next episode's
        assert done.all()
        assert [e["reward/true_return"] for e in env.finished] == [3.5, 3.5]


def test_actions_keep_to_the_bounds():
    """A rounding error of scaling back must not leave the space."""
    env = make("Pendulum-v1", rows=1, wrappers=[lambda e: gym.wrappers.RescaleAction(e, np.float32(-1), np.float32(3))])
    env.reset()
    env.step(np.array([[3.0000002]], np.float32))
    assert env.action_space.contains(env.actions[0][0]) and env.actions[0][0] == 3.0

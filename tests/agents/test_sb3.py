"""Stable-Baselines3's agents: the same as run by hand, resumed exactly, and without touching global generators."""

import copy
import random

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv

from aligngym.agents.callbacks import Callback
from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.policies.sb3_policy import SB3Policy
from aligngym.agents.sb3 import SAC, SB3PPO

from .small_sb3 import HOMES, MODES, SMALL, Metrics, equal, make_env, small

# Against Stable-Baselines3 run by hand


class Seeded(gym.Wrapper):
    """Every episode has the next one of the agent's seeds."""

    def __init__(self, env, rng):
        super().__init__(env)
        self.rng = rng

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=int(self.rng.integers(2**31)), options=options)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["sac", "sb3-ppo", "sb3-ppo on Pendulum-v1"])
def test_training_is_that_of_stable_baselines3(name, rows, mode):
    """Bit for bit: weights, replay buffer and step count, over episodes that terminate and episodes that are cut."""
    name, _, home = name.partition(" on ")
    home = home or HOMES[name]
    limits = {"max_episode_steps": 18 if home == "CartPole-v1" else 15}
    agent = small(name, make_env(home, rows, mode, **limits), seed=5)
    agent.learn(160)
    rng, options = np.random.default_rng(5), dict(SMALL[name][1])
    options.pop("steps_per_iteration", None)
    policy = {"net_arch": list(options.pop("net_arch"))}
    envs = DummyVecEnv([lambda: Seeded(gym.make(home, **limits), rng)] * rows)
    cls = stable_baselines3.SAC if name == "sac" else stable_baselines3.PPO
    plain = cls("MlpPolicy", envs, policy_kwargs=policy, seed=5, **options)
    initial = copy.deepcopy(plain.policy.state_dict())
    plain.learn(agent.episodes)
    assert plain.num_timesteps == agent.episodes >= 160
    ours = agent.model.policy.state_dict()
    for key, value in plain.policy.state_dict().items():
        assert torch.equal(value, ours[key]), key
    assert any(not torch.equal(value, initial[key]) for key, value in ours.items())
    if name == "sac":
        for key in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            np.testing.assert_array_equal(getattr(plain.replay_buffer, key), getattr(agent.model.replay_buffer, key))


def test_the_length_of_an_iteration_does_not_change_training():
    one, other = small("sac"), small("sac", steps_per_iteration=10)
    one.learn(160)
    other.learn(160)
    assert one.iteration == 5 and other.iteration == 16 and equal(one, other)


def test_time_limits_are_bootstrapped_through_and_ends_are_not():
    """A trap: MountainCarContinuous ends at its goal, and is cut before by the limit, in one replay buffer."""
    env = make_env("MountainCarContinuous-v0", 2, AutoresetMode.SAME_STEP, max_episode_steps=5)
    agent = small("sac", env, learning_starts=10**6, steps_per_iteration=300)
    for single in env.envs:  # a goal in the valley, where episodes start on either side of it
        single.unwrapped.goal_position = -0.5
    agent.learn(600)
    buffer = agent.model.replay_buffer
    size = buffer.size()
    observations, final = buffer.observations[:size], buffer.next_observations[:size]
    ends, cut = buffer.dones[:size].astype(bool), buffer.timeouts[:size].astype(bool)
    at_goal = final[..., 0] >= -0.5
    assert (cut & ends == cut).all() and cut.sum() > 5 and (ends & ~cut).sum() > 5
    np.testing.assert_array_equal(ends & ~cut, at_goal & (final[..., 1] >= 0))
    # The observation after a step is what the dynamics lead to, also where the next episode began elsewhere.
    position, velocity = final[..., 0], final[..., 1]
    np.testing.assert_allclose(position, np.clip(observations[..., 0] + velocity, -1.2, 0.6), atol=1e-6)
    follows = (observations[1:] == final[:-1]).all(-1)
    np.testing.assert_array_equal(follows, ~ends[:-1])
    rows = torch.arange(size).numpy()
    np.random.seed(0)  # noqa: NPY002, which row of the environment
    batch = buffer._get_samples(rows)
    np.random.seed(0)  # noqa: NPY002
    row = np.random.randint(0, 2, size=size)  # noqa: NPY002
    np.testing.assert_array_equal(batch.dones[:, 0].numpy(), (ends & ~cut)[rows, row])


def test_values_see_through_the_time_limit():
    """Where every step pays 1, states are worth 1 / (1 - gamma) = 10. If the limit of five steps ended them: 3."""
    pays = [lambda env: gym.wrappers.TransformReward(env, lambda reward: 1.0)]
    env = make_env("Pendulum-v1", max_episode_steps=5, wrappers=pays)
    agent = small("sac", env, gamma=0.9, ent_coef=0.0, learning_rate=3e-3, tau=0.05, steps_per_iteration=100)
    agent.learn(1600)
    buffer = agent.model.replay_buffer
    with torch.no_grad():
        values = agent.model.critic(*(torch.from_numpy(x[:500, 0]) for x in (buffer.observations, buffer.actions)))[0]
    assert values.mean().item() == pytest.approx(10, rel=0.1)


def test_ppo_adds_the_value_of_the_final_observation_where_time_ran_out():
    env = make_env("CartPole-v1", 3, AutoresetMode.SAME_STEP, max_episode_steps=14)
    agent = small("sb3-ppo", env, n_steps=96, learning_rate=1e-30, gamma=0.9)
    model, rewards, ends = agent.model, [], []
    step = agent.vec_env.step_wait

    def watched():
        result = step()
        rewards.append(result[1].copy())
        ends.append(copy.deepcopy(result[3]))
        return result

    agent.vec_env.step_wait = watched
    agent.learn(1)
    assert len(rewards) == 96
    paid = model.rollout_buffer.rewards
    paid = paid if paid.shape == (96, 3) else paid.reshape(3, 96).T
    kinds = set()
    for t, infos in enumerate(ends):
        for row, info in enumerate(infos):
            expected = 1.0
            if info["TimeLimit.truncated"]:
                seen, _ = model.policy.obs_to_tensor(info["terminal_observation"])
                expected += 0.9 * model.policy.predict_values(seen).item()
            kinds.add((info["TimeLimit.truncated"], "terminal_observation" in info))
            assert paid[t, row] == pytest.approx(expected, abs=1e-5)
    assert kinds == {(False, False), (False, True), (True, True)}


# Random numbers


@pytest.mark.parametrize("name", SMALL)
def test_global_generators_are_neither_read_nor_moved(name, tmp_path):
    def run(seed):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        agent = small(name)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        agent.learn(80)
        agent.evaluate(episodes=2)
        agent.save(tmp_path / str(seed))
        type(agent).load(tmp_path / str(seed)).learn(40)
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])
        return agent

    state = torch.random.get_rng_state()
    try:
        one, other = run(1), run(2)
    finally:
        torch.random.set_rng_state(state)
    assert equal(one, other)
    assert not equal(one, small(name, seed=4).learn(80))


def test_building_moves_no_generator_and_leaves_the_users_spaces_alone():
    env = make_env("Pendulum-v1")
    env.single_action_space.seed(5)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    small("sac", env)
    SB3Policy.build("sac", env.single_observation_space, env.single_action_space)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    drawn = env.single_action_space.sample()
    env.single_action_space.seed(5)
    assert drawn == env.single_action_space.sample()


def test_generators_are_given_back_after_an_error():
    class Boom(Exception):
        pass

    agent, before = small("sac"), torch.get_rng_state()
    with pytest.raises(Boom), agent.randomness.installed():
        torch.rand(3)
        raise Boom
    assert torch.equal(before, torch.get_rng_state())


# Resuming


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sac", {}),
        ("sac", {"buffer_size": 60, "ent_coef": 0.2}),
        ("sac", {"learning_starts": 130, "train_freq": 3}),  # saved while it acts at random
        ("sb3-ppo", {}),
    ],
    ids=str,
)
def test_resume_is_exact(name, options, mode, tmp_path):
    """In the middle of episodes, with evaluations on the training environment in between."""

    def env():
        return make_env(HOMES[name], 2, mode, max_episode_steps=17)

    straight, first = (small(name, env(), **options) for _ in range(2))
    whole, half, second = Metrics(), Metrics(), Metrics()
    straight.learn(192, whole)
    first.learn(96, half)
    seen = first.episodes
    assert first.vec_env.actions[0]  # an episode is under way
    first.evaluate(episodes=3)
    first.save(tmp_path / "saved")
    resumed = type(first).load(tmp_path / "saved", env())
    assert resumed.episodes == seen and resumed.policy.version == first.policy.version
    assert resumed._state() == first._state()
    first.learn(straight.episodes - seen)
    resumed.learn(straight.episodes - seen, second)
    assert half.rows + second.rows == whole.rows
    assert equal(resumed, straight) and equal(first, straight)
    assert resumed.rng.bit_generator.state == straight.rng.bit_generator.state
    assert resumed._state() == straight._state()  # generators, counters, episodes under way


@pytest.mark.parametrize("name", SMALL)
def test_nothing_needs_to_be_given_to_load(name, tmp_path):
    agent = small(name, SMALL[name][0] and HOMES[name], num_envs=2)
    assert agent.env.num_envs == 2
    agent.save(tmp_path / "before")  # no step yet
    agent.learn(50)
    again = type(agent).load(tmp_path / "before")
    again.learn(50)
    assert equal(agent, again)
    agent.save(tmp_path / "after")
    assert equal(type(agent).load(tmp_path / "after"), agent)


def test_environments_that_keep_their_own_state_are_not_replayed(tmp_path):
    """Those of this package are restored with their episodes; playing these again would draw other ones."""
    straight, first = (small("sb3-ppo", gym.make_vec("TabularBandit-v0", num_envs=2)) for _ in range(2))
    straight.learn(192)
    first.learn(64)
    first.evaluate(episodes=4)
    first.save(tmp_path / "saved")
    first.learn(128)
    resumed = SB3PPO.load(tmp_path / "saved")
    resumed.learn(128)
    assert equal(first, straight) and equal(resumed, straight)
    assert resumed._state() == straight._state()


def test_evaluations_and_predictions_change_nothing():
    class Evaluate(Callback):
        def on_iteration(self, agent, episodes, metrics):
            agent.evaluate(episodes=3)
            agent.play(episodes=1, deterministic=False)
            agent.predict(np.zeros(3, np.float32), deterministic=False)
            return True

    quiet, watched = small("sac"), small("sac")
    quiet.learn(160)
    watched.learn(160, Evaluate())
    assert equal(quiet, watched)


def test_only_the_used_part_of_the_buffer_is_saved(tmp_path):
    agent = small("sac", buffer_size=100_000)
    agent.learn(64)
    agent.save(tmp_path / "saved")
    tensors, _ = load_checkpoint(tmp_path / "saved")
    assert tensors["replay"]["observations"].shape == (32, 2, 3)
    assert sorted(p.suffix for p in (tmp_path / "saved").iterdir()) == [".json"] * 2 + [".safetensors"] * 7


def test_another_environment_is_refused(tmp_path):
    agent = small("sac")
    agent.learn(40)
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="has 3 rows, the checkpoint's had 2"):
        SAC.load(tmp_path / "saved", make_env("Pendulum-v1", 3))
    with pytest.raises(ValueError, match="does not fit the environment"):
        SAC.load(tmp_path / "saved", make_env("MountainCarContinuous-v0", 2))


def test_training_goes_on_from_a_policy():
    first = small("sac")
    first.learn(80)
    second = small("sac", seed=8)
    second = SAC(make_env("Pendulum-v1"), first.policy, first.config, seed=8)
    for ours, theirs in zip(second.policy.parameters(), first.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs
    with pytest.raises(ValueError, match="takes its own SB3Policy"):
        SB3PPO(make_env("Pendulum-v1"), first.policy)
    with pytest.raises(ValueError, match="names a model"):
        SAC(make_env("Pendulum-v1"), "stories")

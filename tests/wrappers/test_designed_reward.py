"""DesignedReward: replaced and added, alike in every kind of batch, and any learner trains under it."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aligngym.agents.q_learning import QLearning, QLearningConfig
from aligngym.agents.sb3 import SB3PPO, SB3PPOConfig
from aligngym.agents.teachers.baselines import pbrs
from aligngym.agents.teachers.callback import TeacherUpdates, action_probabilities
from aligngym.agents.teachers.deep_explors import DeepExploRS
from aligngym.agents.teachers.explors import ExploRS
from aligngym.agents.teachers.exprd import exprd
from aligngym.agents.teachers.teacher import TableTeacher
from aligngym.envs.design.chain import chain_mdp
from aligngym.wrappers import DesignedReward, vector

CHAIN = "RewardDesign/Chain-v0"
SMALL = {"right": 2, "left": 3, "max_steps": 7}
TABLE = np.random.default_rng(0).normal(size=(7, 2))


class Recorder:
    """A design that counts its steps and sees episodes."""

    mode = "add"

    def __init__(self):
        self.steps, self.episodes = 0, []

    def __call__(self, state, action, next_state, terminated):
        self.steps += 1
        return 100.0 * int(state) + 10 * action + int(next_state) + 0.5 * terminated

    def record(self, states, actions, rewards):
        self.episodes.append((states.tolist(), actions.tolist(), rewards.tolist()))


def test_one_environment():
    env = DesignedReward(gym.make(CHAIN, noise=0.0, **SMALL), TABLE)
    state, _ = env.reset(seed=0)
    for action in (1, 1, 1, 0):
        found, reward, *_, info = env.step(action)
        assert reward == TABLE[state, action] and info["true_reward"] == float(state == 5 and action == 1)
        state = found
    added = DesignedReward(gym.make(CHAIN, noise=0.0, **SMALL), TABLE, "add")
    added.reset(seed=0)
    rewards = [added.step(1)[1] for _ in range(3)]
    assert rewards == pytest.approx([TABLE[3, 1], TABLE[4, 1], TABLE[5, 1] + 1])
    check_env(DesignedReward(gym.make(CHAIN).unwrapped, np.zeros((62, 2))), skip_render_check=True)


def test_a_design_says_how_it_is_meant_and_sees_true_episodes():
    recorder = Recorder()
    env = DesignedReward(gym.make(CHAIN, noise=0.0, **SMALL), recorder)
    env.reset(seed=0)
    assert [env.step(a)[1] for a in (1, 1, 1)] == [100 * 3 + 10 + 4, 100 * 4 + 10 + 5, 1 + 100 * 5 + 10 + 5]
    for action in (0, 0, 0, 0):
        env.step(action)
    assert recorder.episodes == [([3, 4, 5, 5, 4, 3, 2], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0])]
    assert DesignedReward(gym.make(CHAIN), recorder, "replace").rule.mode == "replace"


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_batches_pay_as_single_environments_do(mode):
    """Row by row, whatever the autoreset mode; a step that only resets a row is no step of the design."""
    one = Recorder()
    packed = vector.DesignedReward(SyncVectorEnv([lambda: gym.make(CHAIN, **SMALL)] * 2, autoreset_mode=mode), one)
    singles = [DesignedReward(gym.make(CHAIN, **SMALL), Recorder()) for _ in range(2)]
    packed.reset(seed=[3, 4])
    for env, seed in zip(singles, (3, 4), strict=True):
        env.reset(seed=seed)
    rng, over = np.random.default_rng(1), np.zeros(2, bool)
    for _ in range(40):
        actions = rng.integers(2, size=2)
        _, rewards, terminated, truncated, infos = packed.step(actions)
        for row, env in enumerate(singles):
            if over[row] and mode is AutoresetMode.NEXT_STEP:
                env.reset()
                continue
            _, reward, *_, info = env.step(int(actions[row]))
            assert rewards[row] == reward
            facts = infos["final_info"] if mode is AutoresetMode.SAME_STEP and (terminated | truncated)[row] else infos
            assert facts["true_reward"][row] == info["true_reward"]
        ended = terminated | truncated
        over = ended & ~over if mode is AutoresetMode.NEXT_STEP else ended
        if mode is AutoresetMode.SAME_STEP:
            [env.reset() for env, end in zip(singles, ended, strict=True) if end]
        if mode is AutoresetMode.DISABLED and ended.any():
            packed.reset(options={"reset_mask": ended})
            [env.reset() for env, end in zip(singles, ended, strict=True) if end]
    assert one.steps == sum(env.rule.design.steps for env in singles)
    assert len(one.episodes) > 6
    assert sorted(one.episodes) == sorted(e for env in singles for e in env.rule.design.episodes)


def test_states_restore_the_design_and_the_episode():
    def make():
        return DesignedReward(gym.make(CHAIN, **SMALL), ExploRS((7, 2), 0.9))

    env, other = make(), make()
    env.reset(seed=0)
    for action in (1, 0, 1):
        env.step(action)
    state = json.loads(json.dumps(env.get_state()))
    expected = [env.step(a)[:4] for a in (0, 1, 1, 1)]
    other.reset(seed=9)
    other.set_state(state)
    assert [other.step(a)[:4] for a in (0, 1, 1, 1)] == expected
    assert other.get_state() == env.get_state()


def test_stable_baselines_ppo_trains_under_a_table_and_is_judged_by_the_truth():
    mdp = chain_mdp(right=2, left=3)
    shaped = vector.DesignedReward(gym.make_vec(CHAIN, num_envs=2, vectorization_mode="sync", **SMALL), pbrs(mdp))
    config = SB3PPOConfig(n_steps=32, batch_size=32, net_arch=(16,), learning_rate=1e-2, n_epochs=4)
    agent = SB3PPO(shaped, config=config, seed=0).learn(1500)
    truth = agent.evaluate(gym.make_vec(CHAIN, num_envs=2, vectorization_mode="sync", **SMALL), 20, deterministic=True)
    assert truth.mean > 3.5  # of at most 5; a uniform policy gets 0.6
    within = agent.evaluate(episodes=4)
    assert within.mean != pytest.approx(within.terms["true_return"])


def test_adaptive_teachers_are_updated_while_anybody_trains():
    teacher = ExploRS((7, 2), 0.9, rate=0.1)
    env = vector.DesignedReward(gym.make_vec(CHAIN, num_envs=2, vectorization_mode="sync", **SMALL), teacher)
    agent = SB3PPO(env, config=SB3PPOConfig(n_steps=32, batch_size=32, net_arch=(8,)), seed=0)
    agent.learn(300, TeacherUpdates(teacher))
    assert teacher.phi.any() and teacher.visits.sum() > 200
    before = teacher.visits.copy()
    agent.evaluate(episodes=4)
    np.testing.assert_array_equal(teacher.visits, before)  # evaluation counts nothing
    probabilities = action_probabilities(agent.policy, np.arange(7))
    assert probabilities.shape == (7, 2) and probabilities.sum(1) == pytest.approx(np.ones(7))


def test_deep_teachers_for_vectors():
    env_id = "RewardDesign/LineKeyContinuous-v0"
    single = gym.make(env_id)
    teacher = DeepExploRS(single.observation_space, 4, 0.99, hidden=8)
    env = vector.DesignedReward(gym.make_vec(env_id, num_envs=2, vectorization_mode="sync", max_steps=20), teacher)
    agent = SB3PPO(env, config=SB3PPOConfig(n_steps=16, batch_size=16, net_arch=(8,)), seed=0)
    agent.learn(64, TeacherUpdates(teacher, 2))
    assert sum(teacher.visits.values()) == agent.model.num_timesteps
    assert len(teacher.episodes.kept) == 2 and not teacher.successes


@pytest.mark.parametrize("inside", [True, False])
def test_a_teacher_inside_or_around_a_batch_is_kept_and_not_moved_by_evaluation(inside, tmp_path):
    def make(teacher):
        wrappers = [lambda env: DesignedReward(env, teacher)] if inside else None
        env = gym.make_vec(CHAIN, num_envs=1, vectorization_mode="sync", wrappers=wrappers, **SMALL)
        return env if inside else vector.DesignedReward(env, teacher)

    one, other = ExploRS((7, 2), 0.9, rate=0.1), ExploRS((7, 2), 0.9, rate=0.1)
    agent = SB3PPO(make(one), config=SB3PPOConfig(n_steps=32, batch_size=32, net_arch=(8,)), seed=0)
    agent.learn(64, TeacherUpdates(one))
    visits = one.visits.copy()
    agent.evaluate(episodes=2)
    np.testing.assert_array_equal(one.visits, visits)
    agent.save(tmp_path / "saved")
    again = SB3PPO.load(tmp_path / "saved", make(other))
    assert one.get_state() == other.get_state()
    again.learn(32, TeacherUpdates(other))
    agent.learn(32, TeacherUpdates(one))
    assert one.get_state() == other.get_state() and one.visits.sum() == 96


def test_a_teacher_is_told_the_policy_that_acts():
    table, seen = np.zeros((7, 2)), []

    class Watching(TableTeacher):
        def update(self, policy):
            seen.append(policy(np.array([2])))

    teacher = Watching(table)
    env = gym.make_vec(
        CHAIN, num_envs=1, vectorization_mode="sync", wrappers=[lambda e: DesignedReward(e, teacher)], **SMALL
    )
    agent = QLearning(env, config=QLearningConfig(epsilon=0.1, episodes_per_iteration=1))
    agent.q[2] = [0.0, 0.1]
    agent.learn(1, TeacherUpdates(teacher))
    np.testing.assert_allclose(seen[0], action_probabilities(agent.policy, np.array([2])))
    assert seen[0].max() == pytest.approx(0.95)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"has shape \(3,\), expected \[S, A\]"):
        DesignedReward(gym.make(CHAIN), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="mode is 'times'"):
        DesignedReward(gym.make(CHAIN, **SMALL), TABLE, "times")
    with pytest.raises(ValueError, match="every=0"):
        TeacherUpdates(ExploRS((2, 2), 0.9), 0)
    with pytest.raises(ValueError, match=r"has shape \(7, 2\), expected \[S, A\] \(62, 2\)"):
        DesignedReward(gym.make(CHAIN), TableTeacher(TABLE))
    with pytest.raises(ValueError, match="numbered states"):
        DesignedReward(gym.make("CartPole-v1"), TABLE)
    with pytest.raises(ValueError, match="numbered actions"):
        DesignedReward(gym.make("Pendulum-v1"), lambda *step: 0.0)
    with pytest.raises(TypeError, match=r"give its \.reward"):
        DesignedReward(gym.make(CHAIN), exprd(chain_mdp())[0])


@pytest.mark.parametrize("paid", [float("nan"), None, "a", float("inf")])
def test_what_is_no_number_is_not_paid(paid):
    env = DesignedReward(gym.make(CHAIN), lambda *step: paid)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"pays {paid!r} for action 1 in state 40"):
        env.step(1)


def test_updates_of_a_teacher_whom_nobody_pays_by_are_refused():
    teacher, plain = ExploRS((7, 2), 0.9), gym.make_vec(CHAIN, num_envs=1, vectorization_mode="sync", **SMALL)
    for env in (plain, vector.DesignedReward(plain, ExploRS((7, 2), 0.9))):
        agent = SB3PPO(env, config=SB3PPOConfig(n_steps=16, batch_size=16, net_arch=(8,)))
        with pytest.raises(ValueError, match="not wrapped in a DesignedReward with this teacher"):
            agent.learn(16, TeacherUpdates(teacher))

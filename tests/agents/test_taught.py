"""Q-learning and REINFORCE: updates by hand, teachers by name, exact resume, and that it is learned from designs."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.q_table import QTable
from aligngym.agents.q_learning import QLearning, QLearningConfig
from aligngym.agents.reinforce import Reinforce, ReinforceConfig, policy_gradient, softmax
from aligngym.agents.taught import Episode
from aligngym.agents.teachers.baselines import pbrs
from aligngym.agents.teachers.build import build_teacher
from aligngym.agents.teachers.teacher import TableTeacher
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.tabular import greedy, optimal_values, start_value

LINE, CHAIN, NUMBERS = (f"RewardDesign/{n}-v0" for n in ("LineKey", "Chain", "LineKeyContinuous"))
SHORT = {"episodes_per_iteration": 4, "teacher_every": 2}
AGENTS = {"q": (QLearning, QLearningConfig), "reinforce": (Reinforce, ReinforceConfig)}


def short_chain(**options):
    arguments = {"right": 2, "left": 3, "max_steps": 8, **options}
    return gym.make_vec(CHAIN, num_envs=1, vectorization_mode="sync", **arguments)


def numbers():
    return gym.make_vec(NUMBERS, num_envs=1, vectorization_mode="sync", max_steps=8, start=(0.85, 0.95))


def test_q_learning_by_hand():
    agent = QLearning(short_chain(), config=QLearningConfig(learning_rate=0.5, discount=0.9))
    agent.see_step(1, 0, 2.0, 0, False)
    assert agent.q[1].tolist() == [1, 0]
    agent.see_step(2, 1, 1.0, 1, False)  # 1 + 0.9 * 1
    agent.see_step(0, 0, 3.0, 1, True)  # an end is worth no more than its reward
    assert agent.q[2, 1] == pytest.approx(0.95) and agent.q[0, 0] == pytest.approx(1.5)
    assert agent.policy.logits[2, 1] == agent.q[2, 1]  # what is learned is the policy's
    assert agent.predict(1)[0] == 0 and agent.predict(2)[0] == 1
    np.testing.assert_allclose(agent.probabilities(np.array([2, 4])), [[0.05, 0.95], [0.5, 0.5]])
    assert {agent.choose(4) for _ in range(40)} == {0, 1}  # ties are drawn


def test_epsilon_greedy_draws_and_scores():
    table = QTable(1, 4, epsilon=0.4)
    table.logits.data[0, 2] = 1
    decision = table.act(np.zeros(4000, np.int64), RowNoise(range(4000)))
    shares = np.bincount(decision.actions.numpy(), minlength=4) / 4000
    assert shares == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.025)
    np.testing.assert_allclose(decision.log_probs.exp(), np.where(decision.actions == 2, 0.7, 0.1), rtol=1e-6)
    table.logits.data[0, 3] = 1
    tied = table.act(np.zeros(4000, np.int64), RowNoise(range(4000)))
    assert np.bincount(tied.actions.numpy(), minlength=4) / 4000 == pytest.approx([0.1, 0.1, 0.4, 0.4], abs=0.025)
    assert (table.act(np.zeros(3, np.int64), RowNoise([0, 1, 2]), True).actions == 2).all()
    assert QTable.from_spec(table.spec()).epsilon == 0.4


def test_the_policy_gradient_is_autograds():
    rng = np.random.default_rng(0)
    states, actions, returns = rng.integers(5, size=30), rng.integers(3, size=30), rng.normal(size=30)
    logits = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
    chosen = logits[torch.tensor(states)].log_softmax(-1).gather(1, torch.tensor(actions)[:, None])[:, 0]
    (chosen * torch.tensor(returns)).mean().backward()
    found = policy_gradient(states, actions, returns, softmax(logits.detach().numpy()))
    np.testing.assert_allclose(found, logits.grad.numpy(), atol=1e-12)


def an_episode(agent, state=3, action=1, reward=2.0):
    shape = agent.env.single_observation_space.shape
    states = np.array([state, state]) if not shape else np.full((2, *shape), state, np.float32)
    return Episode(states, np.array([action] * 2), np.zeros(2), np.array([0.0, reward]), True, {})


def test_reinforce_learns_from_given_rewards_of_the_last_episodes_every_other_one():
    config = ReinforceConfig(learning_rate=0.3, learn_every=2, learn_from=2, discount=0.5)
    agent = Reinforce(short_chain(), config=config)
    for played, reward in enumerate((9.0, 2.0, 4.0), 1):
        agent.played = played
        agent.see_episode(an_episode(agent, reward=reward))
        if played == 1:
            assert not agent.policy.logits.any()
    # After the second one: returns 4.5, 9, 1, 2, of which the mean is 4.125; the third waits for its turn.
    assert agent.policy.logits[3].tolist() == pytest.approx([-0.3 * 4.125 / 2, 0.3 * 4.125 / 2])
    expected = softmax(agent.policy.logits[3:4].detach().numpy())
    np.testing.assert_allclose(agent.probabilities(np.array([3])), expected, rtol=1e-6)
    agent.played = 4
    agent.see_episode(an_episode(agent, reward=-2.0))
    assert len(agent.recent) == 2


def test_a_network_learns_from_each_episode():
    agent = Reinforce(numbers(), config=ReinforceConfig(learning_rate=1e-2, learn_every=1, mix=0.05))
    x = np.full((1, 14), 0.5, np.float32)
    before = agent.probabilities(x)[0]
    agent.played = 1
    agent.see_episode(an_episode(agent, 0.5, 1))
    after = agent.probabilities(x)[0]
    assert after[1] > before[1] and after.sum() == pytest.approx(1) and after.min() >= 0.05 / 4


TAUGHT = [
    ("q", LINE, "none"), ("q", LINE, "exprd"), ("q", CHAIN, "explors"), ("reinforce", LINE, "expadard"),
    ("reinforce", CHAIN, "explors"), ("reinforce", CHAIN, "sors"), ("reinforce", CHAIN, "lirpg"),
    ("reinforce", NUMBERS, "explors"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "env_id", "teacher"), TAUGHT)
def test_resume_is_exact(name, env_id, teacher, tmp_path):
    cls, config_class = AGENTS[name]
    config = config_class(**SHORT, teacher=teacher, teacher_budget=1 if teacher in ("exprd", "expadard") else None)

    def env():
        if env_id == LINE:
            return gym.make_vec(LINE, num_envs=1, vectorization_mode="sync", cells=6, max_steps=8)
        return short_chain(terminal_goal=True) if env_id == CHAIN else numbers()

    def everything(agent):
        policy = {k: v.tolist() for k, v in agent.policy.state_dict().items()}
        return json.dumps([policy, agent.rng.bit_generator.state, agent._state()])

    straight, first = (cls(env(), config=config, seed=5) for _ in range(2))
    straight.learn(16)
    first.learn(8)
    first.evaluate(episodes=2)  # moves nothing
    first.save(tmp_path / "saved")
    first.learn(8)
    resumed = cls.load(tmp_path / "saved")  # environment, teacher and all
    assert resumed.episodes == 8
    resumed.learn(8)
    assert everything(straight) == everything(first) == everything(resumed)


def test_designs_replace_and_additions_add():
    class Always(TableTeacher):
        def __call__(self, state, action, next_state, terminated):
            return 7.0

    for mode, extra in (("replace", 0), ("add", 1)):
        teacher = Always(np.zeros((7, 2)), mode)
        agent = QLearning(short_chain(noise=0.0), config=QLearningConfig(epsilon=0.0), teacher=teacher)
        agent.q[:, 1] = 1
        episode = agent.play_episode()
        assert episode.true.tolist() == [0, 0] + [1] * 6
        assert episode.given.tolist() == (7 + extra * episode.true).tolist()


def test_teachers_see_true_rewards_as_often_as_they_should():
    class Watching(TableTeacher):
        episodes, updates = [], []

        def record(self, states, actions, rewards):
            self.episodes.append((states.tolist(), actions.tolist(), rewards.tolist()))

        def update(self, policy):
            self.updates.append((len(self.episodes), policy(np.array([3])).tolist()))

    teacher = Watching(np.full((7, 2), 5.0))
    config = QLearningConfig(epsilon=0.0, teacher_every=2, episodes_per_iteration=5)
    agent = QLearning(short_chain(noise=0.0), config=config, teacher=teacher)
    agent.q[:, 1] = 1
    agent.learn(5)
    assert teacher.episodes == [([3, 4] + [5] * 6, [1] * 8, [0.0, 0.0] + [1.0] * 6)] * 5
    assert teacher.updates == [(2, [[0.0, 1.0]]), (4, [[0.0, 1.0]])]


def test_evaluation_is_on_the_true_reward(tmp_path):
    teacher = TableTeacher(np.full((7, 2), -5.0))
    agent = Reinforce(short_chain(), config=ReinforceConfig(**SHORT), teacher=teacher, folder=tmp_path)
    agent.learn(4)
    result = agent.evaluate(episodes=3)
    assert (result.returns >= 0).all() and result.mean == pytest.approx(result.terms["true_return"])
    assert "rollout/designed_mean" in (tmp_path / "progress.csv").read_text().splitlines()[0]


def test_a_teacher_of_ones_own_is_given_again(tmp_path):
    table = pbrs(line_key_mdp())
    agent = QLearning(LINE, config=QLearningConfig(**SHORT), teacher=TableTeacher(table)).learn(4)
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="needs the teacher"):
        QLearning.load(tmp_path / "saved")
    again = QLearning.load(tmp_path / "saved", teacher=TableTeacher(0 * table))
    np.testing.assert_array_equal(again.teacher.table, table)  # its state is the checkpoint's
    assert (again.learn(4).q == agent.learn(4).q).all()
    plain = QLearning(LINE, config=QLearningConfig(**SHORT))
    plain.save(tmp_path / "plain")
    with pytest.raises(ValueError, match="takes no teacher"):
        QLearning.load(tmp_path / "plain", teacher=TableTeacher(table))


@pytest.mark.parametrize("name", AGENTS)
def test_another_environment_or_teacher_is_told(name, tmp_path):
    cls, config_class = AGENTS[name]
    agent = cls(short_chain(), config=config_class(**SHORT))
    agent.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"made for observations Discrete\(7\), not Discrete\(50\)"):
        cls.load(tmp_path / "saved", "RewardDesign/RoomsNav-v0")
    with pytest.raises(ValueError, match="the policy does not fit"):
        cls(gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync"), agent.policy)
    with pytest.raises(ValueError, match=r"shape \(5, 2\), expected \[S, A\] \(7, 2\)"):
        cls(short_chain(), teacher=TableTeacher(np.zeros((5, 2))))
    with pytest.raises(TypeError, match="teacher is 'pbrs', expected a Teacher"):
        cls(short_chain(), teacher="pbrs")
    hopeless = cls(short_chain(), config=config_class(**SHORT), teacher=TableTeacher(np.full((7, 2), np.nan)))
    with pytest.raises(ValueError, match="pays nan for action"):
        hopeless.learn(4)


def test_what_explors_learns_is_bounded_for_q_learning():
    options = {"teacher": "explors", "teacher_every": 1, "teacher_rate": 0.1}
    largest = [
        np.abs(cls(short_chain(), config=config_class(**options, **more)).learn(60).teacher.phi).max()
        for cls, config_class, more in (
            (QLearning, QLearningConfig, {}),
            (QLearning, QLearningConfig, {"teacher_clip": 0.02}),
            (Reinforce, ReinforceConfig, {}),
        )
    ]
    assert largest[:2] == pytest.approx([0.01, 0.02]) and largest[2] > 0.1


def greedy_value(agent):
    return start_value(line_key_mdp(), greedy(agent.q.astype(float)))


def test_shaping_teaches_the_line_at_once_and_the_true_reward_does_not():
    best = start_value(line_key_mdp(), greedy(optimal_values(line_key_mdp())[1]))
    found = {}
    for teacher in ("none", "pbrs"):
        config = QLearningConfig(teacher=teacher)
        found[teacher] = [greedy_value(QLearning(LINE, config=config, seed=seed).learn(20)) for seed in (0, 1)]
    assert min(found["pbrs"]) > 0.98 * best
    assert max(found["none"]) < 0.5 * best


def test_reinforce_learns_a_short_chain():
    config = ReinforceConfig(teacher="explors")
    agent = Reinforce(short_chain(right=3, left=4, max_steps=10), config=config, seed=0)
    before = agent.evaluate(episodes=30).mean
    assert agent.learn(400).evaluate(episodes=30).mean > max(3.0, 3 * before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QLearning(numbers()), "table for numbered states"),
        (lambda: QLearning("CartPole-v1", config=QLearningConfig()), "table for numbered states"),
        (lambda: Reinforce("Pendulum-v1"), "plays single environments with numbered actions"),
        (lambda: Reinforce(LINE, "stories"), "names a model"),
        (lambda: Reinforce("CartPole-v1", config=ReinforceConfig(teacher="exprd")), "has no `mdp`"),
        (lambda: Reinforce("CartPole-v1", config=ReinforceConfig(teacher="lirpg")), "has no `mdp`"),
        (lambda: Reinforce("CartPole-v1", config=ReinforceConfig(teacher="sors")), "is for numbered states"),
        (lambda: QLearning(LINE, config=QLearningConfig(teacher="pbrs"), teacher=TableTeacher(np.zeros((21, 3)))),
         "choose one"),
        (lambda: QLearningConfig(epsilon=1.5), "epsilon=1.5"),
        (lambda: QLearningConfig(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: ReinforceConfig(learn_every=0), "learn_every=0"),
        (lambda: ReinforceConfig(teacher="nobody"), "teacher='nobody'"),
        (lambda: ReinforceConfig(teacher_every=0), "teacher_every=0"),
        (lambda: ReinforceConfig(teacher_budget=-1), "teacher_budget=-1"),
        (lambda: ReinforceConfig(discount=1.5), "discount=1.5"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_teacher_has_a_name():
    env = gym.make(LINE, cells=6)
    for name in ("pbrs", "exprd", "invariance", "expadard", "explob", "selfrs", "explors", "sors", "lirpg"):
        teacher = build_teacher(name, env, 0.95, budget=0)
        assert teacher.mode == ("replace" if name in ("pbrs", "exprd", "invariance", "expadard") else "add")
    assert build_teacher("none", env, 0.95) is None
    assert not build_teacher("explob", env, 0.95).rate and not build_teacher("selfrs", env, 0.95).bonus

"""PEBBLE: what the learner sees, its options, and exact resume."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.parl import PARL
from aligngym.agents.pbrl.teachers import ScriptedTeacher
from aligngym.agents.pebble import PEBBLE, PEBBLEConfig
from aligngym.agents.sb3 import SACConfig
from aligngym.cli import main

from .small_pebble import LIMIT, SMALL, Paid, paying, small
from .small_sb3 import MODES, Metrics, equal, everything, make_env

# What the learner sees


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_the_reward_of_the_environment_does_not_matter(mode):
    """It may be garbage: everything that is learned is the same, and only the report differs."""
    honest, garbage = Metrics(), Metrics()
    one = small(paying(float, mode=mode), query_scheme="disagreement").learn(160, honest)
    two = small(paying(lambda r: 1e6 * math.sin(1e3 * r), mode=mode), query_scheme="disagreement").learn(160, garbage)
    assert equal(one, two) and one.queries == 20
    assert {k for a, b in zip(honest.rows, garbage.rows, strict=True) for k in a if a[k] != b[k]} == {
        "rollout/reward_mean", "rollout/reward_std",
    }  # fmt: skip
    assert abs(two.buffer.rewards).max() < 1


def test_the_true_reward_matters_through_the_answers_only():
    one, other = small(paying(float)), small(paying(float, lambda r: -r))
    one.learn(60), other.learn(60)
    assert not equal(one, other)  # the record differs,
    for agent in (one, other):
        assert agent.queries == 0
        agent.ask()
    ours, theirs = one.preferences, other.preferences
    assert torch.equal(ours.segments.observations, theirs.segments.observations)
    assert torch.equal(ours.labels, 1 - theirs.labels) and 0 < ours.labels.mean() < 1
    # and until the first round that was all.
    same = ("replay", "critic_optimizer", "actor_optimizer", "episodes")
    again, negated = (small(paying(float, t)).learn(60)._tensors() for t in (float, lambda r: -r))
    assert all(torch.equal(v, negated[key][k]) for key in same for k, v in again[key].items())


def test_without_true_rewards_the_teacher_judges_by_the_steps():
    one, two = small().learn(100)._tensors(), small(paying(float)).learn(100)._tensors()
    for name, tensors in one.items():
        for key, value in tensors.items():
            rounded = name == "record" and "rewards" in key  # a step's reward is float32 on its way
            assert torch.allclose(value, two[name][key]) if rounded else torch.equal(value, two[name][key])


def test_the_teacher_judges_by_pendulums_own_formula():
    agent = small().learn(160)  # four rounds
    segments, labels = agent.preferences.segments, agent.preferences.labels
    cosine, sine, speed = segments.observations.unbind(-1)
    angle, torque = torch.atan2(sine, cosine), segments.actions[..., 0]
    returns = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2).sum(1)
    first, second = returns.reshape(-1, 2).T
    assert len(labels) == 20 and torch.equal(labels, (first > second).float())
    assert torque.abs().max() > 1.2  # in the environment's units


def test_stored_rewards_are_the_models():
    """Of steps before, within and after rounds; the ring buffer has gone round."""
    agent = small(buffer_size=70).learn(180)
    buffer = agent.buffer
    assert buffer.full and agent.queries == 20
    steps = buffer.observations.reshape(-1, 3), buffer.unscaled(buffer.actions).reshape(-1, 1)
    np.testing.assert_allclose(agent.predict_rewards(*steps).reshape(-1, 2), buffer.rewards, atol=1e-6)
    assert np.isnan(small().predict_rewards(*steps)).all()


def test_time_limits_are_bootstrapped_through():
    """A trap. If every step pays about 0.96, states are worth about 9.6 at a discount of 0.9; if the limit of five
    steps were an end they would be worth 3 on average."""
    env = make_env("Pendulum-v1", max_episode_steps=5)
    agent = small(env, gamma=0.9, ent_coef=0.0, steps_per_iteration=100, learning_rate=3e-3, tau=0.05, train_freq=1)
    with torch.no_grad():
        for net in agent.reward_model.nets:
            net[-2].weight.zero_()
            net[-2].bias.fill_(2.0)
    agent.buffer.exploring, agent._next_round = False, lambda: math.inf
    agent.learn(1800)
    assert agent.buffer.rewards[:900] == pytest.approx(math.tanh(2.0))
    assert agent.buffer.dones.sum() == agent.buffer.timeouts.sum() == 2 * 900 / 5
    states = torch.from_numpy(agent.buffer.observations[:500, 0])
    taken = torch.from_numpy(agent.buffer.actions[:500, 0])
    with torch.no_grad():
        values = agent.model.critic(states, taken)[0]
    assert values.mean().item() == pytest.approx(10 * math.tanh(2.0), rel=0.1)


# Resume, options, command line


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("first", "options"),
    [
        (20, {}),
        (40, {"query_episodes": 3}),
        (60, {}),
        (80, {"query_scheme": "disagreement", "buffer_size": 50}),
        (200, {"teacher_beta": 1.0, "teacher_mistake": 0.2}),
    ],
    ids=str,
)
def test_resume_is_exact(first, options, mode, tmp_path):
    """While acting at random, while exploring, where a round is due, after one, and after the last."""

    def env():
        return make_env("Pendulum-v1", 2, mode, max_episode_steps=LIMIT)

    straight, half = small(env(), **options), small(env(), **options)
    whole, one, two = Metrics(), Metrics(), Metrics()
    straight.learn(first + 120, whole)
    half.learn(first, one)
    half.save(tmp_path / "saved")
    resumed = PEBBLE.load(tmp_path / "saved", env())
    assert resumed._state() == half._state()
    resumed.learn(120, two)
    assert one.rows + two.rows == whole.rows
    assert equal(resumed, straight) and len(everything(resumed)) > 60
    assert resumed._teacher_rng.bit_generator.state == straight._teacher_rng.bit_generator.state
    assert resumed._state() == straight._state()


def test_answers_and_model_are_in_the_checkpoint(tmp_path):
    agent = small(folder=tmp_path).learn(100)
    tensors, state = load_checkpoint(tmp_path / "last")
    assert tensors["preferences"]["labels"].shape == (state["queries"],) == (agent.queries,)
    assert tensors["reward_model"]["nets.0.0.weight"].shape == (8, 4)


def test_global_generators_are_neither_read_nor_moved():
    state = torch.get_rng_state()
    agents = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        agents.append(small().learn(100))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    torch.set_rng_state(state)
    assert equal(*agents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_length": 0}, "segment_length=0"),
        ({"segment_length": 5.0}, r"segment_length=5\.0: must be a whole number"),
        ({"max_queries": 0}, "max_queries=0"),
        ({"unsupervised_steps": -1}, "unsupervised_steps=-1"),
        ({"reward_learning_rate": 0.0}, "reward_learning_rate=0.0"),
        ({"stop_accuracy": 0.5}, "stop_accuracy=0.5"),
        ({"query_scheme": "random"}, "query_scheme='random': must be one of uniform, disagreement, entropy"),
        ({"query_scheme": "disagreement", "ensemble_size": 1}, "ensemble_size of at least 2"),
        ({"teacher_mistake": 2.0}, "eps_mistake=2.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_configs_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        PEBBLEConfig(**options)


def test_the_defaults_are_the_published_ones():
    config = PEBBLEConfig()
    assert isinstance(config, SACConfig) and PEBBLEConfig.from_dict(config.to_dict()) == config
    assert config.segment_length == 50 and config.ensemble_size == 3 and config.reward_hidden == (256,) * 3
    assert (config.learning_starts, config.unsupervised_steps, config.neighbors) == (1000, 9000, 5)
    assert (config.stop_accuracy, config.reset_updates, config.reward_learning_rate) == (0.97, 100, 3e-4)
    assert config.teacher() == ScriptedTeacher()  # an oracle
    numbers = {"beta": 1.0, "gamma": 0.9, "mistake": 0.1, "skip": 0.2, "equal": 0.3}
    teacher = PEBBLEConfig(**{f"teacher_{k}": v for k, v in numbers.items()}).teacher()
    assert teacher == ScriptedTeacher(beta=1.0, gamma=0.9, eps_mistake=0.1, eps_skip=0.2, eps_equal=0.3)


def test_other_spaces_are_refused():
    for cls in (PEBBLE, PARL):
        with pytest.raises(ValueError, match=f"{cls.__name__} takes a Box of numbers"):
            cls(make_env("MountainCarContinuous-v0", 1, wrappers=[Named]))
        with pytest.raises(ValueError, match=f"{cls.__name__} takes a Box with finite bounds"):
            cls("CartPole-v1")


class Named(gym.ObservationWrapper):
    """Observations in a dictionary."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({"state": env.observation_space})

    def observation(self, observation):
        return {"state": observation}


def test_the_command_line_trains_and_resumes(tmp_path, capsys):
    args = ["Pendulum-v1", "--agent", "pebble", "--eval-episodes", "2"]
    for key, value in SMALL.items():
        args += ["--" + key.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    args += ["--learning-starts", "190", "--unsupervised-steps", "20", "--segment-length", "50"]
    assert main(["train", *args, "--episodes", "240", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--episodes", "260"]) == 0
    assert "260/260 steps" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "last")[1]["queries"] == 12


# A teacher of one's own


class Careful:
    """Prefers the segment of less torque, by chance now and then."""

    def __init__(self):
        self.asked = 0

    def answer(self, segments, rewards, rng, segment_return=None):
        self.asked += len(segments) // 2
        assert rewards.shape == segments.mask.shape and math.isfinite(segment_return)
        size = -segments.actions.abs().sum((1, 2))
        better = (size[0::2] > size[1::2]).double()
        return better.where(torch.from_numpy(rng.random(len(better)) > 0.2), torch.tensor(0.5))


@pytest.mark.parametrize("cls", [PEBBLE, PARL])
def test_a_teacher_of_ones_own_answers_and_is_given_again(cls, tmp_path):
    def made(teacher=None, **options):
        fresh = {"fresh_queries": 4} if cls is PARL else {}
        config = cls.config_class(**SMALL | {"steps_between_queries": 40} | fresh | options)
        return cls(make_env("Pendulum-v1", max_episode_steps=LIMIT), config=config, seed=3, teacher=teacher)

    straight, half, teacher = made(Careful()).learn(140), made(Careful()).learn(80), Careful()
    assert straight.teacher.asked == straight.queries == 12
    sizes = straight.preferences.segments.actions.abs().sum((1, 2)).reshape(-1, 2)
    sure, labels = straight.preferences.labels != 0.5, straight.preferences.labels
    assert 0 < sure.sum() < 12 and torch.equal(labels[sure], (sizes[:, 0] < sizes[:, 1]).float()[sure])
    half.save(tmp_path / "saved")
    env = make_env("Pendulum-v1", max_episode_steps=LIMIT)
    resumed = cls.load(tmp_path / "saved", env, teacher=teacher).learn(140 - half.episodes)
    assert equal(resumed, straight) and teacher.asked == half.queries == 6
    with pytest.raises(ValueError, match="saved needs the teacher that the agent was given"):
        cls.load(tmp_path / "saved", env)
    made().save(tmp_path / "scripted")
    with pytest.raises(ValueError, match="scripted takes no teacher"):
        cls.load(tmp_path / "scripted", env, teacher=teacher)
    with pytest.raises(ValueError, match=r"the config has a ScriptedTeacher\(beta=1.0.*choose one"):
        made(teacher, teacher_beta=1.0)


def test_answers_of_another_shape_are_refused():
    class Odd(Careful):
        def answer(self, *args):
            return super().answer(*args)[1:]

    agent = PEBBLE(make_env("Pendulum-v1", max_episode_steps=LIMIT), config=PEBBLEConfig(**SMALL), teacher=Odd())
    with pytest.raises(ValueError, match=r"answers have shape \(5,\), expected \(6,\)"):
        agent.learn(80)


@pytest.mark.slow
def test_pendulum_is_learned_from_preferences_alone():
    """Rewards are withheld: the environment pays nothing. Untrained policies return about -1200, upright ones -150."""
    wrap = [lambda env: Paid(env, lambda r: 0.0, float)]
    env = gym.make_vec("Pendulum-v1", num_envs=1, vectorization_mode="sync", wrappers=wrap)
    config = PEBBLEConfig(
        learning_rate=1e-3, batch_size=128, net_arch=(64, 64), learning_starts=400, unsupervised_steps=800,
        segment_length=25, queries_per_round=50, max_queries=500, steps_between_queries=500, reward_hidden=(64, 64),
        reward_learning_rate=1e-3, reward_epochs=50,
    )  # fmt: skip
    judge = gym.make_vec("Pendulum-v1", num_envs=5, vectorization_mode="sync")
    agent = PEBBLE(env, config=config, seed=0)
    before = agent.evaluate(judge, 10).mean
    agent.learn(5000)
    after = agent.evaluate(judge, 10).mean
    assert before < -900 and after > -350, (before, after)

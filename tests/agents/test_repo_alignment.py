"""RePo's alignment with new pictures: what learns, what it learns from, and that it goes on exactly."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.repo import RePo, RePoConfig
from aligngym.agents.repo_alignment import RePoAlignment, RePoAlignmentConfig
from aligngym.agents.world_model.networks import normalized
from aligngym.agents.world_model.support import SupportConstraint
from aligngym.reproduce.rotated import rotated_points

from .test_repo import SMALL

CONFIG = {
    "learning_starts": 20, "steps_per_iteration": 20, "updates_per_iteration": 3, "buffer_size": 400, "batch_size": 8,
    "source_codes": 50, "num_pairs": 70, "pair_reset_every": 15, "support_hidden": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return RePo(rotated_points(2), config=RePoConfig(**SMALL), seed=1).learn(80)


def aligned(source, env=None, seed=0, **options):
    return RePoAlignment(
        env or rotated_points(2, view=1), config=RePoAlignmentConfig(**CONFIG | options), source=source, seed=seed
    )


def test_only_the_encoder_learns(source):
    agent = aligned(source).learn(60)
    for name, value in source.policy.state_dict().items():
        same = torch.equal(value, agent.policy.state_dict()[name])
        assert same != name.startswith("encoder"), name
    for name, value in source.policy.encoder.state_dict().items():
        assert torch.equal(value, agent.source_encoder.state_dict()[name]), name


def test_no_reward_is_read(source):
    class Upside(type(rotated_points(1).envs[0])):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, 1000 - reward, *rest

    one, two = aligned(source), aligned(source)
    env = rotated_points(2, view=1)
    env.envs = [Upside(view=1) for _ in range(2)]
    two = aligned(source, env)
    assert (two.env is env) and one.learn(60) and two.learn(60)
    assert (two.replay.arrays["rewards"] == 0).all()
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pairs_are_of_the_same_states(source):
    agent = aligned(source)
    then, now = rotated_points(1).envs[0].rotation, rotated_points(1, view=1).envs[0].rotation
    states = agent.pairs["observations"].double().numpy() @ now  # what both see, before its rotation
    assert states.shape == (70, 22) and len(np.unique(states.round(6), axis=0)) == 70
    expected = source.policy.encoder(torch.from_numpy(states @ then.T).float())
    torch.testing.assert_close(agent.pairs["codes"], expected.detach(), atol=1e-4, rtol=1e-3)
    assert agent.codes.shape == (50, 10)


def test_environments_that_go_different_ways(source):
    other = rotated_points(2, view=1)
    other.envs[0].unwrapped.__class__ = short = type("Short", (type(other.envs[0]),), {})
    short.step = lambda self, action: (*super(short, self).step(action)[:3], self._steps >= 7, {})
    with pytest.raises(ValueError, match="end episodes at different times"):
        aligned(source, other)
    with pytest.raises(ValueError, match="has 2 rows, the new one 3"):
        aligned(source, rotated_points(3))
    with pytest.raises(ValueError, match="there is no source"):
        RePoAlignment(rotated_points(2))


def test_pairs_alone_find_the_old_codes(source):
    """A rotation of what is seen is undone by linear regression, so a perceptron can come close."""
    options = {"num_pairs": 500, "support_coef": 0.0, "updates_per_iteration": 150, "encoder_learning_rate": 5e-3}
    agent = aligned(source, **options)
    before = distance(agent)
    agent.learn(20)
    assert distance(agent) < 0.4 * before


def distance(agent):
    with torch.no_grad():
        found = agent.policy.encoder(agent.pairs["observations"])
    return float((found - agent.pairs["codes"]).square().mean())


def test_without_pairs_there_is_no_calibration(source):
    agent = aligned(source, num_pairs=0)
    _, metrics = agent.learn(20).iterate()
    assert not agent.pairs and "train/calibration" not in metrics and "train/support" in metrics


@pytest.mark.parametrize("pairs", [70, 0])
def test_resume_is_exact(source, pairs, tmp_path):
    straight, first = aligned(source, num_pairs=pairs).learn(60), aligned(source, num_pairs=pairs).learn(40)
    first.save(tmp_path / "saved")
    resumed = RePoAlignment.load(tmp_path / "saved", rotated_points(2, view=1)).learn(20)
    resumed.save(tmp_path / "again")
    straight.save(tmp_path / "straight")
    one, two = (load_checkpoint(tmp_path / name) for name in ("again", "straight"))
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    for file, tensors in one[0].items():
        for name, value in tensors.items():
            assert torch.equal(value, two[0][file][name]), (file, name)
    assert resumed.evaluate(episodes=2).mean == straight.evaluate(episodes=2).mean
    action, state = resumed.predict(np.zeros(22, np.float32))
    assert action.shape == (2,) and len(state) == 3


def test_a_source_from_its_checkpoint(tmp_path):
    options = SMALL | {"num_envs": 2}
    RePo("Pendulum-v1", config=RePoConfig(**options), seed=1).learn(80).save(tmp_path / "source")
    agent = RePoAlignment(
        "Pendulum-v1", config=RePoAlignmentConfig(source=str(tmp_path / "source"), num_envs=2, **CONFIG)
    )
    agent.learn(20).save(tmp_path / "saved")
    (tmp_path / "source").rename(tmp_path / "gone")  # a checkpoint holds all that goes on
    RePoAlignment.load(tmp_path / "saved").learn(20)


def test_a_source_whose_environment_is_given(source, tmp_path):
    """A run's folder counts as its newest checkpoint; its environment is made of objects."""
    source.save(tmp_path / "run" / "last")
    config = RePoAlignmentConfig(source=str(tmp_path / "run"), **CONFIG)
    agent = RePoAlignment(rotated_points(2, view=1), config=config, source_env=rotated_points(2))
    assert torch.equal(agent.pairs["observations"], aligned(source).pairs["observations"])
    with pytest.raises(ValueError, match=r"run': its environment cannot be rebuilt .* source_env="):
        RePoAlignment(rotated_points(2, view=1), config=config)
    with pytest.raises(ValueError, match="nothing is no checkpoint"):
        RePoAlignment(rotated_points(2), config=RePoAlignmentConfig(source=str(tmp_path / "nothing")))


def test_what_is_no_source_is_refused(source):
    with pytest.raises(TypeError, match=r"is a str, expected a RePo: folders go into RePoAlignmentConfig\(source="):
        RePoAlignment(rotated_points(2), source="runs/first")
    env = rotated_points(2)
    with pytest.raises(ValueError, match="is env itself, expected another"):
        RePoAlignment(env, config=RePoAlignmentConfig(**CONFIG), source=source, source_env=env)


# The constraint


def test_weights_leave_the_codes_that_the_target_lacks():
    """A critic that is 1 at the code -1 and -1 at 1, and a multiplier of 0.5."""
    torch.manual_seed(0)
    support = SupportConstraint(1, 16, RePoAlignmentConfig(initial_mean_multiplier=0.5))
    support.critic.forward = lambda codes: (-codes.squeeze(-1), None)
    source = torch.tensor([[-1.0], [1.0]])
    low, high = support.weights(source).tolist()
    loss, excess = support.weights_loss(source)
    assert loss.item() == pytest.approx((low - high) / 2 + 0.5 * ((low + high) / 2 - 1))
    assert excess.item() == pytest.approx((low + high) / 2 - 1)
    optimizer = torch.optim.Adam(support.log_weights.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        support.weights_loss(source)[0].backward()
        optimizer.step()
    lower, higher = support.weights(source).tolist()
    assert lower < low and higher > high


def test_the_critic_finds_codes_that_the_source_lacks():
    """The source is at -1, half of the target at 1: the critic falls to -2 there, and rises where tau p_s is more."""
    torch.manual_seed(0)
    support = SupportConstraint(1, 32, RePoAlignmentConfig(nats_target=50.0, penalty_coef=0.0))
    optimizer = torch.optim.Adam(support.critic.parameters(), lr=3e-3)
    source, target = -torch.ones(16, 1), torch.tensor([[-1.0], [1.0]]).repeat(8, 1)
    for parameter in support.log_weights.parameters():
        parameter.data.zero_()  # tau is 1
    for _ in range(150):
        loss, _ = support.critic_loss(source, target, torch.zeros(32, 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    here, there = support.critic(torch.tensor([[-1.0], [1.0]]))[0].tolist()
    assert here == pytest.approx(2, abs=0.3) and there == pytest.approx(-2, abs=0.3)


def test_multipliers_go_the_right_way():
    support = SupportConstraint(2, 4, RePoAlignmentConfig())
    support.ascend(torch.tensor(1.1), torch.tensor(0.5))
    assert support.nats_multiplier.item() == pytest.approx(0.1 + 5e-3)
    assert support.mean_multiplier.item() == pytest.approx(1e-4 + 2.5e-3)
    for _ in range(300):
        support.ascend(torch.tensor(0.0), torch.tensor(-0.5))
    assert support.nats_multiplier == 0 and support.mean_multiplier < -0.5


def test_the_loss_of_codes_pulls_them_where_the_critic_finds_the_source():
    support = SupportConstraint(1, 4, RePoAlignmentConfig())
    code = torch.zeros(1, 1, requires_grad=True)
    value = 0.3 * code.squeeze(-1)  # a critic that rises to the right
    support.critic.forward = lambda codes: (0.3 * codes.squeeze(-1), None)
    (slope,) = torch.autograd.grad(support.target_loss(code), code)
    assert slope.item() == pytest.approx(-0.3) and value == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": -1}, "num_pairs=-1"),
        ({"source_codes": 0}, "source_codes=0"),
        ({"encoder_learning_rate": 0.0}, "encoder_learning_rate=0.0"),
        ({"nats_target": math.inf}, "nats_target=inf"),
    ],
)
def test_bad_configs_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        RePoAlignmentConfig(**options)


def test_support_alone_draws_new_codes_to_old_ones(source):
    """Old codes are moved aside; nothing but the constraint says where they are."""
    rates = dict.fromkeys(("encoder_learning_rate", "support_learning_rate", "weight_learning_rate"), 3e-3)
    agent = aligned(source, num_pairs=0, updates_per_iteration=40, **rates | {"batch_size": 32})
    agent.codes = agent.codes + 3.0

    @torch.no_grad()
    def distance():
        pictures = agent.replay.sample(64, 1, np.random.default_rng(0), agent.policy.device).observations[:, 0]
        return float((agent.policy.encoder(normalized(pictures)).mean(0) - agent.codes.mean(0)).norm())

    distances = [agent.learn(20) and distance() for _ in range(4)]
    assert distances[0] > 5 and distances[-1] < 0.6 * distances[0]


def test_a_source_that_trains_on_is_as_it_would_have_been():
    one, other = (RePo(rotated_points(2), config=RePoConfig(**SMALL), seed=1).learn(80) for _ in range(2))
    aligned(other)
    one.learn(40)
    other.learn(40)
    np.testing.assert_array_equal(one.replay.arrays["observations"], other.replay.arrays["observations"])
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True))

"""Stable-Baselines3's networks as policies, and the options of its agents."""

import inspect
import json

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

from aligngym.agents.policies import policy_class
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.sb3_policy import SB3Policy, check_spaces
from aligngym.agents.sb3 import SACConfig, SB3PPOConfig

from .small_sb3 import HOMES, SMALL, make_env, small

# The policy


@pytest.mark.parametrize("name", ["sac", "sb3-ppo", "sb3-ppo on Pendulum-v1"])
def test_actions_are_those_of_stable_baselines3(name):
    name, _, home = name.partition(" on ")
    agent = small(name, make_env(home or HOMES[name], max_episode_steps=30))
    agent.learn(80)
    space = agent.env.single_observation_space
    seen = np.random.default_rng(0).uniform(np.maximum(space.low, -2), np.minimum(space.high, 2), (6, *space.shape))
    seen = seen.astype(np.float32)
    expected, _ = agent.model.predict(seen, deterministic=True)
    got, _ = agent.predict(seen)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(agent.predict(seen[0])[0], expected[0], rtol=1e-5)
    assert got.dtype == agent.env.single_action_space.dtype
    first, again = (agent.policy.act(seen, RowNoise(range(6))) for _ in range(2))
    assert torch.equal(first.actions, again.actions)
    torch.testing.assert_close(agent.policy.act(seen[3:4], RowNoise([3])).actions, first.actions[3:4])
    assert not torch.equal(agent.policy.act(seen, RowNoise(range(6, 12))).actions, first.actions) or name != "sac"


def test_sac_draws_a_squashed_gaussian():
    """Against torch's own transformed distribution, whose density is that of the scaled action in [-1, 1]."""
    agent = small("sac")
    seen = np.array([[0.3, -0.9, 2.0]], np.float32)
    with torch.no_grad():
        mean, log_std, _ = agent.model.actor.get_action_dist_params(torch.from_numpy(seen))
    base = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform())
    decision = agent.policy.act(np.repeat(seen, 4000, 0), RowNoise(range(4000)))
    assert decision.actions.shape == (4000, 1) and decision.log_probs.shape == (4000,)
    scaled = decision.actions / 2  # Pendulum's torque lies in [-2, 2]
    inside = scaled.abs()[:, 0] < 0.99  # nearer to the bounds atanh and the 1e-6 inside of the logarithm are felt
    expected = squashed.log_prob(scaled)[:, 0]
    torch.testing.assert_close(decision.log_probs[inside], expected[inside], atol=2e-4, rtol=1e-4)
    drawn = scaled.atanh()
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=4 * log_std.exp().item() / 4000**0.5)
    assert drawn.std().item() == pytest.approx(log_std.exp().item(), rel=0.05)


def test_ppo_draws_from_its_distributions():
    agent = small("sb3-ppo")
    seen = np.repeat(np.array([[0.01, 0.2, 0.03, -0.4]], np.float32), 4000, 0)
    decision = agent.policy.act(seen, RowNoise(range(4000)))
    probability = agent.model.policy.get_distribution(torch.from_numpy(seen[:1])).distribution.probs[0, 1].item()
    assert decision.actions.float().mean().item() == pytest.approx(probability, abs=0.03)
    continuous = small("sb3-ppo", make_env("Pendulum-v1"))
    seen = np.repeat(np.array([[0.3, -0.9, 2.0]], np.float32), 4000, 0)
    decision, mode = (continuous.policy.act(seen, RowNoise(range(4000)), deterministic=d) for d in (False, True))
    assert (decision.actions - mode.actions).std().item() == pytest.approx(1.0, rel=0.05)
    _, log_probs, _ = continuous.model.policy.evaluate_actions(torch.from_numpy(seen), decision.actions)
    torch.testing.assert_close(decision.log_probs, log_probs)


SPACES = {
    "vector": gym.spaces.Box(-np.inf, np.inf, (4,)),
    "double": gym.spaces.Box(np.array([-1.0, 0]), np.array([1.0, np.inf]), dtype=np.float64),
    "number": gym.spaces.Discrete(5),
    "image": gym.spaces.Box(0, 255, (3, 64, 64), np.uint8),
    "dictionary": gym.spaces.Dict(
        {"image": gym.spaces.Box(0, 255, (3, 64, 64), np.uint8), "state": gym.spaces.Box(-1, 1, (3,))}
    ),
}


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
@pytest.mark.parametrize("name", SPACES)
def test_a_policy_of_every_space_is_rebuilt_from_its_spec(name, algorithm):
    seen, space = SPACES[name], gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32))
    policy = SB3Policy.build(algorithm, seen, space, (8,))
    again = policy_class("SB3Policy").from_spec(json.loads(json.dumps(policy.spec(), allow_nan=False)))
    again.load_state_dict(policy.state_dict())
    assert (again.network.observation_space, again.network.action_space) == (seen, space)
    seen.seed(0)
    samples = [seen.sample() for _ in range(3)]
    batch = {k: np.stack([s[k] for s in samples]) for k in seen} if name == "dictionary" else np.stack(samples)
    one, two = (p.act(batch, RowNoise([1, 2, 3])) for p in (policy, again))
    assert one.actions.shape == (3, 2) and torch.equal(one.actions, two.actions)
    assert len(json.dumps(policy.spec())) < 2000  # not a number for every pixel
    if name in ("image", "dictionary"):  # environments have the channels last
        image = (batch["image"] if name == "dictionary" else batch).transpose(0, 2, 3, 1)
        last = batch | {"image": image} if name == "dictionary" else image
        assert torch.equal(policy.act(last, RowNoise([1, 2, 3])).actions, one.actions)


@pytest.mark.parametrize(
    ("name", "env_id", "message"),
    [
        ("sac", "CartPole-v1", r"Discrete\(2\): SAC takes a Box with finite bounds"),
        ("sb3-ppo", "Blackjack-v1", "the observations have the space Tuple"),
    ],
)
def test_spaces_that_do_not_fit_are_named(name, env_id, message):
    with pytest.raises(ValueError, match=message):
        small(name, env_id)


def test_unbounded_actions_are_refused():
    for action in (gym.spaces.Box(-np.inf, 1, (2,)), gym.spaces.Discrete(3, start=1)):
        with pytest.raises(ValueError, match="Box with finite bounds, or Discrete from 0"):
            check_spaces("ppo", SPACES["vector"], action, "PPO")


def test_small_pictures_are_refused():
    for shape in ((35, 64, 3), (3, 64, 35)):
        picture = gym.spaces.Box(0, 255, shape, np.uint8)
        for space in (picture, gym.spaces.Dict({"image": picture})):
            with pytest.raises(ValueError, match="take at least 36 by 36"):
                check_spaces("sac", space, gym.spaces.Box(-1, 1, (2,)), "SAC")
    SB3Policy.build("sac", gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), gym.spaces.Box(-1, 1, (2,)))


def test_actions_are_scaled_to_the_space():
    """Lopsided bounds: the replay buffer has [-1, 1], the environment gets its own units."""
    wrap = [lambda e: gym.wrappers.RescaleAction(e, np.float32(-1), np.float32(3))]
    env = make_env("Pendulum-v1", 1, max_episode_steps=50, wrappers=wrap)
    agent = small("sac", env)
    agent.learn(32)
    buffer, taken = agent.model.replay_buffer.actions[:32, 0], np.stack(agent.vec_env.actions[0])
    np.testing.assert_allclose(buffer * 2 + 1, taken, atol=1e-6)
    assert taken.min() < 0 and taken.max() > 2 and abs(buffer).max() <= 1


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SACConfig, {"num_envs": 3}, "num_envs=3: must be 1, 2, 4, 8 or 16"),
        (SACConfig, {"tau": 0.0}, "tau=0.0"),
        (SACConfig, {"gamma": 1.1}, "gamma=1.1"),
        (SACConfig, {"learning_rate": float("nan")}, "learning_rate=nan"),
        (SACConfig, {"ent_coef": "automatic"}, "ent_coef=automatic"),
        (SACConfig, {"ent_coef": "auto_0"}, "ent_coef=auto_0"),
        (SACConfig, {"ent_coef": -1.0}, "ent_coef=-1.0"),
        (SACConfig, {"target_entropy": "low"}, "target_entropy=low"),
        (SACConfig, {"gradient_steps": 0}, "gradient_steps=0"),
        (SACConfig, {"batch_size": 0}, "batch_size=0"),
        (SACConfig, {"learning_starts": -1}, "learning_starts=-1"),
        (SACConfig, {"net_arch": (0,)}, "net_arch"),
        (SB3PPOConfig, {"batch_size": 1}, "batch_size=1: must be at least 2"),
        (SB3PPOConfig, {"clip_range": 0.0}, "clip_range=0.0"),
        (SB3PPOConfig, {"clip_range_vf": -1.0}, "clip_range_vf=-1.0"),
        (SB3PPOConfig, {"gae_lambda": 2.0}, "gae_lambda=2.0"),
        (SB3PPOConfig, {"n_steps": 0}, "n_steps=0"),
        (SB3PPOConfig, {"vf_coef": -0.1}, "vf_coef=-0.1"),
    ],
)
def test_bad_configs_are_one_sentence(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize(("name", "plain"), [("sac", stable_baselines3.SAC), ("sb3-ppo", stable_baselines3.PPO)])
def test_defaults_are_those_of_stable_baselines3(name, plain):
    config, checked = SMALL[name][0].config_class(), 0
    for key, parameter in inspect.signature(plain).parameters.items():
        if hasattr(config, key):
            assert getattr(config, key) == parameter.default, key
            checked += 1
    assert checked >= 10
    assert config == type(config).from_dict(config.to_dict())
    given = type(config)(net_arch=(32, 16))
    assert type(config).from_dict(given.to_dict()) == given


@pytest.mark.parametrize("weight", [0.1, "0.1", "auto_0.1"])
def test_every_form_of_the_entropy_weight_trains(weight):
    agent = small("sac", ent_coef=weight)
    agent.learn(40)
    assert ("ent_coef_optimizer" in agent._tensors()) == (weight == "auto_0.1")

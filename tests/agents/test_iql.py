"""IQL: known answers of its losses, the order of its updates, LineKey's table, and what it learns from what."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from aligngym.agents.bc import BC, BCConfig
from aligngym.agents.grpo import GRPOConfig
from aligngym.agents.iql import IQL, IQLConfig, advantage_weights, expectile_loss
from aligngym.agents.offline.agent import cosine
from aligngym.agents.policies.control import TabularPolicy

from . import line_key
from .recorded import everything, make, play, steps

SMALL = {"hidden": (16, 16), "batch_size": 32, "updates_per_iteration": 10}


@pytest.fixture(scope="module")
def pendulum():
    return play("Pendulum-v1", 4, max_episode_steps=30)


def minimiser(values, expectile):
    """Where the mean of :func:`expectile_loss` over ``values [n]`` is least."""
    grid = torch.linspace(values.min(), values.max(), 20_001, dtype=torch.float64)
    return grid[expectile_loss(values.double()[:, None] - grid, expectile).mean(0).argmin()].item()


@pytest.mark.parametrize("expectile", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_the_expectile_of_zero_and_one_is_tau(expectile):
    assert minimiser(torch.tensor([0.0, 1.0]), expectile) == pytest.approx(expectile, abs=1e-4)


def test_the_expectile_goes_from_the_mean_to_the_maximum():
    values = torch.tensor([-2.0, 0.5, 1.0, 4.0])
    assert minimiser(values, 0.5) == pytest.approx(values.mean().item(), abs=1e-3)
    assert minimiser(values, 1 - 1e-6) == pytest.approx(4.0, abs=1e-3)
    found = [minimiser(values, t) for t in (0.1, 0.5, 0.7, 0.9, 0.99)]
    assert found == sorted(found)


def test_expectile_loss_in_numbers():
    difference = torch.tensor([-2.0, 0.0, 3.0])
    assert expectile_loss(difference, 0.7).tolist() == pytest.approx([0.3 * 4, 0, 0.7 * 9])


def test_weights_multiply_by_beta():
    """Dividing, as robomimic does, would give exp(1 / 3)."""
    assert advantage_weights(torch.tensor([1.0]), 3.0).item() == pytest.approx(math.exp(3))
    assert advantage_weights(torch.tensor([2.0, -2.0]), 0.5).tolist() == pytest.approx([math.e, 1 / math.e])


def test_weights_are_limited_and_one_without_beta_or_advantage():
    assert advantage_weights(torch.tensor([1.5, 1.6, 1e6]), 3.0).tolist() == pytest.approx([math.exp(4.5), 100, 100])
    assert advantage_weights(torch.tensor([-5.0, 0.0, 5.0]), 0.0).tolist() == [1, 1, 1]
    assert advantage_weights(torch.zeros(3), 3.0).tolist() == [1, 1, 1]


def tabular(seeds, expectile, beta=3.0):
    """The fixed point of IQL's losses on LineKey: the extracted policies and the critics, ``[seeds, 21, 3]`` each."""
    counts = np.zeros((len(seeds), 21, 3, 21))
    paid = np.zeros((len(seeds), 21, 3))
    for row, seed in enumerate(seeds):
        states, actions, rewards, following = line_key.transitions(seed)
        np.add.at(counts[row], (states, actions, following), 1)
        np.add.at(paid[row], (states, actions), rewards)
    visits = torch.from_numpy(counts.sum(-1)).clamp(min=1e-9)
    chances = torch.from_numpy(counts) / visits[..., None]
    goes_on = torch.ones(21, dtype=torch.float64)
    goes_on[line_key.END] = 0
    values = torch.zeros(len(seeds), 21, dtype=torch.float64, requires_grad=True)
    for _ in range(1500):
        with torch.no_grad():  # the minimiser of the critics' squared error
            then = torch.einsum("nsat,nt->nsa", chances, values * goes_on)
            critics = torch.from_numpy(paid) / visits + line_key.GAMMA * then
        share = visits / visits.sum(-1, keepdim=True)
        loss = (share * expectile_loss(critics - values[..., None], expectile)).sum()
        (gradient,) = torch.autograd.grad(loss, values)
        values = (values - 0.5 * gradient).detach().requires_grad_()
    # The maximiser of the weighted log-likelihood.
    weighted = visits * advantage_weights(critics - values.detach()[..., None], beta)
    return (weighted / weighted.sum(-1, keepdim=True)).numpy(), critics.numpy()


def test_line_key_is_the_one_of_the_table():
    assert line_key.value(line_key.best_policy()) == pytest.approx(4.906, abs=5e-4)
    assert line_key.value(np.full((21, 3), 1 / 3)) == pytest.approx(0.06, abs=5e-3)


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 0.86), (0.7, 2.64), (0.9, 3.10), (0.95, 3.01), (0.99, 2.90)])
def test_the_expectile_matters_on_line_key_and_more_is_not_better(expectile, expected):
    """The policy of the weights is judged; the greedy one is optimal for every expectile."""
    policies, critics = tabular(range(5), expectile)
    assert np.mean([line_key.value(p) for p in policies]) == pytest.approx(expected, abs=0.01)
    assert all(line_key.value(np.eye(3)[q.argmax(-1)]) == pytest.approx(4.906, abs=5e-4) for q in critics)


@pytest.mark.slow
def test_the_agent_learns_line_key_as_the_table_does():
    """The networks in place of tables: discrete states and actions, one-hot."""
    import gymnasium as gym

    class Spaces(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(21), gym.spaces.Discrete(3)

    states, actions, rewards, following = line_key.transitions(0)
    dataset = steps(states, actions, rewards, following, following == line_key.END)
    values = {}
    for expectile in (0.5, 0.9):
        options = {"hidden": (64,), "learning_rate": 3e-3, "target_mix": 0.02, "total_updates": 0}
        config = IQLConfig(expectile=expectile, gamma=line_key.GAMMA, **options)
        agent = IQL(gym.vector.SyncVectorEnv([Spaces]), None, config, dataset=dataset).learn(2000)
        with torch.no_grad():
            policy = agent.policy.outputs(agent.policy.features(torch.arange(21))).softmax(-1).double().numpy()
        values[expectile] = line_key.value(policy / policy.sum(-1, keepdims=True))
    for expectile, found in values.items():
        assert found == pytest.approx(line_key.value(tabular([0], expectile)[0][0]), rel=0.35)
    assert values[0.9] > 3 * values[0.5]


def reference_updates(agent, batches):
    """The updates in the plainest way, one network at a time, in the order of the paper's code."""
    c = agent.config
    policy, value = copy.deepcopy(agent.policy), copy.deepcopy(agent.value)
    critics, targets = copy.deepcopy(agent.critics), copy.deepcopy(agent.targets)
    optimizers = [torch.optim.Adam(n.parameters(), lr=c.learning_rate, foreach=False) for n in (value, policy, critics)]

    def descend(number, loss):
        optimizers[number].zero_grad()
        loss.backward()
        optimizers[number].step()

    for i, batch in enumerate(batches):
        states, following = batch.observations, batch.next_observations
        pairs = torch.cat([states, batch.actions], 1)
        lowest = torch.minimum(*targets(pairs)).detach()
        u = lowest - value(states)[0]
        descend(0, (abs(c.expectile - (u < 0).float()) * u**2).mean())
        weights = torch.exp(c.beta * (lowest - value(states)[0].detach())).clamp(max=100)
        normal = torch.distributions.Normal(2 * torch.tanh(policy.actor(states)), policy.log_std.clamp(-5, 2).exp())
        for group in optimizers[1].param_groups:
            group["lr"] = cosine(c.learning_rate, i, c.total_updates)
        descend(1, -(weights * normal.log_prob(batch.actions).sum(1)).mean())
        goals = batch.rewards + c.gamma * (1 - batch.terminal.float()) * value(following)[0].detach()
        first, second = critics(pairs)
        descend(2, ((first - goals) ** 2).mean() + ((second - goals) ** 2).mean())
        with torch.no_grad():
            for target, own in zip(targets.parameters(), critics.parameters(), strict=True):
                target.copy_((1 - c.target_mix) * target + c.target_mix * own)
    return policy, value, critics, targets


def test_updates_are_those_of_the_paper_in_their_order(pendulum):
    config = IQLConfig(**{**SMALL, "total_updates": 20, "learning_rate": 1e-2, "target_mix": 0.3}, beta=0.01)
    pendulum.terminated[:2], pendulum.truncated[:2] = True, False
    agent = IQL(make("Pendulum-v1"), None, config, dataset=pendulum)
    rng = copy.deepcopy(agent.rng)
    rng.integers(2**62)
    expected = reference_updates(agent, [agent.data.sample(32, rng) for _ in range(10)])
    agent.iterate()
    for ours, theirs in zip((agent.policy, agent.value, agent.critics, agent.targets), expected, strict=True):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_without_beta_it_is_behaviour_cloning_bit_for_bit(pendulum, dropout):
    options = SMALL | {"actor_dropout": dropout, "total_updates": 100}
    iql = IQL(make("Pendulum-v1"), None, IQLConfig(**options, beta=0.0), dataset=pendulum, seed=5).learn(50)
    cloned = BC(make("Pendulum-v1"), None, BCConfig(**options), dataset=pendulum, seed=5).learn(50)
    other = IQL(make("Pendulum-v1"), None, IQLConfig(**options, beta=1e-3), dataset=pendulum, seed=5).learn(50)
    for (name, one), two, three in zip(
        iql.policy.named_parameters(), cloned.policy.parameters(), other.policy.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
        assert not torch.equal(one, three), name


def test_equal_critics_weigh_all_actions_alike(pendulum):
    agent = IQL(make("Pendulum-v1"), None, IQLConfig(**SMALL), dataset=pendulum)
    agent.data.rewards.zero_()
    with torch.no_grad():
        for network in (agent.value, agent.critics, agent.targets):
            for parameter in network.parameters():
                parameter.zero_()
    metrics = agent.iterate()[1]
    assert metrics["train/weight"] == 1 and metrics["train/critic_loss"] == 0 and metrics["train/value_loss"] == 0


@pytest.mark.parametrize(("terminated", "worth"), [(True, 1.0), (False, 2.0)])
def test_a_time_limit_bootstraps_and_an_end_does_not(terminated, worth):
    """One state, one action, reward 1, discount 0.5: worth 1 if that is the end, 1 / (1 - 0.5) if it is not."""
    states, actions = np.zeros((8, 3), np.float32), np.zeros((8, 1), np.float32)
    dataset = steps(states, actions, np.ones(8, np.float32), states, np.full(8, terminated))
    config = IQLConfig(**SMALL | {"learning_rate": 1e-2}, gamma=0.5, target_mix=0.5)
    agent = IQL(make("Pendulum-v1", 1), None, config, dataset=dataset).learn(500)
    assert agent.critics(torch.zeros(1, 4)).mean().item() == pytest.approx(worth, abs=0.03)
    assert agent.value(torch.zeros(1, 3)).item() == pytest.approx(worth, abs=0.03)


def test_the_schedule_is_half_a_cosine():
    assert [cosine(2.0, n, 4) for n in (0, 2, 4, 9)] == pytest.approx([2, 1, 0, 0])
    assert cosine(2.0, 100, 0) == 2
    assert cosine(1.0, 1, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_only_the_policy_follows_the_schedule(pendulum):
    agent = IQL(make("Pendulum-v1"), None, IQLConfig(**SMALL, total_updates=20), dataset=pendulum).learn(20)
    still = [p.clone() for p in agent.policy.parameters()]
    moving = [p.clone() for p in agent.critics.parameters()]
    agent.learn(10)
    assert all(torch.equal(a, b) for a, b in zip(still, agent.policy.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moving, agent.critics.parameters(), strict=True))


def test_resume_is_exact(pendulum, tmp_path):
    config = IQLConfig(**SMALL, actor_dropout=0.1, total_updates=60, standardize=True)

    def build():
        return IQL("Pendulum-v1", None, config, dataset=pendulum, seed=3)

    straight, first = build().learn(40), build().learn(20)
    first.save(tmp_path / "saved")
    first.learn(20)
    resumed = IQL.load(tmp_path / "saved", dataset=pendulum)
    assert resumed.episodes == 20 and resumed.policy.version == 20
    resumed.learn(20)
    saved = [everything(agent, tmp_path / str(i)) for i, agent in enumerate((straight, first, resumed))]
    assert saved[0] == saved[1] == saved[2]
    assert saved[0] != everything(build().learn(20), tmp_path / "short")


def test_evaluation_is_deterministic(pendulum, tmp_path):
    agent = IQL(make("Pendulum-v1", max_episode_steps=20), None, IQLConfig(**SMALL), dataset=pendulum).learn(10)
    agent.save(tmp_path)
    loaded = IQL.load(tmp_path, make("Pendulum-v1", max_episode_steps=20))
    for played in (agent, loaded):
        assert played.policy.deterministic_evaluation
        returns = played.evaluate(episodes=4).returns
        assert np.array_equal(returns, agent.evaluate(episodes=4, deterministic=True).returns)
        assert not np.array_equal(returns, agent.evaluate(episodes=4, deterministic=False).returns)
    observation = np.array([1.0, 0.0, 0.5], np.float32)
    assert np.array_equal(agent.predict(observation)[0], loaded.predict(observation)[0])


def test_infinite_losses_are_reported(pendulum):
    agent = IQL(make("Pendulum-v1"), None, IQLConfig(**SMALL), dataset=pendulum)
    agent.data.rewards[:] = 1e30
    with pytest.raises(FloatingPointError, match=r"critic_loss.* became .* between updates 0 and 10"):
        agent.iterate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expectile": 1.0}, "expectile=1.0"),
        ({"expectile": 0.0}, "expectile=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"target_mix": 0.0}, "target_mix=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"hidden": ()}, r"hidden=\(\)"),
        ({"hidden": (64, 0)}, r"hidden=\(64, 0\)"),
        ({"actor_dropout": 1.0}, "actor_dropout=1.0"),
        ({"total_updates": -1}, "total_updates=-1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        IQLConfig(**options)


@pytest.mark.parametrize("cls", [IQLConfig, BCConfig])
def test_configs_are_json_and_documented(cls):
    config = cls(hidden=(64, 32), observation_keys=("object", "robot0_eef_pos"))
    assert cls.from_dict(config.to_dict()) == config
    documented = "".join(base.__doc__ or "" for base in cls.__mro__)
    for field in dataclasses.fields(cls):
        assert f"        {field.name}: " in documented, f"{field.name} has no sentence"


def test_other_policies_and_configs_are_refused():
    with pytest.raises(TypeError, match="trains ControlPolicy"):
        IQL("CliffWalking-v1", TabularPolicy(48, 4))
    with pytest.raises(TypeError, match="takes IQLConfig"):
        IQL("Pendulum-v1", config=GRPOConfig())
    with pytest.raises(ValueError, match="names a model"):
        IQL("Pendulum-v1", "stories")

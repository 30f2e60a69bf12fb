"""The agents of diffusion papers: first updates, signals that are none, exact resume, and what they refuse."""

import copy
import dataclasses

import pytest
import torch

from aligngym.agents.callbacks import Callback
from aligngym.agents.objectives import guard_log_ratio, log_ratios
from aligngym.agents.policies.control import ControlPolicy
from aligngym.agents.registry import AGENTS, agent_class

from .toy_denoiser import constant, rightwards, toy_agent, toy_env, toy_policy

NAMES = ["ddpo", "dpok", "flow-grpo", "grpo-guard", "tempflow-grpo", "b2-diffurl"]


def first_update(agent):
    """What the loss of the first optimiser step is computed from, and that loss; the graph is kept."""
    seen, loss = [], agent.loss

    def spy(batch, now, weights, share):
        result = loss(batch, now, weights, share)
        seen.append((batch, now, weights, result[0]))
        return result[0].detach().requires_grad_(), result[1]  # the update itself then has nothing to differentiate

    agent.loss = spy
    agent.iterate()
    return seen[0]


def actor(agent):
    return list(agent.policy.denoiser.parameters())


def gradient(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_ratio_is_one_bit_for_bit(name):
    batch, now, _, _ = first_update(toy_agent(name))
    mask, g = batch.episodes.mask, now.gaussian
    assert mask.any() and torch.equal(now.log_probs[mask], batch.old_log_probs[mask])
    assert torch.equal(g.mean[mask], batch.old_means[mask])
    ratio = log_ratios(now.log_probs, batch.old_log_probs, mask, "token")
    assert (ratio == 0).all() and (guard_log_ratio(ratio, g.mean, batch.old_means, g.std) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_at_ratio_one_is_reinforce(name):
    """Weighted by S over its mean, by S / h (the guarded ratio's own factor is S), or by 1."""
    agent = toy_agent(name)
    batch, now, _, loss = first_update(agent)
    mask, g = batch.episodes.mask, now.gaussian
    std = agent.policy.table.std  # of all steps: TempFlow has put its sampler back
    factor = torch.where(mask, g.std / std.mean(), 0.0)
    if name == "grpo-guard":
        factor = torch.where(mask, g.std / g.step_size, 0.0)
    if name == "flow-grpo":
        factor = torch.ones_like(g.std)
    reinforce = -(factor * batch.advantages * now.log_probs)[mask].mean()
    assert batch.advantages[mask].abs().max() > 0.01
    ours, expected = gradient(loss, actor(agent)), gradient(reinforce, actor(agent))
    assert expected.norm() > 1e-3 and (ours - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_reward_moves_nothing(name):
    agent = toy_agent(name, reward=constant)
    if name == "dpok":  # a critic that knows it
        with torch.no_grad():
            agent.policy.critic.head[2].weight.zero_()
            agent.policy.critic.head[2].bias.fill_(0.3)
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(64)
    after = agent.policy.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    "name", [pytest.param("dpok", marks=pytest.mark.slow), "flow-grpo", "grpo-guard", "tempflow-grpo"]
)
def test_the_divergence_starts_at_zero_and_pulls_back(name):
    agent = toy_agent(name, kl_coef=1.0)
    metrics = agent.iterate()[1]
    assert metrics["train/kl"] == metrics["train/kl_per_decision"] == 0
    agent.learn(16)
    assert agent.iterate()[1]["train/kl_per_decision"] > 0
    far, near = (toy_agent(name, kl_coef=coefficient).learn(320) for coefficient in (0.0, 3.0))
    metrics = [a.iterate()[1]["train/kl_per_decision"] for a in (far, near)]
    assert metrics[1] < 0.5 * metrics[0]


@pytest.mark.parametrize(("name", "stuck"), [("dpok", {-1, 1}), ("ddpo", {1}), ("flow-grpo", {1})])
def test_where_the_clip_ends_the_gradient(name, stuck):
    """Outside the range where the ratio has moved with the advantage (1); for DPOK also where against it (-1)."""
    agent = toy_agent(name, rows=64, kl_coef=0.0, reference="none", decisions_per_update=0)
    batch, _ = agent.prepare(agent.collect())
    with torch.no_grad():
        agent.policy.denoiser.net[2].bias += torch.tensor([0.2, -0.2])
    now = agent.policy.evaluate_actions(batch.episodes)
    mask = batch.episodes.mask
    share = mask / mask.sum()
    slope = gradient(agent.loss(batch, now, share, share)[0], [now.log_probs]).view(mask.shape)[mask]
    move = (now.log_probs.detach() - batch.old_log_probs)[mask].expm1()
    direction = torch.where(move.abs() > 0.2, (move * batch.advantages[mask]).sign(), 0.0).int()
    found = {int(d) for d in (-1, 0, 1) if (slope[direction == d] == 0).all()}
    assert set(direction.tolist()) == {-1, 0, 1} and found == stuck
    assert (slope[direction == 0] != 0).all()


def test_flow_grpo_divides_by_the_deviation_of_the_iteration():
    agent = toy_agent("flow-grpo", advantage_clip=1.0)
    batch, _ = agent.prepare(agent.collect())
    returns = batch.episodes.returns.view(4, 4)
    expected = (returns - returns.mean(1, keepdim=True)) / (returns.std() + 1e-4)
    assert expected.abs().max() > 1
    torch.testing.assert_close(batch.advantages, expected.clamp(-1, 1).view(16, 1).expand(16, 10))


def test_dpok_fits_its_critic_to_the_final_reward():
    agent = toy_agent("dpok", rows=64)
    batch, now, _, _ = first_update(agent)
    returns = batch.episodes.returns[:, None].expand_as(batch.returns)
    torch.testing.assert_close(batch.returns, returns)
    torch.testing.assert_close(batch.advantages, returns - now.values[:, :-1].detach())
    late = toy_agent("dpok", rows=64, kl_coef=3.0, value_steps=40, value_learning_rate=1e-2).learn(64 * 4)
    batch, now, _, _ = first_update(late)
    values, rewards = now.values.detach(), batch.episodes.returns
    errors = (values - rewards[:, None]).square().mean(0)
    assert errors[-2] < 0.2 * rewards.var() and errors[-2] < 0.5 * errors[0]  # late states know, early ones do not


def test_dpok_s_critic_has_its_own_steps():
    """After the policy's, so that no advantage is less a value that knows its reward; the policy's do not move it."""
    agent = toy_agent("dpok", rows=64)
    state = {k: v.clone() for k, v in agent.policy.named_parameters()}
    batch, _, _, _ = first_update(agent)  # which moves no policy
    assert not torch.equal(agent.policy.state_values(batch.episodes), batch.old_values)
    moved = {k for k, v in agent.policy.named_parameters() if not torch.equal(v, state[k])}
    assert moved and all(k.startswith("critic.") for k in moved)
    agent = toy_agent("dpok", value_steps=0, kl_coef=0.0)
    agent.iterate()
    moved = {k for k, v in agent.policy.named_parameters() if not torch.equal(v, state[k])}
    assert moved and all(k.startswith("denoiser.") for k in moved)


class Rows(Callback):
    """Everything that is logged, but for the clock."""

    def __init__(self):
        self.rows = []

    def on_iteration(self, agent, episodes, metrics):
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        return True


RESUME = {
    "ddpo": {"prompt_min_count": 4, "minibatch_size": 8},
    "dpok": {"minibatch_size": 8, "reference": "moving", "reference_every": 2},
    "flow-grpo": {"minibatch_size": 8},
    "grpo-guard": {"epochs": 2},
    "tempflow-grpo": {"decisions_per_update": 2},
    "b2-diffurl": {"history": 3, "stages": 5, "minibatch_size": 4},
}


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(name, tmp_path):
    def build():
        return toy_agent(name, seed=3, **RESUME[name])

    straight, first, whole, half, rest = build(), build(), Rows(), Rows(), Rows()
    straight.learn(96, whole)
    first.learn(48, half).save(tmp_path / "saved")
    kind = first.policy.denoiser.kind
    model = toy_policy(kind, value_head=first.needs_values)
    resumed = type(first).load(tmp_path / "saved", env=toy_env(kind), policy=model)
    assert resumed.policy.sampling == first.policy.sampling and resumed._state() == first._state()
    resumed.learn(48, rest)
    assert half.rows + rest.rows == whole.rows and len(whole.rows) == 6
    for one, two in zip(resumed.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    assert resumed.rng.bit_generator.state == straight.rng.bit_generator.state
    assert resumed._state() == straight._state()


@pytest.mark.parametrize("name", NAMES)
def test_options_are_documented_json_and_checked(name):
    cls = agent_class(name).config_class
    assert cls.from_dict(cls().to_dict()) == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().epochs = 2
    documented = "".join(base.__doc__ or "" for base in cls.__mro__[:-1])
    for field in dataclasses.fields(cls):
        assert f"        {field.name}: " in documented, f"{field.name} has no sentence"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddpo", {"prompt_buffer": 1}, "prompt_buffer=1: must be at least 2"),
        ("ddpo", {"prompt_min_count": 0}, "prompt_min_count=0: must be at least 2"),
        ("ddpo", {"epsilon": -1.0}, "epsilon=-1.0"),
        ("dpok", {"dual_clip": 3.0}, "dual_clip=3.0 is an addition to clip_form='pessimistic'"),
        ("dpok", {"value_batch": 0}, "value_batch=0: must be above 0"),
        ("dpok", {"value_steps": -1}, "value_steps=-1: must be at least 0"),
        ("dpok", {"kl_in": "reward", "kl_estimator": "k1"}, "take kl_in='loss'"),
        ("flow-grpo", {"group_size": 1}, "compares a group"),
        ("b2-diffurl", {"first_interval": 0.0}, r"first_interval=0.0: must be in \(0, 1\]"),
        ("b2-diffurl", {"first_interval": 1.5}, "first_interval=1.5"),
        ("b2-diffurl", {"stages": 0}, "stages=0: must be at least 1"),
        ("b2-diffurl", {"threshold": -0.1}, "threshold=-0.1: must be at least 0"),
        ("b2-diffurl", {"history": -1}, "history=-1"),
        ("b2-diffurl", {"kl_coef": 0.1, "kl_in": "reward", "reference": "initial"}, "take kl_in='loss'"),
    ],
)
def test_bad_options_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        agent_class(name).config_class(**options)


@pytest.mark.parametrize("name", ["flow-grpo", "grpo-guard", "dpok", "tempflow-grpo", "b2-diffurl"])
def test_policies_that_do_not_fit_are_refused(name):
    """A Gaussian loss needs Gaussian decisions, branches need a sampler, DPOK a critic."""
    env = toy_env(rows=16)
    policy = toy_policy() if name == "dpok" else table_policy()
    with pytest.raises(ValueError, match=r"critic|Gaussian decisions|branches denoising"):
        agent_class(name)(env, policy)


def table_policy():
    import gymnasium as gym

    space = gym.spaces.Box(-1, 1, (3,))
    return ControlPolicy(space, gym.spaces.Discrete(2), value=False, generator=torch.Generator().manual_seed(0))


def test_ddpo_trains_what_is_not_an_image():
    """Neither its loss nor its statistics know what acts; prompts that are numbers are keys, too."""
    options = {"episodes_per_iteration": 64, "learning_rate": 0.1, "step_weights": "uniform", "decisions_per_update": 0}
    config = agent_class("ddpo").config_class(**options)
    agent = agent_class("ddpo")("TabularBandit-v0", config=config)
    before = agent.evaluate(episodes=256).mean
    assert agent.learn(64 * 10).evaluate(episodes=256).mean > before + 0.3
    assert all(isinstance(prompt, str) for prompt in agent.seen)


def test_every_agent_has_a_name_of_its_own():
    targets = [entry.target for entry in AGENTS.values()]
    assert set(NAMES) <= set(AGENTS) and len(set(targets)) == len(targets)
    assert [agent_class(n).__name__ for n in NAMES] == [
        "DDPO", "DPOK", "FlowGRPO", "GRPOGuard", "TempFlowGRPO", "B2DiffuRL"
    ]  # fmt: skip


def test_guard_needs_steps_of_a_length_and_takes_diffusion_without():
    with pytest.raises(ValueError, match=r"inverse_step.*flow"):
        toy_agent("grpo-guard", kind="diffusion").iterate()
    toy_agent("grpo-guard", kind="diffusion", step_weights="uniform", reward=rightwards).iterate()

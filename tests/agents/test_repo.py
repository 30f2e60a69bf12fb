"""RePo: what trains its latent states and what does not, the limit on information, behaviour, verbs, exact resume."""

import dataclasses
import functools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.world_model import WorldModelPolicy
from aligngym.agents.repo import RePo, RePoConfig, actor_loss, critic_loss, model_loss
from aligngym.agents.world_model.objectives import gaussian_kl, lambda_returns, unit_gaussian_loss
from aligngym.agents.world_model.replay import Sequences
from aligngym.agents.world_model.rssm import State
from aligngym.cli import main
from aligngym.reproduce.rotated import rotated_points
from aligngym.wrappers import DistractingBackground

SMALL = {
    "learning_starts": 60, "steps_per_iteration": 40, "updates_per_iteration": 2, "buffer_size": 400, "batch_size": 3,
    "sequence_length": 6, "deterministic_size": 8, "stochastic_size": 3, "hidden_size": 8, "embedding_size": 10,
    "conv_depth": 2, "horizon": 4,
}  # fmt: skip
KINDS = {"repo": {}, "dreamer": {"reconstruction": True}, "probe": {"probe": True}}


def pendulum(rows=2, mode=AutoresetMode.NEXT_STEP):
    options = {} if mode is AutoresetMode.NEXT_STEP else {"vector_kwargs": {"autoreset_mode": mode}}
    return gym.make_vec("Pendulum-v1", num_envs=rows, vectorization_mode="sync", max_episode_steps=15, **options)


def small(env=None, seed=3, **options):
    return RePo(env or pendulum(), config=RePoConfig(**SMALL | options), seed=seed)


def batch_of(policy, rows=4, length=5, seed=0):
    """Recorded steps of random numbers, an episode begins in the middle."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(rows, length, dtype=torch.bool)
    first[:, 2] = True
    shape = policy.spec()["shape"]
    return Sequences(
        observations=torch.randn(rows, length, *shape, generator=generator),
        actions=torch.rand(rows, length, len(policy.centre), generator=generator) * 2 - 1,
        rewards=torch.randn(rows, length, generator=generator) * ~first,
        first=first,
    ), torch.randn(rows, length, policy.rssm.sizes[1], generator=generator)


def same(one, two, names=("encoder", "rssm", "reward", "actor", "critic")):
    pairs = [(getattr(one.policy, n).state_dict(), getattr(two.policy, n).state_dict()) for n in names]
    return all(torch.equal(a[k], b[k]) for a, b in pairs for k in a)


# What the model learns from


def test_the_loss_of_repo_is_the_rewards_and_the_multiplied_divergence():
    agent = small()
    batch, noise = batch_of(agent.policy)
    beta = torch.tensor(0.7, requires_grad=True)
    loss, states, logged = model_loss(agent.policy, batch, noise, beta, agent.config)
    embeddings = agent.policy.encoder(batch.observations)
    _, posterior, prior = agent.policy.rssm.observe(embeddings, batch.actions, batch.first, noise)
    errors = 0.5 * (agent.policy.reward(states.features) - batch.rewards).square()
    kl = gaussian_kl(posterior, prior).mean()
    torch.testing.assert_close(loss, errors[~batch.first].mean() + 0.7 * kl)
    torch.testing.assert_close(logged["kl"], kl.detach())
    loss.backward()
    assert beta.grad is None


def test_the_first_step_of_an_episode_has_no_reward_to_predict():
    agent = small()
    batch, noise = batch_of(agent.policy)
    other = dataclasses.replace(batch, rewards=batch.rewards + 5 * batch.first)
    losses = [model_loss(agent.policy, b, noise, torch.ones(()), agent.config)[0] for b in (batch, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("free", [0.0, 1e6])
def test_the_loss_of_dreamer_has_the_pictures_and_free_nats(free):
    agent = small(reconstruction=True, free_nats=free)
    batch, noise = batch_of(agent.policy)
    loss, states, logged = model_loss(agent.policy, batch, noise, torch.ones(()), agent.config)
    pictures = unit_gaussian_loss(agent.policy.decoder(states.features), batch.observations).sum(-1).mean()
    expected = logged["reward_loss"] + pictures + (logged["kl"] if free == 0 else free)
    torch.testing.assert_close(loss, expected)


def test_no_pixel_reaches_the_latent_without_reconstruction():
    """The loss has no gradient for the decoder, and training that one changes nothing else, bit for bit."""
    agent, plain = small(probe=True), small()
    assert plain.policy.decoder is None and same(agent, plain)
    batch, noise = batch_of(agent.policy)
    loss, *_ = model_loss(agent.policy, batch, noise, torch.ones(()), agent.config)
    slopes = torch.autograd.grad(loss, list(agent.policy.decoder.parameters()), allow_unused=True)
    assert all(slope is None for slope in slopes)
    before = [p.clone() for p in agent.policy.decoder.parameters()]
    agent.learn(120)
    plain.learn(120)
    assert same(agent, plain) and agent.log_beta == plain.log_beta
    assert all((a != b).any() for a, b in zip(before, agent.policy.decoder.parameters(), strict=True))


def test_the_probe_learns_to_show_what_was_observed():
    agent = small(probe=True, model_learning_rate=3e-3, updates_per_iteration=1)
    losses = [float(agent._probe(*probe_batch(agent))) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def probe_batch(agent):
    """The same observations, and states that differ where they do."""
    batch, _ = batch_of(agent.policy)
    features = batch.observations.flatten(2).repeat(1, 1, 4)
    return batch, State(features[..., :8], features[..., 8:11])


def test_with_reconstruction_pixels_train_the_latent():
    agent = small(reconstruction=True)
    batch, noise = batch_of(agent.policy)
    loss, *_ = model_loss(agent.policy, batch, noise, torch.ones(()), agent.config)
    weights = next(agent.policy.encoder.parameters())
    (with_pixels,) = torch.autograd.grad(loss, weights)
    config = dataclasses.replace(agent.config, reconstruction=False, kl_balance=0.5)
    loss, *_ = model_loss(agent.policy, batch, noise, torch.zeros(()), config)
    (without,) = torch.autograd.grad(loss, weights)
    assert with_pixels.norm() > 2 * without.norm()


# The limit on information


def test_the_trap_of_short_runs():
    """By the paper's rate a short run's multiplier stays where it began: nothing is limited. A greater one acts."""

    def after(**options):
        agent = small(rotated_points(2), kl_target=0.5, updates_per_iteration=25, model_learning_rate=5e-3, **options)
        return agent.learn(120), agent.iterate()[1]

    trapped, found = after()
    assert math.log(found["train/beta"] / 1e-5) < 0.03
    limited, better = after(initial_beta=0.01, beta_learning_rate=0.1)
    assert better["train/beta"] > 0.02 and better["train/kl"] < 0.5 * found["train/kl"]
    assert trapped.steps == limited.steps


def test_dreamer_has_no_multiplier():
    agent = small(reconstruction=True)
    agent.learn(80)
    assert agent.log_beta == torch.tensor(math.log(1e-5)) and "beta_optimizer" not in agent.optimizers


# Behaviour


def test_actor_and_critic_minimise_what_they_should():
    agent = small(horizon=5, entropy_coef=0.1)
    policy, generator = agent.policy, torch.Generator().manual_seed(0)
    start = State(torch.randn(6, 8, generator=generator), torch.randn(6, 3, generator=generator))
    noise, action_noise = torch.randn(6, 4, 3, generator=generator), torch.randn(6, 4, 1, generator=generator)
    of_actor, features, returned, logged = actor_loss(policy, start, noise, action_noise, agent.config)
    of_critic = critic_loss(policy, features, returned)
    states, actions = policy.rssm.imagine(start, lambda f, n: policy.actions(f).sample(n).tanh(), noise, action_noise)
    gaussian = policy.actions(states.features[:, :-1])
    raw = gaussian.sample(action_noise).double()
    torch.testing.assert_close(actions.double(), raw.tanh())
    base = torch.distributions.Normal(gaussian.mean.double(), gaussian.std.double())
    density = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform(cache_size=1))
    entropy = -density.log_prob(density.transforms[0](raw)).sum(-1)
    values = policy.critic(states.features)
    returns = lambda_returns(policy.reward(states.features[:, 1:]), values, 0.99, 0.95)
    assert logged["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    torch.testing.assert_close(of_actor, -returns.mean() - 0.1 * logged["entropy"])
    torch.testing.assert_close(of_critic, 0.5 * (values[:, :-1] - returns).square().mean())
    fixed = [*policy.reward.parameters(), *policy.actor.parameters(), *policy.rssm.parameters()]
    assert all(g is None for g in torch.autograd.grad(of_critic, fixed, allow_unused=True))
    expected = 0.5 * (policy.critic(states.features[:, :-1].detach()) - returns.detach()).square().mean()
    slopes = [torch.autograd.grad(loss, policy.critic[0].weight)[0] for loss in (of_critic, expected)]
    torch.testing.assert_close(*slopes)


def test_the_actors_gradient_is_that_of_the_imagined_return():
    """By differences, for one step; in more, the actor is not told where it is, as in Dreamer."""
    agent = small(horizon=2, entropy_coef=0.0)
    policy = agent.policy.double()
    generator = torch.Generator().manual_seed(0)
    sizes = ((8, 8), (8, 3), (8, 1, 3), (8, 1, 1))
    h, z, *noise = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)

    def loss():
        return actor_loss(policy, State(h, z), *noise, agent.config)[0]

    bias = policy.actor[-1].bias
    (slope,) = torch.autograd.grad(loss(), bias)
    with torch.no_grad():
        for i in range(2):
            bias[i] += 1e-2
            above = loss()
            bias[i] -= 2e-2
            below = loss()
            bias[i] += 1e-2
            assert float((above - below) / 2e-2) == pytest.approx(float(slope[i]), rel=2e-2, abs=1e-6)
    assert slope.abs().min() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_losses_are_descended_alike(kind, monkeypatch):
    """Through the compiler's tracing of both passes, without its code generator."""
    plain = small(**KINDS[kind]).learn(100)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = small(compile=True, **KINDS[kind]).learn(100)
    for one, two in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_optimiser_moves_its_own_networks(kind):
    agent = small(**KINDS[kind])
    agent.collect(100)
    owned = {id(p): n for n, o in agent.optimizers.items() for g in o.param_groups for p in g["params"]}
    parameters = dict(agent.policy.named_parameters())
    assert {id(p) for p in parameters.values()} | {id(agent.log_beta)} >= owned.keys()
    assert all(id(p) in owned for p in parameters.values())
    for name in agent.optimizers:
        for n, optimizer in agent.optimizers.items():
            optimizer.param_groups[0]["lr"] = 1e-2 if n == name else 0.0
        before = {k: p.clone() for k, p in parameters.items()}
        agent.update()
        moved = {owned[id(p)] for k, p in parameters.items() if not torch.equal(p, before[k])}
        assert moved == ({name} if name != "beta_optimizer" else set())


# Acting


def test_a_policy_believes_what_its_model_does_along_an_episode():
    agent = small()
    env = pendulum()
    episodes = agent.play(env, 2)
    observations, actions = episodes.observations, episodes.actions
    steps = actions.shape[1]
    policy = agent.policy
    before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1] / 2], 1)  # Pendulum takes -2 to 2
    first = torch.zeros(2, steps, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():
        states, *_ = policy.rssm.observe(policy.encoder(observations[:, :-1]), before, first, torch.zeros(2, steps, 3))
        expected = 2 * policy.actions(states.features).mean.tanh()
    torch.testing.assert_close(actions, expected, atol=1e-5, rtol=1e-4)


def test_predict_carries_a_state_and_begins_where_it_is_told_to():
    agent = small()
    episodes = agent.play(pendulum(), 2)
    seen = episodes.observations.numpy()
    state, taken = None, []
    for t in range(15):
        action, state = agent.predict(seen[:, t], state)
        taken.append(action)
    np.testing.assert_allclose(np.stack(taken, 1), episodes.actions.numpy(), atol=1e-5)
    again, _ = agent.predict(seen[:, 0], state, episode_start=[True, False])
    np.testing.assert_allclose(again[0], taken[0][0], atol=1e-6)
    assert abs(again[1] - taken[0][1]) > 1e-4
    alone, _ = agent.predict(seen[0, 0])
    np.testing.assert_allclose(alone, taken[0][0], atol=1e-6)
    drawn = [agent.predict(seen[0, 0], deterministic=False)[0] for _ in range(3)]
    assert len({float(d[0]) for d in drawn}) == 3


def test_streams_of_random_numbers_tell_episodes_apart():
    policy, seen = small().policy, np.ones((1, 3), np.float32)
    one, other = RowNoise([1]), RowNoise([1])
    first = policy.act(seen, one, True).actions
    assert policy.act(seen, one, True).actions != first  # it goes on
    assert policy.act(seen, other, True).actions == first
    del one, other
    assert len(policy._beliefs) == 0


def test_nothing_is_believed_of_an_episode_that_ended():
    agent = small()
    agent.collect(28)
    assert agent.belief.state.features.abs().min() > 0
    agent.collect(2)  # all rows have played 15 steps
    assert not agent.belief.state.features.any() and not agent.belief.action.any()


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda m: m.name)
def test_what_is_remembered_is_what_happened(mode):
    agent = small(pendulum(mode=mode))
    agent.learn(80)
    twin = gym.make("Pendulum-v1", max_episode_steps=15).unwrapped
    for row in range(2):
        kept = {k: v[row, : agent.replay.added[row]] for k, v in agent.replay.arrays.items()}
        starts = np.flatnonzero(kept["first"])
        assert np.diff(starts).tolist() == [16] * (len(starts) - 1) and len(starts) > 1  # 15 steps and the first
        assert (kept["rewards"][starts] == 0).all() and (kept["actions"][starts] == 0).all()
        twin.reset(seed=0)
        for i in range(len(kept["first"])):
            if kept["first"][i]:
                x, y, speed = kept["observations"][i].astype(float)
                twin.state = np.array([np.arctan2(y, x), speed])
                continue
            observation, reward, *_ = twin.step(2 * kept["actions"][i])
            np.testing.assert_allclose(observation, kept["observations"][i], atol=1e-3)
            assert reward == pytest.approx(kept["rewards"][i], abs=1e-2)


# Verbs and resume


def pixels(**options):
    wrappers = [functools.partial(DistractingBackground, num_clips=1, **options)]
    return gym.make_vec(
        "ControlAlign-v0", num_envs=1, vectorization_mode="sync", wrappers=wrappers, domain="cartpole", task="balance",
        observation="pixels", size=12, action_repeat=8, max_steps=9,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "env"), [*((k, pendulum) for k in KINDS), ("repo", pixels)])
def test_resume_is_exact_in_the_middle_of_episodes(kind, env, tmp_path):
    if env is pixels:
        pytest.importorskip("dm_control")
    straight, first = (small(env(), **KINDS[kind]) for _ in range(2))
    straight.learn(120)
    first.learn(80)
    first.save(tmp_path / "saved")
    first.evaluate(episodes=2)  # on the training environment; must not matter
    resumed = RePo.load(tmp_path / "saved", env() if env is pixels else None)
    for agent in (first, resumed):
        agent.learn(40)
        agent.save(tmp_path / "again")
        straight.save(tmp_path / "straight")
        one, two = (load_checkpoint(tmp_path / name) for name in ("again", "straight"))
        assert one[0].keys() == two[0].keys()
        for file, tensors in one[0].items():
            for name, value in tensors.items():
                assert torch.equal(value, two[0][file][name]), (file, name)
        assert one[1] == two[1]
    assert resumed.evaluate(episodes=2).returns.tolist() == straight.evaluate(episodes=2).returns.tolist()


def test_a_policy_goes_into_another_agent():
    one = small()
    two = RePo(pendulum(), one.policy, one.config)
    assert two.policy is one.policy
    with pytest.raises(ValueError, match="expected a WorldModelPolicy"):
        RePo(pendulum(), TabularPolicy(2, 2), one.config)
    with pytest.raises(ValueError, match="does not fit the environment: shape"):
        RePo(rotated_points(2), one.policy, one.config)
    with pytest.raises(ValueError, match="decoder where"):
        RePo(pendulum(), one.policy, dataclasses.replace(one.config, probe=True))


def test_the_defaults_are_the_papers():
    policy = WorldModelPolicy(shape=(64, 64, 3), low=[-1.0], high=[1.0])
    assert RePoConfig().kl_balance == pytest.approx(5 / 6)
    assert policy.rssm.sizes == (200, 30) and len([m for m in policy.actor if hasattr(m, "weight")]) == 5
    state = policy.initial(2).state
    gaussian = policy.actions(state.features)
    assert gaussian.std.mean().item() == pytest.approx(5.1, abs=0.3) and gaussian.mean.abs().max() <= 5


def test_bfloat16_computes_about_the_same():
    one, two = small(), small(precision="bfloat16")
    for agent in (one, two):
        agent.learn(80)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in two.policy.parameters())
    assert not same(one, two)
    one, two = small(), small(precision="bfloat16")
    numbers = []
    for agent in (one, two):
        agent.collect(80)
        numbers.append(agent.update())
    for name in ("reward_loss", "kl", "critic_loss"):
        assert numbers[0][name].item() == pytest.approx(numbers[1][name].item(), rel=0.1, abs=0.02), name


def test_the_command_line_trains_evaluates_and_resumes(tmp_path, capsys):
    options = [x for k, v in SMALL.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    run = ["Pendulum-v1", "--agent", "repo", "--eval-episodes", "2", *options]
    assert main(["train", *run, "--episodes", "80", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--episodes", "120"]) == 0
    assert "120/120 steps" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--samples", "0"]) == 0

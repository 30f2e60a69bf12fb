"""Denoising as a policy: scoring repeats sampling bit for bit, gradients, guidance, steps without noise, marginals."""

import copy
import dataclasses
import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.samplers import NoiseGrid, make_table
from aligngym.agents.rollouts import step_through

from .tiny_denoisers import IDS, KINDS, PROMPTS, Perceptron, embed, play, points

embedded = pytest.mark.parametrize("name", IDS)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def masked(episodes, share=0.5, seed=0):
    chosen = torch.from_numpy(np.random.default_rng(seed).random(episodes.mask.shape) < share)
    chosen[:, 0] |= ~chosen.any(1)
    return dataclasses.replace(episodes, mask=chosen)


@pytest.mark.parametrize(("rows", "guidance"), [(1, 1.0), (7, 3.0), (16, 1.0), (23, 3.0), (40, 1.0)])
@embedded
def test_scoring_repeats_sampling_bit_for_bit(name, rows, guidance):
    """Whatever the batch, its pieces, the decisions asked for, and whether a gradient is wanted."""
    policy = embed(name, guidance=guidance, num_steps=2)
    episodes = play(policy, rows)
    assert len(set(episodes.info["prompt"])) > 1 or rows == 1
    with torch.no_grad():
        now = policy.evaluate_actions(episodes)
        assert torch.equal(now.log_probs, episodes.log_probs) and (episodes.log_probs != 0).all()
        assert torch.equal(now.gaussian.mean, episodes.extras["mean"])
        assert torch.equal(now.gaussian.std, episodes.extras["std"])
        some = masked(episodes)
        now = policy.evaluate_actions(some)
        assert torch.equal(now.log_probs, episodes.log_probs * some.mask)
        assert torch.equal(now.gaussian.mean, episodes.extras["mean"] * some.mask[..., None, None, None])
    for index in torch.arange(min(rows, 12)).split(5):  # micro-batches
        now = policy.evaluate_actions(episodes.select(index))
        assert torch.equal(now.log_probs.detach(), episodes.log_probs[index]) and now.log_probs.requires_grad


@embedded
def test_a_row_does_not_depend_on_its_batch(name):
    """Alone, among others, by steps, in pieces of the memory limit: the same sample bit for bit."""
    policy = embed(name, guidance=2.0)
    whole = play(policy, 9)
    assert torch.equal(play(embed(name, guidance=2.0, batch_size=4), 9).actions, whole.actions)
    env = gym.make_vec(IDS[name], num_envs=9, num_steps=3, prompts=PROMPTS)
    stepped = step_through(env, policy, seeds=list(range(9)), noise=RowNoise(range(9)))
    alone = gym.make(IDS[name], num_steps=3, prompts=PROMPTS).unwrapped
    one = alone.rollout(policy, noise=RowNoise([5]), seed=5)
    for key in ("actions", "log_probs", "mask"):
        assert torch.equal(getattr(stepped, key), getattr(whole, key)), key
        assert torch.equal(getattr(one, key)[0], getattr(whole, key)[5]), key
    for key in ("mean", "std"):
        assert torch.equal(stepped.extras[key], whole.extras[key])
    assert stepped.sampling == whole.sampling and torch.equal(
        stepped.observations["sample"], whole.observations["sample"]
    )


@embedded
def test_the_mean_over_dimensions_is_the_sum_over_their_number(name):
    total, mean = (play(embed(name, log_prob=form), 2) for form in ("sum", "mean"))
    assert torch.equal(total.actions, mean.actions)
    torch.testing.assert_close(mean.log_probs * 3072, total.log_probs, rtol=1e-5, atol=1e-2)
    policy = embed(name, log_prob="mean")
    now = policy.evaluate_actions(mean)
    assert torch.equal(now.log_probs.detach(), mean.log_probs)
    assert policy.divisor == now.gaussian.divisor == 3072 and embed(name).divisor == 1
    entropy = embed(name).evaluate_actions(total).entropy
    torch.testing.assert_close(now.entropy * 3072, entropy, rtol=1e-5, atol=1e-2)
    # N(0, S^2) has the entropy log(S sqrt(2 pi e)) a dimension, and the log-probability of a sample is minus that.
    torch.testing.assert_close(entropy / 3072, (mean.extras["std"] * math.sqrt(2 * math.pi * math.e)).log())
    torch.testing.assert_close(-now.log_probs, now.entropy, rtol=0, atol=0.1)


@embedded
def test_every_parameter_gets_a_gradient(name):
    policy = embed(name, guidance=3.0, num_steps=2)
    policy.zero_grad()
    policy.evaluate_actions(play(policy, 2)).log_probs.sum().backward()
    for key, parameter in policy.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), key
    words = policy.denoiser.words.weight.grad
    assert words[0].eq(0).all() and 1 < words.any(1).sum() <= 4, "only the words that were used"
    policy.zero_grad()


def by_hand(network, policy, episodes):
    """``[B, T]`` log-probabilities in float64: the module's formula, one row and one step at a time."""
    told, empty = network.encode(episodes.info["prompt"])["told"].double(), network.encode([""])["told"].double()
    table = make_table(policy.grid, network.prediction, policy.sampler, policy.noise_level)
    values = torch.zeros(episodes.mask.shape, dtype=torch.float64)
    for i in range(len(episodes)):
        x = episodes.observations["sample"][i].double()
        for k in range(policy.num_steps):
            t = policy.grid.times[k].reshape(1)
            with_prompt, without = (network(x[None], t, {"told": c})[0] for c in (told[i : i + 1], empty))
            out = without + policy.guidance * (with_prompt - without)
            mean = float(table.scale[k]) * x + float(table.gain[k]) * out
            normal = torch.distributions.Normal(mean, float(table.std[k]))
            x = episodes.actions[i, k].double()
            values[i, k] = normal.log_prob(x).sum() / policy.divisor
    return values


@pytest.mark.parametrize("log_prob", ["sum", "mean"])
@pytest.mark.parametrize(("kind", "prediction"), [("flow", None), ("diffusion", "epsilon"), ("diffusion", "sample")])
def test_values_and_gradients_by_finite_differences(kind, prediction, log_prob):
    policy = points(kind, 3, prediction, guidance=2.5, log_prob=log_prob)
    episodes = play(policy, 4)
    exact = copy.deepcopy(policy.denoiser).double()
    torch.testing.assert_close(by_hand(exact, policy, episodes).float(), episodes.log_probs, rtol=2e-4, atol=2e-4)
    weights = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (policy.evaluate_actions(episodes).log_probs * weights).sum().backward()
    with torch.no_grad():
        for ours, theirs in zip(policy.denoiser.parameters(), exact.parameters(), strict=True):
            flat = theirs.view(-1)
            for i in range(0, len(flat), 3):
                values = []
                for step in (1e-5, -1e-5):
                    flat[i] += step
                    values.append((by_hand(exact, policy, episodes) * weights).sum())
                    flat[i] -= step
                slope = (values[0] - values[1]) / 2e-5
                torch.testing.assert_close(ours.grad.view(-1)[i].double(), slope, rtol=2e-3, atol=2e-3)


@both_kinds
def test_a_guidance_of_one_is_no_guidance(kind):
    one, almost, strong = (play(points(kind, guidance=w), 3) for w in (1.0, 1.0 + 1e-6, 4.0))
    torch.testing.assert_close(one.actions, almost.actions, rtol=1e-4, atol=1e-5)
    assert (one.actions - strong.actions).abs().max() > 1e-3


def test_episodes_are_scored_as_they_were_sampled():
    policy = points()
    episodes = play(policy, 3)
    changes = ({"guidance": 2.0}, {"sampler": "dance_sde"}, {"noise_level": 0.5}, {"stochastic_steps": (1,)})
    for options in changes:
        with pytest.raises(ValueError, match=r"episodes were sampled with .* not with this policy's"):
            points(**options).evaluate_actions(episodes)
    with pytest.raises(ValueError, match="not with this policy's"):
        points(steps=5).evaluate_actions(episodes)
    policy.set_sampler("cps", 0.5)
    with pytest.raises(ValueError, match="not with this policy's"):
        policy.evaluate_actions(episodes)
    episodes = play(policy, 3)
    assert torch.equal(policy.evaluate_actions(episodes).log_probs, episodes.log_probs)
    assert episodes.sampling == json.loads(json.dumps(policy.sampling))


def test_only_decisions_that_drew_noise_are_scored():
    policy = points(stochastic_steps={3, 1})
    episodes = play(policy, 5)
    expected = [False, True, False, True]
    assert policy.drawn(episodes).tolist() == [expected] * 5
    now = policy.evaluate_actions(episodes)
    assert torch.equal(now.log_probs, episodes.log_probs) and (now.log_probs != 0).tolist() == [expected] * 5
    assert (now.gaussian.mean.flatten(2).abs().sum(2) > 0).tolist() == [expected] * 5
    assert (now.gaussian.std > 0).tolist() == (now.gaussian.step_size > 0).tolist() == [expected] * 5
    full = points().evaluate_actions(play(points(), 5)).gaussian
    chosen = torch.tensor(expected)
    for key in ("noise_weight", "step_size", "std"):  # weights are relative to all steps, whichever draw noise
        assert torch.equal(getattr(now.gaussian, key)[:, chosen], getattr(full, key)[:, chosen])
    torch.testing.assert_close(full.noise_weight.mean(1), torch.ones(5))
    torch.testing.assert_close(full.step_size.sum(1), torch.ones(5))
    # The streams are read at the steps that draw, and nowhere else.
    noise, drawn = RowNoise(range(5)), episodes.actions - episodes.extras["mean"]
    for k in (1, 3):
        e = drawn[:, k] / episodes.extras["std"][:, k, None]
        torch.testing.assert_close(e, noise.normal((2,)), rtol=1e-3, atol=1e-3)
    assert points("diffusion").evaluate_actions(play(points("diffusion"), 2)).gaussian.step_size is None


@both_kinds
def test_deterministic_decisions_take_the_step_of_the_ode(kind):
    policy, ode = points(kind), points(kind, sampler="ode")
    certain, other = play(policy, 4, deterministic=True), play(ode, 4, seed=0)
    assert torch.equal(certain.actions, other.actions) and torch.equal(certain.actions, certain.extras["mean"])
    assert (certain.log_probs == 0).all() and (certain.extras["std"] == 0).all()
    none = points(kind, noise_level=0.0)
    for policy, episodes in ((policy, certain), (ode, other), (none, play(none, 2))):  # noqa: B020
        with pytest.raises(ValueError, match=r"no decision drew noise .* sample with noise"):
            policy.evaluate_actions(episodes)
    assert policy.deterministic_evaluation == (kind == "flow")


def test_sampling_has_the_marginals_of_the_data():
    """N(2, 0.5^2) through its exact velocity, from noise to data in 50 steps of Flow-SDE."""

    class Exact(Perceptron):
        shape = (1,)

        def forward(self, x, t, condition):
            t = t[:, None] / 7  # the grid's own unit
            spread = 0.25 * (1 - t) ** 2 + t**2
            return (t - 0.25 * (1 - t)) / spread * (x - 2 * (1 - t)) - 2

        def grid(self, num_steps):
            levels = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
            return NoiseGrid("flow", 7 * levels[:-1].float(), levels)

    found = play(DenoiserPolicy(Exact(), num_steps=50), 3000).actions[:, -1, 0]
    assert found.mean().item() == pytest.approx(2, abs=0.04) and found.std().item() == pytest.approx(0.499, rel=0.04)

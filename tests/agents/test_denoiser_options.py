"""What denoising policies offer beside sampling: likelihoods, critics, half precision, specs, prompts, refusals."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch

from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise

from .tiny_denoisers import IDS, KINDS, embed, play, points

embedded = pytest.mark.parametrize("name", IDS)
both_kinds = pytest.mark.parametrize("kind", KINDS)


@both_kinds
def test_likelihood_is_the_denoising_error_of_the_final_sample(kind):
    """At one step and one noise of each row's own stream, without guidance; by hand."""
    policy = points(kind, guidance=3.0)
    episodes = play(policy, 6)
    found = policy.log_likelihood(episodes, RowNoise(range(40, 46)))
    steps = []
    for i in range(6):
        generator = np.random.default_rng(40 + i)
        step = int(generator.random(1)[0] * 4)
        e = torch.from_numpy(generator.standard_normal(2, dtype=np.float32))
        x, level = episodes.actions[i, -1], float(policy.grid.levels[step])
        if kind == "flow":
            state, target = (1 - level) * x + level * e, e - x
        else:
            state, target = level**0.5 * x + (1 - level) ** 0.5 * e, level**0.5 * e - (1 - level) ** 0.5 * x
        told = policy.denoiser.encode([episodes.info["prompt"][i]])
        out = policy.denoiser(state[None], policy.grid.times[step : step + 1], told)[0]
        torch.testing.assert_close(found[i], -(out - target).square().mean(), rtol=1e-4, atol=1e-5)
        steps.append(step)
    assert len(set(steps)) > 1 and found.requires_grad
    assert torch.equal(policy.log_likelihood(episodes, RowNoise(range(40, 46))), found)
    assert not torch.equal(policy.log_likelihood(episodes, RowNoise(range(41, 47))), found)
    # Rows of equal streams share step and noise: the same sample and prompt twice is equally likely twice.
    twice = episodes.select(torch.tensor([2, 2, 3]))
    pair = policy.log_likelihood(twice, RowNoise([5, 5, 5]))
    assert pair[0] == pair[1] != pair[2]
    with pytest.raises(ValueError, match="noise is None, expected one stream a row"):
        policy.log_likelihood(episodes)


@pytest.mark.parametrize("name", ["points", "emoji-flow"])
def test_values_of_every_state(name):
    policy = (points if name == "points" else lambda **options: embed(name, **options))(value_head=True, critic_seed=4)
    episodes = play(policy, 3)
    values = policy.state_values(episodes)
    assert policy.has_critic and values.shape == (3, policy.num_steps + 1)
    assert torch.equal(policy.evaluate_actions(episodes).values, values)
    states = torch.cat([episodes.observations["sample"][:, None], episodes.actions], 1)
    for i, k in ((0, 0), (1, 2), (2, policy.num_steps)):
        t = torch.tensor([k / policy.num_steps])
        alone = policy.critic(states[i, k][None], t, [episodes.info["prompt"][i]])[0]
        torch.testing.assert_close(values[i, k], alone, rtol=1e-4, atol=1e-5)
    x = states[0, :1].expand(2, *states.shape[2:])
    one, two = policy.critic(x, torch.zeros(2), ["dog face", "cat"])  # prompts start alike
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    start, end = policy.critic(x, torch.tensor([0.0, 1.0]), ["cat", "cat"])
    assert (start - end).abs() > 1e-4
    values.square().sum().backward()
    for key, parameter in policy.critic.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), key
    twin, other = (points(value_head=True, critic_seed=s).critic.state_dict() for s in (4, 5))
    if name == "points":
        assert all(torch.equal(v, twin[k]) for k, v in policy.critic.state_dict().items())
        assert not all(torch.equal(v, other[k]) for k, v in policy.critic.state_dict().items())
    assert points().state_values(play(points(), 2)) is None and not points().has_critic


@pytest.mark.slow
def test_half_precision_agrees_to_rounding():
    exact, quick = (embed("emoji-flow", autocast=a, num_steps=2) for a in (False, True))
    episodes = play(exact, 4)
    assert quick.evaluate_actions(episodes).log_probs.dtype == torch.float32
    means = [p.evaluate_actions(episodes).gaussian.mean for p in (exact, quick)]
    shift = (means[0] - means[1]).abs()
    assert 0 < shift.max() < 0.1 and shift.mean() < 5e-3
    assert [p.weight.dtype for p in (quick.denoiser.words,)] == [torch.float32]


@embedded
def test_spec_rebuilds_the_policy(name):
    options = {"guidance": 2.0, "log_prob": "mean", "value_head": True, "batch_size": 7, "stochastic_steps": (0, 2)}
    policy = embed(name, **options, noise_level=0.4)
    before = torch.get_rng_state()
    twin = DenoiserPolicy.from_spec(json.loads(json.dumps(policy.spec())))
    assert torch.equal(torch.get_rng_state(), before), "initial weights came from the global generator"
    twin.load_state_dict(policy.state_dict())
    assert twin.spec() == policy.spec() and twin.sampling == policy.sampling
    one, two = play(policy, 2), play(twin, 2)
    assert torch.equal(one.actions, two.actions) and torch.equal(one.log_probs, two.log_probs)
    assert torch.equal(twin.evaluate_actions(one).log_probs, one.log_probs)
    assert torch.equal(twin.state_values(one), policy.state_values(one))
    with pytest.raises(ValueError, match=r"denoiser 'os:system' is not one of .*: load\(folder, policy=...\)"):
        DenoiserPolicy.from_spec({**policy.spec(), "denoiser": {"class": "os:system", "spec": {}}})
    with pytest.raises(TypeError, match=r"Perceptron has no spec: pass the policy as load\(folder, policy=...\)"):
        points().spec()


def test_nothing_draws_from_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    policy = DenoiserPolicy.from_pretrained("emoji-flow", num_steps=2, value_head=True)
    episodes = play(policy, 2)
    policy.evaluate_actions(episodes)
    policy.log_likelihood(episodes, RowNoise([0, 1]))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]  # noqa: NPY002


def observed(timestep, prompt=b"cat", rows=1):
    told = np.frombuffer(prompt.ljust(12, b"\0"), np.uint8)
    sample = np.zeros((rows, 2), np.float32)
    return {"sample": sample, "timestep": np.full((rows, 1), timestep), "prompt": np.tile(told, (rows, 1))}


def test_environment_and_policy_have_the_same_number_of_steps():
    policy = points(steps=4)
    for timestep in (0, 5):
        with pytest.raises(ValueError, match=rf"timestep is \[{timestep}\], expected 1 to num_steps=4: give"):
            policy.act(observed(timestep), RowNoise([0]))
    with pytest.raises(ValueError, match="environment has num_steps=6, the policy num_steps=4: give both the same"):
        policy.generate(observed(6), RowNoise([0]), max_steps=6)
    # Rows may stand at different steps.
    mixed = {k: np.concatenate([observed(4)[k], observed(1)[k]]) for k in observed(1)}
    both = policy.act(mixed, RowNoise([7, 8]))
    for i, timestep in enumerate((4, 1)):
        one = policy.act(observed(timestep), RowNoise([7 + i]))
        torch.testing.assert_close(one.actions[0], both.actions[i])
        torch.testing.assert_close(one.log_probs[0], both.log_probs[i])


def test_prompts_are_any_text():
    policy, prompts = points(), ["é", "猫", "", "x" * 11]
    rows = [observed(4, p.encode()) for p in prompts]
    together = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    found = policy._condition(together["prompt"])["told"]
    assert torch.equal(found, policy.denoiser.encode(prompts)["told"])
    policy._encoded |= {str(i): policy._encoded["é"] for i in range(4096)}  # full: it is emptied, and filled anew
    assert torch.equal(policy._condition(together["prompt"])["told"], found) and len(policy._encoded) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "num_steps is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"guidance": 0.0}, "guidance is 0.0, expected a number above 0"),
        ({"guidance": math.nan}, "guidance is nan, expected a number above 0"),
        ({"log_prob": "max"}, "log_prob is 'max', expected 'sum' or 'mean'"),
        ({"sampler": "ddim"}, "sampler is 'ddim', but the model is a flow model: expected flow_sde, dance_sde, cps"),
        ({"kind": "diffusion", "sampler": "cps"}, "is a diffusion model: expected ddim or ode"),
        ({"stochastic_steps": [4]}, r"stochastic_steps has \[4\], expected numbers from 0 to 3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        points(**options)


def test_what_is_no_observation_of_denoising_is_refused():
    policy = points()
    episodes = dataclasses.replace(play(policy, 2), observations=torch.zeros(2, 2))
    with pytest.raises(
        TypeError, match="observations are one tensor, but a denoiser reads sample, timestep and prompt"
    ):
        policy.evaluate_actions(episodes)
    with pytest.raises(TypeError, match="Perceptron has no adapters"), policy.adapters_off():
        pass

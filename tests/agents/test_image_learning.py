"""GRPO on the embedded image models: it learns, resumes bit for bit, and reads as many decisions as it is told."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy

from .tiny_denoisers import IDS, PROMPTS, network

embedded = pytest.mark.parametrize("name", IDS)


def redness(completions, **_):
    """How much more red than grey an image is: a dense reward in [-2/3, 2/3]."""
    return [float(image[..., 0].mean() - image.mean()) / 255 for image in completions]


def make(name, episodes=8, steps=3, seed=0, folder=None, policy=None, **options):
    env = gym.make_vec(IDS[name], num_envs=episodes, num_steps=steps, reward=redness, prompts=PROMPTS)
    model = DenoiserPolicy(copy.deepcopy(network(name)), num_steps=steps, **policy or {})
    settings = {"group_size": 4, "learning_rate": 3e-4, "kl_coef": 0.0, "reference": "none", **options}
    return GRPO(env, model, GRPOConfig(episodes_per_iteration=episodes, **settings), seed=seed, folder=folder)


def rows_of_updates(agent):
    """Counts, one an optimiser step, of the states that the network is given with a gradient."""
    counts, network, step = [], agent.policy.denoiser, agent._step

    def forward(x, t, condition):
        if torch.is_grad_enabled():
            counts[-1] += len(x)
        return type(network).forward(network, x, t, condition)

    def stepped(batch, rows):
        counts.append(0)
        return step(batch, rows)

    network.forward, agent._step = forward, stepped
    return counts


@pytest.mark.slow
@embedded
def test_a_dense_reward_rises(name):
    agent = make(name, 32, 4, group_size=8, decisions_per_update=2, step_weights="noise")
    before = agent.evaluate(episodes=32)
    after = agent.learn(32 * 6).evaluate(episodes=32)
    assert after.mean > before.mean + 0.08 and after.mean > before.mean + 5 * before.standard_error


@pytest.mark.slow
@embedded
def test_resume_is_bit_for_bit(name, tmp_path):
    options = {"kl_coef": 1e-4, "kl_estimator": "exact", "reference": "initial", "decisions_per_update": 2}
    straight = make(name, **options, folder=tmp_path / "a").learn(16)
    parted = make(name, **options, folder=tmp_path / "b").learn(8)
    parted.save(tmp_path / "saved")
    again = GRPO.load(tmp_path / "saved", env=make(name).env)
    assert again.policy.spec() == straight.policy.spec()
    again.learn(8)
    for (key, one), two in zip(straight.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert straight.rng.bit_generator.state == again.rng.bit_generator.state
    moments = [[s["exp_avg_sq"] for s in a.optimizer.state_dict()["state"].values()] for a in (straight, again)]
    assert all(torch.equal(one, two) for one, two in zip(*moments, strict=True))
    one, two = (agent.evaluate(episodes=8) for agent in (straight, again))
    assert one.mean == two.mean
    start = network(name).state_dict()
    assert not all(torch.equal(start[k], v) for k, v in straight.policy.denoiser.state_dict().items())


@pytest.mark.parametrize(("count", "steps"), [(0, 3), (1, 3), (2, 3), (5, 3)])
def test_updates_read_as_many_decisions_as_they_are_told(count, steps):
    """Of every episode, drawn anew in each iteration; the network sees no others."""
    agent = make("emoji-flow", 16, steps, decisions_per_update=count)
    counts, masks = rows_of_updates(agent), []
    prepare = agent.prepare

    def spy(episodes):
        prepared = prepare(episodes)
        masks.append(prepared[0].episodes.mask)
        assert episodes.mask.all() and prepared[0].advantages.shape == (16, steps)
        return prepared

    agent.prepare = spy
    for _ in range(2):
        agent.iterate()
    expected = min(count, steps) or steps
    assert all((mask.sum(1) == expected).all() for mask in masks)
    assert counts == [16 * expected] * 2
    if expected < steps:
        assert not torch.equal(*masks) and masks[0].any(0).all()


def test_only_steps_with_noise_are_read():
    agent = make("emoji-flow", 16, policy={"stochastic_steps": (1,)}, decisions_per_update=2)
    counts = rows_of_updates(agent)
    _, metrics = agent.iterate()
    assert counts == [16] and all(np.isfinite(v) for v in metrics.values())
    assert agent.decisions(agent.collect()).tolist() == [[False, True, False]] * 16


@pytest.mark.parametrize(
    ("name", "options", "policy"),
    [
        pytest.param("emoji-flow", {"ratio": "guard", "step_weights": "inverse_step"}, {}, marks=pytest.mark.slow),
        ("emoji-flow", {"ratio": "guard", "step_weights": "noise", "clip_low": 1e-4}, {"log_prob": "mean"}),
        ("emoji-flow", {"kl_coef": 1e-3, "kl_estimator": "exact", "reference": "initial"}, {"sampler": "dance_sde"}),
        pytest.param(
            "emoji-flow", {"advantage": "batch_zscore", "advantage_clip": 5.0}, {"sampler": "cps", "guidance": 2.0},
            marks=pytest.mark.slow,
        ),
        ("emoji-diffusion", {"step_weights": "noise", "clip_form": "clamp"}, {"log_prob": "mean"}),
        pytest.param("emoji-diffusion", {"old_log_probs": "recomputed"}, {"autocast": True}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_options_of_denoising_train(name, options, policy):
    agent = make(name, steps=2, policy=policy, decisions_per_update=1, epochs=2, minibatch_size=4, **options)
    before = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    for _ in range(2):
        _, metrics = agent.iterate()
        assert all(np.isfinite(v) for v in metrics.values()), metrics
        agent.iteration += 1
    assert metrics["train/grad_norm"] > 0 and agent.policy.version == 8
    assert all(v.isfinite().all() for v in agent.policy.state_dict().values())
    changed = [k for k, v in agent.policy.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == len(before)


@embedded
def test_the_first_update_is_on_policy_exactly(name):
    agent, ratios = make(name, micro_batch_size=3, decisions_per_update=2), []
    loss = agent.loss

    def spy(batch, now, weights, share):
        ratios.append((now.log_probs - batch.old_log_probs)[batch.episodes.mask])
        return loss(batch, now, weights, share)

    agent.loss = spy
    agent.iterate()
    assert torch.cat(ratios).shape == (16,) and (torch.cat(ratios) == 0).all()

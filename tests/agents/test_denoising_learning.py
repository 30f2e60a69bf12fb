"""The agents of diffusion papers learn, and these tests would notice if they did not."""

import pytest

from aligngym.agents import b2_diffurl as b2_module
from aligngym.agents import ddpo as ddpo_module
from aligngym.agents import grpo as grpo_module
from aligngym.agents import ppo as ppo_module

from .toy_denoiser import in_first_mode, toy_agent

OPTIONS = {
    "ddpo": {}, "dpok": {}, "flow-grpo": {}, "grpo-guard": {}, "tempflow-grpo": {}, "b2-diffurl": {"stages": 10}
}  # fmt: skip


def gain(name, seed=0, iterations=8, **options):
    """Mean reward after training less that before, on the same states and noise."""
    agent = toy_agent(name, rows=64, seed=seed, **{"kl_coef": 0.0, **OPTIONS[name], **options})
    before = agent.evaluate(episodes=256).mean
    return agent.learn(64 * iterations).evaluate(episodes=256).mean - before


@pytest.mark.parametrize("name", OPTIONS)
def test_the_reward_rises_on_every_seed(name):
    """By more than three standard errors (0.09) of either mean."""
    assert min(gain(name, seed) for seed in range(2)) > 0.4


@pytest.mark.parametrize("name", OPTIONS)
def test_with_the_sign_of_the_advantage_flipped_it_falls(name, monkeypatch):
    group, prompt, gae = grpo_module.group_advantages, ddpo_module.prompt_scores, ppo_module.gae
    monkeypatch.setattr(grpo_module, "group_advantages", lambda *args: -group(*args))
    monkeypatch.setattr(ppo_module, "gae", lambda *args: (-gae(*args)[0], gae(*args)[1]))
    for module in (ddpo_module, b2_module):
        monkeypatch.setattr(module, "prompt_scores", lambda *args, **kwargs: -prompt(*args, **kwargs))
    assert gain(name) < -0.4


@pytest.mark.parametrize("name", ["flow-grpo", "grpo-guard"])
def test_several_updates_on_the_same_episodes_learn_more(name):
    assert gain(name, epochs=4, iterations=4) > 1.3 * gain(name, iterations=4) > 0.1


def test_ddpo_fills_the_mode_that_pays():
    agent = toy_agent("ddpo", rows=64, reward=in_first_mode)
    before = agent.evaluate(episodes=256).mean
    assert 0.15 < before < 0.35 and agent.learn(64 * 15).evaluate(episodes=256).mean > 0.8

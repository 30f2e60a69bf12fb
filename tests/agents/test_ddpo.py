"""Statistics of prompts: by hand, against a plain loop, and as the state of an agent."""

import collections
import json

import numpy as np
import pytest
import torch

from aligngym.agents.advantages import prompt_scores

from .toy_denoiser import toy_agent, toy_policy


def test_scores_by_hand():
    returns, prompts = torch.tensor([3.0, 5.0, 1.0]), ["a", "a", "b"]
    seen = {"a": [1.0, 3.0, 5.0, 7.0], "b": [1.0]}  # "a": mean 4, variance 5; the batch: mean 3, variance 8/3
    scores = prompt_scores(returns, prompts, seen, min_count=2, eps=0.0)
    expected = torch.tensor([-1 / 5**0.5, 1 / 5**0.5, -2 / (8 / 3) ** 0.5])
    torch.testing.assert_close(scores, expected)
    sample = prompt_scores(returns, prompts, seen, min_count=2, ddof=1, eps=0.0)
    torch.testing.assert_close(sample, expected * torch.tensor([(3 / 4) ** 0.5] * 2 + [(2 / 3) ** 0.5]))
    assert prompt_scores(returns, prompts, seen, min_count=5, eps=0.0)[0] == 0  # the batch's mean is its return


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1 / 3])
def test_equal_returns_say_exactly_nothing(value):
    returns = torch.full((6,), value)
    seen = {"a": [value] * 16, "b": [value]}
    assert (prompt_scores(returns, ["a", "b"] * 3, seen, min_count=4, eps=0.0) == 0).all()
    noisy = {"a": [value, value * (1 + 1e-9)] * 8}
    assert (prompt_scores(returns, ["a"] * 6, noisy, min_count=4, eps=0.0) == 0).all()


def test_a_single_return_has_no_deviation():
    assert prompt_scores(torch.tensor([2.0]), ["a"], {"a": [2.0]}, min_count=0, ddof=1).tolist() == [0]
    assert prompt_scores(torch.tensor([2.0]), ["a"], {"a": [2.0]}).tolist() == [0]


def test_scores_do_not_depend_on_the_reward_s_scale_and_offset():
    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(8, generator=generator, dtype=torch.float64)
    seen = {"a": [0.5, -1.0, *returns[:4].tolist()], "b": returns[4:].tolist()}
    prompts = ["a"] * 4 + ["b"] * 4
    moved = {k: [10 * v - 3 for v in values] for k, values in seen.items()}
    torch.testing.assert_close(
        prompt_scores(10 * returns - 3, prompts, moved, 5, eps=0.0), prompt_scores(returns, prompts, seen, 5, eps=0.0)
    )


def test_the_agent_s_advantages_are_those_of_a_plain_loop():
    """Buffers of 6 returns, used from the fourth on: numpy and deques, over five iterations."""
    agent = toy_agent("ddpo", rows=8, prompt_buffer=6, prompt_min_count=4, advantage_clip=1.0)
    buffers: dict = {}
    for _ in range(5):
        episodes = agent.collect()
        advantages, none = agent.targets(episodes, None)
        returns, prompts = episodes.returns.double().numpy(), np.array(episodes.info["prompt"])
        expected = np.zeros(len(returns))
        for prompt in set(prompts.tolist()):
            rows = prompts == prompt
            buffer = buffers.setdefault(prompt, collections.deque(maxlen=6))
            buffer.extend(returns[rows])
            known = np.array(buffer) if len(buffer) >= 4 else returns
            expected[rows] = (returns[rows] - known.mean()) / (known.std() + 1e-6)
        assert none is None and np.abs(expected).max() > 1
        np.testing.assert_allclose(advantages.numpy(), np.clip(expected, -1, 1)[:, None].repeat(10, 1), atol=1e-5)
        assert json.loads(json.dumps(agent.seen)) == {k: list(v) for k, v in buffers.items()}


def test_what_a_prompt_paid_before_counts():
    """Equal returns now, but better or worse than before: without memory there would be nothing to learn."""
    episodes = toy_agent("ddpo", rows=8).collect()
    episodes.rewards[:] = 0
    episodes.rewards[:, -1] = 1.0
    for past, sign in ((0.0, 1.0), (2.0, -1.0)):
        agent = toy_agent("ddpo", rows=8, prompt_buffer=64)
        agent.seen = {prompt: [past] * 32 for prompt in ("red", "blue")}
        assert (agent.targets(episodes, None)[0] * sign > 0).all()


def test_an_episode_whose_reward_failed_is_remembered_nowhere():
    agent = toy_agent("ddpo", reward=lambda completions, **_: [float("nan") if x[0] > 0 else 1.0 for x in completions])
    episodes, _ = agent.iterate()
    kept = sum(len(values) for values in agent.seen.values())
    assert kept == int(episodes.valid.sum()) < len(episodes)
    assert all(np.isfinite(values).all() for values in agent.seen.values())


def test_a_sampler_without_noise_is_refused_with_the_reason():
    for level, sampler in ((0.0, "ddim"), (None, "ode")):
        with pytest.raises(ValueError, match=r"noise_level=.*log-probability"):
            toy_agent("ddpo", policy={"noise_level": level, "sampler": sampler}).iterate()
    assert not (toy_policy(noise_level=0.0).table.std > 0).any()

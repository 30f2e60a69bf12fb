"""B2-DiffuRL: its schedule, its branches, what is kept of them and what is trained."""

import json

import pytest
import torch

from aligngym.agents.b2_diffurl import extremes, interval_length

from .toy_denoiser import in_first_mode, toy_agent, toy_env


def test_the_schedule_of_the_paper():
    lengths = [interval_length(i, 20, 0.7, 100) for i in range(130)]
    assert lengths[0] == 14 and lengths[99] == 20 and set(lengths[99:]) == {20}
    assert lengths[14] == 14 and lengths[15] == 15  # 7 * 15 / 100 is the first above 1
    assert sorted(lengths) == lengths and set(lengths) == set(range(14, 21))


@pytest.mark.parametrize(("steps", "first", "stages"), [(1, 0.7, 3), (10, 0.7, 4), (50, 0.7, 100), (20, 1.0, 7)])
def test_the_schedule_in_proportion(steps, first, stages):
    lengths = [interval_length(i, steps, first, stages) for i in range(stages + 1)]
    assert lengths[0] == max(1, round(first * steps)) and lengths[-1] == steps
    assert interval_length(10**6, steps, first, stages) == steps


def test_extremes_by_hand():
    scores = torch.tensor([0.6, 0.9, -0.2, -0.4, 0.4, -0.7, 0.5, 0.5, -0.5, -0.6, 0.1])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5])
    #  group 0: the best alone; 1: the worst alone; 2: of equals the first, at the threshold; 3: not below; 4: below
    assert extremes(scores, group, 0.5).nonzero()[:, 0].tolist() == [1, 5, 6, 9]
    assert extremes(scores, group, 0.0).nonzero()[:, 0].tolist() == [1, 3, 4, 5, 6, 8, 9, 10]
    assert not extremes(torch.zeros(4), torch.tensor([0, 0, 1, 1]), 0.5).any()
    scores[7] = 0.45  # in another order another of equals is the first
    shuffled = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extremes(scores[shuffled], group[shuffled], 0.5), extremes(scores, group, 0.5)[shuffled])


@pytest.mark.parametrize("rows", [20, 4])
def test_branches_share_their_prefix_bit_for_bit(rows):
    """Also where the environment plays an iteration in rounds, and as the interval grows."""
    agent = toy_agent("b2-diffurl", rows=20, stages=6)
    agent.env = toy_env(rows=rows)
    for iteration, prefix in ((0, 3), (2, 2), (3, 1), (5, 0)):
        agent.iteration = iteration
        assert agent.prefix == prefix
        groups = agent.collect().actions.view(5, 4, 10, 2)
        assert torch.equal(groups[:, :, :prefix], groups[:, :1, :prefix].expand(5, 4, prefix, 2))
        assert len({tuple(x) for x in groups[:, :, prefix].flatten(0, 1).tolist()}) == 20
        if prefix:
            assert len({tuple(x) for x in groups[:, 0, 0].tolist()}) == 5


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_outside_the_interval_is_trained(count):
    agent, found = toy_agent("b2-diffurl", rows=32, decisions_per_update=count), []
    loss = agent.loss

    def spy(batch, now, weights, share):
        result = loss(batch, now, weights, share)
        found.append((batch, torch.autograd.grad(result[0], now.log_probs, retain_graph=True)[0]))
        return result

    agent.loss = spy
    agent.iterate()
    for batch, gradient in found:
        assert (gradient[:, :3] == 0).all() and (gradient[:, 3:] != 0).any(1).all()
        assert not batch.episodes.mask[:, :3].any()
        assert (batch.episodes.mask.sum(1) == (count or 7)).all()


def keep(agent, returns, prompts):
    """Which of episodes with these returns and prompts the agent keeps, and their advantages."""
    episodes = agent.collect()
    episodes.rewards[:] = 0
    episodes.rewards[:, -1] = torch.tensor(returns)
    episodes.info["prompt"] = prompts
    episodes.info["row"] = list(range(len(returns)))
    kept, metrics = agent.keep(episodes)
    assert metrics["train/kept_fraction"] == len(kept) / len(returns)
    return kept.info["row"], agent.targets(kept, None)[0][:, -1] if len(kept) else None


def test_scores_reach_over_the_prompt_s_history_not_over_the_branches():
    """Two groups of one prompt: every branch of the bad group is below the prompt's mean, its best one included."""
    agent = toy_agent("b2-diffurl", rows=8, threshold=0.5)
    rows, advantages = keep(agent, [0.0, 0.1, 0.2, 0.1, 1.0, 0.8, 0.9, 0.9], ["a"] * 8)
    assert rows == [0, 4]  # the worst of the bad group and the best of the good one
    returns = torch.tensor([0.0, 0.1, 0.2, 0.1, 1.0, 0.8, 0.9, 0.9])
    torch.testing.assert_close(advantages, ((returns - returns.mean()) / returns.std())[[0, 4]])
    rows, advantages = keep(agent, [0.5] * 4 + [2.0] * 4, ["a"] * 4 + ["b"] * 4)
    assert rows == []  # "a" pays its mean; all that is known of "b" is equal
    rows, advantages = keep(agent, [0.9] * 4 + [2.5] * 4, ["a"] * 4 + ["b"] * 4)
    assert rows == [0, 4] and (advantages > 0).all()  # better than before, although branches are equal


def test_history_is_as_long_as_it_says():
    agent = toy_agent("b2-diffurl", rows=8, history=2)
    for i in range(5):
        keep(agent, [float(i)] * 8, ["a"] * 8)
    assert agent.rounds == [{"a": [float(i)] * 8} for i in (2, 3, 4)] == json.loads(json.dumps(agent.rounds))
    assert toy_agent("b2-diffurl").config.history == 8


def test_one_branch_is_kept_only_past_the_threshold():
    agent = toy_agent("b2-diffurl", rows=8, group_size=1, threshold=1.0)
    rows, advantages = keep(agent, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0], ["a"] * 8)
    assert rows == [6, 7] and advantages[0] > 1 and advantages[1] < -1
    flat = [0.0, 1.0] * 4  # all within one deviation
    assert keep(toy_agent("b2-diffurl", rows=8, group_size=1, threshold=1.0), flat, ["a"] * 8)[0] == []


def test_an_empty_batch_updates_nothing_and_says_so():
    agent = toy_agent("b2-diffurl", reward=lambda completions, **_: [0.1] * len(completions))
    version = agent.policy.version
    metrics = agent.iterate()[1]
    assert metrics == {"train/kept_fraction": 0.0, "train/interval": 7.0} and agent.policy.version == version
    assert not agent.optimizer.state
    failing = toy_agent("b2-diffurl", reward=lambda completions, **_: [float("nan")] * len(completions))
    assert failing.iterate()[1]["train/kept_fraction"] == 0 and failing.rounds == [{}]


def test_advantages_are_clipped():
    agent = toy_agent("b2-diffurl", rows=8, group_size=1, advantage_clip=1.2)
    _, advantages = keep(agent, [0.0] * 7 + [1.0], ["a"] * 8)
    assert advantages.tolist() == [pytest.approx(1.2)]


def test_a_rare_mode_is_found():
    """A mode with 3 % of the mass pays 1, all else 0."""
    gains = []
    for seed in range(2):
        options = {"weights": (0.03, 0.4, 0.3, 0.27)}
        agent = toy_agent("b2-diffurl", rows=64, reward=in_first_mode, seed=seed, stages=10, policy=options)
        before = agent.evaluate(episodes=256).mean
        gains.append(agent.learn(64 * 15).evaluate(episodes=256).mean - before)
    assert min(gains) > 0.3, gains

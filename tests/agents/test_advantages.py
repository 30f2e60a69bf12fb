"""Advantages against closed forms, limits and invariances."""

import math

import pytest
import torch

from aligngym.agents.advantages import gae, group_advantages, reward_to_go, whiten

KINDS = ("zscore", "centered", "leave_one_out")


def episodes(seed=0, batch=5, steps=7):
    """Random rewards and values, with a mask of contiguous episodes of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    mask = torch.arange(steps) < lengths[:, None]
    rewards = torch.randn(batch, steps, generator=generator, dtype=torch.float64) * mask
    values = torch.randn(batch, steps + 1, generator=generator, dtype=torch.float64)
    return rewards, values, mask


def gae_of_one(rewards, values, last_value, gamma, lam):
    """The definition as a double sum over one unpadded episode."""
    following = [*values[1:], last_value]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_gae_is_its_definition_with_and_without_bootstrap():
    rewards, values, mask = episodes()
    bootstrap = torch.tensor([True, False, True, False, True])
    advantages, returns = gae(rewards, values, mask, bootstrap, 0.9, 0.8)
    for i, n in enumerate(mask.sum(1).tolist()):
        last = values[i, n].item() if bootstrap[i] else 0.0
        expected = gae_of_one(rewards[i, :n].tolist(), values[i, :n].tolist(), last, 0.9, 0.8)
        assert advantages[i, :n].tolist() == pytest.approx(expected)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
    assert torch.allclose(returns[mask], (advantages + values[:, :-1])[mask])


def test_gae_with_lambda_one_gives_the_sum_of_future_rewards():
    rewards, values, mask = episodes(1)
    advantages, returns = gae(rewards, values, mask, torch.zeros(5, dtype=torch.bool), 1.0, 1.0)
    future = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose((advantages + values[:, :-1])[mask], future[mask])
    assert torch.allclose(returns, reward_to_go(rewards, mask)) and torch.allclose(returns[mask], future[mask])


def test_gae_does_not_depend_on_padding_or_on_values_there():
    rewards, values, mask = episodes(2)
    none = torch.zeros(5, dtype=torch.bool)
    expected = gae(rewards, values, mask, none, 0.99, 0.95)[0]
    padded = gae(
        torch.cat([rewards, torch.zeros(5, 3)], 1),
        torch.cat([values, torch.full((5, 3), 9.0)], 1),
        torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], 1),
        none,
        0.99,
        0.95,
    )[0]
    assert torch.equal(padded[:, :7], expected) and (padded[:, 7:] == 0).all()


def test_gae_skips_spans_written_by_the_environment_and_pays_their_rewards_to_the_decision_before():
    own = torch.tensor([[1, 1, 0, 0, 1, 0]], dtype=torch.bool)
    rewards = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    values = torch.tensor([[1.0, 2.0, 99.0, 99.0, 3.0, 4.0, 99.0]])
    for bootstrap in (False, True):
        short = gae(
            torch.tensor([[0.1, 0.9, 1.1]]),
            torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
            torch.ones(1, 3, dtype=torch.bool),
            torch.tensor([bootstrap]),
            0.9,
            0.7,
        )
        long = gae(rewards, values, own, torch.tensor([bootstrap]), 0.9, 0.7)
        for a, b in zip(long, short, strict=True):
            assert torch.allclose(a[own], b[0]) and (a[~own] == 0).all()


def test_gae_discounts_rewards_to_go_and_handles_rows_without_decisions():
    mask = torch.tensor([[True, True, True], [False, False, False]])
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(reward_to_go(rewards, mask, 0.5), torch.tensor([[1.75, 1.5, 1.0], [0.0, 0.0, 0.0]]))
    empty = gae(torch.zeros(2, 0), torch.zeros(2, 1), torch.zeros(2, 0, dtype=torch.bool), mask[:, 0], 1.0, 1.0)
    assert empty[0].shape == empty[1].shape == (2, 0)


def test_gae_refuses_values_without_the_final_state():
    rewards, values, mask = episodes()
    with pytest.raises(ValueError, match=r"expected \[B, T \+ 1\]"):
        gae(rewards, values[:, :-1], mask, torch.zeros(5, dtype=torch.bool), 1.0, 1.0)


@pytest.mark.parametrize(("right", "size"), [(k, g) for g in (2, 5, 8) for k in range(1, g)])
def test_zscore_of_binary_rewards_has_the_closed_form(right, size):
    returns = torch.tensor([1.0] * right + [0.0] * (size - right), dtype=torch.float64)
    p, bessel = right / size, math.sqrt((size - 1) / size)
    group, valid = torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool)
    advantages = group_advantages(returns, group, valid, "zscore", eps=0.0)
    assert advantages[0].item() == pytest.approx(bessel * math.sqrt((1 - p) / p))
    assert advantages[-1].item() == pytest.approx(-bessel * math.sqrt(p / (1 - p)))


@pytest.mark.parametrize("kind", KINDS)
def test_group_advantages_sum_to_zero_in_every_group_whatever_the_order_of_rows(kind):
    returns = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, valid = torch.arange(6).repeat_interleave(4) * 7 - 3, torch.ones(24, dtype=torch.bool)
    advantages = group_advantages(returns, group, valid, kind)
    assert advantages.view(6, 4).sum(1).abs().max() < 1e-12 and advantages.abs().min() > 0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = group_advantages(returns[order], group[order], valid, kind)
    assert torch.allclose(shuffled, advantages[order], atol=1e-12)


def test_zscore_is_invariant_to_positive_affine_maps_and_odd_under_negative_ones():
    returns = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, valid = torch.arange(3).repeat(4), torch.ones(12, dtype=torch.bool)
    expected = group_advantages(returns, group, valid, "zscore", eps=0.0)
    assert torch.allclose(group_advantages(3 * returns - 5, group, valid, "zscore", eps=0.0), expected)
    assert torch.allclose(group_advantages(-2 * returns + 1, group, valid, "zscore", eps=0.0), -expected)


def test_statistics_are_those_of_the_group_not_of_the_batch():
    returns = torch.tensor([0.0, 1.0, 100.0, 300.0])
    advantages = group_advantages(returns, torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool), eps=0.0)
    assert advantages.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5] * 2)


def test_leave_one_out_known_answers():
    two = torch.tensor([3.0, 1.0])
    valid = torch.ones(2, dtype=torch.bool)
    assert group_advantages(two, torch.zeros(2).long(), valid, "leave_one_out").tolist() == [2.0, -2.0]
    returns = torch.randn(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    group, valid = torch.zeros(10, dtype=torch.int64), torch.ones(10, dtype=torch.bool)
    leave_one_out = group_advantages(returns, group, valid, "leave_one_out")
    others = torch.stack([returns[torch.arange(10) != i].mean() for i in range(10)])
    assert torch.allclose(leave_one_out, returns - others)
    assert torch.allclose(group_advantages(returns, group, valid, "centered"), 9 / 10 * leave_one_out)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_without_information_give_exactly_zero(kind):
    returns = torch.tensor([0.7, 0.7, 0.7, 5.0, 0.3, 0.3 + 1e-8, 1000.0, 1000.0005, 1.0, 2.0])
    group = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4, 4])
    advantages = group_advantages(returns, group, torch.ones(10, dtype=torch.bool), kind)
    assert (advantages[:8] == 0).all() and (advantages[8:] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_rows_get_zero_and_leave_the_statistics_alone(kind):
    returns = torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.nan, 4.0])
    valid, group = ~returns.isnan(), torch.tensor([0, 0, 0, 0, 1, 1])
    advantages = group_advantages(returns, group, valid, kind)
    kept = group_advantages(returns[[0, 2, 3]], group[[0, 2, 3]], valid[[0, 2, 3]], kind)
    assert torch.allclose(advantages[[0, 2, 3]], kept)
    assert (advantages[[1, 4, 5]] == 0).all()
    assert (group_advantages(returns, group, torch.zeros(6, dtype=torch.bool), kind) == 0).all()


def test_kind_none_is_the_return_and_unknown_kinds_are_refused():
    returns, group = torch.tensor([1.0, torch.nan, 1.0]), torch.zeros(3, dtype=torch.int64)
    assert group_advantages(returns, group, ~returns.isnan(), "none").tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="kind is 'best', expected one of zscore"):
        group_advantages(returns, group, ~returns.isnan(), "best")


def test_float_noise_is_not_amplified():
    returns = torch.tensor([0.1 + 0.2, 0.3, 0.3])
    advantages = group_advantages(returns, torch.zeros(3).long(), torch.ones(3, dtype=torch.bool), eps=0.0)
    assert (advantages == 0).all()


def test_whiten_has_mean_zero_and_deviation_one_over_the_mask_only():
    advantages, _, mask = episodes(4, batch=8)
    white = whiten(advantages * 5 + 2, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].std().item() == pytest.approx(1)
    assert (white[~mask] == 0).all()
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert torch.allclose(whiten((advantages * 5 + 2)[order], mask[order]), white[order])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_whiten_of_nothing_one_or_equal_values_is_zero(count):
    mask = torch.arange(4)[None] < count
    assert whiten(torch.full((1, 4), 2.5), mask).tolist() == [[0.0] * 4]

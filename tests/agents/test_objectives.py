"""Ratios, clipped losses and aggregation: known answers of PPO, GRPO, RLOO, GSPO and DAPO, and their invariances."""

import pytest
import torch

from aligngym.agents.advantages import group_advantages
from aligngym.agents.divergences import kl_reward_penalty
from aligngym.agents.objectives import (
    aggregation_weights,
    clipped_surrogate,
    clipped_value_loss,
    log_ratios,
)

AGGREGATIONS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant")
LEVELS = ("token", "sequence", "normalized")


def batch(seed=0, rows=6, steps=5, equal=False):
    """Log-probs of rows of different lengths, with row-wise advantages."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((rows,), steps) if equal else torch.randint(1, steps + 1, (rows,), generator=generator)
    mask = torch.arange(steps) < lengths[:, None]
    log_probs = -torch.rand(rows, steps, generator=generator, dtype=torch.float64) * mask
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return log_probs, mask, advantages


def loss_and_gradient(
    log_probs, old, mask, advantages, level="token", kind="sequence_mean_token_mean", clip=(0.2, 0.2), horizon=5
):
    log_probs = log_probs.clone().requires_grad_()
    losses, _ = clipped_surrogate(log_ratios(log_probs, old, mask, level), advantages, *clip)
    loss = (losses * aggregation_weights(mask, kind, horizon)).sum()
    return loss.detach(), torch.autograd.grad(loss, log_probs)[0]


# PPO


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_pass_has_ratio_exactly_one_and_clips_nothing(level):
    log_probs, mask, advantages = batch()
    ratios = log_ratios(log_probs, log_probs, mask, level)
    losses, clipped = clipped_surrogate(ratios, advantages, 0.2, 0.2)
    assert (ratios.exp() == 1).all() and not clipped.any()
    assert torch.equal(losses, -advantages.expand_as(losses))


def test_one_decision_and_one_epoch_is_reinforce():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    actions, rewards = torch.tensor([0, 3, 3, 1, 2]), torch.randn(5, 1, generator=generator, dtype=torch.float64)
    log_probs = logits.log_softmax(0)[actions][:, None]
    mask = torch.ones(5, 1, dtype=torch.bool)
    losses, _ = clipped_surrogate(log_ratios(log_probs, log_probs.detach(), mask, "token"), rewards, 0.2, 0.2)
    ours = torch.autograd.grad((losses * aggregation_weights(mask, "token_mean", 1)).sum(), logits, retain_graph=True)
    reinforce = torch.autograd.grad(-(rewards * log_probs).mean(), logits)
    torch.testing.assert_close(ours[0], reinforce[0])


def test_the_closed_form_optimum_of_a_bandit_is_the_fixed_point_of_ppo_with_the_penalty_in_the_reward():
    generator = torch.Generator().manual_seed(0)
    reference, rewards, beta = torch.randn(8, generator=generator), torch.rand(8, generator=generator), 0.3
    everywhere = torch.ones(8, 1, dtype=torch.bool)

    def expected_gradient(logits):
        logits = logits.double().requires_grad_()
        log_p = logits.log_softmax(0)[:, None]
        log_ref = reference.double().log_softmax(0)[:, None]
        paid = kl_reward_penalty(rewards.double()[:, None], log_p.detach(), log_ref, everywhere, beta)
        losses, _ = clipped_surrogate(log_ratios(log_p, log_p, everywhere, "token"), paid, 0.2, 0.2)
        return torch.autograd.grad((losses * log_p.detach().exp()).sum(), logits)[0]

    assert expected_gradient(reference + rewards / beta).abs().max() < 1e-7
    assert expected_gradient(reference).abs().max() > 1e-3


def test_clipping_by_hand():
    log_ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]]).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0, 2.0]])
    losses, clipped = clipped_surrogate(log_ratio, advantages, 0.2, 0.3)
    assert losses.tolist() == [pytest.approx([-2.6, -1.0, 3.0, 1.6, -2.2])]
    assert clipped.tolist() == [[True, False, False, True, False]]
    gradient = torch.autograd.grad(losses.sum(), log_ratio)[0]
    assert ((gradient == 0) == clipped).all()
    unclipped, none = clipped_surrogate(log_ratio, advantages, torch.inf, torch.inf)
    torch.testing.assert_close(unclipped, -advantages * log_ratio.exp())
    assert not none.any()


def test_the_surrogate_is_the_pessimistic_maximum():
    log_probs, mask, advantages = batch(1)
    ratio = log_ratios(3 * log_probs, log_probs, mask, "token")
    losses, _ = clipped_surrogate(ratio, advantages, 0.2, 0.28)
    expected = torch.maximum(-advantages * ratio.exp(), -advantages * ratio.exp().clamp(0.8, 1.28))
    torch.testing.assert_close(losses, expected)


def test_dual_clip_caps_only_negative_advantages():
    log_ratio = torch.tensor([[10.0, 10.0, 2.0]]).log().requires_grad_()
    losses, clipped = clipped_surrogate(log_ratio, torch.tensor([[-1.0, 1.0, -1.0]]), 0.2, 0.2, dual_clip=3.0)
    assert losses.tolist() == [pytest.approx([3.0, -1.2, 2.0])]
    assert clipped.tolist() == [[True, True, False]]
    assert torch.autograd.grad(losses.sum(), log_ratio)[0].tolist() == [pytest.approx([0.0, 0.0, 2.0])]


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
def test_extreme_ratios_leave_loss_and_gradient_finite(advantage, log_ratio):
    ratio = torch.tensor([[log_ratio]], requires_grad=True)
    losses, _ = clipped_surrogate(ratio, torch.tensor([[advantage]]), 0.2, 0.2)
    assert losses.isfinite().all() and torch.autograd.grad(losses.sum(), ratio)[0].isfinite().all()


def test_value_loss():
    values, old, returns = torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert clipped_value_loss(values, old, returns).tolist() == [pytest.approx([0.5, 0.405])]
    # The first value jumped past its target: moved back to 0.2 it is at the same side and 0.8 away, so 1.0 counts.
    assert clipped_value_loss(values, old, returns, 0.2).tolist() == [pytest.approx([0.5, 0.405])]
    closer = torch.tensor([[0.9, 0.1]], requires_grad=True)
    losses = clipped_value_loss(closer, old, returns, 0.2)
    assert losses.tolist() == [pytest.approx([0.32, 0.405])]
    assert torch.autograd.grad(losses.sum(), closer)[0].tolist() == [pytest.approx([0.0, -0.9])]


# GRPO, DAPO


def test_a_group_of_equal_rewards_gives_no_gradient_at_all():
    log_probs, mask, _ = batch()
    advantages = group_advantages(torch.full((6,), 0.3), torch.zeros(6).long(), torch.ones(6, dtype=torch.bool))
    _, gradient = loss_and_gradient(1.1 * log_probs, log_probs, mask, advantages[:, None])
    assert (gradient == 0).all()


def test_with_equal_lengths_dapo_is_grpo_when_its_bounds_are_equal():
    log_probs, mask, advantages = batch(equal=True)
    grpo = loss_and_gradient(2 * log_probs, log_probs, mask, advantages)
    dapo = loss_and_gradient(2 * log_probs, log_probs, mask, advantages, kind="token_mean", clip=(0.2, 0.2))
    torch.testing.assert_close(dapo, grpo)
    higher = loss_and_gradient(0.5 * log_probs, log_probs, mask, advantages, kind="token_mean", clip=(0.2, 0.28))
    assert not torch.allclose(higher[1], loss_and_gradient(0.5 * log_probs, log_probs, mask, advantages)[1])


def test_with_different_lengths_the_aggregations_differ():
    log_probs, mask, advantages = batch()
    losses = [loss_and_gradient(log_probs, log_probs - 0.1, mask, advantages, kind=k)[0].item() for k in AGGREGATIONS]
    assert len({round(x, 6) for x in losses}) == 4


def test_flipping_the_sign_of_the_advantage_turns_the_step_around():
    log_probs, mask, advantages = batch()
    _, gradient = loss_and_gradient(log_probs, log_probs, mask, advantages)
    _, flipped = loss_and_gradient(log_probs, log_probs, mask, -advantages)
    torch.testing.assert_close(flipped, -gradient)
    expected = (-advantages.sign() * mask).sign()
    assert torch.equal(gradient.sign(), expected) and not torch.equal(flipped.sign(), expected)


# RLOO


def test_leave_one_out_gradient_is_unbiased_by_enumeration():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    rewards = torch.randn(4, generator=generator, dtype=torch.float64)
    log_p = logits.log_softmax(0)
    exact = torch.autograd.grad((log_p.exp() * rewards).sum(), logits, retain_graph=True)[0]
    triples = torch.cartesian_prod(*[torch.arange(4)] * 3)
    estimate = torch.zeros(4, dtype=torch.float64)
    for triple in triples:
        probability = log_p.detach()[triple].sum().exp()
        advantages = group_advantages(rewards[triple], torch.zeros(3).long(), torch.ones(3).bool(), "leave_one_out")
        samples = log_p[triple][:, None]
        ratio = log_ratios(samples, samples.detach(), torch.ones(3, 1, dtype=torch.bool), "sequence")
        loss = clipped_surrogate(ratio, advantages[:, None], 0.2, 0.2)[0].mean()
        estimate -= probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(estimate, exact, atol=1e-6, rtol=1e-6)


def test_sequence_ratio_is_the_ratio_of_whole_episodes():
    log_probs, mask, advantages = batch(2)
    old = (log_probs - 0.02) * mask
    ratio = log_ratios(log_probs, old, mask, "sequence")
    expected = (log_probs.sum(1) - old.sum(1))[:, None] * mask
    torch.testing.assert_close(ratio, expected)
    loss, gradient = loss_and_gradient(log_probs, old, mask, advantages, "sequence", clip=(9, 9))
    weight = (log_probs.sum(1, keepdim=True) - old.sum(1, keepdim=True)).exp()
    torch.testing.assert_close(loss, -(weight * advantages).mean())
    torch.testing.assert_close(gradient, -weight * advantages * mask / 6)


# GSPO


def test_gspo_at_the_old_policy_has_the_gradient_of_grpo():
    log_probs, mask, advantages = batch(3)
    gspo = loss_and_gradient(log_probs, log_probs, mask, advantages, "normalized", clip=(3e-4, 4e-4))[1]
    grpo = loss_and_gradient(log_probs, log_probs, mask, advantages)[1]
    torch.testing.assert_close(gspo, grpo, atol=1e-6, rtol=0)


def test_gspo_token_form_has_the_gradient_of_the_sequence_form():
    log_probs, mask, advantages = batch(4)
    old = (log_probs * 1.3) * mask
    _, gradient = loss_and_gradient(log_probs, old, mask, advantages, "normalized", clip=(9, 9))
    leaf = log_probs.clone().requires_grad_()
    s = (((leaf - old) * mask).sum(1) / mask.sum(1)).exp()
    torch.testing.assert_close(gradient, torch.autograd.grad(-(s * advantages[:, 0]).mean(), leaf)[0])
    assert not torch.allclose(gradient, loss_and_gradient(log_probs, old, mask, advantages, clip=(9, 9))[1])


def test_gspo_of_one_token_is_grpo_and_repeating_log_ratios_changes_nothing():
    one = torch.tensor([[-0.3], [-0.9]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    old = one + 0.07
    assert torch.equal(log_ratios(one, old, mask, "normalized"), log_ratios(one, old, mask, "token"))
    log_probs, _, _ = batch(5, equal=True)
    everywhere = torch.ones(6, 10, dtype=torch.bool)
    s = log_ratios(log_probs, 0.8 * log_probs, everywhere[:, :5], "normalized")
    twice = log_ratios(log_probs.repeat(1, 2), 0.8 * log_probs.repeat(1, 2), everywhere, "normalized")
    torch.testing.assert_close(twice[:, :5], s)


# Invariances of all of them


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_loss_does_not_depend_on_micro_batches_row_order_padding_or_empty_rows(level, kind):
    log_probs, mask, advantages = batch(6)
    old = (log_probs * 1.2) * mask
    loss, gradient = loss_and_gradient(log_probs, old, mask, advantages, level, kind)
    weights = aggregation_weights(mask, kind, 5)
    for pieces in ([1] * 6, [2, 3, 1], [6]):
        total = torch.zeros((), dtype=torch.float64)
        for rows in torch.arange(6).split(pieces):
            ratio = log_ratios(log_probs[rows], old[rows], mask[rows], level)
            total += (clipped_surrogate(ratio, advantages[rows], 0.2, 0.2)[0] * weights[rows]).sum()
        torch.testing.assert_close(total, loss)
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    shuffled = loss_and_gradient(log_probs[order], old[order], mask[order], advantages[order], level, kind)
    torch.testing.assert_close(shuffled, (loss, gradient[order]))
    wide = [torch.nn.functional.pad(x, (0, 4, 0, 2)) for x in (log_probs, old, mask)]
    tall = torch.cat([advantages, torch.full((2, 1), 50.0)])
    padded = loss_and_gradient(*wide, tall, level, kind)
    torch.testing.assert_close(padded, (loss, torch.nn.functional.pad(gradient, (0, 4, 0, 2))))


def test_values_at_masked_positions_are_never_read():
    log_probs, mask, advantages = batch(7)
    loss, gradient = loss_and_gradient(log_probs, 1.1 * log_probs, mask, advantages)
    for garbage in (torch.nan, torch.inf, -torch.inf):
        dirty = log_probs.masked_fill(~mask, garbage)
        torch.testing.assert_close(loss_and_gradient(dirty, 1.1 * log_probs, mask, advantages), (loss, gradient))


def test_aggregation_weights_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    third, quarter, half = 1 / 3, 0.25, 0.5
    expected = {
        "token_mean": [third, third, third],
        "sequence_mean_token_mean": [quarter, quarter, half],
        "sequence_mean_token_sum": [half, half, half],
        "constant": [0.125, 0.125, 0.125],
    }
    for kind, weights in expected.items():
        ours = aggregation_weights(mask, kind, 4)
        assert ours[mask].tolist() == pytest.approx(weights) and (ours[~mask] == 0).all()
        assert (aggregation_weights(torch.zeros_like(mask), kind, 4) == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: log_ratios(x, x, m, "word"), "level is 'word', expected one of token, sequence, normalized"),
        (lambda x, m: aggregation_weights(m, "sum", 4), "kind is 'sum', expected one of token_mean"),
        (lambda x, m: aggregation_weights(m, "constant", 0), "horizon is 0, expected at least 1"),
        (lambda x, m: clipped_surrogate(x, x, -0.1, 0.2), "clip_low and clip_high must be at least 0"),
        (lambda x, m: clipped_surrogate(x, x, 0.1, 0.2, 1.0), "dual_clip is 1.0, expected a number greater than 1"),
        (lambda x, m: clipped_value_loss(x, x, x, 0.0), "clip is 0.0, expected a number greater than 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))

"""World models: closed forms of the losses, the state-space model against a hand-unrolled one, replay and networks."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from aligngym.agents.world_model.networks import ImageDecoder, ImageEncoder, image_sizes, normalized
from aligngym.agents.world_model.objectives import (
    balanced_kl,
    dual_loss,
    gaussian_kl,
    gradient_penalty,
    lambda_returns,
    support_value,
    tanh_log_prob,
    unit_gaussian_loss,
)
from aligngym.agents.world_model.replay import SequenceReplayBuffer
from aligngym.agents.world_model.rssm import RSSM, Normal, State


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Divergences


def test_divergences_of_gaussians():
    zero, one = torch.zeros(30), torch.ones(30)
    assert gaussian_kl(Normal(zero, one), Normal(zero, one)) == 0
    assert gaussian_kl(Normal(one, one), Normal(zero, one)) == pytest.approx(15)  # half a nat a dimension
    mean, std, other, wide = drawn(4, 3), drawn(4, 3).exp(), drawn(4, 3, seed=1), drawn(4, 3, seed=2).exp()
    p, q = torch.distributions.Normal(mean, std), torch.distributions.Normal(other, wide)
    expected = torch.distributions.kl_divergence(p, q).sum(-1)
    torch.testing.assert_close(gaussian_kl(Normal(mean, std), Normal(other, wide)), expected)


@pytest.mark.parametrize("balance", [0.0, 0.3, 5 / 6, 1.0])
def test_balancing_shares_the_gradient_and_keeps_the_value(balance):
    parts = [drawn(2, 3, seed=i).exp().requires_grad_() for i in range(4)]
    posterior, prior = Normal(*parts[:2]), Normal(*parts[2:])
    plain = gaussian_kl(posterior, prior).sum()
    mixed = balanced_kl(posterior, prior, balance).sum()
    torch.testing.assert_close(mixed, plain)
    whole, shared = (torch.autograd.grad(v, parts) for v in (plain, mixed))
    for i, (full, part) in enumerate(zip(whole, shared, strict=True)):
        torch.testing.assert_close(part, full * (balance if i > 1 else 1 - balance))


def test_the_multiplier_rises_while_the_divergence_exceeds_its_target_and_falls_below_it():
    """By about the learning rate an update, whatever the excess."""
    for kl, sign in ((3.5, 1), (300.0, 1), (2.5, -1)):
        log_beta = torch.tensor(math.log(1e-5), requires_grad=True)
        optimizer = torch.optim.Adam([log_beta], lr=1e-4)
        for _ in range(200):
            optimizer.zero_grad()
            dual_loss(log_beta, torch.tensor(kl, requires_grad=True), 3.0).backward()
            optimizer.step()
        assert log_beta.item() - math.log(1e-5) == pytest.approx(sign * 0.02, rel=1e-2)
        # The trap: of a run's 100 000 such updates a short one makes so few that there is no limit at all.
        assert log_beta.exp() < 1.2e-5


def test_the_divergence_gets_no_gradient_from_the_multipliers_loss():
    kl, log_beta = torch.tensor(5.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    dual_loss(log_beta, kl, 3.0).backward()
    assert kl.grad is None and log_beta.grad == -2


# Returns and densities


def test_lambda_returns_between_their_limits():
    rewards, values, gamma = drawn(3, 5), drawn(3, 6, seed=1), 0.9
    one_step = rewards + gamma * values[:, 1:]
    torch.testing.assert_close(lambda_returns(rewards, values, gamma, 0.0), one_step)
    discounts = gamma ** torch.arange(5.0)
    whole = (rewards * discounts).sum(1) + gamma**5 * values[:, -1]
    torch.testing.assert_close(lambda_returns(rewards, values, gamma, 1.0)[:, 0], whole)
    # of the two-step return and the one-step return
    last_two = rewards[:, 3] + gamma * (0.4 * values[:, 4] + 0.6 * one_step[:, 4])
    torch.testing.assert_close(lambda_returns(rewards, values, gamma, 0.6)[:, 3], last_two)
    ones = torch.ones(1, 4)
    torch.testing.assert_close(lambda_returns(ones, torch.full((1, 5), 10.0), 0.9, 0.7), torch.full((1, 4), 10.0))


def test_the_density_of_squashed_actions():
    mean, std, raw = drawn(50, 2), drawn(50, 2, seed=1).exp(), 3 * drawn(50, 2, seed=2)
    parts = (mean.double(), std.double(), raw.double())
    base = torch.distributions.Normal(*parts[:2])
    expected = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform(cache_size=1))
    torch.testing.assert_close(tanh_log_prob(*parts), expected.log_prob(parts[2].tanh()).sum(-1), rtol=1e-4, atol=1e-4)
    assert tanh_log_prob(mean, std, raw + 60).isfinite().all()


def test_unit_gaussian_loss():
    torch.testing.assert_close(unit_gaussian_loss(torch.tensor([1.0, 3.0]), torch.ones(2)), torch.tensor([0.0, 2.0]))


# The support constraint


def test_the_critic_of_the_support_constraint_finds_the_chi_square_divergence():
    """On four codes: at the best critic the value is chi2(tau p_s || p_t), and any other critic is worse."""
    source, target, tau = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.full((4,), 0.25), torch.tensor([0.4, 2.2, 0.4, 1.0])
    assert (source * tau).sum() == pytest.approx(1)

    def value(critic):  # expectations as means over samples in these proportions
        codes = torch.arange(4)
        s, t = codes.repeat_interleave((source * 20).int()), codes.repeat_interleave((target * 20).int())
        return support_value(tau[s], critic[s], critic[t])

    best = 2 * (tau * source / target - 1)
    divergence = (target * (tau * source / target - 1).square()).sum()
    torch.testing.assert_close(value(best), divergence)
    critic = best.clone().requires_grad_()
    value(critic).backward()
    torch.testing.assert_close(critic.grad, torch.zeros(4), atol=1e-6, rtol=0)
    for seed in range(5):
        assert value(best + 0.1 * drawn(4, seed=seed)) < divergence


def test_the_support_constraint_lets_a_target_within_the_support_be():
    """Target codes are half of the source's: with tau 2 on these and 0 elsewhere nothing is left to pay."""
    source, target, tau = torch.arange(4), torch.tensor([0, 1, 0, 1]), torch.tensor([2.0, 2.0, 0.0, 0.0])
    values = [support_value(tau[source], c[source], c[target]) for c in drawn(100, 4)]
    assert max(values) <= 0 and support_value(tau, torch.zeros(4), torch.zeros(4)) == 0
    # Half of the target at a code that the source does not know: chi-square 1 with all weights, here its half.
    assert support_value(tau, torch.zeros(4), torch.tensor([0.0, 0.0, -2.0, -2.0])) == 0.5


def test_the_gradient_penalty_of_a_linear_critic_is_its_squared_slope():
    slope, codes = torch.tensor([3.0, 4.0], requires_grad=True), drawn(7, 2)
    penalty = gradient_penalty(lambda x: x @ slope, codes)
    assert penalty.item() == pytest.approx(25)
    penalty.backward()
    torch.testing.assert_close(slope.grad, 2 * slope.detach())  # it can be descended


# The state-space model


@pytest.fixture
def rssm():
    torch.manual_seed(0)
    return RSSM(actions=2, embedding=5, deterministic=6, stochastic=3, hidden=7)


def unrolled(rssm, h, z, action, noise, embedding=None):
    """A step from the equations."""
    x = functional.elu(torch.cat([z, action], -1) @ rssm.inputs.weight.T + rssm.inputs.bias)
    h = rssm.cell(x, h)
    net, inputs = (rssm.prior, h) if embedding is None else (rssm.posterior, torch.cat([h, embedding], -1))
    mean, std = net[2](functional.elu(net[0](inputs))).chunk(2, -1)
    std = functional.softplus(std) + 0.1
    return h, mean + std * noise, mean, std


def test_observing_is_the_equations_step_by_step(rssm):
    embeddings, actions, noise = drawn(4, 6, 5), drawn(4, 6, 2, seed=1), drawn(4, 6, 3, seed=2)
    first = torch.zeros(4, 6, dtype=torch.bool)
    first[0, 0] = first[1, 3] = True
    states, posterior, prior = rssm.observe(embeddings, actions, first, noise)
    h, z = torch.zeros(4, 6), torch.zeros(4, 3)
    for t in range(6):
        keep = (~first[:, t, None]).float()
        h, z, action = h * keep, z * keep, actions[:, t] * keep
        expected_prior = unrolled(rssm, h, z, action, noise[:, t])[2:]
        h, z, *expected = unrolled(rssm, h, z, action, noise[:, t], embeddings[:, t])
        for found, value in (
            (states.deterministic, h), (states.stochastic, z), (posterior.mean, expected[0]),
            (posterior.std, expected[1]), (prior.mean, expected_prior[0]), (prior.std, expected_prior[1]),
        ):  # fmt: skip
            torch.testing.assert_close(found[:, t], value)


def test_an_episode_does_not_know_the_one_before(rssm):
    embeddings, actions, noise = drawn(1, 6, 5), drawn(1, 6, 2, seed=1), drawn(1, 6, 3, seed=2)
    first = torch.tensor([[False, False, False, True, False, False]])
    whole, *_ = rssm.observe(embeddings, actions, first, noise)
    alone, *_ = rssm.observe(embeddings[:, 3:], actions[:, 3:], first[:, 3:], noise[:, 3:])
    torch.testing.assert_close(whole.features[:, 3:], alone.features)
    rest = State(whole.deterministic[:, 2], whole.stochastic[:, 2])
    go_on, *_ = rssm.observe(embeddings[:, 3:], actions[:, 3:], first[:, 3:] & False, noise[:, 3:], rest)
    assert (go_on.features - alone.features).abs().max() > 0.1


def test_imagining_is_the_equations_step_by_step(rssm):
    start = State(drawn(4, 6), drawn(4, 3, seed=1))
    noise, action_noise, weight = drawn(4, 5, 3, seed=2), drawn(4, 5, 2, seed=3), drawn(9, 2, seed=4)

    def act(features, drawn_noise):
        return (features @ weight + 0.1 * drawn_noise).tanh()

    states, actions = rssm.imagine(start, act, noise, action_noise)
    h, z = start.deterministic, start.stochastic
    assert states.features.shape == (4, 6, 9) and actions.shape == (4, 5, 2)
    torch.testing.assert_close(states.features[:, 0], start.features)
    for t in range(5):
        action = act(torch.cat([h, z], -1), action_noise[:, t])
        torch.testing.assert_close(actions[:, t], action)
        h, z, *_ = unrolled(rssm, h, z, action, noise[:, t])
        torch.testing.assert_close(states.features[:, t + 1], torch.cat([h, z], -1))


def test_an_imagined_state_depends_on_the_actions_before_it_alone(rssm):
    actions = drawn(2, 4, 2).requires_grad_()
    steps = iter(actions.unbind(1))
    states, _ = rssm.imagine(rssm.initial(2), lambda f, n: next(steps), drawn(2, 4, 3), drawn(2, 4, 2))
    (slope,) = torch.autograd.grad(states.features[:, 2].sum(), actions)
    assert slope[:, :2].abs().min() > 0 and (slope[:, 2:] == 0).all()


def test_an_actor_is_not_told_where_its_actions_led(rssm):
    """Its gradient flows through the dynamics alone: what it reads has none."""
    read = []

    def act(features, noise):
        read.append(features)
        return features[:, :2]

    start = State(drawn(2, 6).requires_grad_(), drawn(2, 3, seed=1))
    rssm.imagine(start, act, drawn(2, 3, 3), drawn(2, 3, 2))
    assert len(read) == 3 and not any(features.requires_grad for features in read)


# Networks


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (33, 50), (84, 84), (4, 4)])
def test_pictures_are_encoded_and_decoded_in_any_size(size):
    shape = (*size, 3)
    encoder, decoder = ImageEncoder(shape, 20, 2), ImageDecoder(9, shape, 2)
    pictures = drawn(2, 3, *shape)
    assert encoder(pictures).shape == (2, 3, 20)
    torch.testing.assert_close(encoder(pictures)[1, 2], encoder(pictures[1, 2]), atol=1e-5, rtol=1e-4)
    assert decoder(drawn(2, 3, 9)).shape == pictures.shape


def test_the_encoder_of_64_by_64_is_the_papers():
    assert image_sizes(64, 64) == [(64, 64), (31, 31), (14, 14), (6, 6), (2, 2)]
    encoder = ImageEncoder((64, 64, 3), 1024, 32)
    assert [m.out_channels for m in encoder.layers if hasattr(m, "out_channels")] == [32, 64, 128, 256]
    assert isinstance(encoder.last, torch.nn.Identity)
    with pytest.raises(ValueError, match="3 x 9"):
        image_sizes(3, 9)


def test_pictures_are_scaled_and_vectors_are_not():
    np.testing.assert_allclose(normalized(torch.tensor([0, 255], dtype=torch.uint8)), [-1, 1])
    assert normalized(torch.tensor([200.0])) == 200


# Replay


def filled(capacity=24, rows=2, steps=(9, 30), every=7):
    """Observation and reward are the number of the step, an episode begins every so many."""
    buffer = SequenceReplayBuffer(capacity, rows, (2,), np.float32, 1)
    for row, count in enumerate(steps):
        for i in range(count):
            buffer.add(row, [row, i], [i / 10], float(i), first=i % every == 0)
    return buffer


def test_sequences_are_successive_steps_that_are_still_there():
    buffer, rng = filled(), np.random.default_rng(0)
    assert buffer.sizes.tolist() == [9, 12]
    batch = buffer.sample(4000, 4, rng, torch.device("cpu"))
    rows, numbers = batch.observations[..., 0], batch.observations[..., 1]
    assert (rows == rows[:, :1]).all() and (numbers.diff(dim=1) == 1).all()
    assert (batch.rewards == numbers).all() and (batch.first == (numbers % 7 == 0)).all()
    torch.testing.assert_close(batch.actions[..., 0], numbers / 10)
    # row 0 holds steps 0 to 8, row 1 the newest twelve, 18 to 29: 6 and 9 starts, all equally likely
    starts = list(zip(rows[:, 0].int().tolist(), numbers[:, 0].int().tolist(), strict=True))
    expected = [(0, i) for i in range(6)] + [(1, i) for i in range(18, 27)]
    counts = [starts.count(e) for e in expected]
    assert sum(counts) == 4000 and min(counts) > 200 and max(counts) < 340


def test_a_row_too_short_is_left_out_and_none_is_an_error():
    buffer = filled(steps=(3, 12))
    assert (buffer.sample(50, 4, np.random.default_rng(0), torch.device("cpu")).observations[..., 0] == 1).all()
    with pytest.raises(ValueError, match="holds 12 steps of a row, expected 13"):
        buffer.sample(1, 13, np.random.default_rng(0), torch.device("cpu"))


@pytest.mark.parametrize("steps", [(9, 30), (2, 5)])
def test_the_state_of_a_buffer(steps):
    one, two = filled(steps=steps), SequenceReplayBuffer(24, 2, (2,), np.float32, 1)
    two.set_state(*one.get_state())
    for buffer in (one, two):
        buffer.add(0, [0, 77], [1], 2.0)
    batches = [b.sample(64, 2, np.random.default_rng(1), torch.device("cpu")) for b in (one, two)]
    for name in vars(batches[0]):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name

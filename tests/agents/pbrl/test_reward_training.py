"""Fitting reward models: the robust loss against closed forms, what is learned on Pendulum, and relabelled episodes."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from aligngym.agents.offline.robomimic import read_robomimic
from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.preference_transformer import PreferenceTransformer
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel, RewardOutput
from aligngym.agents.pbrl.reward_training import (
    UNIT_ENTROPY,
    RewardTrainingConfig,
    agreement,
    entropy_floor,
    fit_reward_model,
    learning_rate,
    normalize_returns,
    preference_accuracy,
    preference_loss,
    relabel,
    reward_loss,
    sampled_preference_loss,
)
from aligngym.assets import robot_data_path
from aligngym.trajectories import concatenate

from .pendulum import pendulum, preferences

QUICK = RewardTrainingConfig(
    updates=200, batch_size=64, learning_rate=1e-3, schedule="constant", weight_decay=0.0, stop_accuracy=0.97
)


@pytest.fixture(scope="module")
def data():
    """Pairs to learn from, and pairs of other episodes."""
    return preferences(pendulum(32, 0), 300, 0), preferences(pendulum(16, 1), 500, 1)


def ensemble(seed=0):
    return EnsembleRewardModel(3, 1, hidden=(64, 64, 64), generator=torch.Generator().manual_seed(seed))


def transformer(**options):
    return PreferenceTransformer(3, 1, 20, width=32, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def exact(gap, std, label):
    """Expected cross-entropy of a gap N(gap, std^2), by Gauss-Hermite quadrature."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    gaps = gap + std * nodes
    loss = label * np.logaddexp(0, -gaps) + (1 - label) * np.logaddexp(0, gaps)
    return float((mass * loss).sum() / mass.sum())


def test_cross_entropy_of_soft_labels():
    gap = torch.tensor([0.0, math.log(3), math.log(3), -1000.0])
    loss = preference_loss(gap, torch.tensor([0.3, 1.0, 0.25, 0.0]))
    expected = [math.log(2), math.log(4 / 3), 0.25 * math.log(4 / 3) + 0.75 * math.log(4), 0.0]
    torch.testing.assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize(("gap", "std", "expected"), [(1, 1, 0.40686), (0, 3, 1.39408), (-1, 1, 1.40686)])
def test_expected_cross_entropy_of_a_gaussian_gap(gap, std, expected):
    assert exact(gap, std, 1.0) == pytest.approx(expected, abs=5e-6)
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = torch.tensor([float(gap)]).double(), torch.tensor([float(std**2)]).double(), torch.ones(1).double()
    sampled = sampled_preference_loss(*arguments, torch.cat([noise, -noise]))
    assert float(sampled) == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_number_a_pair_is_as_good_as_one_a_step(reduction):
    """The expectation over rewards r_t = mu_t + sigma_t e_t of every step depends on m and s^2 only."""
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 7, generator=generator), torch.rand(2, 7, generator=generator) * 2
    step_weights = torch.full((2, 7), 1.0 if reduction == "sum" else 1 / 7)
    output = RewardOutput(mean, std, step_weights)
    rewards = mean + std * torch.randn(200_000, 2, 7, generator=generator)
    logits = (rewards * step_weights).sum(2)
    losses = preference_loss(logits[:, 0] - logits[:, 1], torch.full((200_000,), 0.8))
    gap, variance = output.logit[0] - output.logit[1], output.variance.sum()
    expected = exact(float(gap), float(variance.sqrt()), 0.8)
    assert float(losses.mean()) == pytest.approx(expected, abs=4 * float(losses.std()) / 200_000**0.5)


def test_noise_never_helps():
    """Jensen: above the cross-entropy of the mean, but equal to it without noise, where the derivative exists, too."""
    gap = torch.linspace(-4, 4, 9, requires_grad=True)
    labels, noise = torch.linspace(0, 1, 9), torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([noise, -noise])
    mean = preference_loss(gap, labels)
    assert (sampled_preference_loss(gap, torch.full((9,), 0.5), labels, noise) > mean + 1e-3).all()
    none = torch.zeros(9, requires_grad=True)
    sampled = sampled_preference_loss(gap, none, labels, noise)
    torch.testing.assert_close(sampled, mean)
    sampled.sum().backward()
    assert none.grad.isfinite().all()
    torch.testing.assert_close(gap.grad, gap.detach().sigmoid() - labels)


def test_entropy_floor():
    mask = torch.tensor([[True, True, False]])
    std = torch.tensor([[1.0, math.exp(-1), 1e-9]])
    assert math.isclose(UNIT_ENTROPY, 1.418939, abs_tol=1e-6)
    assert float(entropy_floor(std, mask, UNIT_ENTROPY)) == pytest.approx(0.5)  # 0 and 1 nat, padding left out
    assert float(entropy_floor(torch.full((1, 3), 1.001), mask, UNIT_ENTROPY)) == 0


def test_the_robust_loss_is_the_sum_of_its_terms():
    generator = torch.Generator().manual_seed(0)
    log_std = (torch.randn(8, 5, generator=generator) - 1).requires_grad_()
    mask = torch.ones(8, 5, dtype=torch.bool)
    labels = torch.tensor([1.0, 0.0, 0.7, 0.5])
    mean, step_weights = torch.randn(8, 5, generator=generator), torch.ones(8, 5)

    def loss(**options):
        config = RewardTrainingConfig(**{"lambda_1": 0.0, "lambda_2": 0.0, "mc_samples": 4000} | options)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            return reward_loss(RewardOutput(mean, log_std.exp(), step_weights), labels, mask, config)

    plain, metrics = reward_loss(RewardOutput(mean, None, step_weights), labels, mask, RewardTrainingConfig())
    assert loss()[0] == plain and set(metrics) == {"loss", "accuracy"}
    gap = mean[:4].sum(1) - mean[4:].sum(1)
    s = log_std.detach().exp().square().sum(1)
    expected = [
        exact(float(g), float((a + b) ** 0.5), float(z)) for g, a, b, z in zip(gap, s[:4], s[4:], labels, strict=True)
    ]
    sampled, metrics = loss(lambda_1=2.0)
    assert metrics["loss_sampled"] == pytest.approx(np.mean(expected), rel=0.02)
    assert float((sampled - plain).detach()) == pytest.approx(2 * metrics["loss_sampled"], rel=1e-5)
    floored, metrics = loss(lambda_2=3.0)
    assert float((floored - plain).detach()) == pytest.approx(3 * metrics["loss_entropy"], rel=1e-5)
    assert metrics["std"] == pytest.approx(float(log_std.detach().exp().mean()), rel=1e-5)
    # The sampled term pulls standard deviations down, the floor pushes up those below it, and only those.
    assert torch.autograd.grad(sampled, log_std)[0].sum() > 0
    upwards = torch.autograd.grad(floored, log_std)[0]
    assert ((upwards < 0) == (log_std < 0)).all() and (upwards <= 0).all()


def test_agreement_leaves_out_ties():
    gap, labels = torch.tensor([1.0, -1.0, 2.0, -3.0]), torch.tensor([0.9, 0.6, 0.5, 0.0])
    assert agreement(gap, labels) == pytest.approx(2 / 3)
    assert math.isnan(agreement(gap, torch.full((4,), 0.5)))


def test_learning_rate():
    config = RewardTrainingConfig(updates=1000)
    rates = [learning_rate(i, config) for i in range(1000)]
    assert rates[0] == 1e-4 and rates[100] == max(rates) == 1e-3 and rates[-1] == pytest.approx(1e-4, abs=1e-8)
    assert rates[50] == rates[550] == pytest.approx(5.5e-4)
    assert learning_rate(7, RewardTrainingConfig(schedule="constant", learning_rate=0.5)) == 0.5
    assert learning_rate(0, RewardTrainingConfig(updates=1, warmup=0.0)) == 1e-3


def test_the_ensemble_learns_a_linear_reward(data):
    """From comparisons alone; of other episodes, pairs are told right and rewards known up to their scale."""
    model = ensemble()
    before = preference_accuracy(model, data[1])
    history = fit_reward_model(model, data[0], QUICK, rng=np.random.default_rng(0))
    assert preference_accuracy(model, data[1]) > 0.93 > before + 0.2
    assert history[-1]["accuracy"] > history[0]["accuracy"] and history[-1]["loss"] < history[0]["loss"]
    episodes = pendulum(16, 1)
    learned = relabel(model, episodes)
    assert np.corrcoef(learned.rewards.flatten(), episodes.rewards.flatten())[0, 1] > 0.85
    assert np.corrcoef(learned.returns, episodes.returns)[0, 1] > 0.9


def test_flipped_labels_teach_the_opposite(data):
    flipped = dataclasses.replace(data[0], labels=1 - data[0].labels)
    model = ensemble()
    fit_reward_model(model, flipped, QUICK, rng=np.random.default_rng(0))
    assert preference_accuracy(model, data[1]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"attention": True}, {"gaussian": True}, {"gaussian": True, "reduction": "sum"}]
)
def test_the_preference_transformer_learns_a_linear_reward(data, options):
    model = transformer(**options)
    config = RewardTrainingConfig(updates=150, batch_size=64)
    history = fit_reward_model(model, data[0], config, rng=np.random.default_rng(0))
    assert preference_accuracy(model, data[1]) > 0.85
    assert history[-1]["accuracy"] > 0.85
    assert ("std" in history[-1]) == ("gaussian" in options)
    episodes = pendulum(16, 1)
    assert np.corrcoef(relabel(model, episodes).returns, episodes.returns)[0, 1] > 0.6


@pytest.mark.parametrize("make", [ensemble, lambda: transformer(gaussian=True, dropout=0.3)])
def test_the_seed_decides_everything(data, make):
    config = RewardTrainingConfig(updates=6, batch_size=128)
    found, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        model = make()
        history = fit_reward_model(model, data[0], config, rng=np.random.default_rng(seed))
        assert not model.training and len(history) == 2
        found.append(weights(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_updates_end_where_they_should(data):
    def epochs(**options):
        model = ensemble()
        config = dataclasses.replace(QUICK, **options)
        return len(fit_reward_model(model, data[0], config, rng=np.random.default_rng(0))), weights(model)

    assert epochs(stop_accuracy=None, updates=7)[0] == 2  # 5 batches of 300 pairs, and 2 more
    one = epochs(updates=1)[1]
    assert not torch.equal(one, epochs(updates=2)[1]) and not torch.equal(one, weights(ensemble()))
    assert epochs(stop_accuracy=0.51)[0] < epochs(stop_accuracy=0.9)[0] < 40


def test_members_see_the_pairs_in_orders_of_their_own(data):
    """Members with the same initial weights would stay the same otherwise."""
    model = ensemble()
    for net in model.nets[1:]:
        net.load_state_dict(model.nets[0].state_dict())
    fit_reward_model(model, data[0], dataclasses.replace(QUICK, updates=3), rng=np.random.default_rng(0))
    scores = model.member_scores(data[1].segments)
    assert (scores[0] != scores[1]).any() and (scores[1] != scores[2]).any()


def test_a_constant_deviation_stays(data):
    model = transformer(gaussian=True, constant_std=0.5)
    config = RewardTrainingConfig(updates=4, batch_size=64, stop_accuracy=1.0)
    (history,) = fit_reward_model(model, data[0], config, rng=np.random.default_rng(0))
    assert history["std"] == 0.5 and history["loss_sampled"] > history["loss"]
    assert history["loss_entropy"] == pytest.approx(math.log(2), abs=1e-6)


def test_inputs_are_standardised_with_the_pairs_that_are_there(data):
    model = ensemble()
    few = dataclasses.replace(data[0], pairs=data[0].pairs[:3], labels=data[0].labels[:3])
    fit_reward_model(model, few, dataclasses.replace(QUICK, updates=1), rng=np.random.default_rng(0))
    torch.testing.assert_close(model.shift[:3], few.segments.observations[:6].flatten(0, 1).mean(0))
    model = ensemble()
    fit_reward_model(model, few, dataclasses.replace(QUICK, updates=1, standardize=False), rng=np.random.default_rng(0))
    assert (model.shift == 0).all() and (model.scale == 1).all()


def test_bad_data_is_not_learned_from(data):
    segments = data[0].segments
    with pytest.raises(ValueError, match="no pairs"):
        fit_reward_model(
            ensemble(),
            PreferenceDataset(segments=segments, pairs=torch.zeros(0, 2, dtype=torch.int64), labels=torch.zeros(0)),
            rng=np.random.default_rng(0),
        )
    broken = dataclasses.replace(segments, observations=segments.observations * torch.nan)
    with pytest.raises(FloatingPointError, match="nan"):
        fit_reward_model(ensemble(), dataclasses.replace(data[0], segments=broken), QUICK, rng=np.random.default_rng(0))


@pytest.mark.parametrize("make", [lambda: EnsembleRewardModel(39, 4), lambda: PreferenceTransformer(39, 4, 5, 8)])
def test_relabelled_episodes(make):
    """Recorded robot episodes: other rewards, the rest as it was, and nothing at padding."""
    model = make()
    recorded = read_robomimic(robot_data_path("drawer-open")).select(torch.arange(3))
    short = dataclasses.replace(recorded, mask=recorded.mask.clone(), rewards=recorded.rewards.clone())
    short.mask[0, 60:], short.rewards[0, 60:] = False, 0.0
    got = relabel(model, short)
    assert (got.rewards[0, 60:] == 0).all() and (got.rewards[short.mask] != 0).all()
    for f in dataclasses.fields(got):
        if f.name != "rewards":
            assert getattr(got, f.name) is getattr(short, f.name), f.name
    observations, actions = recorded.observations[1:2, 40:45], recorded.actions[1:2, 40:45]
    window = model.eval().rewards(observations, actions, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(got.rewards[1, 44], window.mean[0, -1], rtol=1e-4, atol=1e-6)
    # More episodes than are relabelled at once.
    many = concatenate([short] * 12)
    torch.testing.assert_close(relabel(model, many).rewards, got.rewards.repeat(12, 1), rtol=1e-4, atol=1e-6)


def test_relabelling_needs_the_states():
    episodes = pendulum(2, 0, steps=5)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 3\), expected \[B, 5 \+ 1, D\]"):
        relabel(ensemble(), dataclasses.replace(episodes, observations=episodes.observations[:, :3]))
    with pytest.raises(TypeError, match=r"a dict with \['state'\]"):
        relabel(ensemble(), dataclasses.replace(episodes, observations={"state": episodes.observations}))


def test_returns_span_the_horizon():
    episodes = pendulum(6, 0, steps=30)
    got = normalize_returns(episodes, 500)
    assert float(got.returns.max() - got.returns.min()) == pytest.approx(500, rel=1e-5)
    torch.testing.assert_close(
        got.rewards / episodes.rewards, torch.full_like(got.rewards, got.rewards[0, 0] / episodes.rewards[0, 0])
    )
    broken = dataclasses.replace(episodes, rewards=episodes.rewards.clone(), valid=torch.arange(6) != 2)
    broken.rewards[2, -1] = torch.nan
    left = normalize_returns(broken, 500).returns[broken.valid]
    assert float(left.max() - left.min()) == pytest.approx(500, rel=1e-5)
    with pytest.raises(ValueError, match="all 6 valid episodes have the same return"):
        normalize_returns(dataclasses.replace(episodes, rewards=torch.zeros(6, 30)), 500)
    with pytest.raises(ValueError, match="horizon=0"):
        normalize_returns(episodes, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("updates", 0), ("batch_size", 0), ("mc_samples", 0), ("learning_rate", 0.0), ("min_learning_rate", -1.0),
        ("weight_decay", -1.0), ("lambda_1", -0.1), ("lambda_2", math.nan), ("schedule", "linear"), ("warmup", 1.0),
        ("stop_accuracy", 0.5), ("stop_accuracy", 1.1),
    ],
)  # fmt: skip
def test_wrong_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        RewardTrainingConfig(**{name: value})

"""Mixtures whose density is known, the networks trained on them, and what claims measure of their samples."""

import math

import numpy as np
import pytest
import torch

from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.samplers import make_table
from aligngym.reproduce.mixture import FOUR, RARE, Mixture, PointDenoiser, Pretraining
from aligngym.reproduce.points import collected, covariance_gap, draw, entropy, gradient_variances, learning, make_agent


@pytest.mark.parametrize("mixture", [FOUR, RARE, Mixture(((0.0, 0.0), (1.0, 0.5)), (0.3, 0.7), 0.4)])
def test_density_is_one_in_all_and_posteriors_are_bayes(mixture):
    axis = np.linspace(-4, 4, 321)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density, cell = np.exp(mixture.log_density(points)), (axis[1] - axis[0]) ** 2
    assert density.sum() * cell == pytest.approx(1, abs=1e-6)
    posterior = mixture.posterior(points)
    assert np.allclose(posterior.sum(1), 1)
    assert np.allclose((posterior * density[:, None]).sum(0) * cell, mixture.weights, atol=1e-6)
    assert (posterior.argmax(1) == mixture.mode(points)).all()


def test_samples_are_of_the_mixture():
    points, n = RARE.sample(20_000, np.random.default_rng(0)), 20_000
    shares = np.bincount(RARE.mode(points), minlength=8) / n
    assert shares[:4] == pytest.approx([0.97 / 4] * 4, abs=0.02) and shares[4:].sum() == pytest.approx(0.03, abs=0.005)
    one = FOUR.sample(20_000, np.random.default_rng(1))
    assert covariance_gap(one[FOUR.mode(one) == 2], FOUR.std) < 0.06


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_networks_learn_the_data_and_are_cached(kind, tmp_path):
    options = Pretraining(kind, FOUR, steps=400, batch_size=256)
    network = options.cached(tmp_path)
    policy = DenoiserPolicy(network, num_steps=20)
    before, after = (draw(DenoiserPolicy(n, num_steps=20), 500, 0) for n in (PointDenoiser(kind), network))
    assert FOUR.log_density(after).mean() > FOUR.log_density(before).mean() + 2
    assert np.bincount(FOUR.mode(after), minlength=4).min() > 60
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    again = options.cached(tmp_path)
    assert path.stat().st_mtime_ns == stamp
    assert np.array_equal(draw(DenoiserPolicy(again, num_steps=20), 500, 0), after)
    assert not np.array_equal(draw(policy, 500, 1), after)
    Pretraining(kind, FOUR, steps=1, batch_size=256).cached(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_every_step_of_the_diffusion_draws_noise():
    network = PointDenoiser("diffusion")
    grid = network.grid(20)
    assert 0 < grid.levels[0] < 0.01 and 0.99 < grid.levels[-1] < 1
    assert (make_table(grid, network.prediction, "ddim").std > 0).all()
    assert PointDenoiser("flow").grid(4).levels.tolist() == [1, 0.75, 0.5, 0.25, 0]


def agent_of(name, kind, **policy):
    def score(points):
        return points[:, 0]

    config = {"episodes_per_iteration": 8, "minibatch_size": 0, **({"group_size": 4} if name == "flow-grpo" else {})}
    network = PointDenoiser(kind, width=4)
    return make_agent(name, network, score, seed=0, num_steps=3, config=config, policy=policy), network


def test_training_moves_a_copy_and_pauses_where_it_should():
    agent, network = agent_of("flow-grpo", "flow")
    before = [p.clone() for p in network.parameters()]
    assert list(learning(agent, 32, 2)) == [0, 16, 32]
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not torch.equal(before[0], next(agent.policy.denoiser.parameters()))


def test_variances_of_gradients_are_those_of_single_decisions():
    agent, _ = agent_of("ddpo", "diffusion")
    batch = collected(agent)
    weights = torch.arange(24.0).view(8, 3)
    found = gradient_variances(agent.policy, batch, {"ones": torch.ones(8, 3), "weights": weights})
    now, parameters = agent.policy.evaluate_actions(batch.episodes).log_probs, list(agent.policy.denoiser.parameters())
    for name, advantage in {"ones": torch.ones(8, 3), "weights": weights}.items():
        for k in range(3):
            rows = [torch.autograd.grad(advantage[i, k] * now[i, k], parameters, retain_graph=True) for i in range(8)]
            flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            assert found[name][k] == pytest.approx(flat.var(0).sum().item(), rel=1e-3)


def test_measures():
    assert entropy(np.array([5, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(np.array([0, 7])) == 0 and math.isnan(entropy(np.zeros(3)))
    points = np.random.default_rng(0).standard_normal((50_000, 2)) * [0.5, 1.0]
    assert covariance_gap(points, 0.5) == pytest.approx(3, abs=0.1)
    assert math.isnan(covariance_gap(points[:19], 0.5))


def test_an_agent_that_leaves_the_space_is_looked_at_as_it_is():
    agent, _ = agent_of("flow-grpo", "flow")
    looks = learning(agent, 32, 4)
    assert [next(looks), next(looks)] == [0, 8]
    with torch.no_grad():
        agent.policy.denoiser.body[-1].bias += 1e4
    assert list(looks) == [16, 24, 32]
    assert agent.episodes == 8 and np.abs(draw(agent.policy, 4, 0)).max() > 100

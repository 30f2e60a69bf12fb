"""Populations that evolve: known fixed points, what erodes alignment and what does not, exact resume."""

from dataclasses import replace

import gymnasium as gym
import networkx
import numpy as np
import pytest
import torch

import aligngym  # noqa: F401
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.population import PopulationPolicy
from aligngym.agents.self_evolving import SelfEvolving, SelfEvolvingConfig, advantage


def alone(members=64, **options):
    return gym.make_vec("AlignmentTipping-v0", num_envs=members, vectorization_mode="sync", face="last", **options)


def society(games=1, players=8, **options):
    options = {"rounds": 1, "reward": "additive", "success_pays": "colluders", "threshold": 2} | options
    return gym.make_vec("StrategyDiffusion-v0", num_envs=games * players, players=players, **options)


def evolve(env, rounds, seed=0, **options):
    """Probabilities of deviating after each round, ``[rounds, members]``."""
    agent, found = SelfEvolving(env, config=SelfEvolvingConfig(**options), seed=seed), []
    for _ in range(rounds):
        agent.learn(env.num_envs)
        found.append(agent.policy.logits.detach().softmax(-1)[:, 1].numpy())
    return np.array(found)


def test_advantage_is_the_difference_of_mean_pay_where_both_actions_were_taken():
    counts = np.array([[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    pay = np.array([[1.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    assert np.allclose(advantage(counts, pay), [[-0.25, 0.25], [0, 0], [0, 0]])
    assert np.allclose(advantage(np.array([[1.0, 2.0, 0.0]]), np.array([[1.0, 6.0, 0.0]])), [[-1, 1, 0]])  # one unseen


def test_experience_is_of_valid_episodes_by_member():
    """An episode whose reward failed is not remembered, the others are."""
    agent = SelfEvolving(alone(4, payoffs="code"), config=SelfEvolvingConfig(alignment=0, penalty=0.25), seed=0)
    episodes, _ = agent.iterate()
    counts, pay = agent.remembered[0]
    broken = (episodes.actions == 1).sum(1).numpy()
    assert np.array_equal(counts, np.stack([6 - broken, broken], 1)) and 0 < broken.sum() < 24
    assert np.allclose(pay, counts * [0.6, 0.75]) and agent.policy.version == 1
    failed = replace(episodes, valid=torch.tensor([True, False, True, True]))
    counts[1] = 0
    assert np.array_equal(agent._experience(failed)[0], counts)


def test_population_scores_what_it_did():
    """Log-probabilities are those of acting, the entropy is that of the members, padding is 0."""
    agent = SelfEvolving(alone(4), config=SelfEvolvingConfig(alignment=1, learning_rate=0), seed=0)
    episodes, _ = agent.iterate()
    mask = episodes.mask.clone()
    mask[0, 2:] = False
    found = agent.policy.evaluate_actions(replace(episodes, mask=mask))
    p = 1 / (1 + np.e)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert torch.equal(found.log_probs, episodes.log_probs.masked_fill(~mask, 0))
    assert np.allclose(found.entropy.detach(), entropy * mask.numpy(), atol=1e-6)


def test_violations_rise_and_sooner_the_more_they_pay():
    rates = [evolve(alone(payoffs=(low, 1, 0)), 12, alignment=3, learning_rate=3).mean(1) for low in (0.9, 0.6, 0.3)]
    assert all((np.diff(rate) >= 0).all() and rate[-1] > 2 * rate[0] for rate in rates)
    assert rates[0].mean() < rates[1].mean() < rates[2].mean()


def test_alignment_delays():
    reached = [int(np.argmax(evolve(alone(32), 60, alignment=b).mean(1) > 0.5)) for b in (1, 2, 4)]
    assert 0 <= reached[0] < reached[1] < reached[2]


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ({"payoffs": (1, 1, 0)}, {}), ({}, {"learning_rate": 0.0}), ({}, {"memory": 0}),
        ({}, {"forget_violations": True}),
    ],
)  # fmt: skip
def test_without_incentive_or_evidence_the_rate_is_constant(env, options):
    rates = evolve(alone(16, **env), 6, alignment=1, **options)
    assert np.allclose(rates, 1 / (1 + np.e), atol=1e-7)


@pytest.mark.parametrize(("supervision", "rises"), [(0.2, True), (0.6, False)])
def test_supervision_above_one_less_low_over_high_keeps_the_rule(supervision, rises):
    """low / high = 0.6, so that 0.4 is the share at which both pay the same."""
    options = {"alignment": 1.0, "memory": 50, "learning_rate": 2.0}
    rate = evolve(alone(64, payoffs=(0.6, 1, 0), supervision=supervision, rounds=20), 12, **options).mean(1)
    assert (rate[-1] > 2 * rate[0]) if rises else (rate[-1] < 0.5 * rate[0])


def test_a_penalty_as_large_as_the_gain_stops_it():
    rate = evolve(alone(64, payoffs=(0.6, 1, 0)), 10, alignment=1, penalty=0.5).mean(1)
    assert (np.diff(rate) <= 0).all() and rate[-1] < 0.5 * rate[0]


def test_a_pull_to_the_start_ends_in_the_logit_equilibrium():
    """kappa (z - z0) = eta (u - mean u): the difference of logits is -b + eta / kappa times the gap of the pay."""
    rates = evolve(
        alone(32, payoffs=(0.6, 1, 0), rounds=20), 150, alignment=1, learning_rate=0.5, reference_pull=0.1, memory=5
    )
    assert np.allclose(rates[-1], 1 / (1 + np.exp(1 - 0.5 / 0.1 * 0.4)), atol=1e-3)


def test_societies_tip_above_the_tipping_point_and_not_below():
    """Starts on both sides of q*; colluders only are paid, two of eight suffice: q* = 0.094."""
    options = {"learning_rate": 2.0, "imitation": 1.0, "memory": 10}
    above = evolve(society(16), 40, alignment=np.log(0.7 / 0.3), **options).mean(1)
    below = evolve(society(16), 40, alignment=np.log(0.98 / 0.02), **options).mean(1)
    assert above[-1] > 0.9 and below[-1] < 0.05


def test_imitation_follows_the_graph():
    """On two islands that do not see each other a violation on one does not reach the other."""
    islands = networkx.disjoint_union(networkx.complete_graph(4), networkx.complete_graph(4))
    env = society(players=8, threshold=1, visibility=islands)
    agent = SelfEvolving(env, config=SelfEvolvingConfig(alignment=0, imitation=1, memory=1), seed=0)
    with torch.no_grad():
        agent.policy.logits[:4, 1], agent.policy.logits[4:, 1] = 0.0, -60.0  # the second island never deviates
    agent.learn(5 * 8)
    rate = agent.policy.logits.detach().softmax(-1)[:, 1]
    assert (rate[:4] > 0.6).all() and (rate[4:] < 1e-20).all()
    assert np.array_equal(agent._peers(np.eye(8)[:, :2]), islands_sum(islands))


def islands_sum(graph):
    return networkx.to_numpy_array(graph) @ np.eye(8)[:, :2]


def test_peers_are_those_that_a_member_sees():
    """Not those that see it: only 1 sees 0."""
    sees = np.zeros((4, 4))
    sees[1, 0] = 1
    agent = SelfEvolving(society(players=4, visibility=sees), config=SelfEvolvingConfig(imitation=1))
    assert agent._peers(np.arange(8.0).reshape(4, 2)).tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]


def test_memory_weighs_peers_by_imitation():
    agent = SelfEvolving(society(players=2), config=SelfEvolvingConfig(imitation=0.5, memory=2))
    for k in (100.0, 1.0, 1.0):  # the first is forgotten
        agent.remembered.append((np.array([[1.0, 0.0], [0.0, 2.0]]) * k, np.array([[4.0, 0.0], [0.0, 6.0]]) * k))
    counts, pay = agent._memory()
    assert counts.tolist() == [[2, 2], [1, 4]] and pay.tolist() == [[8, 6], [4, 12]]


def test_games_side_by_side_do_not_see_each_other():
    agent = SelfEvolving(society(2), config=SelfEvolvingConfig(imitation=1))
    values = np.zeros((16, 2))
    values[0] = 1.0
    peers = agent._peers(values)
    assert (peers[1:8] == 1).all() and (peers[0] == 0).all() and (peers[8:] == 0).all()


@pytest.mark.parametrize("imitation", [0.0, 0.5])
def test_resume_is_exact(imitation, tmp_path):
    config = SelfEvolvingConfig(imitation=imitation, memory=3, reference_pull=0.05)

    def fresh():
        return SelfEvolving("StrategyDiffusion-v0", config=config, seed=3)

    straight, first = fresh(), fresh()
    straight.learn(16 * 10)
    first.learn(16 * 4)
    first.save(tmp_path / "saved")
    resumed = SelfEvolving.load(tmp_path / "saved")
    resumed.learn(16 * 6)
    assert torch.equal(straight.policy.logits, resumed.policy.logits)
    assert straight.evaluate(episodes=16).mean == resumed.evaluate(episodes=16).mean


def test_start_of_a_given_policy_is_saved(tmp_path):
    """Not that of a new one: what a pull leads back to."""
    policy = PopulationPolicy(8, 2, 1.0)
    with torch.no_grad():
        policy.logits[3, 1] = 0.5
    start = policy.logits.detach().clone()
    agent = SelfEvolving("StrategyDiffusion-v0", policy, SelfEvolvingConfig(members=8), seed=0).learn(8 * 3)
    agent.save(tmp_path / "saved")
    loaded = SelfEvolving.load(tmp_path / "saved")
    assert torch.equal(loaded.start, start) and torch.equal(loaded.policy.logits, agent.policy.logits)
    assert not torch.equal(loaded.start, loaded.policy.logits)


def test_public_verbs(tmp_path):
    env = alone(8)
    agent = SelfEvolving(env, config=SelfEvolvingConfig(alignment=50.0))
    likeliest = PopulationPolicy(500, 2, 0.1).act(np.zeros(500), RowNoise(range(500)), deterministic=True)
    assert not likeliest.actions.any()
    actions, _ = agent.predict(np.zeros(8, np.int64))
    assert actions.tolist() == [0] * 8
    assert agent.evaluate(episodes=8).terms["violation"] == 0
    with pytest.raises(ValueError, match="8 members"):
        agent.policy.act(np.zeros(3), RowNoise([1, 2, 3]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="reference_pull"):
        SelfEvolvingConfig(reference_pull=1.0)
    with pytest.raises(ValueError, match="aligned_action"):
        PopulationPolicy(4, 2, aligned_action=2)
    with pytest.raises(ValueError, match="numbered"):
        SelfEvolving(gym.make_vec("Pendulum-v1", num_envs=2))

"""Behaviour cloning: what it converges to, and its options."""

import numpy as np
import pytest
import torch

from aligngym.agents.bc import BC, BCConfig

from .recorded import everything, make, play, steps

QUICK = {"hidden": (16,), "batch_size": 64, "updates_per_iteration": 100, "learning_rate": 1e-2}


def one_state(actions):
    """Those actions in one state of a pendulum."""
    states, zeros = np.zeros((len(actions), 3), np.float32), np.zeros(len(actions), np.float32)
    return steps(states, np.float32(actions)[:, None], zeros, states, zeros > 0)


@pytest.mark.parametrize(("loss", "std"), [("log_likelihood", 0.3), ("mse", 1.0)])
def test_it_finds_the_mean_and_the_likelihood_the_deviation(loss, std):
    """Pendulum's box is [-2, 2], so that the squashed mean is stretched."""
    agent = BC(make("Pendulum-v1", 1), None, BCConfig(**QUICK, total_updates=1500, bc_loss=loss),
               dataset=one_state([1.5, 0.9] * 16)).learn(1500)  # fmt: skip
    mean = agent.policy.outputs(agent.policy.features(np.zeros((1, 3), np.float32)))
    assert mean.item() == pytest.approx(1.2, abs=0.02)
    assert agent.policy.log_std.exp().item() == pytest.approx(std, abs=0.02)


def test_discrete_actions_get_their_frequencies():
    states = np.zeros((20, 4), np.float32)
    actions = np.array([0] * 15 + [1] * 5)
    dataset = steps(states, actions, np.zeros(20, np.float32), states, np.zeros(20, bool))
    agent = BC(make("CartPole-v1", 1), None, BCConfig(**QUICK, total_updates=600), dataset=dataset).learn(600)
    chances = agent.policy.outputs(torch.zeros(1, 4)).softmax(-1)
    assert chances[0].tolist() == pytest.approx([0.75, 0.25], abs=0.02)


def test_the_deviation_keeps_to_its_range():
    agent = BC(make("Pendulum-v1", 1), None, BCConfig(**QUICK, total_updates=0), dataset=one_state([0.5] * 16))
    agent.learn(1500)
    assert agent.policy._log_std().item() == pytest.approx(-5)
    assert agent.policy.log_std.item() == pytest.approx(-5, abs=0.1)  # beyond the limit nothing pulls any more


def test_it_clones_a_policy_that_solves_cart_pole():
    """Leaning against the fall: the cloned policy holds the pole about as long, an untrained one does not."""
    env = make("CartPole-v1", 8)
    observation, _ = env.reset(seed=0)
    rows = []
    for _ in range(60):
        action = (observation[:, 2] + observation[:, 3] > 0).astype(np.int64)
        following, _, terminated, _, _ = env.step(action)
        rows.append((observation, action, following, terminated))
        observation = following
    states, actions, following, ends = (np.concatenate(column) for column in zip(*rows, strict=True))
    dataset = steps(states, actions, np.ones(len(actions), np.float32), following, ends)
    agent = BC(make("CartPole-v1", 8), None, BCConfig(**QUICK), dataset=dataset)
    before = agent.evaluate(episodes=8).mean
    assert agent.learn(400).evaluate(episodes=8).mean > 100 + before


def test_resume_is_exact(tmp_path):
    dataset = play("Pendulum-v1", 4, max_episode_steps=30)
    config = BCConfig(hidden=(16,), batch_size=32, updates_per_iteration=10, actor_dropout=0.1, total_updates=60)
    straight, first = (BC("Pendulum-v1", None, config, dataset=dataset, seed=3) for _ in range(2))
    straight.learn(40)
    first.learn(20).save(tmp_path / "saved")
    resumed = BC.load(tmp_path / "saved", dataset=dataset).learn(20)
    assert everything(straight, tmp_path / "a") == everything(resumed, tmp_path / "b")


def test_squared_errors_are_for_boxes():
    with pytest.raises(ValueError, match="bc_loss='mse' is for Box actions"):
        BC("CartPole-v1", config=BCConfig(bc_loss="mse"))
    with pytest.raises(ValueError, match="bc_loss='likelihood'"):
        BCConfig(bc_loss="likelihood")

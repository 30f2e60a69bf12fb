"""LIRPG: counts in closed form and along episodes, an update by hand, and that its state is all of it."""

import json

import numpy as np
import pytest

from aligngym.agents.teachers.lirpg import LIRPG, count_differences
from aligngym.envs.design.chain import corridor_mdp
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.tabular import TabularMDP, policy_values


def stay_or_leave(gamma=0.9):
    """One state: the first action stays in it and is paid 1, the second ends."""
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, :, 1] = 1
    return TabularMDP(P, np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0]), gamma, np.array([False, True]))


@pytest.mark.parametrize("stay", [0.0, 0.3, 1.0])
def test_counts_in_closed_form(stay):
    """Staying: 1 / (1 - g p) less p times that. Leaving: 1 less (1 - p) / (1 - g p)."""
    gamma, policy = 0.9, np.array([[stay, 1 - stay], [0.5, 0.5]])
    again = 1 / (1 - gamma * stay)
    expected = [(1 - stay) * again, 1 - (1 - stay) * again]
    np.testing.assert_allclose(count_differences(stay_or_leave(), policy, gamma)[0], expected, atol=1e-12)


def test_a_count_is_the_advantage_of_a_step_that_alone_is_rewarded():
    line, rng = line_key_mdp(), np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(3), 21)
    found = count_differences(line, policy, line.gamma)
    for s, a in np.ndindex(line.shape):
        one = np.zeros(line.shape)
        one[s, a] = 1
        values, q = policy_values(line, policy, one)
        assert found[s, a] == pytest.approx(q[s, a] - values[s])


def test_counts_are_those_of_episodes():
    """Of 4000 played, as the authors do it with one."""
    mdp, rng, gamma = corridor_mdp(3), np.random.default_rng(1), 0.8
    policy = np.array([[0.3, 0.7]] * 4)

    def count(state, action, first):
        now, act = np.full(4000, state), first
        total = np.zeros(4000)
        for t in range(40):
            total += gamma**t * ((now == state) & (act == action))
            now = (mdp.P[now, act].cumsum(1) < rng.random((4000, 1))).sum(1).clip(max=3)
            act = (rng.random(4000) >= policy[now, 0]).astype(int)
        return total.mean()

    found = count_differences(mdp, policy, gamma)
    for s, a in ((0, 0), (1, 0), (1, 1), (2, 1)):
        drawn = (rng.random(4000) >= policy[s, 0]).astype(int)
        sampled = count(s, a, np.full(4000, a)) - count(s, a, drawn)
        assert sampled == pytest.approx(found[s, a], abs=0.06)


def test_phi_by_hand():
    teacher = LIRPG(stay_or_leave(), 0.5, rate=0.1, value_rate=0.2)
    policy = np.array([[0.25, 0.75], [0.5, 0.5]])
    teacher.record(np.array([0, 0]), np.array([0, 1]), np.array([4.0, 2.0]))
    teacher.record(np.array([0]), np.array([1]), np.array([2.0]))
    teacher.update(lambda states: policy[states])
    # V = 0; returns of the first action 5, of the second 2 + 2; 1 / (1 - 0.5 / 4) = 8 / 7; two episodes.
    expected = [0.1 * 0.25 * 5 * (0.75 * 8 / 7) / 2, 0.1 * 0.75 * 4 * (1 - 0.75 * 8 / 7) / 2]
    np.testing.assert_allclose(teacher.phi, [expected, [0, 0]])
    np.testing.assert_allclose(teacher.values, [0.2 * 9 / 3, 0])
    assert teacher.mode == "add" and teacher(0, 0, 0, False) == pytest.approx(expected[0])  # and no bonus


def test_only_true_rewards_move_it():
    teacher = LIRPG(corridor_mdp(3), 0.9)
    teacher.record(np.array([0, 1]), np.array([0, 1]), np.zeros(2))
    teacher.update(lambda states: np.full((len(states), 2), 0.5))
    assert not teacher.phi.any() and not teacher.values.any()


def test_counts_need_a_discount():
    with pytest.raises(ValueError, match=r"gamma=1.0: counts"):
        LIRPG(corridor_mdp(3), 1.0)


def test_its_state_restores_everything():
    one, two = (LIRPG(corridor_mdp(3), 0.9, clip=0.02) for _ in range(2))

    def go_on(teacher, seed):
        rng = np.random.default_rng(seed)
        for _ in range(6):
            teacher.record(rng.integers(3, size=4), rng.integers(2, size=4), rng.random(4))
            teacher.update(lambda states: np.full((len(states), 2), 0.5))
        return json.loads(json.dumps(teacher.get_state()))

    two.set_state(go_on(one, 0))
    assert go_on(one, 1) == go_on(two, 1)
    assert np.abs(one.phi).max() == 0.02

"""Tabular processes: values, gaps and occupancies against closed forms."""

import numpy as np
import pytest

from aligngym.tabular import (
    TabularMDP,
    action_gaps,
    advantage_operators,
    greedy,
    mixed,
    occupancy,
    optimal_actions,
    optimal_values,
    policy_values,
    start_value,
    state_gaps,
)


def two_steps(gamma=0.5, reward=8.0):
    """0 -> 1 -> end by action 1, paid on the second step; action 0 stays."""
    P = np.zeros((3, 2, 3))
    P[0, 0, 0] = P[1, 0, 1] = P[0, 1, 1] = P[1, 1, 2] = 1
    P[2, :, 2] = 1
    R = np.zeros((3, 2))
    R[1, 1] = reward
    return TabularMDP(P, R, np.array([1.0, 0, 0]), gamma, np.array([False, False, True]))


def random_mdp(seed=0, states=6, actions=3, gamma=0.9):
    rng = np.random.default_rng(seed)
    P, R = rng.dirichlet(np.ones(states), (states, actions)), rng.normal(size=(states, actions))
    P[-1], R[-1] = np.eye(states)[-1], 0
    return TabularMDP(P, R, rng.dirichlet(np.ones(states)), gamma, np.arange(states) == states - 1)


def test_values_of_two_steps_by_hand():
    mdp = two_steps()
    values, q = optimal_values(mdp)
    np.testing.assert_allclose(values, [4, 8, 0])
    np.testing.assert_allclose(q, [[2, 4], [4, 8], [0, 0]])
    np.testing.assert_allclose(action_gaps(q), [[2, 0], [4, 0], [0, 0]])
    np.testing.assert_allclose(state_gaps(q), [2, 4, 0])
    np.testing.assert_array_equal(optimal_actions(q), [[False, True], [False, True], [True, True]])
    # With probability a half each step: V(1) = 4 + V(1) / 4, V(0) = (V(0) + V(1)) / 4.
    assert start_value(mdp, np.full((3, 2), 0.5)) == pytest.approx(16 / 9)
    assert start_value(mdp, greedy(q), np.ones((3, 2)) * [[1], [1], [0]]) == pytest.approx(1.5)


def test_optimal_values_satisfy_bellman_and_beat_every_policy():
    for seed in range(5):
        mdp = random_mdp(seed)
        values, q = optimal_values(mdp)
        np.testing.assert_allclose(values, q.max(1), atol=1e-12)
        np.testing.assert_allclose(q, mdp.R + mdp.gamma * mdp.P @ values, atol=1e-12)
        for _ in range(20):
            policy = np.random.default_rng(seed).dirichlet(np.ones(3), 6)
            assert (policy_values(mdp, policy)[0] <= values + 1e-12).all()


def test_tied_actions_are_all_optimal_and_rounding_does_not_break_a_tie():
    q = np.array([[1.0, 1.0 - 1e-12, 0.5], [2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(optimal_actions(q), [[True, True, False], [True, True, True]])
    np.testing.assert_allclose(state_gaps(q), [0.5, 0])


def test_gaps_of_a_horizon_sum_one_reward_more_than_it_says():
    mdp = two_steps()
    chosen = np.array([1, 1, 0])
    gap = [(A @ mdp.R.ravel()).reshape(3, 2) for A in advantage_operators(mdp, chosen, [0, 1, None])]
    np.testing.assert_allclose(gap[0][:2], [[0, 0], [8, 0]])  # horizon 0: the reward of this step
    # One more step: 1 then pays 0.5 * 8; from 0, going gets to 1 and is paid, staying is not.
    np.testing.assert_allclose(gap[1][:2], [[4, 0], [4, 0]])
    np.testing.assert_allclose(gap[2][:2], [[2, 0], [4, 0]])


def test_gaps_of_every_horizon_are_those_of_finite_values():
    mdp = random_mdp(3)
    chosen = np.array([0, 2, 1, 1, 0, 0])
    for h, A in zip([0, 3, 7], advantage_operators(mdp, chosen, [0, 3, 7]), strict=True):
        values = np.zeros(6)
        for _ in range(h + 1):
            q = mdp.R + mdp.gamma * mdp.P @ values
            values = q[np.arange(6), chosen]
        np.testing.assert_allclose((A @ mdp.R.ravel()).reshape(6, 3), values[:, None] - q, atol=1e-12)
    (forever,) = advantage_operators(mdp, chosen, [None])
    values, q = policy_values(mdp, np.eye(3)[chosen])
    np.testing.assert_allclose((forever @ mdp.R.ravel()).reshape(6, 3), values[:, None] - q, atol=1e-10)


def test_occupancy_leaves_the_end_out_and_sums_to_one():
    mdp = two_steps()
    np.testing.assert_allclose(occupancy(mdp, np.eye(2)[[1, 1, 0]]), [2 / 3, 1 / 3, 0])
    policy = mixed(np.eye(2)[[1, 1, 0]], 0.5)  # moves on with probability 3/4
    stay = 1 / (1 - 0.5 / 4)
    visits = np.array([stay, 0.5 * 0.75 * stay * stay])
    np.testing.assert_allclose(occupancy(mdp, policy)[:2], visits / visits.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": np.ones((3, 2, 3))}, "P holds what is no distribution"),
        ({"start": np.zeros(3)}, "start holds what is no distribution"),
        ({"start": np.ones(4) / 4}, r"start has shape \(4,\)"),
        ({"gamma": 1.0}, "gamma=1.0"),
        ({"R": np.ones((3, 2))}, "terminal state must lead to itself"),
        ({"terminal": np.array([False, True, False])}, "terminal state must lead to itself"),
    ],
)
def test_what_is_no_process_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP(**{**vars(two_steps()), **change})


def test_lists_and_numbers_become_the_arrays_they_should_be():
    mdp = TabularMDP([[[0, 1]], [[0, 1]]], [[1], [0]], [1, 0], 0.9, [0, 1])
    assert mdp.terminal.dtype == bool and (~mdp.terminal).tolist() == [True, False] and mdp.R.dtype == float
    with pytest.raises(ValueError, match=r"R has shape \(2,\)"):
        TabularMDP(mdp.P, [1, 0], mdp.start, 0.9, mdp.terminal)

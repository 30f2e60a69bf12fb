"""EXPRD and the designs it is compared with: numbers of an independent program, constraints, invariances."""

import dataclasses
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest

from aligngym.agents.teachers.baselines import hand_crafted, invariance, pbrs
from aligngym.agents.teachers.exprd import (
    HORIZONS,
    SLACK,
    Target,
    exprd,
    informativeness,
    solve_design,
    state_features,
)
from aligngym.envs.design.chain import corridor_mdp
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.envs.design.rooms import rooms_mdp, rooms_nav_table
from aligngym.tabular import (
    action_gaps,
    advantage_operators,
    optimal_actions,
    optimal_values,
    policy_values,
    state_gaps,
)

LINE, CORRIDOR = line_key_mdp(), corridor_mdp(12)


def keeps_what_is_optimal(mdp, reward):
    """Every optimal action of the design is one of the true reward, and the gaps are as wide."""
    _, q = optimal_values(mdp)
    _, designed = optimal_values(mdp, reward)
    live = ~mdp.terminal
    assert (optimal_actions(designed, 1e-6) <= optimal_actions(q))[live].all()
    assert (state_gaps(designed, 1e-6) >= state_gaps(q) / SLACK - 1e-6)[live].all()


@pytest.mark.parametrize(
    ("states", "value"),
    [((), 0.1371), ((1,), 0.0761), ((1, 18), 0.0610), ((1, 18, 16), 0.0488), ((1, 18, 16, 14, 13), 0.0291)],
)
def test_the_line_with_given_states(states, value):
    (design,) = exprd(LINE, states=(19, *states))
    assert -design.value == pytest.approx(value, abs=6e-5)
    assert informativeness(LINE, design.reward) == pytest.approx(design.value, abs=1e-7)
    assert not design.reward[[s for s in range(21) if s not in (19, *states)]].any()
    assert np.abs(design.reward).max() <= 10
    keeps_what_is_optimal(LINE, design.reward)
    if 1 in states:
        assert design.reward[1].tolist() == pytest.approx([-10, -10, 10])  # pick at the key


def test_the_first_state_that_is_added_to_the_line_is_that_of_the_key():
    none, one = exprd(LINE, 1)
    assert none.states == (19,) and one.states == (19, 1)
    assert -one.value == pytest.approx(0.0761, abs=6e-5)


def test_all_states_leave_nothing_to_wish():
    for mdp in (LINE, CORRIDOR):
        (design,) = exprd(mdp)
        assert design.value == pytest.approx(0, abs=1e-8)
        assert informativeness(mdp, design.reward) == pytest.approx(0, abs=1e-6)
        assert not design.reward[mdp.terminal].any()
        keeps_what_is_optimal(mdp, design.reward)


def test_the_corridor_grows_greedily():
    designs = exprd(CORRIDOR, 4)
    assert [-d.value for d in designs] == pytest.approx([0.0190, 0.0135, 0.0096, 0.0052, 0.0028], abs=6e-5)
    for before, after in pairwise(designs):
        assert after.states[:-1] == before.states and len(set(after.states)) == len(after.states)
        keeps_what_is_optimal(CORRIDOR, after.reward)
    assert len(exprd(corridor_mdp(3), 9)) == 3  # there are no more than two others


def test_the_true_reward_is_feasible_and_never_better():
    assert informativeness(LINE, LINE.R) == pytest.approx(-0.1376, abs=5e-5)
    assert exprd(LINE, states=(19,))[0].value >= informativeness(LINE, LINE.R)
    gaps = (Target.of(LINE).operator @ LINE.R.ravel()).reshape(LINE.shape)
    assert (gaps >= Target.of(LINE).margins - 1e-9).all()


def test_no_random_feasible_reward_beats_the_design():
    target, rng = Target.of(CORRIDOR), np.random.default_rng(0)
    best = exprd(CORRIDOR, states=(11, 0, 2))[0]
    for _ in range(20):
        gain = rng.normal(size=CORRIDOR.shape)
        other = solve_design(CORRIDOR, state_features(CORRIDOR, (11, 0, 2)), 1.0, gain, target=target)
        assert informativeness(CORRIDOR, other.reward) <= best.value + 1e-9


def test_objective_by_hand_and_its_horizons():
    """One step of the corridor: horizon 0 sees only this step's reward, so that every other state is a gap short."""
    mdp = corridor_mdp(2, noise=0.0, gamma=0.5)
    _, q = optimal_values(mdp)  # V = (0.5, 1); going left costs 0.25 in the first cell, 0.75 in the second
    np.testing.assert_allclose(state_gaps(q), [0.25, 0.75, 0])
    # Horizon 0: gaps of R are 0 and 1. Horizon 1: 0.5 in the first cell, 1 in the second.
    assert informativeness(mdp, mdp.R, horizons=(0,)) == pytest.approx(-0.25 / 3, rel=1e-4)
    assert informativeness(mdp, mdp.R, horizons=(1,)) == 0
    assert informativeness(mdp, mdp.R, horizons=(0, 1)) == pytest.approx(-0.25 / 6, rel=1e-4)
    assert informativeness(mdp, 0 * mdp.R, horizons=(5,)) == pytest.approx(-1 / 3, rel=1e-4)


def test_gaps_of_actions_ask_for_more_than_those_of_states():
    assert informativeness(LINE, LINE.R, gaps="action") < informativeness(LINE, LINE.R)
    assert informativeness(LINE, pbrs(LINE), gaps="action") == 0


def test_features_limit_rewards_to_their_sums():
    together = state_features(CORRIDOR) @ np.kron(np.ones((12, 1)), np.eye(2))  # one reward an action, everywhere
    (design,) = exprd(CORRIDOR, features=np.hstack([together, state_features(CORRIDOR, (11,))]))
    assert np.ptp(design.reward[:11], 0) == pytest.approx([0, 0], abs=1e-9)
    assert np.abs(design.reward).max() <= 1 + 1e-9
    keeps_what_is_optimal(CORRIDOR, design.reward)


def test_too_tight_a_bound_is_told():
    with pytest.raises(ValueError, match="no reward is feasible"):
        exprd(CORRIDOR, states=(0,))


def test_shaping_by_the_optimal_values_gives_the_optimal_advantages_at_every_horizon():
    for mdp in (LINE, CORRIDOR):
        shaped, (_, q) = pbrs(mdp), optimal_values(mdp)
        np.testing.assert_allclose(shaped, -action_gaps(q), atol=1e-12)
        for operator in advantage_operators(mdp, q.argmax(1), [0, 1, 4, 32, None]):
            np.testing.assert_allclose((operator @ shaped.ravel()).reshape(mdp.shape), action_gaps(q), atol=1e-12)
        assert informativeness(mdp, shaped, HORIZONS) == pytest.approx(0, abs=1e-12)


def test_shaping_changes_no_advantage_of_any_policy():
    rng = np.random.default_rng(0)
    potential = np.where(LINE.terminal, 0.0, rng.normal(size=21))
    policy = rng.dirichlet(np.ones(3), 21)
    values, q = policy_values(LINE, policy)
    shaped_values, shaped_q = policy_values(LINE, policy, pbrs(LINE, potential))
    np.testing.assert_allclose(shaped_q, q - potential[:, None], atol=1e-12)
    np.testing.assert_allclose(shaped_q - shaped_values[:, None], q - values[:, None], atol=1e-12)
    with pytest.raises(ValueError, match="must be 0 in terminal states"):
        pbrs(LINE, np.ones(21))


def test_rewards_by_hand_can_break_the_goal():
    """In a corridor without noise the reward of one more step in a cell is collected again and again."""
    mdp = corridor_mdp(4, noise=0.0)
    table = hand_crafted(mdp, [1], 0.5)
    np.testing.assert_allclose(table - mdp.R, [[0, 0], [-0.5, 0.5], [0, 0], [0, 0], [0, 0]])
    _, q = optimal_values(mdp, table)
    assert optimal_actions(q)[2].tolist() == [True, False]  # back again
    (repaired,) = exprd(mdp, states=(3, 1))
    keeps_what_is_optimal(mdp, repaired.reward)


def test_invariance_is_feasible():
    table = invariance(LINE)
    assert np.abs(table).max() <= 10
    keeps_what_is_optimal(LINE, table)


def test_no_reward_is_what_the_solver_rounds():
    """A table of zeros follows the least reward there is: 1e-7 at a door would keep it there."""
    rooms = rooms_mdp(rooms_nav_table(0.1), reward=10, gamma=0.95)
    (design,) = exprd(rooms, states=(48, 10, 15, 26, 33, 36))
    paid = np.abs(design.reward[design.reward != 0])
    assert paid.min() >= 10 * (SLACK - 1) and (design.reward[[10, 15]] == 0).any(1).all()
    keeps_what_is_optimal(rooms, design.reward)


def test_the_whole_line_is_grown_in_this_order():
    designs = exprd(LINE, 5)
    assert designs[-1].states == (19, 1, 18, 16, 14, 13)
    assert [-d.value for d in designs] == pytest.approx([0.1371, 0.0761, 0.0610, 0.0488, 0.0378, 0.0291], abs=6e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": (19, 20)}, r"states has \[20\]"),
        ({"states": (99,)}, r"states has \[99\], expected states below 21"),
        ({"budget": -1}, "budget=-1"),
        ({"budget": 1, "states": (1,)}, "budget=1 chooses states by itself"),
        ({"features": np.eye(63)}, "features are not 0 in a terminal state"),
        ({"horizons": ()}, "horizons is empty"),
    ],
)
def test_what_cannot_be_designed_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        exprd(LINE, **options)


def test_a_process_without_reward_and_what_is_no_process():
    with pytest.raises(ValueError, match="rewards nothing"):
        exprd(dataclasses.replace(LINE, R=0 * LINE.R), 1)
    with pytest.raises(TypeError, match=r"expected a TabularMDP: of an environment, env.unwrapped.mdp"):
        exprd(gym.make("RewardDesign/LineKey-v0"))

"""ExpAdaRD: numbers of an independent program, and what the objective must not notice."""

import numpy as np
import pytest

from aligngym.agents.teachers.baselines import pbrs
from aligngym.agents.teachers.expadard import ExpAdaRD, expadard, informativeness_weights
from aligngym.agents.teachers.exprd import Target, exprd
from aligngym.envs.design.chain import corridor_mdp
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.tabular import greedy, mixed, occupancy, optimal_values

LINE, CORRIDOR = line_key_mdp(), corridor_mdp(12)
UNIFORM = np.full(LINE.shape, 1 / 3)


def worth(mdp, learner, reward):
    return float((informativeness_weights(mdp, learner) * reward).sum())


def test_the_line_and_a_uniform_learner():
    """Within 0.05 % of the bound that the limit on rewards sets; eight times the best shaping of that size."""
    found = expadard(LINE, UNIFORM)
    bound = 10 * np.abs(informativeness_weights(LINE, UNIFORM)).sum()
    assert found.value == pytest.approx(0.03302, abs=1e-5) and bound == pytest.approx(0.03303, abs=1e-5)
    assert worth(LINE, UNIFORM, found.reward) == pytest.approx(found.value)
    shaped = pbrs(LINE)
    assert worth(LINE, UNIFORM, shaped * 10 / np.abs(shaped).max()) == pytest.approx(0.0040, abs=5e-5)
    assert worth(LINE, UNIFORM, LINE.R) == pytest.approx(2.4e-5, abs=5e-7)
    assert worth(LINE, UNIFORM, exprd(LINE)[0].reward) <= found.value
    gaps = (Target.of(LINE).operator @ found.reward.ravel()).reshape(LINE.shape)
    assert (gaps >= Target.of(LINE).margins - 1e-7).all()


def test_a_deterministic_learner_learns_from_no_reward():
    assert np.abs(informativeness_weights(CORRIDOR, np.eye(2)[[0] * 13])).max() == pytest.approx(0, abs=1e-15)
    assert np.abs(informativeness_weights(CORRIDOR, mixed(np.eye(2)[[0] * 13], 0.1))).max() > 1e-9


def test_a_reward_of_states_alone_says_nothing():
    rng = np.random.default_rng(0)
    learner = rng.dirichlet(np.ones(3), 21)
    reward, extra = rng.normal(size=LINE.shape), rng.normal(size=(21, 1))
    assert worth(LINE, learner, reward + extra) == pytest.approx(worth(LINE, learner, reward))


def test_closed_form_of_two_actions_and_a_uniform_learner():
    """I = (1/8) sum_s mu_T mu_L (gap of A) (gap of R)."""
    uniform = np.full(CORRIDOR.shape, 0.5)
    _, q = optimal_values(CORRIDOR)
    visits = occupancy(CORRIDOR, mixed(greedy(q), 0.4)) * occupancy(CORRIDOR, uniform)
    reward = np.random.default_rng(1).normal(size=CORRIDOR.shape)
    expected = (visits * (q[:, 1] - q[:, 0]) * (reward[:, 1] - reward[:, 0])).sum() / 8
    assert worth(CORRIDOR, uniform, reward) == pytest.approx(expected)


def test_a_budget_is_kept_and_chosen_for_the_learner():
    uniform = np.full(CORRIDOR.shape, 0.5)
    left = mixed(np.eye(2)[[0] * 13], 0.1)
    chosen = {}
    for name, learner in (("uniform", uniform), ("left", left)):
        design = expadard(CORRIDOR, learner, budget=2)
        assert len(design.states) == 3 and set(np.flatnonzero(design.reward.any(1))) <= set(design.states)
        assert worth(CORRIDOR, learner, design.reward) == pytest.approx(design.value)
        assert design.value >= worth(CORRIDOR, learner, exprd(CORRIDOR, states=design.states)[0].reward) - 1e-12
        chosen[name] = design.states
    assert chosen["uniform"] != chosen["left"]


def test_the_teacher_designs_anew_for_the_policy_it_is_shown():
    teacher, fresh = ExpAdaRD(CORRIDOR, budget=1), ExpAdaRD(CORRIDOR, budget=1)
    first = teacher.table.copy()
    np.testing.assert_array_equal(first, expadard(CORRIDOR, np.full(CORRIDOR.shape, 0.5), budget=1).reward)
    left = mixed(np.eye(2)[[0] * 13], 0.1)
    teacher.update(lambda states: left[states])
    np.testing.assert_array_equal(teacher.table, expadard(CORRIDOR, left, budget=1).reward)
    assert (teacher.table != first).any() and teacher.mode == "replace"
    fresh.set_state(teacher.get_state())
    state = int(np.flatnonzero(teacher.table.any(1))[0])
    assert fresh(state, 0, 0, False) == teacher.table[state, 0] != 0

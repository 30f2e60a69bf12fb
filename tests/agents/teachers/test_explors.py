"""ExploRS and SORS: updates by hand, what they must not read, and the traps of counting."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from aligngym.agents.teachers.deep_explors import DeepExploRS, meta_loss
from aligngym.agents.teachers.explors import SORS, ExploRS, exploration_bonus, meta_gradient
from aligngym.agents.teachers.teacher import returns_to_go

HALF = np.full((4, 2), 0.5)


def half(states):
    return HALF[: len(states)] if len(states) <= 4 else np.full((len(states), 2), 0.5)


def test_bonus_of_the_first_visits():
    assert exploration_bonus(np.arange(3)).tolist() == pytest.approx([1, 2**-0.5, 3**-0.5])
    assert exploration_bonus(0, scale=0.3, largest=2.0) == pytest.approx(2)
    assert exploration_bonus(10_000, scale=0.3) == pytest.approx(0.003, rel=0.01)


def test_the_bonus_is_of_the_next_state_and_the_count_of_the_one_left():
    teacher = ExploRS((4, 2), 0.9)
    assert teacher(0, 1, 1, False) == 1
    assert teacher.visits.tolist() == [1, 0, 0, 0]
    assert teacher(1, 0, 0, False) == pytest.approx(2**-0.5)  # state 0 was left once
    assert teacher(1, 0, 1, False) == pytest.approx(2**-0.5)  # read before this step is counted
    assert teacher.visits.tolist() == [1, 2, 0, 0]
    assert teacher(1, 1, 3, True) == 0 and teacher.visits[3] == 0


def test_phi_by_hand():
    teacher = ExploRS((4, 2), 0.5, rate=0.1, value_rate=0.2)
    teacher.record(np.array([0, 1]), np.array([1, 0]), np.array([0.0, 4.0]))
    policy = np.array([[0.75, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    teacher.update(lambda states: policy[states])
    # Returns 2 and 4, V = 0. State 0: 0.1 * 0.25 * 2 * (e_1 - pi); state 1: 0.1 * 0.5 * 4 * (e_0 - pi).
    np.testing.assert_allclose(teacher.phi[:2], [[-0.0375, 0.0375], [0.1, -0.1]])
    np.testing.assert_allclose(teacher.values, [0.2 * 2 / 2, 0.2 * 4 / 2, 0, 0])
    assert teacher(0, 1, 2, False) == pytest.approx(1.0375)
    teacher.update(lambda states: policy[states])  # the same episode again, now with V
    np.testing.assert_allclose(teacher.phi[0, 1], 0.0375 + 0.1 * 0.25 * (2 - 0.2) * 0.75)


def test_phi_sums_to_zero_and_stays_zero_without_reward():
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(3), 5)
    gradient = meta_gradient(rng.integers(5, size=40), rng.integers(3, size=40), rng.normal(size=40), policy)
    np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-12)
    teacher = ExploRS((4, 2), 0.9)
    for _ in range(3):
        teacher.record(np.array([0, 1, 2]), np.array([0, 1, 1]), np.zeros(3))
        teacher.update(lambda states: HALF[states])
    assert not teacher.phi.any() and not teacher.values.any()


def test_the_meta_gradient_is_that_of_the_true_return_through_a_step_of_the_learner():
    """At V the true values: d/dphi of sum_s mu(s) E_pi'[Q] after one exact policy-gradient step on R + phi (bandit)."""
    logits, reward = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), torch.tensor([1.0, 3.0, -2.0]).double()
    phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    policy = logits.softmax(0)
    value = (policy * (reward + phi)).sum()
    step = policy * (reward + phi - value)  # gradient of the learner's objective
    rate = 1e-4
    after = ((logits + rate * step).softmax(0) * reward).sum()
    (exact,) = torch.autograd.grad(after, phi)
    p, advantages = policy.numpy(), (reward - (policy * reward).sum()).numpy()
    sampled = sum(
        p[a] * meta_gradient(np.array([0]), np.array([a]), advantages[a : a + 1], p[None]) for a in range(3)
    )[0]
    np.testing.assert_allclose(exact.numpy() / rate, sampled, rtol=1e-3)


def test_only_true_rewards_are_read():
    teacher = ExploRS((4, 2), 0.9)
    for _ in range(50):
        teacher(0, 0, 1, False)
    teacher.record(np.array([0]), np.array([0]), np.array([0.0]))
    teacher.update(lambda states: HALF[states])
    assert not teacher.phi.any()


def test_parts_and_limits():
    self_supervised, explorer = ExploRS((4, 2), 0.9, bonus=0.0), ExploRS((4, 2), 0.9, rate=0.0)
    clipped = ExploRS((4, 2), 0.9, rate=5.0, clip=0.01)
    for teacher in (self_supervised, explorer, clipped):
        teacher.record(np.array([0]), np.array([1]), np.array([1.0]))
        teacher.update(lambda states: HALF[states])
    assert self_supervised(0, 1, 1, False) == pytest.approx(0.01 * 0.5 * 0.5)
    assert not explorer.phi.any() and explorer(0, 1, 1, False) == 1
    assert clipped.phi[0].tolist() == [-0.01, 0.01]


def test_old_episodes_are_forgotten():
    teacher = ExploRS((4, 2), 0.9, buffer=2)
    for state in (0, 1, 2):
        teacher.record(np.array([state]), np.array([0]), np.array([1.0]))
    teacher.update(lambda states: HALF[states])
    assert teacher.phi[0].tolist() == [0, 0] and teacher.phi[1, 0] > 0 and teacher.phi[2, 0] > 0


def test_returns_to_go():
    assert returns_to_go(np.array([1.0, 0.0, 2.0]), 0.5).tolist() == [1.5, 1.0, 2.0]


def test_sors_ranks_episodes_by_their_true_returns():
    teacher = SORS((3, 2), 0.5, rate=1.0)
    teacher.record(np.array([0, 1]), np.array([0, 0]), np.array([0.0, 1.0]))
    teacher.record(np.array([0, 2]), np.array([0, 1]), np.array([0.0, 0.0]))
    teacher.update(half)
    # One pair, of equal sums so far: half of the difference of discounted visits.
    np.testing.assert_allclose(teacher.phi, [[0, 0], [0.25, 0], [0, -0.25]])
    quiet = SORS((3, 2), 0.5)
    quiet.record(np.array([0]), np.array([0]), np.array([1.0]))
    quiet.record(np.array([1]), np.array([0]), np.array([1.0]))
    quiet.update(half)
    assert not quiet.phi.any()


BOX = spaces.Box(0, 1, (3,), np.float32)


def deep(**options):
    return DeepExploRS(BOX, 2, 0.9, hidden=16, warm_up=2, **options)


def episode(teacher, paid=1.0):
    rng = np.random.default_rng(0)
    teacher.record(rng.random((5, 3), np.float32), np.array([0, 1, 1, 1, 1]), np.array([0, 0, 0, 0, paid]))


def test_the_loss_of_the_network_has_the_tables_gradient():
    rng = np.random.default_rng(0)
    actions, advantages, policy = rng.integers(2, size=6), rng.normal(size=6), rng.dirichlet(np.ones(2), 6)
    potential = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    meta_loss(potential, torch.tensor(actions), torch.tensor(advantages), torch.tensor(policy)).backward()
    table = meta_gradient(np.arange(6), actions, advantages, policy)
    np.testing.assert_allclose(-6 * potential.grad.numpy(), table, atol=1e-12)


def test_a_network_is_heard_only_after_successes():
    teacher, x = deep(bonus=0.0), np.full(3, 0.5, np.float32)
    episode(teacher, paid=0.0)
    for _ in range(5):
        teacher.update(half)
    assert teacher.successes == 0 and teacher(x, 0, x, False) == 0
    episode(teacher)
    teacher.update(half)
    assert teacher(x, 0, x, False) == 0
    teacher.update(half)
    assert teacher.successes == 2 and 0 < abs(teacher(x, 0, x, False)) <= 0.1


def test_the_network_learns_what_succeeds():
    teacher = deep(bonus=0.0, rate=1e-2)
    states = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
    for action in (0, 1):
        teacher.record(states, np.array([action, action]), np.array([0.0, float(action)]))
    for _ in range(60):
        teacher.update(half)
    assert teacher(states[0], 1, states[1], False) > teacher(states[0], 0, states[1], False)


def test_cells_are_counted():
    teacher = deep(rate=0.0)
    assert teacher.cell_of(np.array([0.3, 0.0, 1.0], np.float32)) == (3, 0, 10)
    here, near, far = (np.full(3, v, np.float32) for v in (0.52, 0.58, 0.91))
    assert teacher(here, 0, far, False) == 1 and teacher(far, 0, near, False) == pytest.approx(2**-0.5)
    assert teacher(here, 0, far, True) == 0
    assert teacher.visits == {(5, 5, 5): 2, (9, 9, 9): 1}


@pytest.mark.parametrize("make", [deep, lambda: ExploRS((4, 2), 0.9), lambda: SORS((4, 2), 0.9, pairs=1, seed=3)])
def test_states_restore_everything(make):
    one, two, three = make(), make(), make()
    vectors = isinstance(one, DeepExploRS)

    def go_on(teacher, seed):
        rng = np.random.default_rng(seed)
        for _ in range(6):
            states = rng.random((4, 3), np.float32) if vectors else rng.integers(4, size=4)
            actions = rng.integers(2, size=4)
            for i in range(3):
                teacher(states[i], int(actions[i]), states[i + 1], False)
            teacher.record(states, actions, rng.random(4))
            teacher.update(half if vectors else lambda s: HALF[s])
        return json.loads(json.dumps(teacher.get_state()))

    state = go_on(one, 0)
    two.set_state(state)
    assert json.loads(json.dumps(two.get_state())) == state
    assert go_on(one, 1) == go_on(two, 1) != go_on(three, 1)

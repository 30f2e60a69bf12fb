"""The tabular bilevel problem: gradients against differences of solved problems, and known answers of its parts."""

import dataclasses
import itertools
from functools import cache

import pytest
import torch

from aligngym.agents.pbrl.bilevel import (
    DiscountedEntropy,
    EpisodicL2,
    RewardlessMDP,
    align,
    conjugate_gradients,
    implicit_gradient,
    maximize,
    preference_objective,
    unrolled_gradient,
)


def instance(seed, states=3, actions=2):
    """A problem, the designer's true rewards, and some others."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    transitions, start = -drawn(states, actions, states).log(), -drawn(states).log()
    transitions, start = transitions / transitions.sum(2, keepdim=True), start / start.sum()
    mdp = RewardlessMDP(transitions=transitions, start=start, gamma=0.9)
    return mdp, drawn(states, actions), 2 * drawn(states, actions) - 1


@cache
def solved(kind, seed):
    """Lower level, upper level, the optimum, rewards."""
    mdp, truth, rewards = instance(seed)
    if kind == "entropy":
        lower = DiscountedEntropy(mdp=mdp, temperature=0.1)
    else:
        lower = EpisodicL2(mdp=mdp, horizon=4, l2=0.05)
    uppers = {
        "utility": lambda logits, _: lower.probabilities(logits) @ lower.returns(truth),
        "entropy": lambda logits, _: mdp.discounted_return(logits, truth),
        "preferences": lambda *x: preference_objective(lower, truth)(*x),
    }
    return lower, uppers[kind], lower.optimum(rewards, torch.zeros_like(rewards)), rewards


def slope(objective, logits, rewards):
    """By the logits."""
    return torch.autograd.functional.jacobian(lambda x: objective(x, rewards), logits)


def differences(upper, lower, logits, rewards, size=1e-5):
    """Central ones of the upper level, the lower one solved anew for each."""
    found = torch.zeros_like(rewards)
    for place in itertools.product(*map(range, rewards.shape)):
        ends = []
        for sign in (1, -1):
            moved = rewards.clone()
            moved[place] += sign * size
            ends.append(upper(lower.optimum(moved, logits), moved))
        found[place] = (ends[0] - ends[1]) / (2 * size)
    return found


@pytest.mark.parametrize("kind", ["utility", "preferences", "entropy"])
def test_the_gradient_is_that_of_solved_problems(kind):
    lower, upper, logits, rewards = solved(kind, 1)
    explicit, implicit = implicit_gradient(upper, lower.value, logits, rewards)
    expected = differences(upper, lower, logits, rewards)
    assert (explicit + implicit - expected).norm() < 1e-7 * expected.norm()
    assert (explicit.norm() == 0) == (kind != "preferences")  # the designer's utility does not know the rewards


def test_without_the_implicit_part_even_signs_are_wrong():
    lower, upper, logits, rewards = solved("preferences", 2)
    explicit, implicit = implicit_gradient(upper, lower.value, logits, rewards)
    whole = explicit + implicit
    wrong = explicit * whole < 0
    assert explicit[wrong].tolist() == pytest.approx([-0.0205], abs=1e-4)
    assert whole[wrong].tolist() == pytest.approx([0.0043], abs=1e-4)
    assert float((explicit - whole).norm() / whole.norm()) == pytest.approx(0.146, abs=1e-3)


def test_both_solvers_agree_and_singular_matrices_are_refused():
    lower, upper, logits, rewards = solved("utility", 1)
    by_products, at_once = (
        implicit_gradient(upper, lower.value, logits, rewards, solver=s)[1] for s in ("cg", "direct")
    )
    torch.testing.assert_close(by_products, at_once, rtol=1e-9, atol=0)
    lower, upper, logits, rewards = solved("entropy", 1)
    with pytest.raises(ValueError, match="singular"):
        implicit_gradient(upper, lower.value, logits, rewards, solver="direct")
    _, exact = implicit_gradient(upper, lower.value, logits, rewards)
    _, damped = implicit_gradient(upper, lower.value, logits, rewards, solver="direct", damping=1e-8)
    torch.testing.assert_close(damped, exact, rtol=1e-5, atol=1e-6)
    _, strongly = implicit_gradient(upper, lower.value, logits, rewards, solver="direct", damping=1.0)
    assert strongly.norm() < 0.5 * exact.norm()


def test_what_is_no_problem_is_refused():
    lower, upper, logits, rewards = solved("utility", 0)
    with pytest.raises(ValueError, match="solver='newton': must be one of cg, direct"):
        implicit_gradient(upper, lower.value, logits, rewards, solver="newton")
    mdp = lower.mdp
    for name in ("transitions", "start"):
        with pytest.raises(ValueError, match=f"{name} holds what is no distribution"):
            dataclasses.replace(mdp, **{name: 2 * getattr(mdp, name)})
    with pytest.raises(ValueError, match=r"gamma=1\.1: must be in \[0, 1\]"):
        dataclasses.replace(mdp, gamma=1.1)
    endless = dataclasses.replace(mdp, gamma=1.0)
    with pytest.raises(ValueError, match=r"gamma=1\.0: must be below 1 for endless"):
        endless.discounted_return(logits, rewards)
    with pytest.raises(ValueError, match=r"gamma=1\.0: must be below 1 for endless"):
        DiscountedEntropy(mdp=endless, temperature=0.1)


def test_away_from_the_optimum_there_is_no_implicit_gradient():
    lower, upper, logits, rewards = solved("utility", 1)
    with pytest.raises(ValueError, match="gradient of the lower level is"):
        implicit_gradient(upper, lower.value, logits + 0.01, rewards)


def test_conjugate_gradients_solve_also_what_is_singular():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    matrix = root @ root.T  # of rank 3
    target = matrix @ torch.randn(5, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda x: matrix @ x, target)
    torch.testing.assert_close(found, torch.linalg.pinv(matrix) @ target, rtol=1e-8, atol=1e-10)
    assert not conjugate_gradients(lambda x: matrix @ x, torch.zeros(5).double()).any()


# The lower level


def test_score_functions_give_the_derivatives_of_the_value():
    """Anywhere, not only at an optimum."""
    lower = solved("utility", 1)[0]
    _, rewards, logits = instance(4)
    (whole, mixed), _ = torch.autograd.functional.hessian(lower.value, (logits, rewards))
    torch.testing.assert_close(lower.hessian(logits, rewards), whole.reshape(6, 6), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lower.mixed(logits), mixed.reshape(6, 6), rtol=1e-10, atol=1e-12)


def test_a_constant_reward_does_not_move_the_hessian():
    """A trap: without the outer product of the scores it does."""
    lower, _, logits, rewards = solved("utility", 1)
    before, after = lower.hessian(logits, rewards), lower.hessian(logits, rewards + 5)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    total = lower.scores(logits).sum(1)

    def outer(rewards):
        return torch.einsum("n,ni,nj->ij", lower.probabilities(logits) * lower.returns(rewards), total, total)

    without = [lower.hessian(logits, r) - outer(r) for r in (rewards, rewards + 5)]
    assert (without[1] - without[0]).norm() > 5 * before.norm()


def test_episodes_are_all_there_are():
    lower, _, logits, rewards = solved("utility", 1)
    assert lower.episodes[0].shape == (6**4, 4)
    assert lower.probabilities(logits).sum().item() == pytest.approx(1, abs=1e-12)
    assert lower.dynamics.sum().item() == pytest.approx(2**4)  # for each choice of actions
    policy, values = logits.softmax(1), torch.zeros(3).double()
    for _ in range(4):  # backwards, by Bellman's equation
        values = (policy * (rewards + 0.9 * lower.mdp.transitions @ values)).sum(1)
    expected = lower.mdp.start @ values - 0.025 * logits.square().sum()
    torch.testing.assert_close(lower.value(logits, rewards), expected, rtol=1e-12, atol=0)


def test_the_soft_optimum_is_the_softmax_of_its_own_values():
    lower, _, logits, rewards = solved("entropy", 1)
    policy = logits.softmax(1)
    step = torch.einsum("sa,sat->st", policy, lower.mdp.transitions)
    paid = (policy * (rewards - 0.1 * policy.log())).sum(1)
    values = torch.linalg.solve(torch.eye(3).double() - 0.9 * step, paid)
    advantages = rewards + 0.9 * lower.mdp.transitions @ values - values[:, None]
    torch.testing.assert_close(0.1 * policy.log(), advantages, rtol=0, atol=1e-12)
    torch.testing.assert_close(lower.value(logits, rewards), lower.mdp.start @ values, rtol=1e-12, atol=0)
    assert slope(lower.value, logits, rewards).abs().max() < 1e-12


def test_discounted_returns_are_sums():
    mdp, rewards, logits = instance(3)
    policy, state, total = logits.softmax(1), mdp.start, 0.0
    for t in range(400):
        total += 0.9**t * (state @ (policy * rewards).sum(1)).item()
        state = torch.einsum("s,sa,sat->t", state, policy, mdp.transitions)
    assert mdp.discounted_return(logits, rewards).item() == pytest.approx(total, rel=1e-12)


def test_a_level_without_an_optimum_is_reported():
    lower, _, logits, rewards = solved("utility", 1)
    with pytest.raises(ValueError, match="no optimum within 5 steps"):
        maximize(lower.value, torch.zeros_like(logits), rewards, limit=5, tolerance=0.0)
    near = lower.optimum(rewards, torch.zeros_like(logits))
    assert slope(lower.value, near, rewards).norm() < 1e-12
    eigenvalues = torch.linalg.eigvalsh(lower.hessian(near, rewards))
    assert eigenvalues.max() < 0


# Upper levels, unrolling, ascent


def test_preferences_are_weighed_by_what_the_agent_plays():
    mdp, truth, rewards = instance(5)
    lower = EpisodicL2(mdp=mdp, horizon=2, l2=0.05)
    upper = preference_objective(lower, truth)
    logits, expected = rewards, 0.0
    chances, learned, true = lower.probabilities(logits), lower.returns(rewards), lower.returns(truth)
    for i, j in itertools.product(range(36), repeat=2):
        likely = torch.sigmoid(learned[i] - learned[j])
        y = 0.5 if true[i] == true[j] else float(true[i] > true[j])
        expected += chances[i] * chances[j] * (y * likely.log() + (1 - y) * (1 - likely).log())
    torch.testing.assert_close(upper(logits, rewards), expected, rtol=1e-12, atol=0)
    assert upper(logits, truth * 10) > upper(logits, truth) > upper(logits, -truth)


def test_unrolling_from_the_optimum_is_a_truncated_series():
    lower, upper, logits, rewards = solved("utility", 1)
    curvature, mixed = lower.hessian(logits, rewards), lower.mixed(logits)
    _, implicit = implicit_gradient(upper, lower.value, logits, rewards)
    shares = []
    for steps in (1, 10, 100):
        found = unrolled_gradient(upper, lower.value, logits, rewards, steps=steps, step_size=0.5)
        powers = torch.stack(
            [torch.linalg.matrix_power(torch.eye(6).double() + 0.5 * curvature, k) for k in range(steps)]
        )
        expected = 0.5 * mixed.T @ powers.sum(0) @ slope(upper, logits, rewards).flatten()
        torch.testing.assert_close(found.flatten(), expected, rtol=1e-9, atol=1e-12)
        shares.append(float(found.norm() / implicit.norm()))
    assert shares == pytest.approx([0.0526, 0.4076, 0.9851], abs=1e-3)


def test_unrolling_tends_to_the_implicit_gradient_from_elsewhere_too():
    lower, upper, logits, rewards = solved("preferences", 1)
    whole = sum(implicit_gradient(upper, lower.value, logits, rewards))
    errors = [
        float((unrolled_gradient(upper, lower.value, 0 * logits, rewards, steps=k, step_size=1.0) - whole).norm())
        for k in (1, 10, 100, 200)
    ]
    assert errors[0] > 0.1 * float(whole.norm()) and errors[2] < 1e-3 * errors[0] and errors[3] < 1e-6 * errors[0]


def test_the_designer_gains_by_the_implicit_part_alone():
    mdp, truth, _ = instance(2)
    lower = DiscountedEntropy(mdp=mdp, temperature=0.1)

    def utility(logits, _):
        return mdp.discounted_return(logits, truth)

    nothing = torch.zeros_like(truth)
    path = align(utility, lower, nothing, steps=20, learning_rate=0.1)
    gained = [float(utility(*x)) for x in path]
    corners = [
        float(mdp.discounted_return(1e3 * torch.nn.functional.one_hot(torch.tensor(a), 2).double(), truth))
        for a in itertools.product(range(2), repeat=3)
    ]
    assert len(path) == 21
    assert (gained[0], max(corners)) == pytest.approx((6.082, 8.122), abs=1e-3)
    assert max(corners) - 0.05 < gained[-1] < max(corners)
    still = align(utility, lower, nothing, steps=2, learning_rate=0.1, implicit=False)
    assert all(torch.equal(rewards, nothing) for _, rewards in still)

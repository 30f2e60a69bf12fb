"""The unrolled objectives: their gradients against the exact ones of a table, and against steps made by hand."""

import itertools

import pytest
import torch

from aligngym.agents.pbrl.bilevel import EpisodicL2, RewardlessMDP, preference_objective
from aligngym.agents.pbrl.unrolled import gaps, others_mean, returns_to_go, unrolled_actor, unrolled_critic

S, A = 3, 2


def slopes(value, *inputs):
    return torch.autograd.grad(value, inputs)


def test_the_expectation_is_the_formulas():
    r"""alpha C^T grad_theta G, exactly: where all 36 episodes of two steps are equally likely, means over all pairs of
    them are expectations, in either half. A baseline of the others multiplies each by n / (n - 1) there."""
    third = torch.full((S, A, S), 1 / 3).double()
    lower = EpisodicL2(mdp=RewardlessMDP(transitions=third, start=third[0, 0], gamma=1.0), horizon=2, l2=0.0)
    rows = torch.tensor(list(itertools.product(range(36), repeat=2))).flatten().repeat(2)
    rewards, truth = torch.randn(2, S, A, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = (torch.sign(gaps(lower.returns(truth)[rows])) + 1) / 2
    logits, nu = torch.zeros(S, A).double(), rewards.clone().requires_grad_()

    def log_probs(parameters):
        return parameters["logits"].log_softmax(1)[lower.episodes][rows]

    paid = nu[lower.episodes][rows]
    (found,) = slopes(unrolled_actor(log_probs, {"logits": logits}, paid, labels, gamma=1.0, step_size=1e-6), nu)
    theta = logits.clone().requires_grad_()
    (upper,) = slopes(preference_objective(lower, truth)(theta, rewards), theta)
    n, pairs = len(rows) // 2, len(labels) // 2
    expected = 1e-6 * (lower.mixed(logits).T @ upper.flatten()).reshape(S, A) * n / (n - 1) * pairs / (pairs - 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)  # the outer gradient is taken a step further


def test_few_segments_are_right_on_average():
    """Four pairs at a time, drawn anew: what a segment does to itself must not count."""
    third = torch.full((S, A, S), 1 / 3).double()
    lower = EpisodicL2(mdp=RewardlessMDP(transitions=third, start=third[0, 0], gamma=1.0), horizon=2, l2=0.0)
    rewards, truth = torch.randn(2, S, A, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, nu = torch.zeros(S, A).double(), rewards.clone().requires_grad_()
    theta, draws = logits.clone().requires_grad_(), torch.Generator().manual_seed(1)
    (upper,) = slopes(preference_objective(lower, truth)(theta, rewards), theta)
    exact = 1e-6 * lower.mixed(logits).T @ upper.flatten()
    shares = []
    for _ in range(1000):
        rows = torch.randint(36, (8,), generator=draws)
        labels = (torch.sign(gaps(lower.returns(truth)[rows])) + 1) / 2
        value = unrolled_actor(
            lambda p, rows=rows: p["logits"].log_softmax(1)[lower.episodes][rows], {"logits": logits},
            nu[lower.episodes][rows], labels, gamma=1.0, step_size=1e-6,
        )  # fmt: skip
        shares.append(slopes(value, nu)[0].flatten() @ exact / exact.square().sum())
    mean, error = float(torch.stack(shares).mean()), float(torch.stack(shares).std()) / len(shares) ** 0.5
    assert error < 0.3 and abs(mean - 1) < 3 * error


def batch(seed, steps=3, segments=8):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(segments, steps, 2, generator=generator, dtype=torch.float64)
    actions = torch.randn(segments, steps, generator=generator, dtype=torch.float64)
    return inputs, actions, torch.tensor([1.0, 0.0, 0.5, 1.0]).double(), torch.randn(2, generator=generator).double()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_is_that_of_the_unrolled_value(steps):
    """By differences in the rewards, of an actor that is a line; each half is scored after the other's step."""
    inputs, actions, labels, theta = batch(0)

    def log_probs(parameters):
        return -0.5 * (actions - (inputs @ parameters["w"]).tanh()).square()

    rewards = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nu = rewards.clone().requires_grad_()
    options = {"gamma": 0.8, "step_size": 0.1, "steps": steps}
    (found,) = slopes(unrolled_actor(log_probs, {"w": theta}, nu, labels, **options), nu)

    def by_hand(rewards, half):
        togo = torch.stack([rewards[half, t:] @ 0.8 ** torch.arange(3 - t).double() for t in range(3)], 1)
        advantages = togo - torch.stack([torch.cat([togo[:i], togo[i + 1 :]]).mean(0) for i in range(4)])
        w, start = theta.clone().requires_grad_(), log_probs({"w": theta})
        for _ in range(steps):
            objective = ((log_probs({"w": w}) - start)[half].exp() * advantages).sum() / 4
            w = (w + 0.1 * torch.autograd.grad(objective, w)[0]).detach().requires_grad_()
        return log_probs({"w": w.detach()}).sum(1)

    likely = torch.sigmoid(rewards.sum(1)[0::2] - rewards.sum(1)[1::2])
    held = labels * likely.log() + (1 - labels) * (1 - likely).log()
    weights = held - held.reshape(2, 2).flip(1).flatten()  # of two pairs the other one
    first, second = slice(0, 4), slice(4, 8)
    for i, t in itertools.product(range(8), range(3)):
        ends = []
        for sign in (1, -1):
            moved = rewards.clone()
            moved[i, t] += sign * 1e-5
            scores = torch.cat([by_hand(moved, second)[first], by_hand(moved, first)[second]])
            ends.append((weights * scores.reshape(4, 2).sum(1)).mean())
        assert float(found[i, t]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-10)


def test_a_constant_reward_moves_no_gradient():
    """The baselines take it away, also where segments are few."""
    inputs, actions, labels, theta = batch(1)

    def log_probs(parameters):
        return -0.5 * (actions - inputs @ parameters["w"]).square()

    found = []
    for constant in (0.0, 7.0):
        nu = torch.full((8, 3), constant).double().add(actions).requires_grad_()
        found += slopes(unrolled_actor(log_probs, {"w": theta}, nu, labels, gamma=0.9, step_size=0.1), nu)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("count", [0, 5])
def test_the_critics_step_is_adams(count):
    """And the gradient by the rewards that of the step, by differences."""
    generator = torch.Generator().manual_seed(3)
    x, firsts = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (8, 4))
    rewards = torch.randn(8, generator=generator, dtype=torch.float64)
    labels, start = torch.tensor([1.0, 0.0]).double(), [torch.randn(2, generator=generator).double() for _ in range(2)]
    critics = [w.clone().requires_grad_() for w in start]
    optimizer = torch.optim.Adam(critics, lr=0.05)
    for _ in range(count):
        loss = sum((x @ w - 1).square().mean() for w in critics)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    names = {f"w{i}": w for i, w in enumerate(critics)}
    state = optimizer.state
    moments = {
        k: (state[w]["exp_avg"].clone(), state[w]["exp_avg_sq"].clone(), int(state[w]["step"]))
        if count
        else (torch.zeros(2).double(), torch.zeros(2).double(), 0)
        for k, w in names.items()
    }
    frozen = {k: w.detach().clone() for k, w in names.items()}

    def value(rewards):
        return unrolled_critic(
            lambda p: [x @ p["w0"], x @ p["w1"]], lambda p: [firsts @ p["w0"], firsts @ p["w1"]], frozen,
            rewards, labels, step_size=0.05, moments=moments, betas=(0.9, 0.999), epsilon=1e-8,
        )  # fmt: skip

    loss = sum(0.5 * (x @ w - rewards).square().mean() for w in critics)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    expected = 0.0
    for w in critics:
        q = (firsts @ w).detach()
        likely = torch.sigmoid(torch.stack([q[0] - q[1], q[2] - q[3]]))
        expected += (labels * likely.log() + (1 - labels) * (1 - likely).log()).mean()
    assert value(rewards).item() == pytest.approx(expected.item(), rel=1e-9)
    nu = rewards.clone().requires_grad_()
    (found,) = slopes(value(nu), nu)
    for i in range(8):
        move = torch.zeros(8).double()
        move[i] = 1e-6
        difference = (value(rewards + move) - value(rewards - move)).item() / 2e-6
        # Adam's first step is the sign of its gradient: rewards hardly move it.
        assert float(found[i]) == pytest.approx(difference, rel=1e-4, abs=1e-8)
    assert (found.abs().max() > 1e-4) == (count > 0)


def test_a_parameter_without_a_gradient_spoils_nothing():
    """As those of a dead unit: the root of its second moment has no slope."""
    nu, frozen = torch.ones(4).requires_grad_(), {"used": torch.ones(1), "dead": torch.ones(1)}
    value = unrolled_critic(
        lambda p: [(p["used"] + 0 * p["dead"]).expand(4)],
        lambda p: [(p["used"] + p["dead"]) * torch.tensor([1.0, 2.0])],
        frozen,
        nu * torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(1), step_size=0.1,
        moments={k: (torch.zeros(1), torch.zeros(1), 0) for k in frozen}, betas=(0.9, 0.999), epsilon=1e-3,
    )  # fmt: skip
    (found,) = slopes(value, nu)
    assert found.isfinite().all() and found.any()


def test_returns_and_baselines():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]])
    assert returns_to_go(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0], [0.25, 0.5, 1.0]]
    assert others_mean(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
    assert gaps(torch.tensor([5.0, 3.0, 1.0, 4.0])).tolist() == [2.0, -3.0]

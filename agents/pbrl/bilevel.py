r"""Policy alignment as a bilevel problem, solved exactly on tables: PARL (arXiv 2308.02585).

A designer chooses the reward :math:`r_\nu`, an agent answers with its best policy, and the designer is paid by what
that policy does:

.. math::
    \max_\nu G(\nu, \theta^*(\nu)), \qquad \theta^*(\nu) = \arg\max_\theta V(\theta, \nu).

By the implicit function theorem, with :math:`H = \nabla^2_\theta V` and :math:`C = \partial^2 V / \partial\theta
\partial\nu` at the optimum,

.. math::
    \frac{dG}{d\nu} = \underbrace{\partial_\nu G}_{\text{explicit}}
    \underbrace{{} - C^\top H^{-1} \, \partial_\theta G}_{\text{implicit}}.

The implicit part is what the data owe to the reward: other rewards, other policies, other episodes. Policies are
softmax tables :math:`\theta` of logits ``[S, A]``, rewards tables :math:`\nu` ``[S, A]``, all float64. Shifting the
logits of a state changes nothing, so :math:`H` is singular unless the lower level is regularised in :math:`\theta`
itself; conjugate gradients do not mind, as neither :math:`\partial_\theta G` nor :math:`C` has a part in that
direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor, Tensor], Tensor]
"""A scalar of the logits and the rewards, differentiable in both."""
Solver = Literal["cg", "direct"]


@dataclass(frozen=True, kw_only=True)
class RewardlessMDP:
    """A Markov decision process without its rewards.

    Attributes:
        transitions: ``[S, A, S]``, probabilities of the next state.
        start: ``[S]``, probabilities of the first one.
        gamma: discount, in [0, 1]; below 1 where episodes are endless.

    Raises:
        ValueError: for another discount, or probabilities that do not sum to 1.
    """

    transitions: Tensor
    start: Tensor
    gamma: float

    def __post_init__(self) -> None:
        for name in ("transitions", "start"):
            values: Tensor = getattr(self, name)
            total = values.sum(-1)
            if bool((values < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-9):
                raise ValueError(f"{name} holds what is no distribution: its last axis must sum to 1")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}: must be in [0, 1]")

    def require_discount(self) -> None:
        """Raise a ValueError where endless episodes would be worth infinitely much."""
        if self.gamma == 1:
            raise ValueError(f"gamma={self.gamma}: must be below 1 for endless episodes")

    def discounted_return(self, logits: Tensor, rewards: Tensor) -> Tensor:
        """Expected discounted sum of the rewards ``[S, A]`` of endless episodes, by a linear solve."""
        self.require_discount()
        policy = logits.softmax(1)
        step = torch.einsum("sa,sat->st", policy, self.transitions)
        paid = (policy * rewards).sum(1)
        values: Tensor = torch.linalg.solve(torch.eye(len(paid), dtype=paid.dtype) - self.gamma * step, paid)
        return self.start @ values


class LowerLevel(Protocol):
    """What the agent maximises."""

    def value(self, logits: Tensor, rewards: Tensor) -> Tensor:
        """``V``, a scalar."""

    def optimum(self, rewards: Tensor, logits: Tensor) -> Tensor:
        """Logits at which ``V`` is greatest, sought from ``logits`` on."""


@dataclass(frozen=True, kw_only=True)
class DiscountedEntropy:
    """Endless episodes; the agent is also paid ``temperature`` times the entropy of its policy.

    Attributes:
        mdp: where.
        temperature: above 0.
    """

    mdp: RewardlessMDP
    temperature: float

    def __post_init__(self) -> None:
        self.mdp.require_discount()

    def value(self, logits: Tensor, rewards: Tensor) -> Tensor:
        return self.mdp.discounted_return(logits, rewards - self.temperature * logits.log_softmax(1))

    def optimum(self, rewards: Tensor, logits: Tensor) -> Tensor:
        """The soft values over the temperature, by soft value iteration: it needs no start."""
        values = torch.zeros_like(rewards)
        while True:
            best = self.temperature * (values / self.temperature).logsumexp(1)
            new = rewards + self.mdp.gamma * self.mdp.transitions @ best
            if torch.equal(new, values) or float((new - values).abs().max()) < 1e-14 * float(new.abs().max()):
                return new / self.temperature
            values = new


@dataclass(frozen=True, kw_only=True)
class EpisodicL2:
    """Episodes of ``horizon`` steps, all of which are enumerated; logits cost ``l2 / 2`` times their squared norm.

    Attributes:
        mdp: where.
        horizon: steps; there are ``(S A) ** horizon`` episodes.
        l2: above 0, and large enough for ``V`` to be concave where it is greatest.
    """

    mdp: RewardlessMDP
    horizon: int
    l2: float

    @cached_property
    def episodes(self) -> tuple[Tensor, Tensor]:
        """States and actions of all episodes, ``[N, T]`` each."""
        states, actions = self.mdp.transitions.shape[:2]
        steps = torch.cartesian_prod(*[torch.arange(states * actions)] * self.horizon).reshape(-1, self.horizon)
        return steps // actions, steps % actions

    @cached_property
    def dynamics(self) -> Tensor:
        """``[N]``, what the environment contributes to the probability of each."""
        states, actions = self.episodes
        moves = self.mdp.transitions[states[:, :-1], actions[:, :-1], states[:, 1:]]
        return self.mdp.start[states[:, 0]] * moves.prod(1)

    def log_probs(self, logits: Tensor) -> Tensor:
        """``[N, T]`` of the actions."""
        return logits.log_softmax(1)[self.episodes]

    def probabilities(self, logits: Tensor) -> Tensor:
        """``[N]`` of the episodes."""
        return self.dynamics * self.log_probs(logits).sum(1).exp()

    def returns(self, rewards: Tensor) -> Tensor:
        """``[N]``, discounted."""
        return rewards[self.episodes] @ self.discounts

    @cached_property
    def discounts(self) -> Tensor:
        """``[T]``."""
        return self.mdp.gamma ** torch.arange(self.horizon, dtype=torch.float64)

    def value(self, logits: Tensor, rewards: Tensor) -> Tensor:
        return self.probabilities(logits) @ self.returns(rewards) - self.l2 / 2 * logits.square().sum()

    def optimum(self, rewards: Tensor, logits: Tensor) -> Tensor:
        return maximize(self.value, logits, rewards)

    def scores(self, logits: Tensor) -> Tensor:
        """``[N, T, S A]``, gradients of the log-probabilities of the actions by the logits."""
        states, actions = self.episodes
        policy, width = logits.softmax(1), logits.shape[1]
        found = F.one_hot(states * width + actions, logits.numel()).double()
        mean = F.one_hot(states, len(logits)).double()[..., None] * policy
        return found - mean.flatten(2)

    def hessian(self, logits: Tensor, rewards: Tensor) -> Tensor:
        r"""``[S A, S A]``: :math:`E[R\,(s s^\top + \sum_j \nabla^2_\theta \log\pi_j)]` less the regulariser's.

        ``s`` is the sum of an episode's scores. Without ``s s^T`` it is wrong: adding a constant to the rewards,
        which changes nothing for the agent, would change it.
        """
        policy, weights = logits.softmax(1), self.probabilities(logits) * self.returns(rewards)
        total = self.scores(logits).sum(1)
        visits = weights @ F.one_hot(self.episodes[0], len(logits)).double().sum(1)
        curvature = policy[:, :, None] * policy[:, None, :] - torch.diag_embed(policy)
        outer = torch.einsum("n,ni,nj->ij", weights, total, total)
        costs = self.l2 * torch.eye(logits.numel(), dtype=logits.dtype)
        found: Tensor = outer + torch.block_diag(*visits[:, None, None] * curvature) - costs
        return found

    def mixed(self, logits: Tensor) -> Tensor:
        r"""``[S A, S A]``, logits by rewards: :math:`C = E[\sum_h \gamma^h \sum_{j \le h} s_j (\nabla_\nu r_h)^\top]`.

        An action owes nothing to the rewards before it (``j > h``), whose products have mean 0.
        """
        states, actions = self.episodes
        paid = F.one_hot(states * logits.shape[1] + actions, logits.numel()).double() * self.discounts[:, None]
        earlier = self.scores(logits).cumsum(1)
        found: Tensor = torch.einsum("n,nhi,nhj->ij", self.probabilities(logits), earlier, paid)
        return found


def preference_objective(lower: EpisodicL2, truth: Tensor) -> Objective:
    r"""The designer's likelihood of a teacher's answers, on episodes that the agent plays.

    :math:`E_{\tau_0, \tau_1}[y \log P_\nu + (1 - y) \log(1 - P_\nu)]` with :math:`P_\nu = \sigma(R_\nu(\tau_0) -
    R_\nu(\tau_1))`; the teacher's ``y`` is 1 where the first return under the rewards ``truth [S, A]`` is the greater
    one, 0.5 where both are equal. The paper's regulariser of the rewards is left out.
    """
    true = lower.returns(truth)
    labels = (torch.sign(true[:, None] - true) + 1) / 2

    def objective(logits: Tensor, rewards: Tensor) -> Tensor:
        probabilities, returns = lower.probabilities(logits), lower.returns(rewards)
        loss = F.binary_cross_entropy_with_logits(returns[:, None] - returns, labels, reduction="none")
        return -probabilities @ loss @ probabilities

    return objective


def maximize(
    objective: Objective, logits: Tensor, rewards: Tensor, *, tolerance: float = 1e-12, limit: int = 200
) -> Tensor:
    """Logits where the norm of the gradient by them is below ``tolerance``, uphill from ``logits`` by Newton's steps.

    Curvatures count with their absolute value, so that no step goes down, and steps are halved until they gain.

    Raises:
        ValueError: if it takes more than ``limit`` steps.
    """
    for _ in range(limit):
        gradient = _gradient(objective, logits, rewards)[0].flatten()
        if float(gradient.norm()) < tolerance:
            return logits
        curvature, axes = torch.linalg.eigh(_hessian(objective, logits, rewards))
        step = (axes @ (axes.T @ gradient / curvature.abs().clamp(min=1e-9))).reshape(logits.shape)
        least = objective(logits, rewards) - 1e-13  # near the optimum rounding hides what a step gains
        while objective(logits + step, rewards) < least:
            step = step / 2
        logits = logits + step
    raise ValueError(f"no optimum within {limit} steps: a regulariser may be missing")


def implicit_gradient(
    upper: Objective,
    lower: Objective,
    logits: Tensor,
    rewards: Tensor,
    *,
    solver: Solver = "cg",
    damping: float = 0.0,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The two parts of the upper level's gradient by the rewards.

    Args:
        upper: what the designer maximises.
        lower: what the agent maximises.
        logits: ``[S, A]``, where ``lower`` is greatest.
        rewards: ``[S, A]``.
        solver: conjugate gradients on products with the Hessian, or a direct solve with all of it.
        damping: is subtracted from the Hessian's diagonal.
        tolerance: of the lower level's gradient: away from the optimum the formula means nothing.

    Returns:
        explicit and implicit part, ``[S, A]`` each.

    Raises:
        ValueError: for an unknown solver, if ``logits`` are no optimum, or the direct solve is of a singular matrix.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver={solver!r}: must be one of {', '.join(get_args(Solver))}")
    slope = _gradient(lower, logits, rewards)[0].norm()
    if not float(slope) <= tolerance:
        raise ValueError(f"the gradient of the lower level is {float(slope):.2g} there: solve it first")
    outer, explicit = _gradient(upper, logits, rewards)
    theta, nu = logits.detach().requires_grad_(), rewards.detach().requires_grad_()
    (along,) = torch.autograd.grad(lower(theta, nu), theta, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        """Of ``damping - H``, which is not negative at an optimum."""
        (found,) = torch.autograd.grad(along, theta, vector, retain_graph=True)
        return damping * vector - found

    if solver == "cg":
        answer = conjugate_gradients(product, outer)
    else:
        matrix = damping * torch.eye(theta.numel(), dtype=theta.dtype) - _hessian(lower, logits, rewards)
        if float(torch.linalg.cond(matrix)) > 1e12:
            raise ValueError("the Hessian of the lower level is singular: take solver='cg', a damping or a regulariser")
        answer = torch.linalg.solve(matrix, outer.flatten()).reshape(theta.shape)
    (implicit,) = torch.autograd.grad(along, nu, answer)
    return explicit, implicit


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, tolerance: float = 1e-12) -> Tensor:
    """``x`` with ``product(x) = target``, for a symmetric matrix that is not negative; it starts from 0.

    A singular one will do if the target has no part in its kernel; neither has the answer then.
    """
    found, residual = torch.zeros_like(target), target
    direction, size = residual, residual.square().sum()
    for _ in range(2 * target.numel()):  # rounding may cost more than one each
        if float(size.sqrt()) <= tolerance * float(target.norm()):
            break
        image = product(direction)
        share = size / (direction * image).sum()
        found, residual = found + share * direction, residual - share * image
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return found


def unrolled_gradient(
    upper: Objective, lower: Objective, logits: Tensor, rewards: Tensor, *, steps: int, step_size: float
) -> Tensor:
    r"""Gradient ``[S, A]`` of ``upper`` by the rewards, after ``steps`` of gradient ascent from ``logits``.

    The implicit gradient's rival: with more steps it tends to the sum of its two parts. From the optimum on, ``K``
    steps replace :math:`-H^{-1}` by :math:`\alpha \sum_{k < K} (1 + \alpha H)^k`.
    """
    theta, nu = logits.detach().requires_grad_(), rewards.detach().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(lower(theta, nu), theta, create_graph=True)
        theta = theta + step_size * slope
    (found,) = torch.autograd.grad(upper(theta, nu), nu)
    return found


def align(
    upper: Objective,
    lower: LowerLevel,
    rewards: Tensor,
    *,
    steps: int,
    learning_rate: float,
    implicit: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """A-PARL: solve the lower level, ascend the upper one by the rewards, and again.

    Args:
        upper: what the designer maximises.
        lower: what the agent maximises.
        rewards: ``[S, A]`` to start from.
        steps: of the upper level.
        learning_rate: of it.
        implicit: False leaves the implicit part out, as if the policy did not answer.

    Returns:
        logits and rewards before each step and after the last.
    """
    logits, path = torch.zeros_like(rewards), []
    for _ in range(steps + 1):
        logits = lower.optimum(rewards, logits)
        path.append((logits, rewards))
        parts = implicit_gradient(upper, lower.value, logits, rewards)
        rewards = rewards + learning_rate * (sum(parts) if implicit else parts[0])
    return path


def _gradient(objective: Objective, logits: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """By the logits and by the rewards; 0 by what it does not depend on."""
    parts = logits.detach().requires_grad_(), rewards.detach().requires_grad_()
    found = torch.autograd.grad(objective(*parts), parts, materialize_grads=True)
    return found[0], found[1]


def _hessian(objective: Objective, logits: Tensor, rewards: Tensor) -> Tensor:
    """``[S A, S A]`` by the logits."""
    matrix: Tensor = torch.autograd.functional.hessian(lambda x: objective(x, rewards), logits.detach())
    return matrix.reshape(logits.numel(), -1)

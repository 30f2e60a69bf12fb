r"""The implicit part of a preference gradient without a Hessian: through a few steps of the learner, unrolled.

A reward :math:`r_\nu` is fitted to answers about segments :math:`\tau` that the policy :math:`\pi_\theta` played. What
it owes to the policy's answer (PARL, arXiv 2308.02585) is

.. math:: E\big[L_\nu(\tau_0, \tau_1) \textstyle\sum_k \sum_h \nabla_\nu \log \pi_{\theta'(\nu)}(a^k_h | s^k_h)\big],
    \qquad L_\nu = y \log P_\nu + (1 - y) \log (1 - P_\nu),

with the learner's next parameters :math:`\theta'(\nu)` in place of its best ones. The functions here return scalars
whose *gradients* by the reward's parameters are of use; their values mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .reward_training import preference_loss

Parameters = dict[str, Tensor]


def others_mean(values: Tensor) -> Tensor:
    """``[N, ...]``, for each of ``values`` the mean of the others: a baseline that is independent of it; N >= 2."""
    return (values.sum(0) - values) / (len(values) - 1)


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """``[N, L]``, discounted sums of ``rewards [N, L]`` from each step on."""
    total, found = torch.zeros_like(rewards[:, 0]), []
    for step in reversed(rewards.unbind(1)):
        total = step + gamma * total
        found.append(total)
    return torch.stack(found[::-1], 1)


def unrolled_actor(
    log_probs: Callable[[Parameters], Tensor],
    parameters: Mapping[str, Tensor],
    rewards: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    step_size: float,
    steps: int = 1,
) -> Tensor:
    r"""The formula above, with :math:`\theta' = \theta + \alpha \nabla_\theta J(\theta, \nu)`.

    ``J`` is the score-function objective :math:`\sum_t \log\pi_\theta(a_t|s_t) \sum_{h \ge t} \gamma^{h-t} r_\nu(s_h,
    a_h)`, a mean over segments, discounted from each action on; later steps reweigh the actions by their ratios. Both
    expectations have the mean of the other segments or pairs as their baseline, which moves no expectation.

    The gradient is a product of the two expectations, so they are taken over different segments: each half of the pairs
    is scored after the step that the other half says. On the same ones a segment's step would raise its own
    log-probability, by the square of its score, which is no effect on what the policy does next and outweighs the rest.

    Args:
        log_probs: ``[N, L]`` of the actions taken, by parameters.
        parameters: that they were taken with.
        rewards: ``[N, L]``, differentiable; segment ``2 i`` was compared with ``2 i + 1``.
        labels: ``[N / 2]``, the probability that the first one is preferred; four or more.
        gamma: discount of ``J``.
        step_size: :math:`\alpha`.
        steps: of the learner.
    """
    likelihood = -preference_loss(gaps(rewards.sum(1)), labels).detach()
    weights, total = returns_to_go(rewards, gamma), rewards.new_zeros(())
    pairs = torch.arange(len(labels), device=labels.device)
    for scored in (pairs < len(labels) // 2, pairs >= len(labels) // 2):
        rows = scored.repeat_interleave(2)
        moved = _ascend(log_probs, parameters, weights[~rows], ~rows, step_size, steps)
        scores = log_probs(moved)[rows].sum(1).reshape(-1, 2).sum(1)
        total = total + ((likelihood[scored] - others_mean(likelihood[scored])) * scores).sum()
    return total / len(labels)


def _ascend(
    log_probs: Callable[[Parameters], Tensor],
    parameters: Mapping[str, Tensor],
    weights: Tensor,
    rows: Tensor,
    step_size: float,
    steps: int,
) -> Parameters:
    """Parameters after steps of policy gradient on some rows, whose returns to go are ``weights``."""
    advantages = weights - others_mean(weights)
    moved = {k: p.detach().requires_grad_() for k, p in parameters.items()}
    taken = log_probs(moved)[rows].detach()
    for _ in range(steps):
        objective = ((log_probs(moved)[rows] - taken).exp() * advantages).sum(1).mean()
        slopes = torch.autograd.grad(objective, list(moved.values()), create_graph=True)
        moved = {k: p + step_size * slope for (k, p), slope in zip(moved.items(), slopes, strict=True)}
    return moved


def unrolled_critic(
    values: Callable[[Parameters], Sequence[Tensor]],
    firsts: Callable[[Parameters], Sequence[Tensor]],
    parameters: Mapping[str, Tensor],
    targets: Tensor,
    labels: Tensor,
    *,
    step_size: float,
    moments: Mapping[str, tuple[Tensor, Tensor, int]],
    betas: tuple[float, float],
    epsilon: float,
) -> Tensor:
    r"""The critics' likelihood of the answers, after one step of Adam towards targets that hold the reward.

    As in Meta-Reward-Net's code: critics are to value the first step of the preferred segment more.

    Args:
        values: ``[B]`` of a batch of replay, by each critic, by parameters.
        firsts: ``[N]`` of the first steps of segments; ``2 i`` was compared with ``2 i + 1``.
        parameters: of the critics.
        targets: ``[B]``, rewards plus discounted values, differentiable by the rewards.
        labels: ``[N / 2]``, the probability that the first one is preferred.
        step_size: of Adam.
        moments: Adam's two moments of each parameter and its steps so far.
        betas: Adam's.
        epsilon: Adam's.
    """
    start = {k: p.detach().requires_grad_() for k, p in parameters.items()}
    loss = torch.stack([0.5 * (q - targets).square().mean() for q in values(start)]).sum()
    slopes = torch.autograd.grad(loss, list(start.values()), create_graph=True)
    moved = {}
    for (name, parameter), slope in zip(start.items(), slopes, strict=True):
        first, second, count = moments[name]
        first = betas[0] * first + (1 - betas[0]) * slope
        second = betas[1] * second + (1 - betas[1]) * slope.square()
        mean, square = first / (1 - betas[0] ** (count + 1)), second / (1 - betas[1] ** (count + 1))
        # The square root has no derivative at 0, where a unit is dead.
        root = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
        moved[name] = parameter - step_size * mean / (root + epsilon)
    return -torch.stack([preference_loss(gaps(q), labels).mean() for q in firsts(moved)]).sum()


def gaps(scores: Tensor) -> Tensor:
    """``[N / 2]``, each even entry of ``[N]`` less the next one."""
    first, second = scores.reshape(-1, 2).unbind(1)
    return first - second

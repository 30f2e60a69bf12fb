r"""What RePo and Dreamer minimise, and what aligns RePo's encoder with new pictures: pure functions.

RePo (arXiv 2309.00082) asks of the latent state that it tells rewards and can be predicted, and of pictures nothing:

.. math::

   \min_\theta \max_{\beta \ge 0} \; E_q\Big[\sum_t -\log p(r_t | h_t, z_t)
   + \beta \big(D_{KL}(q(z_t | h_t, o_t) \,\|\, p(z_t | h_t)) - \varepsilon\big)\Big].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .rssm import Normal


def gaussian_kl(one: Normal, other: Normal) -> Tensor:
    r""":math:`D_{KL}(one \,\|\, other)` in nats, summed over the last axis."""
    ratio = (one.std / other.std).square()
    distance = ((one.mean - other.mean) / other.std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def balanced_kl(posterior: Normal, prior: Normal, balance: float) -> Tensor:
    """The divergence of the posterior from the prior, of whose gradient a share ``balance`` goes to the prior.

    Its value is the divergence itself whatever the balance. More to the prior makes it learn to predict, where else
    the posterior would be pulled towards a bad prediction.
    """
    to_prior = gaussian_kl(posterior.detach(), prior)
    to_posterior = gaussian_kl(posterior, prior.detach())
    return balance * to_prior + (1 - balance) * to_posterior


def dual_loss(log_beta: Tensor, kl: Tensor, target: float) -> Tensor:
    r"""Whose descent is :math:`\max_\beta` : ``log_beta`` rises while the divergence exceeds its target, else falls."""
    return -log_beta * (kl.detach() - target)


def unit_gaussian_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood under a unit-variance Gaussian but for its constant, of each element."""
    return 0.5 * (prediction - target).square()


def lambda_returns(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    r""":math:`R_t = r_t + \gamma ((1 - \lambda) v_{t+1} + \lambda R_{t+1})`, with :math:`R_T = v_T`.

    Args:
        rewards: ``[B, T]``, of the step from state ``t`` to ``t + 1``.
        values: ``[B, T + 1]``, of the states.
        gamma: discount.
        lam: 0 is one step of temporal difference, 1 the discounted sum with the last value behind it.

    Returns:
        ``[B, T]``.
    """
    found, after = [], values[:, -1]
    for t in reversed(range(rewards.shape[1])):
        after = rewards[:, t] + gamma * ((1 - lam) * values[:, t + 1] + lam * after)
        found.append(after)
    return torch.stack(found[::-1], 1)


def tanh_log_prob(mean: Tensor, std: Tensor, raw: Tensor) -> Tensor:
    """Log-density of ``tanh(raw)``, where ``raw`` is Gaussian; summed over the last axis."""
    gaussian = -0.5 * ((raw - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    stretch = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))  # log(1 - tanh(x)^2), without cancellation
    return (gaussian - stretch).sum(-1)


def support_value(weights: Tensor, source: Tensor, target: Tensor) -> Tensor:
    r""":math:`E_{src}[\tau D] - E_{tgt}[D + D^2 / 4]`, what the critic of a support constraint maximises.

    Over all critics it is the chi-square divergence of :math:`\tau p_{src}` from :math:`p_{tgt}`, reached by
    :math:`D = 2 (\tau p_{src} / p_{tgt} - 1)`. Minimised over the weights, too, it is 0 for every target distribution
    whose support lies within the source's: codes must be ones that the source knows, not as frequent as there.

    Args:
        weights: ``[B]``, tau of source codes, of mean 1.
        source: ``[B]``, the critic there.
        target: ``[C]``, the critic of target codes.
    """
    return (weights * source).mean() - (target + target.square() / 4).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
    """Mean squared norm of the critic's gradient at ``codes [B, E]``."""
    at = codes.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(at).sum(), at, create_graph=True)
    return slope.square().sum(-1).mean()

r"""How far a policy has moved from a reference: estimates from samples, and the exact value for small action sets.

With :math:`d = \log \pi(a) - \log \pi_{ref}(a)` for actions drawn from :math:`\pi` (Schulman 2020, "Approximating KL
divergence"):

====  =======================  =====================================  =============================================
kind  value                    as a value                             expected gradient when used as a loss
====  =======================  =====================================  =============================================
k1    :math:`d`                unbiased, may be negative              0: it pulls the policy nowhere
k2    :math:`d^2 / 2`          biased, >= 0, close when both agree    that of :math:`KL(\pi \| \pi_{ref})`
k3    :math:`e^{-d} - 1 + d`   unbiased, >= 0, less variance          that of :math:`KL(\pi_{ref} \| \pi)`
====  =======================  =====================================  =============================================

So ``k1`` belongs into the reward, where the policy gradient differentiates the sampling as well, and ``k2`` is the loss
whose gradient is that of the divergence usually meant. ``k3`` as a loss (GRPO) pulls in the other direction. These
gradients hold on-policy; after several updates on the same samples they are approximations. Never use both a penalty
in the reward and a loss: the divergence would count twice.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

KLEstimate = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, kind: KLEstimate) -> Tensor:
    r"""Estimate of :math:`KL(\pi \| \pi_{ref})` at every action; differentiable in ``log_probs``.

    Args:
        log_probs: ``[B, T]`` float, of actions drawn from the policy, under the policy.
        reference_log_probs: ``[B, T]`` float, of the same actions under the reference.
        kind: see the table of this module.

    Returns:
        ``[B, T]`` in nats.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    difference = log_probs - reference_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(KLEstimate))}")


@torch.no_grad()
def kl_reward_penalty(
    rewards: Tensor,
    log_probs: Tensor,
    reference_log_probs: Tensor,
    mask: Tensor,
    beta: float,
    kind: KLEstimate = "k1",
) -> Tensor:
    r"""Rewards less the divergence paid at each decision, :math:`r_t - \beta k_t`; without gradient.

    Args:
        rewards: ``[B, T]`` float.
        log_probs: ``[B, T]`` float, those recorded when the actions were drawn, not those of a later update.
        reference_log_probs: ``[B, T]`` float.
        mask: ``[B, T]`` bool, True where the policy chose the action; elsewhere nothing is paid.
        beta: strength, >= 0.
        kind: the estimate, usually ``k1``.

    Returns:
        ``[B, T]``.
    """
    return rewards - beta * kl_estimate(log_probs, reference_log_probs, kind).where(mask, 0.0)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: Tensor, divisor: float = 1.0) -> Tensor:
    r"""Exact :math:`KL(N(\mu, S^2 I) \| N(\mu_{ref}, S^2 I)) = \|\mu - \mu_{ref}\|^2 / (2 S^2)`; differentiable.

    For a step of a flow's SDE, :math:`\mu - \mu_{ref} = b_k (v - v_{ref})` with
    :math:`b_k = -h (1 + \sigma^2 (1 - t) / (2t))` and :math:`S = \sigma\sqrt h`, which gives Flow-GRPO's

    .. math:: \frac h2 \left(\frac{\sigma (1 - t)}{2t} + \frac1\sigma\right)^2 \|v - v_{ref}\|^2

    Its code divides by :math:`2\sigma^2` instead, which is :math:`h` times this, and takes the mean over all :math:`d`
    dimensions, in the log-probabilities too. On equal steps a weight :math:`\beta` there is :math:`\beta h` here with
    means (``divisor=d``). With sums (``divisor=1``) this term is :math:`d` times larger, and so is the gradient of the
    ratio: :math:`\beta h` keeps their balance, :math:`\beta h / d` the value of this term alone.

    Args:
        mean: ``[B, T, ...]`` float.
        reference_mean: ``[B, T, ...]`` float.
        std: ``[B, T]`` float, shared by both; the divergence counts as 0 where it is 0.
        divisor: number that the sum over dimensions is divided by.

    Returns:
        ``[B, T]`` in nats (times 1 / ``divisor``).
    """
    squares = (mean - reference_mean).square().flatten(2).sum(2)
    drawn = std > 0
    return (squares / (2 * std.where(drawn, 1.0).square()) / divisor).where(drawn, 0.0)


def categorical_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Exact :math:`KL(p \| q) = \sum_a p_a (\log p_a - \log q_a)` of categorical distributions; differentiable.

    Args:
        logits_p: ``[..., K]`` float, ``-inf`` for impossible actions.
        logits_q: ``[..., K]`` float; ``inf`` results where ``p`` allows what ``q`` does not.

    Returns:
        ``[...]`` in nats.
    """
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    # An action of probability 0 contributes 0; the subtraction alone would give -inf - -inf = NaN.
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)).sum(-1)

"""What a policy-gradient agent minimises: importance ratios, clipped losses and how positions are averaged.

Every function maps ``[B, T]`` to ``[B, T]``; a loss is ``(values * aggregation_weights(mask, ...)).sum()``. The weights
are computed once over a minibatch, hence the loss and its gradient do not depend on how it is split into micro-batches.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence", "normalized"]
ClipForm = Literal["pessimistic", "clamp"]
StepWeights = Literal["uniform", "noise", "inverse_step"]
Aggregation = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"]

MAX_LOG_RATIO = 20.0


def log_ratios(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    r"""Log importance ratio of every decision; differentiable in ``log_probs``.

    - ``token``: :math:`\ell_t = \log \pi(a_t) - \log \pi_{old}(a_t)`, PPO and GRPO.
    - ``sequence``: :math:`\sum_t \ell_t` at every position, RLOO.
    - ``normalized``: :math:`\frac{1}{|y|} \sum_t \ell_t`, GSPO (Zheng et al. 2025, arXiv:2507.18071), in its token form
      :math:`sg[s] + \log \pi(a_t) - sg[\log \pi(a_t)]`. Its value is :math:`s` at every position, and averaged with
      ``sequence_mean_token_mean`` its gradient is that of :math:`s` for advantages that are equal along a row.

    ``sequence`` repeats one number along a row: with ``sequence_mean_token_mean`` it counts once, with the other
    aggregations once a token.

    Args:
        log_probs: ``[B, T]`` float, under the current parameters.
        old_log_probs: ``[B, T]`` float, recorded when the actions were drawn.
        mask: ``[B, T]`` bool.
        level: which of the above.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ValueError: if ``level`` is unknown.
    """
    difference = (log_probs - old_log_probs.detach()).where(mask, 0.0)
    if level == "token":
        return difference
    if level == "sequence":
        return difference.sum(1, keepdim=True) * mask
    if level == "normalized":
        mean = difference.detach().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return mean * mask + (difference - difference.detach())
    raise ValueError(f"level is {level!r}, expected one of {', '.join(get_args(RatioLevel))}")


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    form: ClipForm = "pessimistic",
) -> tuple[Tensor, Tensor]:
    r"""PPO's pessimistic policy loss (Schulman et al. 2017, arXiv:1707.06347).

    .. math:: \max(-A \rho, -A\, \mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high})), \quad \rho = e^{\ell}

    Unequal bounds are DAPO's clip-higher (Yu et al. 2025, arXiv:2503.14476); ``clip_low = clip_high = inf`` clips
    nothing. ``dual_clip`` caps the loss of negative advantages at :math:`-A c` (Ye et al. 2020, arXiv:1912.09729).
    ``form="clamp"`` is DPOK's :math:`-A\, \mathrm{clip}(\rho)` (Fan et al. 2023, arXiv:2305.16381), no maximum:
    a ratio outside the bounds stays stuck there, on whichever side of them the advantage would have it.

    Deviation: a log-ratio above 20 counts as 20, as in verl, since the infinite gradient of an overflowing
    exponential turns into NaN even where the clip discards it.

    Args:
        log_ratio: ``[B, T]`` float, see :func:`log_ratios`.
        advantages: ``[B, T]`` or broadcastable to it.
        clip_low: how far below 1 the ratio may count, >= 0, usually 0.2 (GSPO: 3e-4).
        clip_high: how far above 1, >= 0.
        dual_clip: ``c`` > 1, usually 3, or None.
        form: whether the clip binds only where it makes the loss larger, or always.

    Returns:
        the loss and a bool tensor that is True where a clip binds and the gradient is 0, each ``[B, T]``.

    Raises:
        ValueError: if a bound is negative or ``dual_clip`` is not greater than 1.
    """
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must be at least 0, got {clip_low} and {clip_high}")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected a number greater than 1 or None")
    advantages = advantages.detach().expand_as(log_ratio)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    # Masks rather than max and min: at a tie those split the gradient over both arguments.
    bound = torch.where(advantages > 0, ratio.new_tensor(1 + clip_high), ratio.new_tensor(1 - clip_low))
    clipped = torch.where(advantages > 0, ratio > bound, (ratio < bound) & (advantages < 0)).detach()
    if form == "clamp":
        bound = ratio.detach().clamp(1 - clip_low, 1 + clip_high)
        clipped = (ratio.detach() != bound) & (advantages != 0)
    loss = -advantages * torch.where(clipped, bound, ratio)
    if dual_clip is not None:
        capped = (advantages < 0) & (ratio.detach() > dual_clip)
        loss, clipped = torch.where(capped, -advantages * dual_clip, loss), clipped | capped
    return loss, clipped


def guard_log_ratio(log_ratio: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor, divisor: float = 1.0) -> Tensor:
    r"""GRPO-Guard's normalised log-ratio of Gaussian decisions (Wang et al. 2025, arXiv:2510.22319).

    .. math:: \log \hat\rho = S \left(\log\rho + \frac{\|\mu - \mu_{old}\|^2}{2 S^2}\right)
        = \epsilon \cdot (\mu - \mu_{old})

    with :math:`\epsilon` the noise that was drawn. :math:`E[\log\rho] = -\|\mu - \mu_{old}\|^2 / 2S^2` is below 0, so
    that good samples hardly ever reach the upper clip; the expectation of :math:`\log\hat\rho` is 0 at every step.
    It is closer to 0 by the factor ``S``: clip ranges are smaller than those of the plain ratio.

    Args:
        log_ratio: ``[B, T]`` float, of each decision.
        mean: ``[B, T, ...]`` under the current parameters; its gradient belongs to the ratio.
        old_mean: ``[B, T, ...]`` when the actions were drawn.
        std: ``[B, T]``; where it is 0 the result is 0.
        divisor: of the sums over dimensions, the same as in the log-probabilities.

    Returns:
        ``[B, T]``.
    """
    drawn = std > 0
    shift = (mean - old_mean.detach()).square().flatten(2).sum(2) / divisor
    return (std * (log_ratio + shift / (2 * std.where(drawn, 1.0).square()))).where(drawn, 0.0)


def step_weights(kind: StepWeights, noise_weight: Tensor | None, step_size: Tensor | None, mask: Tensor) -> Tensor:
    r"""Weight of each denoising step in the policy loss, ``[B, T]``.

    - ``uniform``: 1.
    - ``noise``: :math:`w_t = S_t / \mathrm{mean}_t S_t`, TempFlow-GRPO (arXiv:2508.04324): the plain gradient's scale
      :math:`\|\partial\mu / \partial v\| / S` is large at late steps; times ``S`` it is level.
    - ``inverse_step``: :math:`1 / h`, GRPO-Guard's gradient reweighting.

    Args:
        kind: which of the above.
        noise_weight: ``[B, T]`` :math:`w_t`, of Gaussian decisions; else None.
        step_size: ``[B, T]`` :math:`h`, of flows; else None.
        mask: ``[B, T]`` bool; other positions get 0.

    Raises:
        ValueError: if the decisions have none of what ``kind`` needs.
    """
    if kind == "uniform":
        return mask.to(torch.get_default_dtype())
    found = noise_weight if kind == "noise" else step_size
    if found is None:
        needed = "a Gaussian denoising policy" if kind == "noise" else "a flow model, whose steps have a length"
        raise ValueError(f"step_weights={kind!r} needs {needed}")
    return (found if kind == "noise" else 1 / found.where(mask, 1.0)).where(mask, 0.0)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = None) -> Tensor:
    r"""Half squared error of the critic, by PPO's pessimistic clipping if ``clip`` is given.

    .. math:: \tfrac12 \max((V - G)^2, (V_{old} + \mathrm{clip}(V - V_{old}, -\epsilon, \epsilon) - G)^2)

    Args:
        values: ``[B, T]`` float, differentiable.
        old_values: ``[B, T]`` float, those that the returns were computed from.
        returns: ``[B, T]`` float, the targets; not whitened.
        clip: :math:`\epsilon` > 0 in the unit of the returns, or None.

    Returns:
        ``[B, T]``.

    Raises:
        ValueError: if ``clip`` is not positive.
    """
    error = (values - returns.detach()).square()
    if clip is None:
        return error / 2
    if clip <= 0:
        raise ValueError(f"clip is {clip}, expected a number greater than 0 or None")
    near = old_values.detach() + (values - old_values.detach()).clamp(-clip, clip)
    return torch.maximum(error, (near - returns.detach()).square()) / 2


def aggregation_weights(mask: Tensor, kind: Aggregation, horizon: int) -> Tensor:
    r"""Weight of every position in a loss, ``loss = (values * weights).sum()``.

    With :math:`N` rows that hold at least one decision and :math:`|y_i|` decisions in row ``i``:

    - ``token_mean``: :math:`1 / \sum_i |y_i|`, DAPO.
    - ``sequence_mean_token_mean``: :math:`1 / (N |y_i|)`, GRPO and GSPO.
    - ``sequence_mean_token_sum``: :math:`1 / N`.
    - ``constant``: :math:`1 / (N \cdot horizon)`, Dr. GRPO: no bias by length.

    They differ whenever lengths do. Compute them over the whole minibatch and slice them with its rows.

    Args:
        mask: ``[B, T]`` bool.
        kind: which of the above.
        horizon: the most decisions an episode can have, >= 1; read by ``constant`` only.

    Returns:
        ``[B, T]`` float, 0 where the mask is False; a row without decisions counts nowhere.

    Raises:
        ValueError: if ``kind`` is unknown or ``horizon`` is less than 1.
    """
    if kind not in get_args(Aggregation):
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(Aggregation))}")
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, expected at least 1")
    weights = mask.to(torch.get_default_dtype())
    lengths = weights.sum(1, keepdim=True)
    if kind == "token_mean":
        return weights / lengths.sum().clamp(min=1)
    if kind == "sequence_mean_token_mean":
        weights = weights / lengths.clamp(min=1)
    elif kind == "constant":
        weights = weights / horizon
    return weights / (lengths > 0).sum().clamp(min=1)

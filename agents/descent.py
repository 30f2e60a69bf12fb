"""One step of an optimiser on the gradient of a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, max_grad_norm: float | None = None, allow_unused: bool = False
) -> None:
    """Step down a loss by the optimiser's own parameters, with fewer calls than ``zero_grad`` and ``backward``.

    No other parameter gets a gradient.

    Args:
        optimizer: whose parameters move.
        loss: scalar.
        max_grad_norm: the gradient is scaled down to this norm; None leaves it.
        allow_unused: parameters that the loss does not depend on stay as they are; otherwise torch raises.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=allow_unused)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=True)
    optimizer.step()

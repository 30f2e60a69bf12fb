"""Several perceptrons of one shape, evaluated as one: critics of which the lowest estimate counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Critics(nn.Module):
    """``members`` perceptrons with ReLU and one output each, in batched products.

    Weights are orthogonal with gain sqrt 2, biases 0, as in IQL's code.

    Args:
        inputs: features.
        hidden: widths of the hidden layers, at least one.
        members: how many.
        generator: source of the initial weights.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], members: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise([inputs, *hidden, 1]):
            weight = torch.empty(members, fan_in, fan_out)
            for own in weight:
                nn.init.orthogonal_(own, math.sqrt(2), generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, fan_out)))

    def forward(self, features: Tensor) -> Tensor:
        """``[members, N]`` values of ``features [N, F]``."""
        *weights, last = self.weights
        *biases, offset = self.biases
        values: Tensor = features.expand(len(last), -1, -1)
        for weight, bias in zip(weights, biases, strict=True):
            values = torch.baddbmm(bias, values, weight).relu_()
        # A batched product with one column is many times slower than this sum.
        estimates: Tensor = (values * last.mT).sum(-1) + offset[..., 0]
        return estimates

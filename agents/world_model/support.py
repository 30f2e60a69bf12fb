r"""New codes within the support of old ones: the critic, the weights and the two multipliers of RePo's alignment.

Target codes shall be ones that the source knows, however often (:func:`.objectives.support_value`): a critic tells
where they are not, and weights of the source's codes, of mean 1, fit those to the target's as well as they can.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .objectives import gaussian_kl, gradient_penalty, support_value
from .rssm import MIN_STD, Normal

BOTTLENECK = 64


class Critic(nn.Module):
    """A variational bottleneck: from a code to a Gaussian, and from what is drawn of it to a number.

    Args:
        codes: numbers of a code.
        width: of its hidden layers.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.encoder, self.last = leaky_mlp(codes, width, 2 * BOTTLENECK), nn.Linear(BOTTLENECK, 1)

    def bottleneck(self, codes: Tensor) -> Normal:
        """``[B, 64]``, what it lets through of codes ``[B, E]``."""
        mean, std = self.encoder(codes).chunk(2, -1)
        return Normal(mean, nn.functional.softplus(std) + MIN_STD)

    def forward(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values ``[B]`` and nats ``[B]`` let through; ``noise [B, 64]``: None takes the means."""
        through = self.bottleneck(codes)
        unit = Normal(torch.zeros_like(through.mean), torch.ones_like(through.std))
        inner = through.mean if noise is None else through.sample(noise)
        return self.last(inner).squeeze(-1), gaussian_kl(through, unit)


def leaky_mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Four hidden layers with leaky ReLUs."""
    sizes = [inputs, *[width] * 4]
    hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.LeakyReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class SupportConstraint(nn.Module):
    """Critic, weights and multipliers.

    Args:
        codes: numbers of a code.
        width: of all hidden layers.
        options: :class:`~aligngym.agents.repo_alignment.RePoAlignmentConfig`.

    Attributes:
        nats_multiplier: of the limit on what the critic's bottleneck lets through, at least 0.
        mean_multiplier: of the weights' mean being 1.
    """

    nats_multiplier: Tensor
    mean_multiplier: Tensor

    def __init__(self, codes: int, width: int, options: Any) -> None:
        super().__init__()
        self.options = options
        self.critic, self.log_weights = Critic(codes, width), leaky_mlp(codes, width, 1)
        self.register_buffer("nats_multiplier", torch.tensor(options.initial_nats_multiplier))
        self.register_buffer("mean_multiplier", torch.tensor(options.initial_mean_multiplier))

    def weights(self, codes: Tensor) -> Tensor:
        """The weights of source codes, ``[B]``."""
        return self.log_weights(codes).squeeze(-1).exp()  # type: ignore[no-any-return]

    def critic_loss(self, source: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critic minimises.

        Args:
            source: ``[B, E]`` codes.
            target: ``[C, E]`` codes.
            noise: ``[B + C, 64]``.
        """
        values, nats = self.critic(torch.cat([source, target]).detach(), noise)
        ours, theirs = values.split([len(source), len(target)])
        value = support_value(self.weights(source).detach(), ours, theirs)
        excess = nats.mean() - self.options.nats_target
        penalty = gradient_penalty(lambda codes: self.critic(codes)[0], source)
        loss = self.nats_multiplier * excess - value + self.options.penalty_coef * penalty
        return loss, {"support": value.detach(), "nats": nats.mean().detach(), "penalty": penalty.detach()}

    def weights_loss(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What the weights minimise, and by how much their mean exceeds 1."""
        weights = self.weights(source)
        excess = weights.mean() - 1
        with torch.no_grad():
            values, _ = self.critic(source)
        return (weights * values).mean() + self.mean_multiplier * excess, excess.detach()

    def target_loss(self, target: Tensor) -> Tensor:
        """What target codes minimise: the part of the support's value that is theirs."""
        values, _ = self.critic(target)
        none = values.new_zeros(1)
        return support_value(none, none, values)

    @torch.no_grad()
    def ascend(self, nats: Tensor, excess: Tensor) -> None:
        """Both multipliers by a step of gradient ascent."""
        step = self.options.multiplier_step
        self.nats_multiplier.add_(step * (nats - self.options.nats_target)).clamp_(min=0)
        self.mean_multiplier.add_(step * excess)

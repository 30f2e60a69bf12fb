r"""RL guidance: at inference, go further from a base model towards, or past, the model that was tuned from it.

.. math:: out = out_{base} + w\,(out_{tuned} - out_{base})

If tuning ended near :math:`p_{base} \exp(R / \beta)`, then :math:`p_{base}^{1-w} p_{tuned}^w` is near
:math:`p_{base} \exp(w R / \beta)`: ``w`` divides the strength of the KL penalty, without training. Method:
reinforcement learning guidance (RLG), the rule of classifier-free guidance between two models.

That is exact only where tuning shifts the distribution and leaves its covariance alone (a linear reward on a Gaussian).
Elsewhere the geometric mean of the *noised* densities, which is what mixing outputs samples from, is not the noised
geometric mean, and the guided model overshoots ``w`` (or undershoots, for ``w`` below 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .denoiser import Condition, Denoiser
from .denoiser_policy import DenoiserPolicy
from .samplers import NoiseGrid


class RLGuidedDenoiser(Denoiser):
    """Two networks whose outputs are mixed; ``scale`` 0 and 1 evaluate one of them only, and give its very output.

    Classifier-free guidance :math:`u + g (c - u)` is linear in the networks' outputs, as this mixture is: mixing first
    and guiding the mixture equals guiding both at the same ``g`` and mixing then, which is how RLG is defined.

    Args:
        base: the network before tuning.
        tuned: the network after.
        scale: w, at least 0; 0 is ``base``, 1 ``tuned``. 1 to 3 are usual; large ones oversaturate.

    Raises:
        ValueError: if the networks differ in kind, prediction or shape, or ``scale`` is out of range.
    """

    def __init__(self, base: Denoiser, tuned: Denoiser, scale: float = 2.0) -> None:
        super().__init__()
        for name in ("kind", "prediction", "shape"):
            if (one := getattr(base, name)) != (other := getattr(tuned, name)):
                raise ValueError(
                    f"base has {name} {one!r}, but tuned {other!r}: outputs mix only where they mean the same"
                )
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"scale is {scale}, expected a number of at least 0")
        self.base, self.tuned, self.scale = base, tuned, scale
        self.kind, self.prediction, self.shape = base.kind, base.prediction, base.shape
        self.min_rows = max(base.min_rows, tuned.min_rows)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Both networks' conditions: text encoders of their own may differ."""
        parts = {"base": self.base.encode(prompts), "tuned": self.tuned.encode(prompts)}
        return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.scale == 1:
            return self._run("tuned", x, t, condition)
        base = self._run("base", x, t, condition)
        return base if self.scale == 0 else base + self.scale * (self._run("tuned", x, t, condition) - base)

    def _run(self, name: str, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        own = {k.removeprefix(f"{name}."): v for k, v in condition.items() if k.startswith(f"{name}.")}
        out: Tensor = getattr(self, name)(x, t, own)
        return out

    def grid(self, num_steps: int) -> NoiseGrid:
        """The grid of both.

        Raises:
            ValueError: if they differ: an output means something else at another level of noise.
        """
        grid, other = self.base.grid(num_steps), self.tuned.grid(num_steps)
        if not (torch.equal(grid.levels, other.levels) and torch.equal(grid.times, other.times)):
            raise ValueError(f"base and tuned differ in the noise levels of {num_steps} steps: they cannot be mixed")
        return grid

    def decode(self, x: Tensor) -> list[np.ndarray]:
        return self.tuned.decode(x)


def rl_guided(base_policy: DenoiserPolicy, tuned_policy: DenoiserPolicy, scale: float = 2.0) -> DenoiserPolicy:
    """A policy that samples as ``tuned_policy`` does, from the mixture of both networks; it shares their tensors.

    Args:
        base_policy: around the network before tuning.
        tuned_policy: around the network after.
        scale: see :class:`RLGuidedDenoiser`.

    Raises:
        ValueError: if the policies sample with different settings (guidance among them), or the networks do not fit.
    """
    if base_policy.sampling != tuned_policy.sampling:
        raise ValueError(
            f"base_policy samples with {base_policy.sampling}, but tuned_policy with {tuned_policy.sampling}: "
            "give both the same"
        )
    return DenoiserPolicy(
        RLGuidedDenoiser(base_policy.denoiser, tuned_policy.denoiser, scale),
        **tuned_policy.sampling,
        log_prob=tuned_policy.log_prob,
        autocast=tuned_policy.autocast,
        batch_size=tuned_policy.batch_size,
    )

"""Diffusion and flow networks as a sampler sees them, and where they come from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ..randomness import seeded
from .samplers import Kind, NoiseGrid, Prediction

__all__ = ["Condition", "Critic", "Denoiser", "NoiseGrid", "denoiser_classes", "load_denoiser"]

Condition = dict[str, Tensor]
"""What a network is told of the prompts: tensors with the batch as their leading axis."""


class Denoiser(nn.Module, ABC):
    """A diffusion or flow network as a sampler sees it.

    Attributes:
        kind: ``diffusion`` or ``flow``.
        prediction: what ``forward`` returns.
        shape: of one state ``x_t``.
        min_rows: smaller batches are padded to so many rows. Kernels add up in another order for tiny batches; where
            padding makes a row independent of its batch, scoring repeats sampling bit for bit.
        has_adapters: whether :meth:`adapters_off` gives back the initial network.
    """

    kind: Kind
    prediction: Prediction
    shape: tuple[int, ...]
    min_rows: int = 1
    has_adapters: bool = False

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of each prompt, which no trained parameter moves; "" is the unconditional one."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction ``[B, *shape]`` float32 at states ``x [B, *shape]`` and times ``t [B]``, differentiable."""

    @abstractmethod
    def grid(self, num_steps: int) -> NoiseGrid:
        """Times and noise levels of a sampling run."""

    def decode(self, x: Tensor) -> list[np.ndarray]:
        """Final states ``[B, 3, H, W]`` in [-1, 1] as images, uint8 ``[H, W, 3]``."""
        pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        return list(pixels.movedim(1, -1).numpy())

    def adapters_off(self) -> AbstractContextManager[Any]:
        """The initial network, by switching off the adapters that are trained."""
        raise TypeError(f"{type(self).__name__} has no adapters to switch off")

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which :meth:`from_spec` rebuilds the network around saved tensors."""
        raise TypeError(f"{type(self).__name__} has no spec: pass the policy as load(folder, policy=...)")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`spec`, but for the values of the parameters."""
        return cls(**spec)


class Critic(nn.Module):
    """Value of a state: convolutions over an image, or a perceptron, with the time and the prompt.

    Deviation from DPOK, whose value network reads CLIP features of the prompt: here a prompt is known by its hash, as
    one of 4,096 learned vectors, which serves the prompts of training and starts at the mean for others.

    Args:
        shape: of a state; three axes are an image ``[C, H, W]``.
        seed: of the initial weights.
        width: of the layers.
    """

    PROMPTS = 4096

    def __init__(self, shape: Sequence[int], seed: int = 0, width: int = 64) -> None:
        super().__init__()
        self.image = len(shape) == 3
        with seeded(seed):
            if self.image:
                self.body: nn.Module = nn.Sequential(
                    nn.Conv2d(shape[0], width // 2, 3, stride=2, padding=1), nn.SiLU(),
                    nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.SiLU(),
                    nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU(),
                    nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                )  # fmt: skip
            else:
                self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4 * width), nn.SiLU())
            self.head = nn.Sequential(nn.Linear(5 * width + 1, width), nn.SiLU(), nn.Linear(width, 1))
            self.prompts = nn.Embedding(self.PROMPTS, width)
        nn.init.zeros_(self.prompts.weight)

    def forward(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """Values ``[N]`` of states ``x [N, *shape]`` at ``t [N]`` in [0, 1], the share of steps taken."""
        numbers = torch.tensor([crc32(p.encode()) % self.PROMPTS for p in prompts], device=x.device)
        return self.head(torch.cat([self.body(x), t[:, None].to(x), self.prompts(numbers)], 1))[:, 0]  # type: ignore[no-any-return]


def load_denoiser(name: str | Path) -> Denoiser:
    """A model of this package's format, or, where there is none of that name, a diffusers pipeline.

    Raises:
        OSError: if there is neither.
    """
    from ...assets import model_path
    from .caption_unet import CONFIG, CaptionUNet

    folder = Path(model_path(str(name)))
    if (folder / CONFIG).is_file() and not (folder / "model_index.json").is_file():
        return CaptionUNet.from_pretrained(folder)
    from .pipeline_denoiser import PipelineDenoiser

    return PipelineDenoiser.from_pretrained(str(name))


def denoiser_classes() -> list[type[Denoiser]]:
    """Those that checkpoints may name."""
    from .caption_unet import CaptionUNet
    from .pipeline_denoiser import PipelineDenoiser

    return [CaptionUNet, PipelineDenoiser]

"""Encoders, decoders and heads of world models, for pictures and for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

KERNEL, STRIDE = 4, 2


class MLP(nn.Sequential):
    """Layers of equal width with ELUs between, as Dreamer's heads have; one output is given without its axis.

    Args:
        inputs: numbers that go in.
        width: of the hidden layers.
        layers: how many of these.
        outputs: numbers that come out.
    """

    def __init__(self, inputs: int, width: int, layers: int, outputs: int) -> None:
        sizes = [inputs, *[width] * layers]
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ELU())]
        super().__init__(*hidden, nn.Linear(sizes[-1], outputs))
        self.outputs = outputs

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return found.squeeze(-1) if self.outputs == 1 else found


def image_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width before the first convolution and after each; there are as many as fit.

    Raises:
        ValueError: for pictures in which none fits.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) >= KERNEL:
        sizes.append(tuple((n - KERNEL) // STRIDE + 1 for n in sizes[-1]))  # type: ignore[arg-type]
    if len(sizes) == 1:
        raise ValueError(f"pictures are {height} x {width}, expected at least {KERNEL} x {KERNEL}")
    return sizes


def normalized(observation: Tensor) -> Tensor:
    """Pictures ``uint8`` as numbers in [-1, 1]; vectors as they are."""
    return observation.float() / 127.5 - 1 if observation.dtype == torch.uint8 else observation.float()


class ImageEncoder(nn.Module):
    """Convolutions of kernel 4 and stride 2, each twice as deep as the one before: four of them for 64 x 64.

    A linear layer follows if what they give has not ``embedding`` numbers: 1024 for 64 x 64 and depth 32.

    Args:
        shape: height, width, channels.
        embedding: numbers of the result.
        depth: channels of the first layer.
    """

    def __init__(self, shape: Sequence[int], embedding: int, depth: int) -> None:
        super().__init__()
        sizes, channels = image_sizes(*shape[:2]), shape[2]
        layers: list[nn.Module] = []
        for i in range(len(sizes) - 1):
            layers += [nn.Conv2d(channels, depth << i, KERNEL, STRIDE), nn.ReLU()]
            channels = depth << i
        self.layers, flat = nn.Sequential(*layers), channels * math.prod(sizes[-1])
        self.last = nn.Linear(flat, embedding) if flat != embedding else nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        """``[..., H, W, C]`` in [-1, 1] to ``[..., E]``."""
        batch = pictures.shape[:-3]
        found = self.layers(pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1))
        return self.last(found.flatten(1)).reshape(*batch, -1)  # type: ignore[no-any-return]


class ImageDecoder(nn.Module):
    """The encoder's convolutions, transposed and in the other order, after a linear layer.

    Args:
        features: numbers that go in.
        shape: height, width, channels.
        depth: that of the encoder.
    """

    def __init__(self, features: int, shape: Sequence[int], depth: int) -> None:
        super().__init__()
        sizes = image_sizes(*shape[:2])
        count = len(sizes) - 1
        channels = depth << (count - 1)
        self.start = channels, *sizes[-1]
        self.first = nn.Linear(features, math.prod(self.start))
        layers: list[nn.Module] = []
        for i in reversed(range(count)):
            after = depth << (i - 1) if i else shape[2]
            # A convolution that left a row out must get it back.
            small, large = sizes[i + 1], sizes[i]
            missing = large[0] - (STRIDE * small[0] + KERNEL - STRIDE), large[1] - (STRIDE * small[1] + KERNEL - STRIDE)
            layers += [nn.ReLU(), nn.ConvTranspose2d(channels, after, KERNEL, STRIDE, output_padding=missing)]
            channels = after
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """``[..., F]`` to ``[..., H, W, C]``."""
        batch = features.shape[:-1]
        found = self.layers(self.first(features.flatten(0, -2)).reshape(-1, *self.start))
        return found.movedim(1, -1).reshape(*batch, *found.shape[2:], found.shape[1])  # type: ignore[no-any-return]


def make_encoder(shape: Sequence[int], embedding: int, depth: int, width: int) -> nn.Module:
    """Convolutions for ``[H, W, C]``, two hidden layers for ``[D]``."""
    return ImageEncoder(shape, embedding, depth) if len(shape) == 3 else MLP(shape[0], width, 2, embedding)


def make_decoder(features: int, shape: Sequence[int], depth: int, width: int) -> nn.Module:
    """Its counterpart."""
    return ImageDecoder(features, shape, depth) if len(shape) == 3 else MLP(features, width, 2, shape[0])

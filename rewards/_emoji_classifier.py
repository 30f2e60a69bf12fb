"""The network of the image classifier. It needs torch, so it is imported when a classifier is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class EmojiClassifier(nn.Module):
    """A residual network on small RGB images with an output of its own, a logit, for each of many words.

    Each 2x2 block of pixels is folded into the channels; two residual blocks at a half and a quarter of the size and a
    strided convolution follow (He et al. 2016, with batch normalisation), and the mean over the positions is the
    feature vector. The embedded one has 0.42 million parameters.

    Args:
        words: What the outputs stand for; an entry of several words ("hot dog") is read as a whole.
        size: Height and width of the images, divisible by 8.
        channels: Widths of the three levels; the last is the number of features.
        mean: Subtracted from pixels in [0, 1], a number a channel.
        std: What they are divided by then.
    """

    def __init__(
        self,
        words: Sequence[str],
        size: int = 32,
        channels: Sequence[int] = (40, 80, 128),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        self.words, self.size, self.channels = tuple(words), size, tuple(channels)
        self.mean, self.std = tuple(mean), tuple(std)
        fine, middle, coarse = self.channels
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            _convolution(12, fine),
            nn.ReLU(),
            _Residual(fine),
            _convolution(fine, middle, 2),
            nn.ReLU(),
            _Residual(middle),
            _convolution(middle, coarse, 2),
            nn.ReLU(),
        )
        self.head = nn.Linear(coarse, len(self.words))

    def features(self, images: Tensor) -> Tensor:
        """Features ``[B, channels[-1]]``, at least 0, of ``images [B, 3, size, size]`` with values in [0, 1]."""
        mean, std = (images.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (self.mean, self.std))
        features: Tensor = self.body((images - mean) / std).mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, len(words)]`` of ``images [B, 3, size, size]`` with values in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, of JSON's types."""
        numbers = {key: list(getattr(self, key)) for key in ("channels", "mean", "std")}
        return {"size": self.size, **numbers, "words": list(self.words)}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float16) into a folder that exists."""
        from safetensors.torch import save_file

        tensors = {k: v.half() for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
        save_file(tensors, Path(folder) / WEIGHTS)
        (Path(folder) / CONFIG).write_text(json.dumps(self.config()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote, in float32 and in evaluation mode.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if the configuration or the weights do not fit.
        """
        from safetensors.torch import load_file

        for name in (CONFIG, WEIGHTS):
            if not (Path(folder) / name).is_file():
                raise FileNotFoundError(
                    f"an image classifier is a folder with {CONFIG} and {WEIGHTS}; no {name} in {folder}"
                )
        try:
            with torch.random.fork_rng(devices=()):  # initial weights come from the global generator
                model = cls(**json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")))
            weights = {key: value.float() for key, value in load_file(Path(folder) / WEIGHTS).items()}
            counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
            model.load_state_dict({**weights, **counters})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the image classifier in {folder} cannot be read: {error}") from error
        return model.eval()


class _Residual(nn.Module):
    """``relu(x + f(x))`` with two 3x3 convolutions in f."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))

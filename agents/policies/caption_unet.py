"""The embedded image models' network: a UNet on 2x2 space-to-depth pixels, conditioned on a caption's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .denoiser import Condition, Denoiser
from .samplers import Kind, NoiseGrid

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_WORDS = 16
TRAINING_STEPS = 1000


class CaptionUNet(Denoiser):
    """``(x_t, t, caption) -> prediction`` for small RGB images, under 3M parameters at its defaults.

    A ``diffusers.UNet2DModel`` works on ``[12, S/2, S/2]``, the image with each 2x2 block of pixels folded into the
    channels, which costs a quarter of the full resolution. The caption is a bag of words: the sum of its words'
    embeddings over the square root of their number, through a two-layer network, is added to the time embedding. No
    words give a zero sum, which is the unconditional model of classifier-free guidance.

    A diffusion model predicts v (Salimans & Ho 2022) on a squared-cosine schedule of 1,000 steps, a flow model the
    velocity; times are in [0, 1000) for both.

    Args:
        kind: ``diffusion`` or ``flow``.
        vocabulary: the words that captions may use, 16 of them in a caption at most.
        size: height and width of the images, even.
        channels: widths of the UNet's levels, from fine to coarse.
    """

    min_rows = 16

    def __init__(
        self, kind: Kind, vocabulary: Sequence[str], size: int = 32, channels: Sequence[int] = (64, 96, 96)
    ) -> None:
        super().__init__()
        UNet2DModel = diffusers().UNet2DModel
        if kind not in ("diffusion", "flow"):
            raise ValueError(f"kind is {kind!r}, expected 'diffusion' or 'flow'")
        self.kind, self.prediction = kind, "v_prediction" if kind == "diffusion" else "velocity"
        self.shape = (3, size, size)
        self.vocabulary, self.size, self.channels = tuple(vocabulary), size, tuple(channels)
        self._index = {word: i + 1 for i, word in enumerate(self.vocabulary)}  # 0 is padding
        time = 4 * channels[0]  # width of the UNet's time embedding
        self.words = nn.Embedding(len(self.vocabulary) + 1, time // 2, padding_idx=0)
        self.caption = nn.Sequential(nn.Linear(time // 2, time), nn.SiLU(), nn.Linear(time, time))
        self.unet = UNet2DModel(
            sample_size=size // 2,
            in_channels=12,
            out_channels=12,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            attention_head_dim=32,
            norm_num_groups=16,
            class_embed_type="identity",
        )

    def encode(self, prompts: Sequence[str]) -> Condition:
        """``words [B, 16]`` int64, the numbers of the prompts' words, padded with 0.

        Raises:
            ValueError: if a prompt has a word that the model does not know, or too many words.
        """
        split = [re.findall(r"\w+", prompt.lower()) for prompt in prompts]
        if unknown := sorted({word for words in split for word in words if word not in self._index}):
            raise ValueError(
                f"prompts have words that the model does not know: {unknown[:8]}; it knows {len(self.vocabulary)}, "
                f"see its {CONFIG}"
            )
        if long := [p for p, words in zip(prompts, split, strict=True) if len(words) > MAX_WORDS]:
            raise ValueError(f"prompt {long[0]!r} has more than {MAX_WORDS} words")
        ids = torch.zeros(len(split), MAX_WORDS, dtype=torch.int64)
        for row, words in enumerate(split):
            ids[row, : len(words)] = torch.tensor([self._index[word] for word in words], dtype=torch.int64)
        return {"words": ids.to(self.words.weight.device)}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction at ``x [B, 3, S, S]`` and times ``t [B]`` in [0, 1000] for ``words [B, L]`` (0: none)."""
        known = condition["words"] > 0
        number = known.sum(1, keepdim=True).clamp(min=1)
        embedded = self.caption(self.words(condition["words"]).sum(1) / number.sqrt())
        y = self.unet(F.pixel_unshuffle(x, 2), t, class_labels=embedded * known.any(1, keepdim=True)).sample
        return F.pixel_shuffle(y, 2)

    def grid(self, num_steps: int) -> NoiseGrid:
        """Diffusers' trailing DDIM steps, which end at the cleanest training level; or equal steps in time.

        Raises:
            ValueError: for more steps of a diffusion model than half of its training levels.
        """
        if self.kind == "flow":
            levels = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
            return NoiseGrid("flow", (TRAINING_STEPS * levels[:-1]).float(), levels)
        if num_steps > TRAINING_STEPS // 2:
            raise ValueError(f"num_steps is {num_steps}, expected at most {TRAINING_STEPS // 2} for a diffusion model")
        known = diffusers().DDIMScheduler(TRAINING_STEPS, beta_schedule="squaredcos_cap_v2").alphas_cumprod
        # As in the scheduler, but for some numbers of steps rounding gives that one more, which is cut off here.
        times = torch.from_numpy(np.arange(TRAINING_STEPS, 0, -TRAINING_STEPS / num_steps)[:num_steps].round() - 1)
        # With a last level of 1, as DDIM often has it, the last step would have no noise and no probability.
        return NoiseGrid("diffusion", times.float(), torch.cat([known[times.long()], known[:1]]).double())

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "vocabulary": list(self.vocabulary), "size": self.size, "channels": list(self.channels)
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        with torch.random.fork_rng(devices=()):  # diffusers draws initial weights from the global generator
            return cls(**spec)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in float16, which :meth:`from_pretrained` reads."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(json.dumps(self.spec()) + "\n", encoding="utf-8")
        save_file({k: v.detach().half().contiguous() for k, v in self.state_dict().items()}, Path(folder) / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what :meth:`save_pretrained` wrote; the parameters are float32.

        Raises:
            OSError: if a file is missing.
            ValueError: if the config is not one of this class.
        """
        from safetensors.torch import load_file

        config: Mapping[str, Any] = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if set(config) != {"kind", "vocabulary", "size", "channels"}:
            raise ValueError(f"{folder} holds no caption-conditional UNet: its {CONFIG} has {sorted(config)[:8]}")
        model = cls.from_spec(config)
        model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / WEIGHTS).items()})
        return model.eval()


def diffusers() -> Any:
    """The library.

    Raises:
        ImportError: naming the extra to install.
    """
    try:
        import diffusers as library
    except ImportError as error:
        raise ImportError("image models need diffusers: pip install 'aligngym[image]'") from error
    return library

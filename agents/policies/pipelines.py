"""What differs between families of diffusers' pipelines: how prompts are encoded and how the network is called."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .denoiser import Condition


class Architecture:
    """What differs between families of pipelines: how prompts are encoded and how the network is called.

    To support a further family, derive from this class and enter it in :data:`ARCHITECTURES` under the name of the
    pipeline's class.

    Args:
        pipe: the pipeline.
        height: of the images in pixels; None takes the pipeline's default.
        width: as ``height``.
        max_sequence_length: tokens of the T5 encoder's prompts; None takes the pipeline's default.
        distilled_guidance: guidance scale that the network is told; None takes the pipeline's default.

    Attributes:
        network_name: the pipeline's component that denoises.
        sequence_length: default of ``max_sequence_length``; None where there is no T5 encoder.
        patch: height and width, in latents, of what the network sees as one token; 1 for networks without tokens.
    """

    network_name: ClassVar[str] = "transformer"
    sequence_length: ClassVar[int | None] = None
    patch: int = 1

    def __init__(
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
        distilled_guidance: float | None = None,
    ) -> None:
        self.pipe = pipe
        self.config, kind = getattr(pipe, self.network_name).config, type(pipe).__name__
        defaults = self.default_size()
        sizes = [defaults[i] if size is None else size for i, size in enumerate((height, width))]
        self.height, self.width = sizes
        step = pipe.vae_scale_factor * self.patch
        for name, size in zip(("height", "width"), sizes, strict=True):
            if size < step or size % step:
                raise ValueError(f"{name} is {size}, expected a multiple of {step}, the pixels of a {kind}'s patch")
        if max_sequence_length is not None and not (self.sequence_length and 0 < max_sequence_length <= 512):
            expected = "1 to 512" if self.sequence_length else f"None, as a {kind} has no T5 encoder"
            raise ValueError(f"max_sequence_length is {max_sequence_length}, expected {expected}")
        self.max_sequence_length = max_sequence_length or self.sequence_length
        self.distilled_guidance = distilled_guidance
        if self.config.get("guidance_embeds"):
            self.distilled_guidance = 3.5 if distilled_guidance is None else distilled_guidance
        elif distilled_guidance is not None:
            raise ValueError(
                f"distilled_guidance is {distilled_guidance}, expected None: this {kind}'s network is not told a scale"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing here changes: copies of a denoiser share the frozen parts

    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pipeline's images where none are asked for."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return size, size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent: channels, height, width."""
        factor = self.pipe.vae_scale_factor
        return self.pipe.vae.config.latent_channels, self.height // factor, self.width // factor

    @property
    def tokens(self) -> int:
        """Patches of one latent, by which flow schedules with dynamic shifting are shifted."""
        _, height, width = self.shape
        return (height // self.patch) * (width // self.patch)

    def schedule(self, num_steps: int, config: Any) -> dict[str, Any]:
        """What the pipeline tells ``set_timesteps`` of its flow scheduler of that ``config``."""
        settings: dict[str, Any] = {"num_inference_steps": num_steps}
        if config.use_dynamic_shifting:
            from diffusers.pipelines.flux.pipeline_flux import calculate_shift

            lengths = config.base_image_seq_len, config.max_image_seq_len
            settings["mu"] = calculate_shift(self.tokens, *lengths, config.base_shift, config.max_shift)
        return settings

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        """What the network is told of each prompt; every tensor has as many rows as there are prompts."""
        raise NotImplementedError

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Call the network on latents ``x [B, C, h, w]`` at the scheduler's timesteps ``t [B]``."""
        raise NotImplementedError


class StableDiffusion(Architecture):
    """Stable Diffusion 1 and 2: a UNet on CLIP's last hidden states."""

    network_name = "unet"

    def default_size(self) -> tuple[int, int]:
        size, factor = self.config.sample_size, self.pipe.vae_scale_factor
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        return {"prompt_embeds": self.pipe.encode_prompt(prompts, device, 1, False)[0]}

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return cast(Tensor, network(x, t, encoder_hidden_states=condition["prompt_embeds"], return_dict=False)[0])


class StableDiffusionXL(StableDiffusion):
    """SDXL: a UNet on two CLIPs, told the size of the image too."""

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipe.config.force_zeros_for_empty_prompt:  # the unconditional prompt is then no prompt at all
            empty = torch.tensor([not prompt for prompt in prompts], device=device)
            embeds = embeds.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        size = [self.height, self.width]
        known = {
            "text_embeds": condition["pooled_prompt_embeds"],
            "time_ids": torch.tensor([[*size, 0, 0, *size]] * len(x), dtype=x.dtype, device=x.device),
        }
        embeds = condition["prompt_embeds"]
        return cast(Tensor, network(x, t, encoder_hidden_states=embeds, added_cond_kwargs=known, return_dict=False)[0])


class StableDiffusion3(Architecture):
    """Stable Diffusion 3 and 3.5: a transformer on two CLIPs and, where it is loaded, T5."""

    sequence_length = 256

    @property
    def patch(self) -> int:  # type: ignore[override]
        return cast(int, self.config.patch_size)

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=device, do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )  # fmt: skip
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        out = network(
            hidden_states=x, timestep=t, encoder_hidden_states=condition["prompt_embeds"],
            pooled_projections=condition["pooled_prompt_embeds"], return_dict=False,
        )  # fmt: skip
        return cast(Tensor, out[0])


class Flux(Architecture):
    """Flux.1: a transformer on 2x2 patches of latents, told a guidance scale where guidance is distilled into it."""

    sequence_length = 512
    patch = 2

    def schedule(self, num_steps: int, config: Any) -> dict[str, Any]:
        return {**super().schedule(num_steps, config), "sigmas": np.linspace(1.0, 1 / num_steps, num_steps)}

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompts, device=device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        _, height, width = self.shape
        embeds, guidance = condition["prompt_embeds"], None
        if self.distilled_guidance is not None:
            guidance = torch.full((len(x),), self.distilled_guidance, device=x.device)
        rows, columns = torch.arange(height // 2.0, device=x.device), torch.arange(width // 2.0, device=x.device)
        out = network(
            hidden_states=F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2), timestep=t.to(x.dtype) / 1000,
            guidance=guidance, encoder_hidden_states=embeds, pooled_projections=condition["pooled_prompt_embeds"],
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device),
            img_ids=torch.cartesian_prod(torch.zeros(1, device=x.device), rows, columns), return_dict=False,
        )[0]  # fmt: skip
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


ARCHITECTURES: dict[str, type[Architecture]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}

"""Text-to-image pipelines of diffusers as denoisers: Stable Diffusion, SDXL, Stable Diffusion 3, Flux."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..randomness import seeded
from .caption_unet import diffusers
from .denoiser import Condition, Denoiser
from .pipelines import ARCHITECTURES
from .samplers import NoiseGrid

FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class PipelineDenoiser(Denoiser):
    """The UNet or transformer of a text-to-image pipeline, with all that its images need around it.

    Only that network is trained. Text encoders and VAE are frozen, in eval mode, shared by copies (a reference policy
    costs one network more, not one pipeline more) and no part of checkpoints; :meth:`to` moves them along. The
    network may be of any floating type: inputs and outputs are float32, so sampling states are not rounded to bfloat16
    between the steps, as the pipeline itself does.

    The schedule is the pipeline's own. Deviations from it: a diffusion pipeline whose scheduler is not DDIM is given
    DDIM's times with that scheduler's settings (as DDPO does, arXiv 2305.13301); where DDIM's spacing does not divide
    its training steps, a step ends at the noise level of the next time, diffusers' at one up to a spacing away;
    predictions of x_0 are not clipped, as latents are not bounded; safety checkers and watermarks are left out.

    Args:
        pipe: a pipeline of a class named in :data:`~aligngym.agents.policies.pipelines.ARCHITECTURES`, or derived from
            one. Its network is trained in place, so that ``pipe(prompt)`` always shows the current state.
        height: of the images in pixels; None takes the pipeline's default.
        width: as ``height``.
        max_sequence_length: tokens of the T5 encoder's prompts, 1 to 512; None takes the pipeline's default.
        distilled_guidance: the guidance scale that a guidance-distilled network (Flux.1 dev) is told; None takes the
            pipeline's default, 3.5.
        lora_rank: train low-rank adapters of this rank instead of all weights; 0: all weights. Usual 4 to 64.
        lora_alpha: the adapters' update is multiplied by alpha / rank; None: twice the rank.
        lora_targets: how the names of the adapted linear layers end.
        gradient_checkpointing: recompute activations backward: less memory, about a third more time.
        name: folder or hub name that checkpoints find the pipeline by, frozen weights included; None takes the one it
            was loaded from.
        loading: what ``DiffusionPipeline.from_pretrained`` was told besides the name, for checkpoints.

    Raises:
        ValueError: if the pipeline's class or scheduler is not supported, or an argument does not fit it.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
        distilled_guidance: float | None = None,
        lora_rank: int = 0,
        lora_alpha: int | None = None,
        lora_targets: Sequence[str] = ATTENTION,
        gradient_checkpointing: bool = False,
        name: str | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        supported = [ARCHITECTURES[base.__name__] for base in type(pipe).__mro__ if base.__name__ in ARCHITECTURES]
        if not supported:
            raise ValueError(f"pipe is a {type(pipe).__name__}, expected one of {', '.join(ARCHITECTURES)}")
        self.architecture = supported[0](
            pipe, height=height, width=width, max_sequence_length=max_sequence_length,
            distilled_guidance=distilled_guidance,
        )  # fmt: skip
        self.name, self.loading = name or pipe.name_or_path, dict(loading or {})
        self.network = getattr(pipe, self.architecture.network_name)
        self.shape = self.architecture.shape
        self.scheduler = _scheduler(pipe)
        self.kind = "flow" if hasattr(self.scheduler, "sigmas") else "diffusion"
        self.prediction = "velocity" if self.kind == "flow" else self.scheduler.config.prediction_type
        for part in (self.network, *self._frozen().values()):
            part.requires_grad_(False).eval()
        self.has_adapters = lora_rank > 0
        self.lora: dict[str, Any] = {
            "rank": lora_rank, "alpha": lora_alpha or 2 * lora_rank, "targets": list(lora_targets)
        }  # fmt: skip
        if self.has_adapters:
            self._add_adapters()
        else:
            self.network.requires_grad_(True)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        loading: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline from a folder or the Hugging Face hub.

        Args:
            name: the folder or hub name.
            dtype: of all weights; adapters are float32 whatever it is.
            device: where to put it.
            loading: further arguments of ``DiffusionPipeline.from_pretrained``, of JSON's types: ``variant="fp16"``, or
                ``text_encoder_3=None, tokenizer_3=None`` for SD3 without T5.
            kwargs: as the constructor's.

        Raises:
            ImportError: without diffusers.
        """
        pipe = diffusers().DiffusionPipeline.from_pretrained(str(name), dtype=dtype, **(loading or {}))
        return cls(pipe, name=str(name), loading=loading, **kwargs).to(device)

    @property
    def pipe(self) -> Any:
        """The pipeline, whose network is the trained one (of the original denoiser, not of copies)."""
        return self.architecture.pipe

    def encode(self, prompts: Sequence[str]) -> Condition:
        # One by one: in a batch a prompt's encoding would depend, by rounding, on the others, and a resumed run, which
        # first meets them in another order, would not go on bit for bit.
        device = next(self.network.parameters()).device
        with torch.no_grad():
            each = [self.architecture.encode([prompt], device) for prompt in prompts]
        return {key: torch.cat([condition[key] for condition in each]) for key in each[0]}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's prediction, float32, at latents ``x [B, C, h, w]`` and the scheduler's timesteps ``t [B]``."""
        dtype = self.network.dtype
        condition = {key: value.to(dtype) for key, value in condition.items()}
        return self.architecture.predict(self.network, x.to(dtype), t, condition).float()

    def decode(self, x: Tensor | np.ndarray) -> list[np.ndarray]:
        """Images uint8 ``[H, W, 3]`` of clean latents ``x [B, C, h, w]``; fits an environment's ``decoder``."""
        vae, config = self.pipe.vae, self.pipe.vae.config
        latents: Tensor = torch.as_tensor(x, device=vae.device) / config.scaling_factor
        if config.get("latents_std") is not None and config.get("latents_mean") is not None:
            std, mean = (torch.tensor(v).view(-1, 1, 1).to(latents) for v in (config.latents_std, config.latents_mean))
            latents = latents * std + mean
        with torch.no_grad():
            image = vae.decode((latents + (config.get("shift_factor") or 0)).to(vae.dtype), return_dict=False)[0]
        pixels = self.pipe.image_processor.postprocess(image, output_type="np")
        return list((pixels * 255).round().astype(np.uint8))

    def grid(self, num_steps: int) -> NoiseGrid:
        """Times and noise levels of the pipeline's run of ``num_steps``, shifted as for images of this size.

        Raises:
            ValueError: if ``num_steps`` is not between 1 and the scheduler's training steps.
        """
        scheduler, config = copy.deepcopy(self.scheduler), self.scheduler.config
        if not 1 <= num_steps <= config.num_train_timesteps:
            raise ValueError(f"num_steps is {num_steps}, expected 1 to {config.num_train_timesteps}")
        if self.kind == "diffusion":
            scheduler.set_timesteps(num_steps)
            levels = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod[None]])
            return NoiseGrid(self.kind, scheduler.timesteps, levels.double())
        scheduler.set_timesteps(**self.architecture.schedule(num_steps, config))
        return NoiseGrid(self.kind, scheduler.timesteps, scheduler.sigmas.double())

    @contextmanager
    def adapters_off(self) -> Iterator[Self]:
        """This denoiser with its LoRA adapters switched off.

        Raises:
            ValueError: without adapters.
        """
        if not self.has_adapters:
            raise ValueError("adapters_off() needs adapters: give lora_rank=, or keep a frozen copy instead")
        self.network.disable_adapters()
        try:
            yield self
        finally:
            self.network.enable_adapters()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: dropout would make the ratio of equal policies differ from 1."""
        return super().train(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole pipeline (adapters merged), loadable by diffusers and by :meth:`from_pretrained`."""
        network = self.network
        if self.has_adapters:  # merged in a copy: taking the adapters out again would leave rounding behind
            network = copy.deepcopy(network)
            network.fuse_lora()
            network.unload_lora()
        name = self.architecture.network_name
        held = getattr(self.pipe, name)
        try:
            setattr(self.pipe, name, network)
            self.pipe.save_pretrained(str(folder))
        finally:
            setattr(self.pipe, name, held)

    def spec(self) -> dict[str, Any]:
        where, parts = self.architecture, {self.architecture.network_name: self.network, **self._frozen()}
        return {
            "name": self.name,
            "loading": {k: None for k, v in self.pipe.components.items() if v is None} | self.loading,
            "dtypes": {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()},
            "height": where.height, "width": where.width,
            "max_sequence_length": where.max_sequence_length, "distilled_guidance": where.distilled_guidance,
            "scheduler": json.loads(self.scheduler.to_json_string()), "lora": self.lora,
            "gradient_checkpointing": self.gradient_checkpointing,
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Load the named pipeline again and prepare it alike; trained weights are not in the spec.

        Raises:
            ValueError: if the pipeline was given as an object that came from no folder and no hub.
        """
        if spec["name"] is None:
            raise ValueError(
                "the pipeline has no name to load it by: build the policy around it again and pass it as "
                "load(folder, policy=...), or give PipelineDenoiser name="
            )
        types = {part: getattr(torch, dtype) for part, dtype in spec["dtypes"].items()}
        pipe = diffusers().DiffusionPipeline.from_pretrained(spec["name"], dtype=types, **spec["loading"])
        # The pipeline may have been given another schedule after it was loaded.
        scheduler = FLOW_SCHEDULER if spec["scheduler"]["_class_name"] == FLOW_SCHEDULER else "DDIMScheduler"
        pipe.scheduler = getattr(diffusers(), scheduler).from_config(spec["scheduler"])
        options = ("height", "width", "max_sequence_length", "distilled_guidance", "gradient_checkpointing", "loading")
        lora = {f"lora_{key}": value for key, value in spec["lora"].items()}
        return cls(pipe, name=spec["name"], **{key: spec[key] for key in options}, **lora)

    def _frozen(self) -> dict[str, Any]:
        """The pipeline's text encoders, VAE and other networks, all but the trained one, by their names."""
        parts = {k: v for k, v in self.pipe.components.items() if isinstance(v, nn.Module)}
        return {k: v for k, v in parts.items() if k != self.architecture.network_name}

    def _add_adapters(self) -> None:
        if getattr(self.network, "peft_config", None):
            raise ValueError(
                "lora_rank is given, but the network has adapters already, which the reference would lose: merge them "
                "first, with pipe.fuse_lora() and pipe.unload_lora_weights()"
            )
        from peft import LoraConfig

        config = LoraConfig(r=self.lora["rank"], lora_alpha=self.lora["alpha"], target_modules=self.lora["targets"])
        with seeded(0):  # B is 0 whatever A is
            self.network.add_adapter(config)
        for parameter in self.network.parameters():
            if parameter.requires_grad:  # small steps would be lost in half precision
                parameter.data = parameter.data.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Frozen parts are no submodules, so as not to be trained, copied or saved, but they move along.
        for part in self._frozen().values():
            part._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _scheduler(pipe: Any) -> Any:
    """The schedule of the pipeline, as one of the two schedulers whose steps are the ones sampled here.

    Raises:
        ValueError: if it has no such form.
    """
    scheduler, config = pipe.scheduler, pipe.scheduler.config
    if type(scheduler).__name__ == FLOW_SCHEDULER and not config.invert_sigmas:
        return copy.deepcopy(scheduler)
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if "beta_schedule" not in config or flow:
        raise ValueError(
            f"pipe's scheduler is {scheduler}, expected a {FLOW_SCHEDULER} that does not invert its sigmas, or a "
            "diffusion scheduler"
        )
    return diffusers().DDIMScheduler.from_config(config)

"""Pipelines of diffusers' real classes with random weights, small enough to sample in a fraction of a second."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CHARACTERS = string.ascii_lowercase + string.digits
WIDTH, TOKENS = 16, 16
# Each setting differs from its default, as in the published models, so that a test notices where it is left out.
DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def clip_tokenizer() -> CLIPTokenizer:
    """One token a character, sixteen at most."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    return CLIPTokenizer({t: i for i, t in enumerate(tokens)}, [], model_max_length=TOKENS)


def t5_tokenizer() -> T5TokenizerFast:
    """One token a character."""
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in CHARACTERS)]
    return T5TokenizerFast(tokens, extra_ids=0)


def clip(kind: type[Any] = CLIPTextModel, width: int = WIDTH) -> Any:
    tokens = len(clip_tokenizer())
    return kind(
        CLIPTextConfig(
            vocab_size=tokens, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width, bos_token_id=0,
            eos_token_id=1, pad_token_id=1, initializer_factor=3.0,
        )
    )  # fmt: skip


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2)
    )


def vae(**settings: Any) -> AutoencoderKL:
    """Halves the height and the width; its scaling is not 1 and, where ``shift_factor`` is given, its shift not 0."""
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **{"scaling_factor": 0.4} | settings,
    )  # fmt: skip


def unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **{"cross_attention_dim": WIDTH} | settings,
    )  # fmt: skip


def stable_diffusion(**scheduler: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(), unet=unet(),
        scheduler=DDIMScheduler(**DIFFUSION | scheduler), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(**scheduler: Any) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(), text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), scheduler=DDIMScheduler(**DIFFUSION | scheduler), add_watermarker=False,
        unet=unet(
            cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        ),
    )  # fmt: skip


def stable_diffusion_3(**scheduler: Any) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06), text_encoder=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer_2=clip_tokenizer(), text_encoder_3=t5(2 * WIDTH),
        tokenizer_3=t5_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=2 * WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, out_channels=4,
            pos_embed_max_size=16,
        ),
    )  # fmt: skip


def flux(guidance_embeds: bool = True, **scheduler: Any) -> FluxPipeline:
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.4, "max_shift": 1.2}
    return FluxPipeline(
        vae=vae(shift_factor=0.1), text_encoder=clip(), tokenizer=clip_tokenizer(), text_encoder_2=t5(2 * WIDTH),
        tokenizer_2=t5_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(**dynamic | scheduler),
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        ),
    )  # fmt: skip


BUILDERS = {
    "sd": stable_diffusion,
    "sd-v": lambda **k: stable_diffusion(**{"prediction_type": "v_prediction"} | k),
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
}


def tiny_pipeline(name: str, **settings: Any) -> Any:
    """The pipeline of that name, with the same random weights every time, silent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[name](**settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe

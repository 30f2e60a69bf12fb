"""Vision-language models of real classes with random weights and a tokenizer of characters, saved as a folder."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
PAD, EOS, IMAGE = 0, 2, 5
# Whole answers are tokens too, so that a test learns in seconds to give one.
LEFT, RIGHT = '[{"point_2d": [21, 28]}]', '[{"point_2d": [63, 28]}]'
WORDS = ["point_2d", LEFT, RIGHT]
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
VOCABULARY = [*SPECIAL, *WORDS, *CHARACTERS]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}IMAGE"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip


def ids_of(*tokens: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(t) for t in tokens)


def all_but(*tokens: str) -> tuple[int, ...]:
    """What to suppress, so that only these are drawn."""
    return tuple(i for i, t in enumerate(VOCABULARY) if t not in tokens)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, besides the special ones and :data:`WORDS`."""
    characters = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="<|endoftext|>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    characters.add_tokens([AddedToken(w, normalized=False) for w in WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token=SPECIAL[PAD], eos_token=SPECIAL[EOS], model_max_length=512,
        additional_special_tokens=SPECIAL,
    )  # fmt: skip


def qwen(folder: Path) -> None:
    """Qwen2.5-VL; the processor's files are written as those on the hub, of image processor and tokenizer."""
    config = Qwen2_5_VLConfig(
        text_config=TEXT
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
            "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.2,
        },
        image_token_id=IMAGE, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)


def llava(folder: Path) -> None:
    """LLaVA: square images, positions in one dimension, no word about the size in what the processor returns."""
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14, projection_dim=32, initializer_range=0.2,
        ),
        image_token_index=IMAGE, eos_token_id=EOS, pad_token_id=PAD, vision_feature_layer=-1,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    square = {"height": 28, "width": 28}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square), tokenizer=tiny_tokenizer(),
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=SPECIAL[IMAGE], chat_template=TEMPLATE.replace("IMAGE", SPECIAL[IMAGE]),
    ).save_pretrained(folder)  # fmt: skip


BUILDERS: dict[str, Any] = {"qwen": qwen, "llava": llava}


def save_tiny(name: str, folder: Path) -> str:
    """Write the model of that name, with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BUILDERS[name](folder)
    return str(folder)

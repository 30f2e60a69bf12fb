"""CLIP as a judge of images: agreement with the prompt, PickScore, aesthetics; for users who have the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .image import Image, ImageReward, optional


@dataclass
class ClipReward(ImageReward):
    """Base of rewards on CLIP's embeddings, computed in batches without gradients.

    Attributes:
        model: A ``CLIPModel``, by folder or hub name.
        processor: Folder or hub name of its tokenizer and image processor; None: the model's.
        batch_size: Images a forward pass.
        device: Where the model runs.
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str | None = field(default=None, kw_only=True)
    batch_size: int = field(default=16, kw_only=True)
    device: str = field(default="cpu", kw_only=True)
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)

    main_argument: ClassVar[str] = "model"
    transient: ClassVar[tuple[str, ...]] = ("_loaded",)

    def __post_init__(self) -> None:
        self.model = str(self.model)
        self.processor = None if self.processor is None else str(self.processor)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def load(self) -> None:
        """Reads the model, its image processor and, where prompts are read, its tokenizer.

        Raises:
            ImportError: if transformers or Pillow is not installed.
            OSError: if there is no such model.
        """
        if self._loaded is not None:
            return
        optional("PIL.Image", self)
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        source = self.processor or self.model
        tokenizer = AutoTokenizer.from_pretrained(source) if self.reads_prompts else None
        model: Any = CLIPModel.from_pretrained(self.model).eval()
        self._loaded = (model.to(self.device), AutoImageProcessor.from_pretrained(source), tokenizer)

    def _image_embeddings(self, batch: list[Image]) -> Any:
        """Returns ``[B, D]`` float32 of length 1."""
        import torch

        model, processor, _ = self._loaded
        pixels = processor(images=batch, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        with torch.inference_mode():
            pooled = model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return torch.nn.functional.normalize(model.visual_projection(pooled).float(), dim=-1)

    def _text_embeddings(self, texts: list[str]) -> Any:
        """Returns ``[B, D]`` float32 of length 1; a text that is too long loses its end."""
        import torch

        model, _, tokenizer = self._loaded
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # without lone surrogates
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer(clean, return_tensors="pt", padding=True, truncation=True, max_length=limit)
        with torch.inference_mode():
            pooled = model.text_model(**tokens.to(self.device)).pooler_output
            return torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1)


@dataclass
class ClipScore(ClipReward):
    """CLIPScore of an image and its prompt: ``scale max(cos, 0)`` (Hessel et al. 2021, arXiv 2104.08718).

    Attributes:
        model: A ``CLIPModel``, by folder or hub name.
        scale: The paper's is 2.5.
        prefix: Put in front of each prompt; the paper's is ``"A photo depicts "``.
    """

    scale: float = field(default=2.5, kw_only=True)
    prefix: str = field(default="", kw_only=True)
    name: str | None = field(default="clip_score", kw_only=True)

    reads_prompts: ClassVar[bool] = True

    def images(self, batch: list[Image], prompts: list[Any], columns: Mapping[str, Any]) -> NDArray[np.float64]:
        """Scores a batch."""
        texts = self._text_embeddings([self.prefix + prompt for prompt in prompts])
        cosines = (self._image_embeddings(batch) * texts).sum(-1)
        return np.asarray(self.scale * cosines.clamp(min=0).cpu().numpy(), dtype=np.float64)


@dataclass
class PickScore(ClipReward):
    """PickScore of an image and its prompt: ``exp(logit_scale) cos`` (Kirstain et al. 2023, arXiv 2305.01569).

    Flow-GRPO divides it by 26: ``PickScore() / 26``.

    Attributes:
        model: A ``CLIPModel``, by folder or hub name. The published one was trained with the processor of
            ``"laion/CLIP-ViT-H-14-laion2B-s32B-b79K"``; give that as ``processor`` if the model has none.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    name: str | None = field(default="pick_score", kw_only=True)

    reads_prompts: ClassVar[bool] = True

    def images(self, batch: list[Image], prompts: list[Any], columns: Mapping[str, Any]) -> NDArray[np.float64]:
        """Scores a batch."""
        cosines = (self._image_embeddings(batch) * self._text_embeddings(prompts)).sum(-1)
        scores = self._loaded[0].logit_scale.detach().exp().float() * cosines
        return np.asarray(scores.cpu().numpy(), dtype=np.float64)


@dataclass
class Aesthetic(ClipReward):
    """LAION's aesthetic score: linear layers on the normalised image embedding, trained on ratings from 1 to 10.

    Both published heads are read: the linear one, and the row of linear layers of "improved-aesthetic-predictor"
    (``sac+logos+ava1-l14-linearMSE.pth``, the one of DDPO), which has no activations and is therefore linear too.

    Attributes:
        model: The ``CLIPModel`` that the head was trained on, by folder or hub name.
        weights: File of the head, ``.safetensors`` or a PyTorch state dict (read without running code from it).
        relu: Whether there is a ReLU between the layers, as in ``ava+logos-l14-reluMSE.pth``.
    """

    weights: str = field(kw_only=True)
    relu: bool = field(default=False, kw_only=True)
    name: str | None = field(default="aesthetic", kw_only=True)
    _head: Any = field(default=None, init=False, repr=False, compare=False)

    main_argument: ClassVar[str] = "weights"
    transient: ClassVar[tuple[str, ...]] = ("_loaded", "_head")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = str(self.weights)

    def load(self) -> None:
        """Reads the model, its image processor and the head.

        Raises:
            ImportError: if transformers or Pillow is not installed.
            OSError: if there is no such model or file.
            ValueError: if the file holds no such head, or one for embeddings of another length.
        """
        super().load()
        if self._head is None:
            head = [(weight.to(self.device), bias.to(self.device)) for weight, bias in _linear_layers(self.weights)]
            widths = [head[0][0].shape[1], *(len(weight) for weight, _ in head)]
            expected = self._loaded[0].config.projection_dim
            if widths[0] != expected or widths[-1] != 1:
                raise ValueError(
                    f"weights must lead from {expected} values to 1; those of {self.weights} have {widths}"
                )
            self._head = head

    def images(self, batch: list[Image], prompts: list[Any], columns: Mapping[str, Any]) -> NDArray[np.float64]:
        """Scores a batch."""
        import torch

        values = self._image_embeddings(batch)
        for i, (weight, bias) in enumerate(self._head):
            values = torch.nn.functional.linear(values.relu() if i and self.relu else values, weight, bias)
        return np.asarray(values[:, 0].cpu().numpy(), dtype=np.float64)


def _linear_layers(path: str) -> list[tuple[Any, Any]]:
    """Returns weight and bias of each layer of a state dict, in the order of the numbers in their names."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    names = [key.removesuffix("weight") for key in state if key.endswith("weight")]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    if not names or any(state[f"{name}weight"].ndim != 2 or f"{name}bias" not in state for name in names):
        raise ValueError(f"weights must be a state dict of linear layers with biases; {path} has {', '.join(state)}")
    return [(state[f"{name}weight"].float(), state[f"{name}bias"].float()) for name in names]

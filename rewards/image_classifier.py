"""What an image shows, word by word, as a reward: the embedded classifier of emoji, or one of your own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..assets import model_path
from .image import Image, ImageReward, image_of
from .reward import Completion, RewardScores, Text

OUTPUTS = ("probability", "log_probability", "logit")


def read_words(text: str, phrases: Collection[str] = ()) -> list[str]:
    """Returns the words of a text in lower case, each once and in order; a phrase that occurs counts as one word.

    Args:
        text: ``"A hot dog!"``.
        phrases: Entries of several words, ``{"hot dog"}``, which makes the result ``["a", "hot dog"]``.
    """
    longest_first = sorted(map(re.escape, phrases), key=len, reverse=True)
    entry = "|".join([*longest_first, r"\w+"])
    plain = " ".join(re.findall(r"\w+", text.lower()))
    return list(dict.fromkeys(re.findall(rf"\b(?:{entry})\b", plain)))


@dataclass
class ImageClassifier(ImageReward):
    """How sure a classifier is that an image shows a word, or the words of its prompt.

    Each word has a probability of its own (a sigmoid), so that those of an image need not add up to one. The embedded
    classifier knows the words of the embedded image models' captions; ``assets/emoji-classifier/README.md`` says how
    well. An image of another size is resized by area.

    Attributes:
        word: The word that is paid for, one of ``words``, which has a few phrases like ``"hot dog"``. None: the mean
            over the words of the prompt that the classifier knows; a prompt of which it knows none does not apply.
        output: ``"probability"``, ``"log_probability"`` or ``"logit"``; None: the probability of a word, the
            log-probability where the prompt is read.
        model: ``"emoji-classifier"``, or a folder with ``config.json`` and ``model.safetensors`` in its format.
        batch_size: Images a forward pass.
        device: Where the model runs.
    """

    word: str | None = None
    output: str | None = None
    model: str = "emoji-classifier"
    batch_size: int = 64
    device: str = "cpu"
    name: str | None = field(default="image_classifier", kw_only=True)
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)

    main_argument: ClassVar[str] = "word"
    transient: ClassVar[tuple[str, ...]] = ("_loaded",)

    def __post_init__(self) -> None:
        self.model = str(self.model)
        if self.output not in (None, *OUTPUTS):
            raise ValueError(f"output must be 'probability', 'log_probability', 'logit' or None, got {self.output!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the classifier knows."""
        self.load()
        return tuple(self._loaded.words)

    def load(self) -> None:
        """Reads the classifier.

        Raises:
            FileNotFoundError: if the folder holds none.
            ValueError: if it cannot be read, or does not know ``word``.
        """
        if self._loaded is not None:
            return
        from ._emoji_classifier import EmojiClassifier

        classifier = EmojiClassifier.load(model_path(self.model)).to(self.device)
        if self.word is not None and self.word not in classifier.words:
            near = ", ".join(map(repr, get_close_matches(self.word, classifier.words))) or "none is spelt like it"
            known = f"{len(classifier.words)} words of {self.model!r} (near: {near}; all: its config.json)"
            raise ValueError(f"word must be one of the {known}; got {self.word!r}")
        self._loaded = classifier

    def embed(self, images: Sequence[Completion]) -> NDArray[np.float32]:
        """Returns the classifier's features, ``[N, D]`` with values of at least 0, for :func:`frechet_distance`.

        Args:
            images: uint8 arrays ``[H, W, 3]`` or PIL images, which may differ in size; at least one.

        Raises:
            TypeError: if one of them is no image.
            ValueError: if there are none.
        """
        if not len(images):
            raise ValueError("images is empty, expected at least one image")
        self.load()
        arrays = [image_of(image) for image in images]
        parts = (arrays[start : start + self.batch_size] for start in range(0, len(arrays), self.batch_size))
        return np.concatenate([self._forward(part, "features") for part in parts])

    def images(
        self, batch: list[Image], prompts: list[Any], columns: Mapping[str, Any]
    ) -> Sequence[float | None] | NDArray[np.floating[Any]]:
        logits = self._forward(batch, "forward").astype(np.float64)
        output = self.output or ("log_probability" if self.word is None else "probability")
        values = logits if output == "logit" else -np.logaddexp(0.0, -logits)
        values = np.exp(values) if output == "probability" else values
        index = {word: i for i, word in enumerate(self._loaded.words)}
        if self.word is not None:
            return values[:, index[self.word]]
        phrases = [word for word in index if " " in word]
        asked = [[index[word] for word in read_words(prompt, phrases) if word in index] for prompt in prompts]
        return [float(row[known].mean()) if known else None for row, known in zip(values, asked, strict=True)]

    def _score(
        self, completions: list[Completion], prompts: list[Text] | None, columns: dict[str, Any]
    ) -> RewardScores:
        if self.word is None and prompts is None:
            raise ValueError("ImageClassifier needs prompts where word is None")
        return super()._score(completions, prompts, columns)

    def _forward(self, batch: Sequence[Image], method: str) -> NDArray[np.float32]:
        """Returns the result of one of the classifier's methods, ``[len(batch), ...]``."""
        import torch
        from torch.nn.functional import interpolate

        size = (self._loaded.size, self._loaded.size)
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in batch]
        inputs = torch.stack([interpolate(image[None], size, mode="area")[0] for image in pixels])
        with torch.inference_mode():
            result: NDArray[np.float32] = getattr(self._loaded, method)(inputs.to(self.device)).cpu().numpy()
        return result

"""Whether the text that an image should show can be read off it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .image import Image, ImageReward, optional
from .reward import RewardScores, Text

_QUOTED = re.compile(r"\"([^\"]*)\"|“([^”]*)”")


def quoted(prompt: str) -> str | None:
    """Returns what stands in double quotes, joined by spaces; None: nothing does."""
    parts = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    return " ".join(parts) or None


def edit_distance(a: str, b: str) -> int:
    """Returns how many insertions, deletions and substitutions of characters lead from one text to the other."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


@dataclass
class Ocr(ImageReward):
    """Legibility of a text: ``1 - min(edit distance / length of the target, 1)``, in ``[0, 1]``.

    Flow-GRPO's OCR reward (Liu et al. 2025, arXiv 2505.05470). Text is recognised by rapidocr, whose models come with
    the library, line by line from the top; white space and case do not count. An image without text has 0. Deviations:
    rapidocr's models in place of PaddleOCR's; text beyond the target is wrong unless ``contained``; of several quoted
    parts all are wanted, not the first.

    The target is ``target``; else the column's entry, where the column is given; else what the prompt has in double
    quotes. A sample without a target does not apply.

    Attributes:
        target: One text for all images.
        column: The column that holds a text for each.
        contained: Whether an image that shows the target among other text has 1, as in Flow-GRPO, where covering the
            image in text costs nothing.
        resolution: Where text is looked for, smaller images are enlarged until their shorter side has so many pixels;
            32 or more. Images beyond 2,000 pixels are made smaller.
        threads: CPU threads of the recognition.
    """

    target: str | None = None
    column: str = "target"
    contained: bool = False
    resolution: int = 128
    threads: int = 1
    name: str | None = field(default="ocr", kw_only=True)
    _reader: Any = field(default=None, init=False, repr=False, compare=False)

    main_argument: ClassVar[str] = "target"
    transient: ClassVar[tuple[str, ...]] = ("_reader",)

    def __post_init__(self) -> None:
        if self.target is not None and not _plain(self.target):
            raise ValueError(f"target must have a character that is not white space, got {self.target!r}")
        if self.resolution < 32 or self.threads < 1:
            raise ValueError(f"needs resolution >= 32 and threads >= 1, got {self.resolution} and {self.threads}")

    def load(self) -> None:
        """Reads the recognition models."""
        if self._reader is None:
            self._reader = optional("rapidocr_onnxruntime", self).RapidOCR(
                intra_op_num_threads=self.threads,
                inter_op_num_threads=1,
                use_cls=False,  # upside down is not legible
                det_limit_side_len=self.resolution,
            )

    def _score(self, completions: list[Any], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        if self.target is None and self.column not in columns and prompts is None:
            raise ValueError(f"Ocr needs a target, the column {self.column!r} or prompts that quote it; none is given")
        return super()._score(completions, prompts, columns)

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float | None:
        """Scores one image."""
        target = self.target
        if target is None:
            target = row[self.column] if self.column in row else quoted(prompt or "")
        wanted = _plain(target or "")
        if not wanted:
            return None
        found = _plain(self.read(image))
        if self.contained and wanted in found:
            return 1.0
        return 1.0 - min(edit_distance(found, wanted) / len(wanted), 1.0)

    def read(self, image: Image) -> str:
        """Returns the text on an image ``[H, W, 3]`` uint8, one line of it a line."""
        self.load()
        lines, _ = self._reader(np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV's order of the channels
        return "\n".join(text for _, text, _ in lines or [])


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()

"""What rewards on images have in common, and those that need nothing but the pixels."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .reward import Completion, Reward, RewardScores, Text, is_column, reason_of, row_of

Image: TypeAlias = NDArray[np.uint8]
"""``[H, W, 3]`` uint8, red, green and blue."""


def image_of(completion: Any) -> Image:
    """Returns a completion as an array.

    Args:
        completion: A uint8 array ``[H, W, 3]``, or a PIL image of any mode (its transparency is ignored).

    Raises:
        TypeError: if it is neither.
        ValueError: if it has no pixels.
    """
    pil = sys.modules.get("PIL.Image")  # an image of a library that was never loaded cannot exist
    image = np.asarray(completion.convert("RGB")) if pil and isinstance(completion, pil.Image) else completion
    given = f"a {type(completion).__name__}"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            if not image.size:
                raise ValueError(f"an image must have pixels, got shape {image.shape}")
            return image
        given = f"{image.dtype} {list(image.shape)}"
    raise TypeError(f"an image must be a uint8 array [H, W, 3] or a PIL image, got {given}")


@dataclass
class ImageReward(Reward):
    """Base of rewards on images; a subclass is a dataclass and defines :meth:`image` or :meth:`images`.

    Completions are uint8 arrays ``[H, W, 3]`` or PIL images. Anything else, a text for instance, fails with a
    ``TypeError`` as its reason. An exception fails the image that caused it and no other.

    A subclass that scores several images at once defines :meth:`images` and has a field ``batch_size``, the most it is
    given in one call. A batch that raises is given again image by image.
    """

    reads_prompts: ClassVar[bool] = False
    """Whether prompts are needed; without them :meth:`score` raises a ``ValueError``."""

    def required_columns(self) -> tuple[str, ...]:
        """Returns the columns without which the reward cannot be computed."""
        return ()

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float | None:
        """Scores one image; None: does not apply. An exception marks the image as failed.

        Args:
            image: ``[H, W, 3]`` uint8.
            prompt: Its prompt, None where none are given.
            row: Its columns.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither image nor images")

    def images(
        self, batch: list[Image], prompts: list[Any], columns: Mapping[str, Any]
    ) -> Sequence[float | None] | NDArray[np.floating[Any]]:
        """Scores images; None: does not apply. An exception marks all of them as failed.

        Args:
            batch: Images ``[H, W, 3]`` uint8, which may differ in size.
            prompts: As many prompts; None in each place where none are given.
            columns: The columns of these images; a list has one entry an image.
        """
        rows = (row_of(columns, i) for i in range(len(batch)))
        return [self.image(*sample) for sample in zip(batch, prompts, rows, strict=True)]

    def _score(
        self, completions: list[Completion], prompts: list[Text] | None, columns: dict[str, Any]
    ) -> RewardScores:
        for column in self.required_columns():
            if column not in columns:
                given = ", ".join(sorted(columns)) or "none"
                raise ValueError(f"{type(self).__name__} reads column {column!r}; columns given: {given}")
        if self.reads_prompts and prompts is None:
            raise ValueError(f"{type(self).__name__} needs prompts, got None")
        self.load()  # a missing library is an error of the set-up, not of the images
        scores = RewardScores(np.full(len(completions), np.nan))
        images: dict[int, Image] = {}
        for i, completion in enumerate(completions):
            try:
                images[i] = image_of(completion)
            except (TypeError, ValueError) as error:
                scores.reasons[i] = reason_of(error)
        rows, size = list(images), getattr(self, "batch_size", 1)
        for start in range(0, len(rows), size):
            self._fill(scores, rows[start : start + size], images, prompts, columns)
        return scores

    def _fill(
        self,
        scores: RewardScores,
        rows: list[int],
        images: Mapping[int, Image],
        prompts: list[Text] | None,
        columns: Mapping[str, Any],
    ) -> None:
        """Scores the images of some rows together; where that fails, one by one."""
        batch, asked = [images[i] for i in rows], [prompts[i] if prompts is not None else None for i in rows]
        picked = {key: [entry[i] for i in rows] if is_column(entry) else entry for key, entry in columns.items()}
        try:
            values = self.images(batch, asked, picked)
        except Exception as error:  # whatever a reward raises must cost its image, not the run
            if len(rows) == 1:
                scores.reasons[rows[0]] = reason_of(error)
            else:
                for i in rows:
                    self._fill(scores, [i], images, prompts, columns)
            return
        if len(values) != len(rows):
            raise ValueError(f"{type(self).__name__}.images returned {len(values)} values for {len(rows)} images")
        for i, value in zip(rows, values, strict=True):
            if value is not None:
                scores.values[i] = value if np.isfinite(value) else np.nan
                scores.reasons[i] = None if np.isfinite(value) else f"returned {value}"

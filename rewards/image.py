"""What rewards on images have in common, and those that need nothing but the pixels."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
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


def optional(module: str, reward: object) -> Any:
    """Imports a library of the extra ``image``.

    Raises:
        ImportError: if it is not installed, with what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        needs = f"{type(reward).__name__} needs {module}: pip install 'aligngym[image]'"
        raise ImportError(f"{needs} ({error})") from error


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


@dataclass
class Incompressibility(ImageReward):
    """Size of the image as JPEG in kB of 1000 bytes, above 0: DDPO's incompressibility. Its optimum is noise.

    Black et al. 2023, arXiv 2305.13301.

    Attributes:
        quality: JPEG quality, 1 to 95; DDPO's is 95.
    """

    quality: int = 95
    name: str | None = field(default="incompressibility", kw_only=True)

    main_argument: ClassVar[str] = "quality"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be from 1 to 95, got {self.quality}")

    def load(self) -> None:
        """Imports Pillow."""
        optional("PIL.Image", self)

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float:
        """Scores one image."""
        buffer = io.BytesIO()
        optional("PIL.Image", self).fromarray(image).save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell() / 1000


@dataclass
class Compressibility(Incompressibility):
    """Minus the size of the image as JPEG in kB: DDPO's compressibility. Its optimum is an image of one colour.

    Black et al. 2023, arXiv 2305.13301.

    Attributes:
        quality: JPEG quality, 1 to 95; DDPO's is 95.
    """

    name: str | None = field(default="compressibility", kw_only=True)

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float:
        """Scores one image."""
        return -super().image(image, prompt, row)


@dataclass
class Colourfulness(ImageReward):
    """Colourfulness ``M`` of Hasler & Süsstrunk 2003, at least 0; 0 for grey, above 109 "extremely colourful".

    ``M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)`` with the opponent colours ``rg = R - G`` and
    ``yb = (R + G) / 2 - B`` of values from 0 to 255. Its optimum is a patchwork of pure colours.
    """

    name: str | None = field(default="colourfulness", kw_only=True)

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float:
        """Scores one image."""
        red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
        opponents = np.stack([red - green, (red + green) / 2 - blue])
        spread, mean = np.sqrt(opponents.var((1, 2)).sum()), np.sqrt((opponents.mean((1, 2)) ** 2).sum())
        return float(spread + 0.3 * mean)


@dataclass
class Symmetry(ImageReward):
    """How alike an image and its mirror image are.

    ``"difference"`` is minus the mean absolute difference of the values, which are from 0 to 1; in ``[-1, 0]``. An
    image of one colour is perfectly symmetric, so training ends there unless something else forbids it.

    ``"correlation"`` cannot be won that way: ``cov(x, mirror x) / (var(x) + contrast^2)``, in ``(-1, 1)``, over all
    pixels, each channel around its mean. An image of one colour has 0, and so has noise on average; a symmetric image
    whose deviation is ``contrast`` has 1/2. Without the added term a trace of a symmetric pattern would have 1.

    Attributes:
        axis: ``"horizontal"``: left and right change places; ``"vertical"``: top and bottom do.
        form: ``"difference"`` or ``"correlation"``.
        contrast: See above, above 0; ``"difference"`` does not read it.
    """

    axis: str = "horizontal"
    form: str = "difference"
    contrast: float = 0.05
    name: str | None = field(default="symmetry", kw_only=True)

    main_argument: ClassVar[str] = "axis"

    def __post_init__(self) -> None:
        if self.axis not in ("horizontal", "vertical"):
            raise ValueError(f"axis must be 'horizontal' or 'vertical', got {self.axis!r}")
        if self.form not in ("difference", "correlation"):
            raise ValueError(f"form must be 'difference' or 'correlation', got {self.form!r}")
        if not self.contrast > 0:
            raise ValueError(f"contrast must be positive, got {self.contrast}")

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float:
        """Scores one image."""
        values = image / 255.0
        if self.form == "correlation":  # over all channels, a colour would count as contrast
            values -= values.mean((0, 1))
        mirrored = np.flip(values, 1 if self.axis == "horizontal" else 0)
        if self.form == "difference":
            return -float(np.abs(values - mirrored).mean())
        return float((values * mirrored).mean() / ((values**2).mean() + self.contrast**2))

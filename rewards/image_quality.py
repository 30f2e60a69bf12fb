"""Image quality by scikit-image's measures, with and without a reference image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .image import Image, ImageReward, image_of, optional

WITH_REFERENCE = ("ssim", "psnr")
MEASURES = (*WITH_REFERENCE, "sharpness", "noise")


@dataclass
class ImageQuality(ImageReward):
    """A quality measure of scikit-image; more is better.

    * ``"ssim"``: mean structural similarity to the reference (Wang et al. 2004, uniform windows of 7 pixels), up to 1.
    * ``"psnr"``: peak signal-to-noise ratio against the reference in dB, at most 100, which an equal image has too.
    * ``"sharpness"``: 1 minus the blur of Crété-Roffet et al. 2007, in ``[0, 1]``; one colour has 0, noise nearly 1.
    * ``"noise"``: minus the deviation of Gaussian noise in the image, estimated from its finest wavelets (Donoho &
      Johnstone 1994), averaged over the channels; at most 0, and 0 for one colour. The values are from 0 to 255.

    The last two look at one property, in opposite directions, and are no judgement of the whole image.

    Attributes:
        measure: One of these.
        column: The references for ``"ssim"`` and ``"psnr"``, images of the same size; None: does not apply.
    """

    measure: str = "sharpness"
    column: str = "reference"
    name: str | None = field(default="image_quality", kw_only=True)

    main_argument: ClassVar[str] = "measure"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(map(repr, MEASURES))}, got {self.measure!r}")

    def required_columns(self) -> tuple[str, ...]:
        """Returns the column of references, for a measure that has one."""
        return (self.column,) if self.measure in WITH_REFERENCE else ()

    def load(self) -> None:
        """Imports what is needed of scikit-image."""
        optional("pywt" if self.measure == "noise" else "skimage", self)

    def image(self, image: Image, prompt: Any, row: Mapping[str, Any]) -> float | None:
        """Scores one image."""
        if self.measure == "sharpness":
            return 1.0 - float(optional("skimage.measure", self).blur_effect(image, channel_axis=2))
        if self.measure == "noise":
            return -self._noise(image)
        if row[self.column] is None:
            return None
        reference = image_of(row[self.column])
        if reference.shape != image.shape:
            raise ValueError(f"the reference has shape {reference.shape}, the image {image.shape}")
        metrics = optional("skimage.metrics", self)
        if self.measure == "ssim":
            return float(metrics.structural_similarity(reference, image, channel_axis=2))
        if np.array_equal(reference, image):  # scikit-image would divide by zero
            return 100.0
        return min(float(metrics.peak_signal_noise_ratio(reference, image)), 100.0)

    def _noise(self, image: Image) -> float:
        restoration = optional("skimage.restoration", self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            sigmas = restoration.estimate_sigma(image, channel_axis=2, average_sigmas=False)
        # The estimate is a median over the coefficients that are not zero; where there are none, there is no noise.
        return float(np.nan_to_num(sigmas).mean())

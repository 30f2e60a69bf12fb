"""A space of any text: Gymnasium's own is limited to a set of characters, which no language model is."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


class UnicodeText(spaces.Text):
    """Strings of at most ``max_length`` characters, whichever they are; samples are of letters and digits.

    Gymnasium batches it like its own ``Text``, into a tuple.

    Args:
        max_length: characters, at least 1.
        seed: of samples.
    """

    def __init__(self, max_length: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether it is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

"""Global random generators, lent to libraries that draw from no others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .checkpoint import read_generator, write_generator


class GlobalRandomness:
    """The global generators of ``random``, NumPy and torch, as a library sees them within :meth:`installed`.

    Outside they are everybody's, and what the library draws does not move them; inside they are the library's, and what
    others draw does not move those.

    Args:
        device: on which torch draws, beside the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own: dict[str, Any] | None = None  # None: the library has not been called yet

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Exchange the states of the global generators, and exchange them back, also after an error."""
        others = self._taken()
        if self._own is not None:
            self._put(self._own)
        try:
            yield
        finally:
            self._own = self._taken()
            self._put(others)

    def get_state(self) -> dict[str, Any] | None:
        """The library's states as JSON types."""
        if self._own is None:
            return None
        version, words, gauss = self._own["python"]
        torches = {k: write_generator(_generator(k, v)) for k, v in self._own["torch"].items()}
        generator = np.random.Generator(np.random.MT19937())
        generator.bit_generator.state = self._own["numpy"]
        numpy = {k: self._own["numpy"][k] for k in ("has_gauss", "gauss")} | write_generator(generator)
        return {"python": [version, list(words), gauss], "numpy": numpy, "torch": torches}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Inverse of :meth:`get_state`."""
        if state is None:
            self._own = None
            return
        version, words, gauss = state["python"]
        numpy = dict(read_generator(state["numpy"]).bit_generator.state)
        self._own = {
            "python": (version, tuple(words), gauss),
            "numpy": numpy | {k: state["numpy"][k] for k in ("has_gauss", "gauss")},
            "torch": {k: read_generator(v).get_state() for k, v in state["torch"].items()},
        }

    def _taken(self) -> dict[str, Any]:
        torches = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            torches[str(self.device)] = torch.cuda.get_rng_state(self.device)
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),  # noqa: NPY002, it is this one that is lent
            "torch": torches,
        }

    def _put(self, states: dict[str, Any]) -> None:
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])  # noqa: NPY002
        for device, state in states["torch"].items():
            if device == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Torch's global generators start from ``seed`` within, and are put back: layers and dropout know no others.

    Args:
        seed: of them.
        device: on which torch draws, beside the CPU.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the other devices too
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _generator(device: str, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator

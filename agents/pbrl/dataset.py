"""Preferences between segments, and their file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ..checkpoint import read_safetensors
from .segments import Segments

FORMAT, SCHEMA = "aligngym-preferences", 1


@dataclass(frozen=True, kw_only=True)
class PreferenceDataset:
    """Which of two segments is better, pair by pair.

    Attributes:
        segments: ``N`` of them.
        pairs: ``[P, 2]`` int64, rows of ``segments``.
        labels: ``[P]`` float32 in [0, 1], probability that the first one is preferred: 1 the first, 0 the second, 0.5
            equally good.

    Raises:
        ValueError: for pairs of other segments, labels outside [0, 1], or other dtypes.
    """

    segments: Segments
    pairs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2 or self.labels.shape != self.pairs.shape[:1]:
            shapes = tuple(self.pairs.shape), tuple(self.labels.shape)
            raise ValueError(f"pairs and labels have shapes {shapes}, expected [P, 2] and [P]")
        if self.pairs.dtype != torch.int64 or self.labels.dtype != torch.float32:
            dtypes = self.pairs.dtype, self.labels.dtype
            raise ValueError(f"pairs and labels have dtypes {dtypes}, expected torch.int64 and torch.float32")
        if bool(((self.pairs < 0) | (self.pairs >= len(self.segments))).any()):
            raise ValueError(f"pairs name segments outside [0, {len(self.segments)})")
        if not bool(((self.labels >= 0) & (self.labels <= 1)).all()):
            raise ValueError(
                "labels lie outside [0, 1] or are NaN: a label is the probability that the first segment is preferred, "
                "and pairs that a teacher skipped are left out"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, index: Tensor) -> PreferenceDataset:
        """Pairs ``index`` (bool mask or integer positions) of the same segments."""
        return PreferenceDataset(segments=self.segments, pairs=self.pairs[index], labels=self.labels[index])

    def table(self) -> NDArray[np.float64]:
        """``[N, N]``: the label of the row against the column, 1 less it the other way round; NaN where there is none.

        Pairs that were asked more than once have the mean of their labels.
        """
        total, count = np.zeros((2, len(self.segments), len(self.segments)))
        first, second = self.pairs.cpu().numpy().T
        labels = self.labels.double().cpu().numpy()
        for rows, columns, values in ((first, second, labels), (second, first, 1 - labels)):
            np.add.at(total, (rows, columns), values)
            np.add.at(count, (rows, columns), 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, replaced at once; returns ``path``."""
        from safetensors.torch import save

        path = Path(path)
        tensors = {f.name: getattr(self.segments, f.name) for f in fields(Segments)}
        tensors |= {"pairs": self.pairs, "labels": self.labels}
        metadata = {"format": FORMAT, "schema": str(SCHEMA)}
        data = save({k: v.cpu().contiguous() for k, v in tensors.items()}, metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_bytes(data)
        beside.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> PreferenceDataset:
        """Inverse of :meth:`save`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, of another kind, or of a newer schema.
        """
        try:
            tensors, metadata = read_safetensors(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no intact safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is a safetensors file without preferences: it holds {sorted(tensors)}")
        if metadata.get("schema") != str(SCHEMA):
            raise ValueError(
                f"{path} has schema {metadata.get('schema')}, this version reads {SCHEMA}: update aligngym?"
            )
        names = {f.name for f in fields(Segments)} | {"pairs", "labels"}
        if tensors.keys() != names:
            raise ValueError(f"{path} holds {sorted(tensors)}, expected {sorted(names)}")
        pairs, labels = tensors.pop("pairs"), tensors.pop("labels")
        try:
            return cls(segments=Segments(**tensors), pairs=pairs, labels=labels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

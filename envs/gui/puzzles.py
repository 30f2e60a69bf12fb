"""Pieces whose order is to be found: tiles of pictures, windows of a pan over a page, frames of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .screens import HEIGHT, WIDTH, Screens, load_screens

Images = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
EMBEDDED = ("screens", "video")  # sources of the embedded screenshots
PIECE = 16  # sides of pieces are multiples of this many pixels


@dataclass(frozen=True)
class Puzzles:
    """Pictures or clips, and how they are cut.

    Attributes:
        pictures: screens, files, or arrays ``[H, W, 3]`` or ``[K, H, W, 3]`` uint8.
        index: which of them are used.
        grid: rows and columns of tiles; for clips and pans, their number of frames and 1.
        kind: "tiles" of a picture, windows of a "pan" over one, or frames of "clips".
        size: height and width that a picture or frame is brought to.
        piece: height and width of a piece, multiples of 16.
        source: where they are from, for messages.
    """

    pictures: Screens | Sequence[Path] | Sequence[Images]
    index: Sequence[int]
    grid: tuple[int, int]
    kind: Literal["tiles", "pan", "clips"]
    size: tuple[int, int]
    piece: tuple[int, int]
    source: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def count(self) -> int:
        """Pieces of a puzzle."""
        return self.grid[0] * self.grid[1]

    def picture(self, number: int) -> Images:
        """One picture ``[H, W, 3]`` before it is cut; of a clip, its frames ``[K, h, w, 3]``."""
        shown = _read(self.pictures, self.index[number])
        if shown.ndim == 4:
            return np.stack([_fitted(frame, self.size) for frame in shown])
        return _fitted(shown, self.size)

    def pieces(self, number: int) -> Images:
        """The pieces ``[K, h, w, 3]`` of one puzzle in their order: tiles row by row, frames in time."""
        page, (height, width) = self.picture(number), self.piece
        if self.kind == "clips":
            return page
        if self.kind == "pan":
            tops = np.linspace(0, len(page) - height, self.count).round().astype(int)
            return np.stack([page[top : top + height] for top in tops])
        tiles = page.reshape(self.grid[0], height, self.grid[1], width, 3).swapaxes(1, 2)
        return tiles.reshape(self.count, height, width, 3)

    def distinct(self, least: float) -> Puzzles:
        """Only those of which any two pieces differ by at least ``least``, the mean over pixels of 0 ... 255.

        Raises:
            ValueError: if none is left.
        """
        alike = [smallest_difference(self.pieces(number), least) < least for number in range(len(self))]
        kept = [i for i, drop in zip(self.index, alike, strict=True) if not drop]
        if not kept:
            raise ValueError(
                f"min_difference is {least}, but none of the {len(self)} puzzles of {self.source} has pieces that all "
                "differ by so much: lower it, or give other pictures"
            )
        return replace(self, index=kept)


def smallest_difference(pieces: Images, enough: float = 0.0) -> float:
    """The mean absolute difference of the two of ``pieces [K, h, w, 3]`` that are most alike, in [0, 255].

    Of every second row and column. Stops at a pair below ``enough``, whose difference it then returns.
    """
    thin, least = pieces[:, ::2, ::2].astype(np.int16), 255.0
    for i in range(len(thin) - 1):
        least = min(least, float(np.abs(thin[i + 1 :] - thin[i]).mean((1, 2, 3)).min()))
        if least < enough:
            break
    return least


def load_puzzles(
    source: Any,
    split: str = "train",
    *,
    rows: int = 3,
    columns: int = 3,
    frames: int = 6,
    height: int | None = None,
    width: int | None = None,
) -> Puzzles:
    """Puzzles of a source.

    Args:
        source: ``"screens"``: the embedded screenshots, cut into tiles. ``"video"``: windows of a pan over one of them,
            from top to bottom, what scrolling a page shows; each is half as high as the page. A folder of image files,
            or a list or array of images ``[H, W, 3]`` uint8, cut into tiles. A list or array of clips ``[K, H, W, 3]``.
        split: of the embedded screenshots.
        rows: of tiles.
        columns: the same.
        frames: of a pan.
        height: that a picture is brought to; None: that of the embedded screenshots, or of the first picture. Rounded
            down, so that the sides of pieces are multiples of 16. Pictures of other sizes are scaled to cover it, and
            what is over is cut off evenly.
        width: the same.

    Raises:
        ValueError: for sizes or arrays outside what is allowed, or fewer than two pieces.
        FileNotFoundError: for a folder without images.
        TypeError: for a source of another kind.
    """
    pictures, name = _pictures(source, split)
    count = len(pictures.images) if isinstance(pictures, Screens) else len(pictures)
    first = _read(pictures, 0)
    whole = (height or first.shape[-3], width or first.shape[-2])
    kind: Literal["tiles", "pan", "clips"] = "clips" if first.ndim == 4 else "tiles"
    grid, cut = {"tiles": ((rows, columns), (rows, columns)), "clips": ((len(first), 1), (1, 1))}[kind]
    if isinstance(source, str) and source == "video":
        kind, grid, cut = "pan", (frames, 1), (2, 1)
    if grid[0] * grid[1] < 2:
        raise ValueError(f"puzzles of {name} have one piece (rows={rows}, columns={columns}, frames={frames}): give 2")
    piece = (whole[0] // cut[0] // PIECE * PIECE, whole[1] // cut[1] // PIECE * PIECE)
    if 0 in piece:
        raise ValueError(
            f"pieces of pictures of {whole[1]}x{whole[0]} pixels (rows={rows}, columns={columns}) would be smaller "
            f"than {PIECE}x{PIECE}: give a larger width and height, or fewer pieces"
        )
    size = (whole[0] if kind == "pan" else piece[0] * cut[0], piece[1] * cut[1])
    return Puzzles(pictures, range(count), grid, kind, size, piece, name)


def _pictures(source: Any, split: str) -> tuple[Screens | list[Path] | list[Images], str]:
    if isinstance(source, str) and source in EMBEDDED:
        screens = load_screens(split=split)
        return screens, f"the embedded screenshots ({split})"
    if isinstance(source, str | Path):
        files = sorted(p for p in Path(source).glob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"source is {str(source)!r}, expected 'screens', 'video' or a folder with images: {', '.join(SUFFIXES)}"
            )
        return files, str(source)
    if not isinstance(source, Sequence | np.ndarray):
        raise TypeError(f"source is a {type(source).__name__}, expected a name, a folder, or a list or array of images")
    arrays = [np.asarray(one) for one in source]
    shapes = {a.shape[:1] if a.ndim == 4 else a.ndim for a in arrays}
    if len(shapes) != 1 or any(a.dtype != np.uint8 or a.ndim not in (3, 4) or a.shape[-1] != 3 for a in arrays):
        found = sorted({f"{a.dtype} {list(a.shape)}" for a in arrays})[:4]
        raise ValueError(f"source has {found}, expected uint8 images [H, W, 3], or clips [K, H, W, 3] of one K")
    return arrays, f"{len(arrays)} arrays"


def _read(pictures: Screens | Sequence[Path] | Sequence[Images], number: int) -> Images:
    if isinstance(pictures, Screens):
        return pictures.pixels(number, WIDTH, HEIGHT)[0]
    picture = pictures[number]
    if isinstance(picture, np.ndarray):
        return picture
    from PIL import Image

    with Image.open(picture) as file:
        return np.asarray(file.convert("RGB"))


def _fitted(picture: Images, size: tuple[int, int]) -> Images:
    """A picture scaled to cover ``(height, width)``, and cut evenly to it."""
    if picture.shape[:2] == size:
        return picture
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(picture), (size[1], size[0]), Image.Resampling.LANCZOS))

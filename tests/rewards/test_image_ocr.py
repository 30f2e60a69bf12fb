"""The OCR reward on text that Pillow draws."""

import copy
import pickle
import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from aligngym.rewards import Ocr
from aligngym.rewards.ocr import edit_distance, quoted

BLANK = np.full((64, 64, 3), 255, np.uint8)


def drawn(text, size=(160, 48), font=28, paper="white", ink="black", at=(8, 6)):
    picture = Image.new("RGB", size, paper)
    ImageDraw.Draw(picture).multiline_text(at, text, fill=ink, font=ImageFont.load_default(font))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def reward():
    """One reader for all tests, made while connections fail: its models come with the library."""

    def refuse(*_):
        raise AssertionError("the network was used")

    made, connect = Ocr(), socket.socket.connect
    socket.socket.connect = refuse
    try:
        made.load()
    finally:
        socket.socket.connect = connect
    return made


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "cba", 2), ("flaw", "lawn", 2), ("ab", "ab", 0)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_quoted_parts():
    assert quoted('a sign that says "OPEN"') == "OPEN"
    assert quoted('"NO" above “exit”') == "NO exit"
    assert quoted("the cat's sign") is None and quoted('an empty ""') is None and quoted('a 5" disk') is None


def test_legible_text_has_one_and_a_blank_image_zero(reward):
    images = [
        drawn("OPEN"),
        drawn("open", paper="navy", ink="yellow"),
        drawn("OP\nEN", (96, 96)),
        BLANK,
        drawn("CLOSED"),
    ]
    scores = reward.score(images, ['a sign "Open"'] * 5)
    np.testing.assert_allclose(scores.values[:4], [1, 1, 1, 0])
    assert 0 <= scores.values[4] < 0.5


def test_the_score_counts_wrong_characters(reward):
    targets = ["HOUSE", "HORSE", "HOUSES", "mouse", "HO USE", "xyz"]
    values = reward([drawn("HOUSE")] * 6, target=targets)
    np.testing.assert_allclose(values, [1, 0.8, 1 - 1 / 6, 0.8, 1, 0], atol=1e-9)


def test_words_on_small_images_are_read(reward):
    small = [drawn("CAT", (32, 32), 14, at=(1, 8)), drawn("7", (24, 24), 18, at=(6, 1))]
    assert reward(small, target=["cat", "7"]) == [1.0, 1.0]
    tiny = drawn("cat", (32, 32), 7, at=(2, 10))
    assert reward([tiny], target="cat") == [1.0] and Ocr("cat", resolution=32)([tiny]) == [0.0]
    assert reward([drawn("a small cat", (900, 16), 12, at=(3, 0))], target="A small cat") == [1.0]


def test_text_upside_down_is_not_legible(reward):
    assert reward([drawn("HOUSE")[::-1, ::-1]], target="house")[0] < 0.5


def test_an_image_too_thin_to_be_read_fails_alone(reward):
    thin = np.full((1, 3000, 3), 255, np.uint8)
    scores = reward.score([thin, drawn("CAT"), BLANK[:1, :1]], target="cat")
    np.testing.assert_array_equal(scores.values, [np.nan, 1, 0])
    assert scores.reasons[0].startswith("ResizeImgError")


def test_text_beyond_the_target(reward):
    images = [drawn("OPEN NOW"), drawn("OPEN"), drawn("CLOSED")]
    strict = reward(images, target="OPEN")
    contained = copy.copy(reward)  # with the same reader
    contained.contained = True
    assert strict[:2] == [pytest.approx(1 - 3 / 4), 1.0]
    lenient = contained(images, target="OPEN")
    assert lenient[:2] == [1.0, 1.0] and lenient[2] == strict[2]


def test_where_the_target_comes_from(reward):
    images, prompts = [drawn("OPEN")] * 3, ['says "OPEN"', "says nothing", 'says " "']
    assert reward(images, prompts) == [1.0, None, None]
    assert reward(images, prompts, target=["nope", None, "open"])[1:] == [None, 1.0]
    fixed = copy.copy(reward)
    fixed.target = "open"
    assert fixed(images, prompts, target=["nope"] * 3) == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="Ocr needs a target, the column 'target' or prompts that quote it"):
        reward.score(images)


def test_it_repeats_and_pickles(reward):
    images = [drawn("HOUSE"), BLANK, "text", drawn("MOUSE")]
    first = reward.score(images, target="house")
    again = pickle.loads(pickle.dumps(reward)).score(images, target="house")
    np.testing.assert_array_equal(first.values, again.values)
    assert first.reasons[2].startswith("TypeError: an image must be") and first.failed.sum() == 1


def test_wrong_options():
    for options, message in (
        ({"target": " "}, "target must have a character"),
        ({"resolution": 31}, "resolution >= 32 and threads >= 1, got 31 and 1"),
        ({"threads": 0}, "got 128 and 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Ocr(**options)

"""What a text answers: points, boxes and orders in the forms that models write, and everything that is none."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngym.answers import parse_boxes, parse_order, parse_points

ONE = '[{"point_2d": [100, 25], "label": "ok"}]'
BOX = '[{"bbox_2d": [10, 20, 30, 40], "label": "a cat"}]'


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        '{"point_2d": [100, 25]}',
        "[[100, 25]]",
        " [[1e2, 25.0]]\n",
        f"```json\n{ONE}\n```",
        f"```\n{ONE}```",
        f"<think>is it [[1, 2]] or [3?</think>\n{ONE}",
        f"<think>so</think> Here you are:\n```json\n{ONE}\n```\nGood luck.",
        f"<think>so</think><answer>{ONE}</answer> [[1, 2]]",
        f"<answer>[[1, 2]]</answer> no: <answer>\n{ONE}",
        f"[the button] {ONE}",
        f"[0, 1) {ONE}",
        "[a" * 500 + ONE,
        f"[[1, 2]] or rather {ONE}",
        '[{"point_2d": [100, 25], "label": "a ] \\" } in a label"}]',
    ],
)
def test_forms_of_one_point(text):
    np.testing.assert_array_equal(parse_points(text), [[100, 25]])
    np.testing.assert_array_equal(parse_points(text, (200, 100)), [[0.5, 0.25]])


def test_lists_of_points():
    assert parse_points("[]").shape == (0, 2) and parse_points("[]", (5, 5)).dtype == np.float64
    several = '[{"point_2d": [-1, 2.5]}, [3, 4], {"label": 1, "point_2d": [5, 600]}]'
    np.testing.assert_array_equal(parse_points(several), [[-1, 2.5], [3, 4], [5, 600]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "at 100, 25",
        "(100, 25)",
        "[100, 25]",
        "[[100]]",
        "[[100, 25, 3]]",
        "[[[100, 25]]]",
        '[["100", "25"]]',
        "[[true, 25]]",
        "[[null, 25]]",
        "[[NaN, 25]]",
        "[[100, Infinity]]",
        "[[1e999, 25]]",
        f"[[{'9' * 5000}, 25]]",
        '[{"point": [100, 25]}]',
        '[{"point_2d": 100}]',
        '[{"point_2d": {"x": 1, "y": 2}}]',
        "{'point_2d': [100, 25]}",
        "[[100, 25], 3]",
        ONE[:-1],
        ONE[:-2],
        ONE[:-6],
        '[{"point_2d": [100, 25]}, {"point_2d": [3',
        '[{"point_2d": [100, 25], "label": "it says [[1, 2]]',
        "[[100, 25], [3, 4]",
        f"{ONE}]",
        f"{ONE} as in [1]",
        f"{ONE} [cut off",
        f"<think>{ONE}",
        f"<think>{ONE}</think>",
        f"{ONE}<answer>none</answer>",
    ],
)
def test_what_is_no_list_of_points(text):
    assert parse_points(text) is None


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5, float("nan")), 5])
def test_a_size_is_two_positive_numbers(size):
    for parse in (parse_points, parse_boxes):
        with pytest.raises(ValueError, match=r"size must be \(width, height\) in pixels, both positive, got"):
            parse("no answer", size)


def test_boxes():
    found = parse_boxes(f"<think>[]</think>```json\n{BOX}\n```", (100, 200))
    np.testing.assert_array_equal(found.boxes, [[0.1, 0.1, 0.3, 0.2]])
    assert found.labels == ("a cat",)
    assert parse_boxes("[]").boxes.shape == (0, 4) and parse_boxes("[]").labels == ()
    two = parse_boxes('[{"bbox_2d": [4, 3, 2, 1], "label": ""}, {"label": "b", "bbox_2d": [1, 2, 3, 4.5]}]')
    assert two.boxes.tolist() == [[4, 3, 2, 1], [1, 2, 3, 4.5]] and two.labels == ("", "b")
    assert parse_boxes(BOX[1:-1]).labels == ("a cat",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        BOX[:-1],
        "[[10, 20, 30, 40]]",
        '[{"bbox_2d": [10, 20, 30, 40]}]',
        '[{"bbox_2d": [10, 20, 30, 40], "label": 3}]',
        '[{"bbox_2d": [10, 20, 30], "label": "a"}]',
        '[{"bbox_2d": [10, 20, 30, false], "label": "a"}]',
        '[{"bbox_2d": [10, 20, 30, NaN], "label": "a"}]',
        '[{"point_2d": [10, 20], "label": "a"}]',
        f"{BOX[:-1]}, 3]",
    ],
)
def test_what_is_no_list_of_boxes(text):
    assert parse_boxes(text) is None


def test_orders():
    for text in ("3, 1,2", " 3 ,\n1, 2\n", "[3, 1, 2]", "<think>1, 2, 3</think> <answer> 3, 1, 2 </answer>."):
        assert parse_order(text) == [3, 1, 2]
    assert parse_order("7") == [7] and parse_order("-1, +2, 99") == [-1, 2, 99]
    wrong = ["", ",", "3,1,", "3 1 2", "first 3, then 1", "3, 1.5", "3, x", "٣, 1", "1_0, 2", "[3, 1", "<think>3, 1"]
    for text in [*wrong, "3, 1 <answer></answer>", f"{'9' * 5000}, 1", "[[3, 1]]"]:
        assert parse_order(text) is None, text


MILLION = 1_000_000
HOSTILE = {
    "lists that open": "[" * MILLION,
    "objects that open": '{"a":' * (MILLION // 5),
    "brackets in turn": "[{" * (MILLION // 2),
    "lists that close": "]" * MILLION,
    "lists and prose": "[a" * (MILLION // 2),
    "a list without end": "[" + "[1,2]," * (MILLION // 6),
    "many lists without end": "[[1,2],[[" * (MILLION // 9),
    "strings that open": '["' * (MILLION // 2),
    "a string without end": '["' + "[" * MILLION,
    "lists before a string without end": "[" * 900 + '"' + "[" * MILLION,
    "quotes and backslashes": '["\\' * (MILLION // 3),
    "a number": "[[" + "9" * MILLION + ",1]]",
    "spaces": "[" + " " * MILLION,
    "tags": "<answer>" * (MILLION // 8) + "</think>" * (MILLION // 8),
    "fences": "```json" * (MILLION // 7),
    "commas": "," * MILLION,
    "an order without end": "1," * (MILLION // 2),
    "minus": "-" * MILLION,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_million_characters_cost_little(name):
    start = time.process_time()
    assert parse_points(HOSTILE[name]) is None
    assert parse_boxes(HOSTILE[name]) is None
    assert parse_order(HOSTILE[name]) is None
    assert time.process_time() - start < 4.0  # what is quadratic takes minutes


def test_a_long_answer_is_read():
    many = [[i, -i] for i in range(50_000)]
    np.testing.assert_array_equal(parse_points(json.dumps(many)), many)
    assert parse_order(", ".join(map(str, range(100_000)))) == list(range(100_000))


NUMBER = st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER, st.text())), st.text(st.characters(exclude_characters="[]{}<>")))
def test_what_is_written_is_read(points, prose):
    text = json.dumps([{"point_2d": [x, y], "label": label} for x, y, label in points])
    expected = np.array([[x, y] for x, y, _ in points], np.float64).reshape(-1, 2)
    if not any("<" in label for *_, label in points):  # which might be a tag
        np.testing.assert_array_equal(parse_points(prose + text + prose), expected)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('[]{}",:0123 ae.-\\point_2dbxl`<thinkaswer/>')))
def test_any_text_is_read_or_not(text):
    points, boxes, order = parse_points(text), parse_boxes(text), parse_order(text)
    assert points is None or (points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all())
    assert boxes is None or boxes.boxes.shape == (len(boxes.labels), 4)
    assert order is None or all(type(number) is int for number in order)

"""What a model's text answer says: points, boxes, an order, a choice. Read by rewards, environments and agents alike.

What stands before ``</think>`` is no part of the answer; where there is an ``<answer>``, the last one is. Reading a
million characters takes less than a second, whatever they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers are all read as floats: an int of a million digits is then infinity at once, and bools stay apart.
_DECODER = json.JSONDecoder(parse_int=float)
_BRACKET = re.compile(r"[\[\]{}]")
_MOST_FAILURES = 1000  # each costs time in proportion to the text before it, in which the error counts the lines
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of an answer.

    Attributes:
        boxes: ``[n, 4]``, each ``x0, y0, x1, y1`` as the answer gives them, in any order.
        labels: ``n`` labels.
    """

    boxes: NDArray[np.float64]
    labels: tuple[str, ...]


def parse_points(text: str, size: tuple[int, int] | None = None) -> NDArray[np.float64] | None:
    """Returns the points of an answer in the form of Qwen2.5-VL, ``[{"point_2d": [x, y], "label": "..."}, ...]``.

    Args:
        text: An answer whose last thing in brackets is a JSON list of such objects or of bare pairs ``[x, y]``, or one
            object. A fence around it and prose before it do not matter; labels are not read.
        size: Width and height in pixels by which the coordinates are divided; None: they are left as they are.

    Returns:
        ``[n, 2]``, ``[0, 2]`` for an empty list; None if the answer is malformed: no JSON, cut off, numbers that are
        not finite, bools, another count of numbers. Points outside the image are not malformed here.

    Raises:
        ValueError: if ``size`` is not two positive numbers.
    """
    scale, items = _scale(size), _items(text)
    if items is None:
        return None
    points = _rows([item.get("point_2d") if isinstance(item, dict) else item for item in items], 2)
    return None if points is None else points / scale


def parse_boxes(text: str, size: tuple[int, int] | None = None) -> Boxes | None:
    """Returns the boxes of an answer in the form of Qwen2.5-VL, ``[{"bbox_2d": [x0, y0, x1, y1], "label": "..."}]``.

    Args:
        text: An answer whose last thing in brackets is a JSON list of such objects, or one of them; every label is a
            string.
        size: Width and height in pixels by which the coordinates are divided; None: they are left as they are.

    Returns:
        The boxes, which may be none; None if the answer is malformed, as in :func:`parse_points`.

    Raises:
        ValueError: if ``size`` is not two positive numbers.
    """
    scale, items = _scale(size), _items(text)
    if items is None or not all(isinstance(item, dict) and isinstance(item.get("label"), str) for item in items):
        return None
    boxes = _rows([item.get("bbox_2d") for item in items], 4)
    return None if boxes is None else Boxes(boxes / np.tile(scale, 2), tuple(item["label"] for item in items))


def parse_order(text: str) -> list[int] | None:
    """Returns the integers, of at most nine digits, of an answer that is nothing but them and commas: ``"3, 1, 2"``.

    They may stand in square brackets. None if the answer is anything else; which integers it has is not checked.
    """
    answer = _answer(text).strip()
    if answer.startswith("[") and answer.endswith("]"):
        answer = answer[1:-1]
    numbers = [part.strip() for part in answer.split(",")]
    return [int(number) for number in numbers] if all(map(_INTEGER.fullmatch, numbers)) else None


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Which of the ``choices`` an answer names, by number; None if it names none, or several.

    A JSON object with a ``choice`` counts first, the last one in the answer; else ``choice: name``; else the only name
    that occurs. Names are whole words; upper and lower case are the same.
    """
    names, answer = [choice.lower() for choice in choices], _answer(answer)
    for found in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            said = json.loads(found)
        except (ValueError, RecursionError):  # no JSON, a number of too many digits, or nested too deeply
            continue
        if isinstance(said, dict) and str(said.get("choice", "")).strip().lower() in names:
            return names.index(str(said["choice"]).strip().lower())
    text = answer.lower()
    after = text.rpartition("choice")[2].lstrip("\"' :")
    starts = [i for i, name in enumerate(names) if re.match(rf"{re.escape(name)}(?!\w)", after)]
    if "choice" in text and len(starts) == 1:
        return starts[0]
    named = [i for i, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    return named[0] if len(named) == 1 else None


def _answer(text: str) -> str:
    """The part of a text that answers; a thought that was never closed is none."""
    said = text.rpartition("</think>")[2].partition("<think>")[0]
    _, tag, inside = said.rpartition("<answer>")
    return inside.partition("</answer>")[0] if tag else said


def _items(text: str) -> list[Any] | None:
    """The entries of the JSON list that is an answer's last thing in brackets; of an object, itself."""
    answer, position, failures, found = _answer(text), 0, 0, None
    while bracket := _BRACKET.search(answer, position):
        found = None  # whatever was read before is not the last
        try:
            found, position = _DECODER.raw_decode(answer, bracket.start())
        except json.JSONDecodeError as error:
            failures += 1
            if failures > _MOST_FAILURES or error.msg.startswith("Unterminated string"):
                return None  # no answer, or one that was cut off within a string
            # What was read in vain is not read again from within: a list that was cut off is no answer, though its
            # entries are JSON.
            position = max(error.pos, bracket.end())
        except RecursionError:
            return None
    return [found] if isinstance(found, dict) else found


def _rows(rows: list[Any], length: int) -> NDArray[np.float64] | None:
    """``[n, length]`` of as many lists of finite numbers; None if they are anything else."""
    if not all(isinstance(row, list) and len(row) == length and all(type(v) is float for v in row) for row in rows):
        return None
    numbers = np.array(rows, np.float64).reshape(-1, length)
    return numbers if np.isfinite(numbers).all() else None


def _scale(size: tuple[int, int] | None) -> NDArray[np.float64]:
    scale = np.ones(2) if size is None else np.array(size, np.float64)
    if scale.shape != (2,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"size must be (width, height) in pixels, both positive, got {size}")
    return scale

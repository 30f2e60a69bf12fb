"""Pictures of answers: clicked points on a screenshot, and pieces of a puzzle in the order that was given."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

GREEN, RED, PAPER, INK = (0, 150, 60), (220, 0, 40), (255, 255, 255), (30, 30, 30)
LINE, SIZE = 15, 11  # pixels: between lines, of letters


def draw_answer(
    pixels: NDArray[np.uint8], instruction: str, box: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The instruction above a screenshot ``[H, W, 3]`` on which the box is green, points inside it too, others red.

    Args:
        pixels: the screenshot.
        instruction: wrapped to the picture's width.
        box: ``(x0, y0, x1, y1)`` as shares of width and height.
        points: ``[n, 2]`` likewise, numbered in their order.

    Returns:
        ``[H + lines * 15 + 6, W, 3]`` uint8.
    """
    from PIL import Image, ImageDraw

    height, width = pixels.shape[:2]
    right = len(points) > 0 and _inside(points[0], box)
    verdict = "no answer" if not len(points) else "hit" if right else "miss"
    lines = textwrap.wrap(f"{instruction}   [{verdict}]", max(20, width // 6)) or [""]
    top = LINE * len(lines) + 6
    picture = Image.new("RGB", (width, top + height), PAPER)
    picture.paste(Image.fromarray(pixels), (0, top))
    draw, font = ImageDraw.Draw(picture), _font()
    for i, line in enumerate(lines):
        draw.text((4, 3 + LINE * i), line, INK, font)
    corners = [box[0] * width, top + box[1] * height, box[2] * width - 1, top + box[3] * height - 1]
    draw.rectangle(corners, outline=GREEN, width=2)
    for number, point in enumerate(points, 1):
        x, y = point[0] * width, top + point[1] * height
        colour = GREEN if _inside(point, box) else RED
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], outline=PAPER, fill=colour)
        if len(points) > 1:
            draw.text((x + 5, y - 7), str(number), colour, font, stroke_width=1, stroke_fill=PAPER)
    return np.asarray(picture)


def draw_puzzle(
    pieces: NDArray[np.uint8], answer: NDArray[np.int64], order: NDArray[np.int64], columns: int
) -> NDArray[np.uint8]:
    """Pieces ``[K, h, w, 3]`` as shown, numbered, and beside them as the answer arranges them.

    Args:
        pieces: as shown.
        answer: ``[K]``, the number of the piece at each place, from 1; 0 where none was given, which stays empty.
        order: ``[K]``, the right answer: frames are green where it says the same, others red.
        columns: of the arrangement.

    Returns:
        ``[rows * (h + 8) + 21, 2 * columns * (w + 8) + 16, 3]`` uint8.
    """
    from PIL import Image, ImageDraw

    count, height, width = pieces.shape[:3]
    high, wide, top = height + 8, width + 8, LINE + 6
    half = columns * wide + 16  # where the answer begins
    picture = Image.new("RGB", (half + columns * wide, top + -(-count // columns) * high), PAPER)
    draw, font = ImageDraw.Draw(picture), _font()
    right = int((answer == order).sum())
    draw.text((4, 3), "shown", INK, font)
    draw.text((half + 4, 3), f"answer: {right} of {count} right" if answer.all() else "no answer yet", INK, font)
    for place in range(count):
        x, y = place % columns * wide + 4, top + place // columns * high + 4
        _paste(picture, pieces[place], (x, y), str(place + 1), INK, font)
        if answer[place]:
            colour = GREEN if answer[place] == order[place] else RED
            _paste(picture, pieces[answer[place] - 1], (half + x, y), str(answer[place]), colour, font)
    return np.asarray(picture)


def _paste(
    picture: Any, piece: NDArray[np.uint8], corner: tuple[int, int], text: str, colour: tuple[int, int, int], font: Any
) -> None:
    from PIL import Image, ImageDraw

    (x, y), (height, width) = corner, piece.shape[:2]
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=colour, width=2)
    picture.paste(Image.fromarray(piece), corner)
    draw.rectangle((x, y, x + 7 * len(text) + 3, y + LINE - 1), fill=colour)
    draw.text((x + 2, y), text, PAPER, font)


def _inside(point: NDArray[np.float64], box: NDArray[np.float64]) -> bool:
    return bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


def _font() -> Any:
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", SIZE)

"""Pictures of small worlds, drawn into an array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...tabular import Array, Layout

CELL, WALL = 48, 3  # pixels
MARKS = {"start": (222, 222, 222), "goal": (120, 200, 120), "key": (250, 210, 90), "exit": (235, 140, 130)}
PAPER, LINE, INK, AGENT = (255, 255, 255), (205, 205, 205), (40, 40, 40), (45, 95, 190)


def draw_layout(layout: Layout, agent: Array) -> NDArray[np.uint8]:
    """Cells, marks, walls, and the agent as a disc, ``[height, width, 3]``.

    Args:
        layout: of the world.
        agent: column and row of the agent, whole numbers or between cells; NaN where it is nowhere any more.
    """
    cells = layout.cells[np.isfinite(layout.cells).all(1)]
    columns, rows = (int(n) + 1 for n in cells.max(0))
    height, width = rows * CELL + 2 * WALL, columns * CELL + 2 * WALL
    picture = np.full((height, width, 3), PAPER, np.uint8)

    def corner(x: float, y: float) -> tuple[int, int]:
        """Pixel row and column of a corner of a cell."""
        return height - WALL - round(y * CELL), WALL + round(x * CELL)

    def segment(one: tuple[int, int], two: tuple[int, int], thick: int, colour: tuple[int, int, int]) -> None:
        (bottom, left), (top, right) = corner(*one), corner(*two)
        low, high = min(bottom, top), max(bottom, top)
        picture[max(0, low - thick) : high + thick, max(0, left - thick) : right + thick] = colour

    for name, states in layout.marks.items():
        for x, y in layout.cells[list(states)]:
            bottom, left = corner(x, y)
            picture[bottom - CELL : bottom, left : left + CELL] = MARKS[name]
    for x in range(columns + 1):
        segment((x, 0), (x, rows), 1, LINE)
    for y in range(rows + 1):
        segment((0, y), (columns, y), 1, LINE)
    border = ((0, 0), (columns, 0)), ((0, rows), (columns, rows)), ((0, 0), (0, rows)), ((columns, 0), (columns, rows))
    for one, two in (*border, *layout.walls):
        segment(one, two, WALL, INK)
    if np.isfinite(agent).all():
        bottom, left = corner(agent[0] + 0.5, agent[1] + 0.5)
        grid = np.indices((height, width))
        picture[(grid[0] - bottom) ** 2 + (grid[1] - left) ** 2 < (0.3 * CELL) ** 2] = AGENT
    return picture

"""Pictures of designed rewards: every cell shows what each of its actions is paid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tabular import Array, TabularMDP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the unit square around a cell's centre: the part that stands for an action, and where its number is written.
QUARTERS = {
    "up": (((-0.5, 0.5), (0.5, 0.5), (0, 0)), (0, 0.31)),
    "down": (((-0.5, -0.5), (0.5, -0.5), (0, 0)), (0, -0.31)),
    "left": (((-0.5, -0.5), (-0.5, 0.5), (0, 0)), (-0.29, 0)),
    "right": (((0.5, -0.5), (0.5, 0.5), (0, 0)), (0.29, 0)),
}
THIRDS = {
    "left": (((-0.5, -0.5), (-0.5, 0.5), (-0.17, 0.5), (-0.17, -0.5)), (-0.33, 0)),
    "pick": (((-0.17, -0.5), (-0.17, 0.5), (0.17, 0.5), (0.17, -0.5)), (0, 0)),
    "right": (((0.5, -0.5), (0.5, 0.5), (0.17, 0.5), (0.17, -0.5)), (0.33, 0)),
}
HALVES = {
    "left": (((-0.5, -0.5), (-0.5, 0.5), (0, 0.5), (0, -0.5)), (-0.25, 0)),
    "right": (((0.5, -0.5), (0.5, 0.5), (0, 0.5), (0, -0.5)), (0.25, 0)),
}


def plot_designs(mdp: TabularMDP, designs: Mapping[str, Array], path: str | Path, columns: int | None = None) -> Path:
    """Draw designed rewards of a process beside each other, in one scale of colours.

    A cell is divided by direction: the part at its right is what ``right`` is paid there. White is 0, blue is paid,
    red is charged; numbers are written where they are not 0.

    Args:
        mdp: the process; it must have a layout.
        designs: titles and rewards ``[S, A]``.
        path: of the picture; its ending decides the format.
        columns: panels in a row; None: 2 of a grid, 1 of a line.

    Returns:
        the path.

    Raises:
        ValueError: for no designs, a process without a layout, or actions that have no direction.
    """
    if not designs:
        raise ValueError("designs is empty, expected titles and tables")
    if mdp.layout is None:
        raise ValueError("the process has no layout: give TabularMDP(..., layout=Layout(cells)) where its states are")
    if not mdp.actions or not any(set(mdp.actions) <= set(parts) for parts in (QUARTERS, THIRDS)):
        raise ValueError(f"actions are {mdp.actions}, expected some of {[*QUARTERS]}, or of {[*THIRDS]}")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = np.nanmax(mdp.layout.cells, 0) + 1
    columns = columns or (2 if "up" in mdp.actions else 1)
    rows = -(-len(designs) // columns)
    cell = 0.62 if "up" in mdp.actions else 0.95
    width, height = columns * cell * wide + 1.2, rows * (cell * high * (1 if "up" in mdp.actions else 0.6) + 0.5)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    limit = max(float(np.abs(table).max()) for table in designs.values()) or 1.0
    colours = matplotlib.colormaps["RdBu"]
    norm = matplotlib.colors.Normalize(-limit, limit)
    for axis in axes.flat[len(designs) :]:
        axis.axis("off")
    for axis, (title, table) in zip(axes.flat, designs.items(), strict=False):
        _draw(axis, mdp, table, lambda value: colours(norm(value)), limit)
        axis.set_title(title, fontsize=10)
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axes, shrink=0.8, label="designed reward")
    figure.savefig(path, dpi=110)
    return Path(path)


def _draw(axis: Axes, mdp: TabularMDP, table: Array, colour: Any, limit: float) -> None:
    """One panel."""
    assert mdp.layout is not None
    parts: Mapping[str, Any] = next(p for p in (HALVES, THIRDS, QUARTERS) if set(mdp.actions) <= set(p))
    cells = mdp.layout.cells
    for state in np.flatnonzero(np.isfinite(cells).all(1)).tolist():
        centre = cells[state] + 0.5
        for action, name in enumerate(mdp.actions):
            shape, place = parts[name]
            value = float(table[state, action])
            axis.fill(*(np.array(shape) + centre).T, color=colour(value), linewidth=0)
            axis.plot(*(np.array([*shape, shape[0]]) + centre).T, color="0.85", linewidth=0.4)
            if abs(value) >= 0.005 * limit:
                ink = "white" if abs(value) > 0.6 * limit else "0.15"
                at = centre + place
                axis.text(at[0], at[1], f"{value:.2g}", ha="center", va="center", fontsize=5.5, color=ink)
    wide, high = np.nanmax(cells, 0) + 1
    for line in range(int(wide) + 1):
        axis.plot((line, line), (0, high), color="0.55", linewidth=0.6)
    for line in range(int(high) + 1):
        axis.plot((0, wide), (line, line), color="0.55", linewidth=0.6)
    for (x0, y0), (x1, y1) in mdp.layout.walls:
        axis.plot((x0, x1), (y0, y1), color="black", linewidth=3, solid_capstyle="butt")
    for name, states in mdp.layout.marks.items():
        if name == "start" and len(states) > 1:
            continue
        for state in states:
            column, row = cells[state]
            note = axis.text(column + 0.03, row + 0.97, name, ha="left", va="top", fontsize=5.5, style="italic")
            note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})
    axis.set(xlim=(-0.03, wide + 0.03), ylim=(-0.03, high + 0.03))
    if "up" in mdp.actions:
        axis.set_aspect("equal")
    if high == 2 and "pick" in mdp.actions:
        axis.set_yticks([0.5, 1.5], ["no key", "key"], fontsize=7)
        axis.tick_params(length=0)
    else:
        axis.set_yticks([])
    axis.set_xticks([])
    for spine in axis.spines.values():
        spine.set(linewidth=2.5)

"""Pictures of societies: how deviating spreads over a graph, and where a population tips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .game import CollectiveGame, SuccessPays

COLOURS = ("#2a6f97", "#e07a5f")  # keeps the rule, breaks it


def plot_rates(rates: Mapping[str, ArrayLike], path: str | Path, title: str = "") -> Path:
    """Draw violation rates round by round.

    Args:
        rates: by the name of an arm: ``[rounds]``, or ``[runs, rounds]``, whose mean and range are drawn.
        path: the PNG; its folder is made.
        title: above it.
    """
    figure, axes = _axes()
    for name, values in rates.items():
        runs = np.atleast_2d(np.asarray(values, np.float64))
        rounds = np.arange(1, runs.shape[1] + 1)
        (line,) = axes.plot(rounds, runs.mean(0), label=name)
        if len(runs) > 1:
            axes.fill_between(rounds, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="round", ylabel="share of violations", ylim=(-0.02, 1.02), title=title)
    axes.legend(frameon=False)
    return _saved(figure, path)


def plot_tipping_points(
    path: str | Path,
    *,
    players: int = 8,
    thresholds: Sequence[int] = (2, 4, 6, 8),
    high: ArrayLike = (1.02, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0),
    normal: float = 1.0,
    low: float = 0.8,
) -> Path:
    """Draw the share of deviators above which deviating pays, against what success pays.

    Args:
        path: the PNG; its folder is made.
        players: of the game.
        thresholds: a line each; solid where success pays all, dashed where it pays colluders only.
        high: factors of success, above ``normal``.
        normal: factor of being independent in a failure.
        low: factor of deviating in a failure.
    """
    figure, axes = _axes()
    payoffs = np.asarray(high, np.float64)
    styles: dict[SuccessPays, str] = {"all": "-", "colluders": "--"}
    for number, threshold in enumerate(thresholds):
        for pays, style in styles.items():
            games = [CollectiveGame(players, threshold, (float(h), normal, low), pays) for h in payoffs]
            points = [game.tipping_points(2000) for game in games]
            shares = [p[0] if p else np.nan for p in points]
            label = f"{threshold} of {players}" if pays == "all" else None
            axes.plot(payoffs, shares, style, marker=".", color=f"C{number}", label=label)
    axes.set(xlabel="factor of success h", ylabel="tipping point q*", ylim=(0, 1))
    axes.set_title("deviating pays above the line (dashed: success pays colluders only)", fontsize=10)
    axes.legend(title="deviators needed", frameon=False)
    return _saved(figure, path)


def save_diffusion(choices: NDArray[np.bool_], path: str | Path, graph: Any = None, *, seed: int = 0) -> Path:
    """Film who deviates, round by round, on the graph of who sees whom.

    Args:
        choices: ``[rounds, players]``, who deviated.
        path: the GIF; its folder is made.
        graph: a networkx graph on the players; None draws a circle without edges.
        seed: of the layout.
    """
    import networkx
    from matplotlib.animation import FuncAnimation, PillowWriter

    choices = np.asarray(choices, np.bool_)
    shown = networkx.empty_graph(choices.shape[1]) if graph is None else graph
    spots = networkx.circular_layout(shown) if graph is None else networkx.spring_layout(shown, seed=seed)
    figure, axes = _axes(5, 5.4)
    axes.set_axis_off()
    networkx.draw_networkx_edges(shown, spots, ax=axes, edge_color="#cccccc", width=0.8, arrows=False)
    size = max(20, min(260, 9000 // choices.shape[1]))
    dots = networkx.draw_networkx_nodes(shown, spots, ax=axes, node_size=size, node_color=COLOURS[0])

    def frame(at: int) -> list[Any]:
        dots.set_facecolor([COLOURS[int(choice)] for choice in choices[at]])
        axes.set_title(f"round {at + 1}: {choices[at].mean():.0%} break the rule")
        return [dots]

    film = FuncAnimation(figure, frame, frames=len(choices))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save(path, writer=PillowWriter(fps=3))
    return path


def _axes(width: float = 6, height: float = 4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path

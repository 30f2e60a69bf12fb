"""Figures of runs: learning curves, divergence, and the plane of reward against divergence with best-of-N."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .callbacks import read_table, write_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[str, NDArray[np.float64]]
Runs = Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]]


@dataclass(frozen=True)
class BestOfN:
    """Drawing ``n`` episodes and keeping the best.

    Attributes:
        n: how many are drawn.
        reward: expected reward of the kept one.
        standard_error: of ``reward``, over prompts.
        kl: upper bound of KL(best-of-N || base policy) in nats.
    """

    n: int
    reward: float
    standard_error: float
    kl: float


def best_of_n(returns: ArrayLike, sizes: Sequence[int] | None = None) -> list[BestOfN]:
    r"""Estimate best-of-N for several N from one set of samples of the base policy.

    With the rewards of a prompt in ascending order :math:`r_{(1)} \le \dots \le r_{(n)}`, the mean of the maximum over
    all subsets of size N,

    .. math:: \binom{n}{N}^{-1} \sum_{i=N}^{n} \binom{i-1}{N-1}\, r_{(i)},

    is unbiased and uses every sample. The divergence is at most :math:`\log N - (N-1)/N` (arXiv 2401.01879).

    Args:
        returns: ``[prompts, n]``; NaN where a reward failed, such entries are left out.
        sizes: values of N; None takes the powers of 2 up to ``n``.

    Raises:
        ValueError: if ``returns`` is no matrix or has nothing valid, or an N is below 1 or above the number of valid
            rewards of every prompt.
    """
    rows = np.asarray(returns, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).any():
        raise ValueError(f"returns has shape {rows.shape}, expected [prompts, n] with some finite entries")
    ordered = [np.sort(row[np.isfinite(row)]) for row in rows]
    most = max(len(row) for row in ordered)
    sizes = [2**k for k in range(most.bit_length()) if 2**k <= most] if sizes is None else sizes
    points = []
    for n in sizes:
        if not 1 <= n <= most:
            raise ValueError(f"best-of-{n}: N must be from 1 to {most}, the valid samples of a prompt")
        best = [float(row @ _weights_of_maximum(len(row), n)) for row in ordered if len(row) >= n]
        error = float(np.std(best, ddof=1) / math.sqrt(len(best))) if len(best) > 1 else math.nan
        points.append(BestOfN(n, float(np.mean(best)), error, math.log(n) - (n - 1) / n))
    return points


def _weights_of_maximum(count: int, n: int) -> NDArray[np.float64]:
    """``[count]``: probability that the i-th smallest of ``count`` is the largest of ``n`` of them."""
    total = math.comb(count, n)
    return np.array([math.comb(i, n - 1) / total for i in range(count)])


def read_progress(folder: str | Path) -> Curve:
    """Training metrics of a run by name, each ``[iterations]``, from its ``progress*.csv``; NaN where not logged."""
    rows = [row for path in sorted(Path(folder).glob("progress*.csv")) for row in read_table(path)]
    return _columns(rows, "time/episodes", folder, "progress.csv")


def read_evaluations(folder: str | Path) -> Curve:
    """Evaluations of a run by name, each ``[evaluations]``, from its ``eval.csv``."""
    return _columns(read_table(Path(folder) / "eval.csv"), "episodes", folder, "eval.csv")


def _columns(rows: list[dict[str, float]], key: str, folder: str | Path, file: str) -> Curve:
    if not rows:
        raise FileNotFoundError(f"{folder} has no {file} with rows in it: is it the folder of a run?")
    merged: dict[float, dict[str, float]] = {}
    for row in rows:  # a resumed run writes the iterations after its checkpoint again, with the same numbers
        merged[row[key]] = merged.get(row[key], {}) | row
    names = {name: None for row in rows for name in row}
    return {name: np.array([merged[at].get(name, np.nan) for at in sorted(merged)]) for name in names}


def write_best_of_n(path: str | Path, points: Sequence[BestOfN]) -> None:
    """Write points as CSV."""
    rows = [{"n": float(p.n), "reward": p.reward, "reward_se": p.standard_error, "kl": p.kl} for p in points]
    write_table(Path(path), rows)


def read_best_of_n(path: str | Path) -> list[BestOfN]:
    """Inverse of :func:`write_best_of_n`; empty where there is no file."""
    return [BestOfN(int(r["n"]), r["reward"], r.get("reward_se", math.nan), r["kl"]) for r in read_table(Path(path))]


def plot_learning(runs: Runs, path: str | Path, title: str = "Learning curve") -> Path:
    """Draw reward and, where there is a reference, divergence: training thin, evaluation thick with a band of one s.e.

    Args:
        runs: run folders; or label to folder, or to the folders of several seeds. Folders whose names differ only in a
            final ``-seed<n>`` share a label. Runs of one label share a colour.
        path: of the PNG.
        title: above the figure.

    Returns:
        ``path``.
    """
    groups = {label: [(read_progress(f), _evaluations(f)) for f in folders] for label, folders in _named(runs).items()}
    every = [curves for group in groups.values() for curves in group]
    with_kl = any(_finite(p, "train/kl") or _finite(e, "kl") for p, e in every)
    figure, axes = _figure(2 if with_kl else 1)
    thin: dict[str, Any] = {"alpha": 0.45, "linewidth": 1}
    thick: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 2}
    trained = False  # agents that learn from a dataset play no episodes in training
    for color, (label, group) in zip(_colors(len(groups)), groups.items(), strict=True):
        for progress, evaluation in group:
            if _finite(progress, "rollout/reward_mean"):
                axes[0].plot(*_points(progress, "time/episodes", "rollout/reward_mean"), color=color, **thin)
                trained = True
            if _finite(evaluation, "reward_mean"):
                x, y = _points(evaluation, "episodes", "reward_mean")
                error = np.nan_to_num(_points(evaluation, "reward_se", "reward_mean")[0])
                axes[0].fill_between(x, y - error, y + error, color=color, alpha=0.2, linewidth=0)
                axes[0].plot(x, y, color=color, **thick)
            if with_kl:
                axes[1].plot(*_points(progress, "time/episodes", "train/kl"), color=color, **thin)
                axes[1].plot(*_points(evaluation, "episodes", "kl"), color=color, **thick)
        if len(groups) > 1:
            axes[0].plot([], [], color=color, linewidth=2, label=label)
    if any(_finite(e, "reward_mean") for _, e in every):
        axes[0].plot([], [], color="gray", label="evaluation ± 1 s.e.", **thick)
    if trained:
        axes[0].plot([], [], color="gray", label="training", **thin)
    axes[0].set(title=title, ylabel="mean reward of an episode")
    axes[0].legend(frameon=False, fontsize=9)
    if with_kl:
        axes[1].set(ylabel="KL from the reference\n(nats an episode)")
    rates = re.compile("time/(.*)_per_second")
    units = {found[1] for progress, _ in every for name in progress if (found := rates.fullmatch(name))}
    axes[-1].set(xlabel=f"training {' or '.join(sorted(units)) or 'episodes'}")
    return _save(figure, path)


def plot_frontier(
    runs: Runs, path: str | Path, best: Sequence[BestOfN] = (), title: str = "Reward against divergence"
) -> Path:
    """Draw the evaluations of several runs, and best-of-N of the base policy, on one reward-KL plane.

    Higher and further left is better: more reward for the same distance from the base policy. The square root of KL
    spreads the small distances of best-of-N, as in arXiv 2210.10760.

    Args:
        runs: as in :func:`plot_learning`; evaluations without a divergence are left out.
        path: of the PNG.
        best: see :func:`best_of_n`.
        title: above the figure.

    Returns:
        ``path``.

    Raises:
        ValueError: if no run has a divergence, and there is no best-of-N either.
    """
    figure, (axis,) = _figure(1)
    named, farthest = _named(runs), 0.0
    drawn = bool(best)
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8, "alpha": 0.85}
    for color, (label, folders) in zip(_colors(len(named)), named.items(), strict=True):
        curves = [curve for curve in map(read_evaluations, folders) if _finite(curve, "kl")]
        for i, curve in enumerate(curves):
            keep = np.isfinite(curve["kl"]) & np.isfinite(curve["reward_mean"])
            x, y, error = (curve[name][keep] for name in ("kl", "reward_mean", "reward_se"))
            axis.errorbar(x, y, np.nan_to_num(error), color=color, label=None if i else label, **style)
            drawn, farthest = True, max(farthest, *x)
    if best:
        x, y = np.array([p.kl for p in best]), np.array([p.reward for p in best])
        error = np.nan_to_num([p.standard_error for p in best])
        style |= {"marker": "s", "linestyle": "--", "linewidth": 1}
        axis.errorbar(x, y, error, color="black", label="best of N", **style)
        for p in best:
            axis.annotate(f"N={p.n}", (p.kl, p.reward), xytext=(5, -11), textcoords="offset points", fontsize=8)
        farthest = max(farthest, *x)
    if not drawn:
        raise ValueError(f"none of {list(named)} has a KL in its eval.csv: train with a reference policy")
    axis.set(title=title, xlabel="KL from the base policy (nats an episode, square-root scale)")
    axis.set(ylabel="mean evaluation reward ± 1 s.e.")
    axis.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
    axis.set_xlim(-4e-4 * farthest, 1.05 * farthest or 1.0)
    axis.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _named(runs: Runs) -> dict[str, list[Path]]:
    """Label to folders; labels are the shortest ends of the paths that tell them apart, without the seed."""
    if isinstance(runs, Mapping):
        groups = runs.items()
        return {k: [Path(v)] if isinstance(v, str | Path) else [Path(f) for f in v] for k, v in groups}
    paths = [Path(folder) for folder in runs]
    parts = [p.resolve().parts for p in paths]
    depth = next((d for d in range(1, 99) if len({x[-d:] for x in parts}) == len(set(parts))), 99)
    named: dict[str, list[Path]] = {}
    for part, path in zip(parts, paths, strict=True):
        named.setdefault(re.sub(r"[-_/]?seed[-_]?\d+$", "", "/".join(part[-depth:])) or path.name, []).append(path)
    return named


def _evaluations(folder: Path) -> Curve:
    """Evaluations of a run; empty where it has none."""
    return read_evaluations(folder) if (folder / "eval.csv").exists() else {}


def _finite(curve: Curve, name: str) -> bool:
    return name in curve and bool(np.isfinite(curve[name]).any())


def _points(curve: Curve, x: str, y: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if y not in curve:
        return np.empty(0), np.empty(0)
    keep = np.isfinite(curve[y])
    return curve[x][keep], curve[y][keep]


def _figure(rows: int) -> tuple[Figure, list[Axes]]:
    """Axes above one another with a common horizontal axis, free of global state (no pyplot), drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4 if rows == 1 else 6.0), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    heights = [2.2, 1.0][:rows]
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    axes = list(grid[:, 0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _colors(count: int) -> list[Any]:
    """Colours that remain apart for colour-blind readers; a gradient where there are more than eight."""
    from matplotlib import colormaps

    wong = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00"]
    return wong[:count] if count <= len(wong) else [colormaps["viridis"](i / (count - 1)) for i in range(count)]


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path

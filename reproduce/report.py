"""What came out of a claim, as text, CSV, Markdown and a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..agents.callbacks import write_table, write_text
from .harness import Curve, Effect, Finding, Numbers, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (  # apart for colour-blind readers too
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip


def write_report(result: Result, folder: Path) -> str:
    """Write ``results.csv`` (a row a seed), ``report.md`` and ``<key>.png`` into ``folder``; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "results.csv", [{"seed": float(i), **n} for i, n in enumerate(result.seeds)])
    write_text(folder / "report.md", markdown(result))
    draw(result, folder / f"{result.claim.key}.png")
    return table(result)


def table(result: Result) -> str:
    """The findings, a line each, under the claim and above the verdict."""
    lines = [f"{result.claim.key}: {result.claim.statement}"]
    for name, findings in (("premise", result.premises), ("effect", result.effects)):
        lines += [f"  {name:8}{f.outcome:10}  {f.effect.text}: {measured(f, len(result.seeds))}" for f in findings]
    return "\n".join([*lines, f"  verdict   {verdict(result)}"])


def verdict(result: Result) -> str:
    """The verdict, with what it rests on where that is little."""
    few = "" if len(result.seeds) >= 5 else f" ({len(result.seeds)} seeds: for a look only)"
    return result.verdict + few


def measured(finding: Finding, seeds: int) -> str:
    """Mean difference, its interval, and in how many seeds it has the sign of the claim."""
    if not finding.differences:
        return "could not be measured in any seed"
    low, high = finding.interval
    agree = sum(d > -finding.effect.margin for d in finding.differences)
    text = f"{finding.mean:+.3g} [{low:+.3g}, {high:+.3g}], {agree} of {len(finding.differences)} seeds agree"
    missing = seeds - len(finding.differences)
    margin = f", margin {finding.effect.margin:g}" if finding.effect.margin else ""
    return text + margin + (f", not measurable in {missing}" if missing else "")


def markdown(result: Result) -> str:
    """A page that says what was claimed, run and found."""
    claim, seeds = result.claim, result.seeds
    lines = [f"# {claim.key}: {verdict(result)}", "", claim.statement, "", f"Source: {claim.paper}.", ""]
    lines += ["| | outcome | difference, 95 % interval |", "|---|---|---|"]
    for name, findings in (("premise", result.premises), ("effect", result.effects)):
        lines += [f"| {name}: {f.effect.text} | {f.outcome} | {measured(f, len(seeds))} |" for f in findings]
    lines += ["", f"![{claim.key}]({claim.key}.png)", "", claim.notes, ""] if claim.notes else [""]
    lines += [f"## Numbers, mean ± standard error over {len(seeds)} seeds", "", "| number | |", "|---|---|"]
    lines += [f"| {name} | {mean:.4g} ± {error:.2g} |" for name, mean, error in summary(seeds) if "@" not in name]
    lines += ["", "## Settings", "", "```json", json.dumps(dict(result.settings), indent=1), "```", ""]
    return "\n".join([*lines, f"{np.mean(result.seconds):.0f} s a seed.", ""])


def summary(seeds: list[Numbers]) -> list[tuple[str, float, float]]:
    """Name, mean and standard error of each number over the seeds in which it could be measured."""
    rows = []
    for name in seeds[0]:
        values = np.array([n[name] for n in seeds if math.isfinite(n[name])])
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        rows.append((name, float(values.mean()) if len(values) else math.nan, float(error)))
    return rows


def draw(result: Result, path: Path) -> None:
    """A panel a curve (mean, band of one standard error), then a panel an effect (both sides of it, a line a seed)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    claim = result.claim
    panels: list[Effect | Curve] = [*claim.curves, *claim.effects]
    columns = min(len(panels), max(3, math.isqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows + 0.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=8)
        _effect(axis, panel, result.seeds) if isinstance(panel, Effect) else _curve(axis, panel, result.seeds)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(f"{claim.key}: {verdict(result)}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _effect(axis: Axes, effect: Effect, seeds: list[Numbers]) -> None:
    ends = [[n[e] if isinstance(e, str) else e for n in seeds] for e in (effect.low, effect.high)]
    for low, high in zip(*ends, strict=True):
        axis.plot([0, 1], [low, high], color="0.7", marker="o", markersize=3, linewidth=0.8)
    means = [float(np.nanmean(e)) if np.isfinite(e).any() else math.nan for e in ends]
    axis.plot([0, 1], means, color=COLORS[0], marker="o")
    axis.set_xlim(-0.4, 1.4)
    names = [e if isinstance(e, str) else f"{e:g}" for e in (effect.low, effect.high)]
    axis.set_xticks([0, 1], ["/\n".join(name.rsplit("/", 1)) for name in names])
    axis.set_title(_wrapped(effect.text), fontsize=8)


def _curve(axis: Axes, curve: Curve, seeds: list[Numbers]) -> None:
    for color, (label, name) in zip(COLORS, curve.series.items(), strict=False):
        points = sorted((float(k.rpartition("@")[2]), k) for k in seeds[0] if k.rpartition("@")[0] == name)
        values = np.array([[n[k] for _, k in points] for n in seeds])
        x: Any = [at for at, _ in points]
        error = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(len(x))
        axis.plot(x, values.mean(0), color=color, label=label, marker=".")
        axis.fill_between(x, values.mean(0) - error, values.mean(0) + error, color=color, alpha=0.2, linewidth=0)
    axis.set_xlabel(curve.x, fontsize=8)
    axis.locator_params(axis="x", nbins=6)
    axis.set_title(_wrapped(curve.title), fontsize=8)
    axis.legend(framealpha=0.75, edgecolor="none", fontsize=7)


def _wrapped(text: str) -> str:
    from textwrap import fill

    lines = math.ceil(len(text) / 44)
    return fill(text, min(44, len(text) // lines + 8))  # lines of about one length

"""What a run or an evaluation says to people."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .callbacks import read_jsonl, read_table
from .evaluation import EvaluationResult, reward_text
from .images import PAIRS, grid_path


@dataclass(frozen=True)
class Report:
    """What a run achieved; ``print(report)`` shows it.

    Attributes:
        folder: of the run.
        before: first row of ``eval.csv``: ``reward_mean``, ``reward_se``, ``kl``, ...
        after: its last row.
        samples: of both, as in ``samples.jsonl``; empty without text.
        plot: the PNG.
        grids: PNGs of both evaluations' images; empty without images.
        before_after: PNG of the images in pairs; None without images.
    """

    folder: Path
    before: dict[str, float]
    after: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)
    plot: Path | None = None
    grids: tuple[Path, ...] = ()
    before_after: Path | None = None

    @classmethod
    def of(cls, folder: Path, plot: Path | None = None) -> Report:
        """Read a run's files."""
        rows, pairs = read_table(folder / "eval.csv"), folder / PAIRS
        grids = tuple(p for row in (rows[0], rows[-1]) if (p := grid_path(folder, row["episodes"])).exists())
        samples = read_jsonl(folder / "samples.jsonl")
        return cls(folder, rows[0], rows[-1], samples, plot, grids, pairs if pairs.exists() else None)

    @property
    def gain(self) -> float:
        """Mean reward after less before."""
        return self.after.get("reward_mean", math.nan) - self.before.get("reward_mean", math.nan)

    @property
    def gain_se(self) -> float:
        """Standard error of :attr:`gain`, as if the two evaluations were independent (they share states)."""
        return math.hypot(self.after.get("reward_se", math.nan), self.before.get("reward_se", math.nan))

    def __str__(self) -> str:
        ratio = f" ({self.gain / self.gain_se:.1f} standard errors)" if self.gain_se > 0 else ""
        lines = ["Evaluation reward on held-out episodes, mean ± standard error:"]
        for label, row in {"before": self.before, "after": self.after}.items():
            kl = f"   KL {row['kl']:z.2f} nats an episode" if "kl" in row else ""
            lines.append(
                f"  {label:6} {row.get('reward_mean', math.nan):8.3f} ± {row.get('reward_se', math.nan):.3f}{kl}"
            )
        lines += [f"  gain   {self.gain:+8.3f} ± {self.gain_se:.3f}{ratio}", "", *self._sample_lines()]
        if self.grids:
            lines.append(f"Images:     {', '.join(map(str, self.grids))}")
        if self.before_after is not None:
            lines.append(f"In pairs:   {self.before_after}")
        if self.plot is not None:
            lines.append(f"Curve:      {self.plot}")
        lines.append(f"Checkpoint: {self.folder / 'last'} (best: {self.folder / 'best'})")
        return "\n".join(lines)

    def _sample_lines(self) -> list[str]:
        by = {(s["episodes"], s["sample"]): s for s in self.samples}
        pairs = ((by.get((self.before["episodes"], i)), by.get((self.after["episodes"], i))) for i in range(len(by)))
        lines = []
        for number, (old, new) in enumerate(((o, n) for o, n in pairs if o and n), 1):
            lines += [f"Sample {number}: {one_line(old['prompt'])}"]
            for label, sample in (("before", old), ("after ", new)):
                text = f"  {label} [{reward_text(sample['reward'])}] {one_line(sample['completion'])}"
                lines.append(textwrap.fill(text, 110, subsequent_indent=" " * 9))
            lines.append("")
        return lines


def describe(result: EvaluationResult) -> str:
    """The numbers of an evaluation, one a line."""
    lines = [f"reward      {result.mean:.3f} ± {result.standard_error:.3f} (mean ± s.e. of {result.valid} episodes)"]
    if invalid := len(result.returns) - result.valid:
        reasons = [reason for reason in result.info.get("invalid", []) if reason is not None]
        first = f", the first because: {one_line(reasons[0])}" if reasons else ""
        lines.append(f"invalid     {invalid} episodes whose reward failed{first}")
    if math.isfinite(result.kl):
        lines.append(f"KL          {result.kl:z.2f} nats an episode from the reference")
    lines.append(
        f"length      {result.lengths.mean():.1f} decisions, {result.terminated.mean():.0%} ended by themselves"
    )
    lines += [f"  {name:20} {value:.3f}" for name, value in result.terms.items()]
    return "\n".join(lines)


def show_episodes(result: EvaluationResult, count: int) -> str:
    """The first ``count`` episodes: texts where there are any, and rewards."""
    blocks = []
    for i in range(min(count, len(result.returns))):
        ended = "ended by itself" if result.terminated[i] else "cut by its budget"
        block = [
            f"Episode {i + 1}: reward {reward_text(float(result.returns[i]))}, {result.lengths[i]} decisions, {ended}"
        ]
        if (reason := result.info.get("invalid", [None] * (i + 1))[i]) is not None:
            block.append(f"  reward failed: {reason}")
        for name in ("prompt", "completion"):
            if name in result.info:
                text = f"  {name}: {one_line(result.info[name][i])}"
                block.append(textwrap.fill(text, 110, subsequent_indent=" " * 4))
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


def one_line(text: Any) -> str:
    """Text, or the last of a list of chat messages, without line breaks."""
    if isinstance(text, list):
        text = text[-1]["content"] if text else ""
    return " ".join(str(text).split())

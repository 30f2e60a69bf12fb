"""How every comparison here is made: fresh processes, alternating, medians and ranges of paired ratios.

A *command* runs one arm once and prints one JSON object of numbers as its last line. Arms take turns (A B A B ...), so
that a machine that slows down slows all of them; ratios are taken within a round. An arm that fails stays in the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".bench"


@dataclass
class Run:
    """One process of one arm: the numbers it printed, or why there are none."""

    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def run_once(command: Sequence[str], threads: int, timeout: float = 3600.0) -> Run:
    """Run ``command``; its peak resident memory is added as ``peak_mb``, its last line of output holds the rest."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BENCH_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
    RESULTS.mkdir(exist_ok=True)
    output, errors = RESULTS / "stdout.txt", RESULTS / "stderr.txt"
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT)
        deadline = time.monotonic() + timeout
        while True:  # wait4, unlike subprocess, says what this one process used
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                process.kill()
                os.wait4(process.pid, 0)
                return Run(error=f"no end after {timeout:.0f} s")
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line for line in output.read_text().splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        tail = errors.read_text().strip().splitlines()[-1:] or ["nothing was printed"]
        return Run(error=f"exit code {process.returncode}: {tail[0][:200]}")
    return Run(json.loads(lines[-1]) | {"peak_mb": usage.ru_maxrss / 1024})


def alternate(
    commands: Mapping[str, Sequence[str]], pairs: int, *, threads: int = 1, vary: str | None = None
) -> dict[str, list[Run]]:
    """Run every arm ``pairs`` times, taking turns.

    Args:
        commands: one an arm.
        pairs: rounds, at least 1.
        threads: for every arm.
        vary: an option that is given the number of the round, such as ``"--seed"``.
    """
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for i in range(pairs):
        for name, command in commands.items():
            run = run_once([*command, *([vary, str(i)] if vary else [])], threads)
            runs[name].append(run)
            said = run.error or ", ".join(f"{k} {v:.4g}" for k, v in run.numbers.items() if not isinstance(v, list))
            print(f"  round {i + 1}/{pairs} {name}: {said}", file=sys.stderr, flush=True)
    return runs


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``median (least to most)``."""
    if not values:
        return "-"
    return f"{median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def ratios(runs: Mapping[str, Sequence[Run]], slow: str, fast: str, key: str) -> list[float]:
    """``slow / fast`` of ``key`` in every round in which both arms ended."""
    both = zip(runs[slow], runs[fast], strict=True)
    return [a.numbers[key] / b.numbers[key] for a, b in both if a.error is None and b.error is None]


def table(runs: Mapping[str, Sequence[Run]], ours: str, columns: Mapping[str, str], compared: Mapping[str, str]) -> str:
    """A Markdown table, one row an arm: medians and ranges, then how much more of ``compared`` it takes than ``ours``.

    Args:
        runs: what :func:`alternate` returned.
        ours: the arm that the others are divided by.
        columns: key of a number -> heading.
        compared: key of a number, a cost -> heading of its ratio to ``ours``.
    """
    head = ["arm", *columns.values(), *(f"{v} / ours" for v in compared.values()), "failed"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for arm, done in runs.items():
        good = [r.numbers for r in done if r.error is None]
        cells = [arm] + [spread([n[k] for n in good if k in n]) for k in columns]
        cells += ["1" if arm == ours else spread(ratios(runs, arm, ours, k)) for k in compared]
        failures = [r.error for r in done if r.error]
        cells.append(f"{len(failures)}/{len(done)}" + (f": {failures[0]}" if failures else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(name: str, text: str) -> None:
    """Print ``text`` and keep it in ``.bench/<name>.md``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text, flush=True)


class Stopwatch:
    """Wall and CPU seconds of the block under ``with``, added up over its uses."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

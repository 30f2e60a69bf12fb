"""The command ``aligngym reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from . import CLAIMS, claim


def reproduce(
    key: Annotated[str, Positional, arg(metavar="KEY|all|list")] = "list",
    *,
    seeds: int = 5,
    fast: bool = False,
    out: str = "runs/reproduce",
) -> None:
    """Put a published claim to the test: run it and its baseline over several seeds, and say what came out.

    Each claim is tried on small problems whose answers are known exactly, in a few minutes on one core. The verdict is
    "reproduced" where the 95 % bootstrap interval of every effect is on the claim's side, "void" where the baseline did
    not fail as the claim says it does, and else "does not reproduce here". Ctrl-C loses the seed that is running only.

    Example: aligngym reproduce list

    Example: aligngym reproduce flow-grpo --seeds 10

    Args:
        key: a claim; all of them; or list, which shows them.
        seeds: how many; fewer than 5 are for a look.
        fast: smaller budgets, for a look: under a minute a claim.
        out: folder; each claim gets a folder in it with seed-<n>.json, results.csv, report.md and a PNG.
    """
    if key == "list":
        print("\n".join(f"{name:16}{claim(name).statement}" for name in CLAIMS))
        return
    from .harness import run_claim
    from .report import verdict, write_report

    chosen = [claim(name) for name in (CLAIMS if key == "all" else [key])]
    lines = []
    for one in chosen:
        folder = Path(out) / (f"{one.key}-fast" if fast else one.key)
        result = run_claim(one, seeds, folder, fast=fast)
        print(f"{write_report(result, folder)}\n  report    {folder / 'report.md'}\n", flush=True)
        lines.append(f"{one.key:16}{verdict(result)}")
    if len(lines) > 1:
        print("\n".join(lines))

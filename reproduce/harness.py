"""Running a claim: its seeds one by one, each kept as it is done; then effects, intervals and the verdict."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

from ..agents.callbacks import write_text
from ..agents.registry import agent_class
from .statistics import Outcome, bootstrap_interval, outcome

Numbers = dict[str, float]
Settings = Mapping[str, Any]
Verdict = Literal["reproduced", "does not reproduce here", "void"]


@dataclass(frozen=True)
class Effect:
    """Something is above something else, seed by seed.

    Attributes:
        text: what is above what, for the reader.
        high: name of the number that should be the larger one, or a constant.
        low: name of the other, or a constant.
        margin: ``high`` may fall short of ``low`` by less than this; 0 asks for more than ``low``.
    """

    text: str
    high: str | float
    low: str | float
    margin: float = 0.0

    def differences(self, seeds: Sequence[Numbers]) -> list[float]:
        """``high - low`` of each seed; NaN where one of them could not be measured."""

        def value(of: str | float, numbers: Numbers) -> float:
            return numbers[of] if isinstance(of, str) else of

        return [value(self.high, n) - value(self.low, n) for n in seeds]


@dataclass(frozen=True)
class Curve:
    """Numbers to draw as lines.

    Attributes:
        title: of the panel.
        x: label of the horizontal axis.
        series: label to name; the numbers ``<name>@<x>`` are its points.
    """

    title: str
    x: str
    series: Mapping[str, str]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is put to the test here.

    Attributes:
        key: name on the command line.
        statement: the claim, in a sentence or two.
        paper: where it is made.
        run: gives the numbers of all arms for a seed under some settings, named ``arm/number``.
        settings: of a full run; they and the key are what a result on disk is known by.
        fast: those that differ with ``--fast``.
        premises: effects without which the comparison says nothing: the baseline must fail where it is said to.
        effects: those that must all hold.
        curves: what to draw beside them.
        notes: how the test deviates from the paper, and what was calibrated on which seeds.
        agents: those that it trains, in the registry: a result is also known by their default options.
    """

    key: str
    statement: str
    paper: str
    run: Callable[[int, Settings, Path], Numbers]
    settings: Settings
    fast: Settings
    premises: tuple[Effect, ...]
    effects: tuple[Effect, ...]
    curves: tuple[Curve, ...] = ()
    notes: str = ""
    agents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """An effect as measured: ``differences`` of the seeds in which it could be, their mean and its interval."""

    effect: Effect
    differences: list[float]
    mean: float
    interval: tuple[float, float]
    outcome: Outcome

    @classmethod
    def of(cls, effect: Effect, seeds: Sequence[Numbers]) -> Finding:
        """Measure an effect; one that could be measured in no seed is not shown."""
        finite = [d for d in effect.differences(seeds) if math.isfinite(d)]
        interval = bootstrap_interval(finite) if finite else (-math.inf, math.inf)
        mean = sum(finite) / len(finite) if finite else math.nan
        return cls(effect, finite, mean, interval, outcome(interval, effect.margin))


@dataclass(frozen=True)
class Result:
    """What came out of a claim.

    Attributes:
        claim: which.
        seeds: the numbers of every seed.
        settings: they were run with.
        seconds: each seed took.
        premises: as measured.
        effects: as measured.
    """

    claim: Claim
    seeds: list[Numbers]
    settings: Settings
    seconds: list[float]
    premises: list[Finding] = field(init=False)
    effects: list[Finding] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("premises", "effects"):
            object.__setattr__(self, name, [Finding.of(e, self.seeds) for e in getattr(self.claim, name)])

    @property
    def verdict(self) -> Verdict:
        """Void if a premise is not shown; reproduced if every effect holds."""
        if any(f.outcome != "holds" for f in self.premises):
            return "void"
        return "reproduced" if all(f.outcome == "holds" for f in self.effects) else "does not reproduce here"


def run_claim(claim: Claim, seeds: int, folder: Path, *, fast: bool = False) -> Result:
    """Run the seeds 0 to ``seeds - 1`` of a claim that are not in ``folder`` yet.

    Each is written to ``seed-<n>.json`` as it ends, so that an interrupted run goes on where it stopped. A seed that
    was run under other settings, or with other defaults of the agents, is run again.

    Args:
        claim: which.
        seeds: how many, at least 2; fewer than 5 are for a look.
        folder: for results; networks are trained into ``networks`` beside it.
        fast: smaller budgets.

    Raises:
        ValueError: for fewer than 2 seeds.
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: an effect has an interval from 2 seeds on, and is worth one from 5 on")
    settings = {**claim.settings, **(claim.fast if fast else {})}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks of a few thousand parameters: more threads cost more than they bring
    try:
        records = [_seed(claim, seed, settings, folder) for seed in range(seeds)]
    except KeyboardInterrupt:
        done = len(list(folder.glob("seed-*.json")))
        raise KeyboardInterrupt(f"{done} seeds of {claim.key} are in {folder}; the same command goes on") from None
    finally:
        torch.set_num_threads(threads)
    return Result(claim, [r["numbers"] for r in records], settings, [r["seconds"] for r in records])


def settings_hash(claim: Claim, settings: Settings) -> str:
    """Of what a result depends on beside its seed, 16 hexadecimal digits; the order of settings does not matter."""
    defaults = {name: agent_class(name).config_class().to_dict() for name in claim.agents}
    return sha256(json.dumps([claim.key, settings, defaults], sort_keys=True).encode()).hexdigest()[:16]


def _seed(claim: Claim, seed: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """The record of one seed, read or made."""
    path, known = folder / f"seed-{seed}.json", settings_hash(claim, settings)
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if record.get("settings_hash") == known:
            record["numbers"] = _with_nan(record["numbers"])
            say(f"{claim.key}: seed {seed} was run before")
            return record
        say(f"{claim.key}: seed {seed} was run with other settings or defaults, running it again")
    began = time.perf_counter()
    numbers = {k: float(v) for k, v in claim.run(seed, settings, folder.parent / "networks").items()}
    record = {
        "key": claim.key, "seed": seed, "settings_hash": known, "settings": dict(settings),
        "seconds": round(time.perf_counter() - began, 1), "numbers": numbers,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**record, "numbers": _without_nan(numbers)}, indent=1) + "\n")
    say(f"{claim.key}: seed {seed} took {record['seconds']:.0f} s")
    return record


def kept(folder: Path, name: str, depends_on: Any, measure: Callable[[], Numbers]) -> Numbers:
    """Numbers of a part of a seed, from ``folder`` where it was measured before, so that a long seed can be cut short.

    Args:
        folder: for the file.
        name: begins the file's.
        depends_on: all that the numbers depend on, as JSON; the file's name ends with its hash.
        measure: gives the numbers.
    """
    text = json.dumps(depends_on, sort_keys=True)
    path = folder / f"{name}-{sha256(text.encode()).hexdigest()[:12]}.json"
    if path.exists():
        return _with_nan(json.loads(path.read_text("utf-8"))["numbers"])
    began = time.perf_counter()
    numbers = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"depends_on": depends_on, "numbers": _without_nan(numbers)}, indent=1) + "\n")
    say(f"  {name} took {time.perf_counter() - began:.0f} s")
    return numbers


def say(text: str) -> None:
    """Tell people how far a run is."""
    print(text, file=sys.stderr, flush=True)


def _without_nan(numbers: Numbers) -> dict[str, float | None]:
    """JSON has no NaN: what could not be measured is null."""
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def _with_nan(numbers: Mapping[str, float | None]) -> Numbers:
    return {k: math.nan if v is None else v for k, v in numbers.items()}

"""What happens around training: progress, evaluation on held-out states, samples, checkpoints. See also alarms.py."""

from __future__ import annotations

import atexit
import csv
import io
import itertools
import json
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gymnasium.vector import VectorEnv

from ..trajectories import Trajectories
from .checkpoint import STATE, load_json
from .evaluation import EvaluationResult
from .images import grid_path, has_images, save_result

if TYPE_CHECKING:
    from rich.progress import Progress

    from .agent import Agent


class Callback:
    """Base: every hook does nothing. State that must survive a resume goes through get_state and set_state."""

    def on_start(self, agent: Agent, target: int) -> None:
        """Training begins; it ends at ``target`` episodes, or what else the agent's unit is."""

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        """An iteration ended, without ``episodes`` where the agent plays none that are whole.

        May add to ``metrics``; returning False stops training.
        """
        return True

    def on_end(self, agent: Agent) -> None:
        """Training ended, or was interrupted between two iterations."""

    def get_state(self) -> dict[str, Any]:
        """JSON-able state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`get_state`."""


class CallbackList(Callback):
    """Several callbacks as one, in order; all are called even if one asks to stop."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, agent: Agent, target: int) -> None:
        for callback in self.callbacks:
            callback.on_start(agent, target)

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        return all([callback.on_iteration(agent, episodes, metrics) for callback in self.callbacks])

    def on_end(self, agent: Agent) -> None:
        for callback in self.callbacks:
            callback.on_end(agent)

    def get_state(self) -> dict[str, Any]:
        return {name: state for name, c in self._named() if (state := c.get_state())}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, callback in self._named():
            if name in state:
                callback.set_state(state[name])

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """Callbacks by class name; the second of a class is numbered, so that each finds its own state again."""
        seen: dict[str, int] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), callback


class ProgressBar(Callback):
    """Episodes done, mean reward and divergence: a live bar in a terminal, else a line every tenth of the episodes.

    Args:
        stream: where to write; standard error by default, so that results can be piped.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = self._target = self._printed = 0

    def on_start(self, agent: Agent, target: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._start, self._target, self._printed = agent.episodes, target, 0
        console = Console(file=self.stream or sys.stderr)
        if console.is_terminal:
            columns = (
                agent.unit,
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=target, completed=agent.episodes)
            self._bar.start()
            atexit.register(self.close)  # a crash must not leave the terminal without its cursor

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        shown = {"reward": "rollout/reward_mean", "KL": "train/kl"}
        text = "  ".join(f"{label} {metrics[key]:z.3f}" for label, key in shown.items() if key in metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=min(agent.episodes, self._target), description=text)
            return True
        tenth = 10 * (agent.episodes - self._start) // max(1, self._target - self._start)
        if tenth > self._printed:
            self._printed = tenth
            speed = metrics.get(f"time/{agent.unit}_per_second")
            rate = "" if speed is None else f"{speed:.1f} {agent.unit}/s"
            print(
                f"{agent.episodes}/{self._target} {agent.unit}  {text}  {rate}".rstrip(),
                file=self.stream or sys.stderr,
                flush=True,
            )
        return True

    def on_end(self, agent: Agent) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live display; does nothing where there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            atexit.unregister(self.close)


class EvaluationCallback(Callback):
    """Evaluate on held-out states at the start, every ``every`` episodes and at the target.

    Every evaluation plays the same states with the same random numbers, so that its samples can be compared. It adds
    ``eval/*`` to the metrics and rewrites ``eval.csv`` and, for text, ``samples.jsonl``; images go into a grid,
    ``images/<episodes>.png``; the checkpoint with the highest mean reward so far stays in ``best``.

    Args:
        env: where; its own rewards and statistics do not move.
        episodes: how many an evaluation; at least 2, for a standard error.
        every: training episodes between two evaluations; 0 evaluates at the start and at the target only.
        folder: of the files; None takes the agent's, and writes nothing where it has none.
        samples: evaluation episodes whose prompt and completion are kept.
        images: evaluation episodes whose image is in the grid; 0 draws none.
        save_best: keep the best checkpoint.

    Attributes:
        history: one row an evaluation: ``episodes``, ``reward_mean``, ``reward_se``, ``kl``, ...
        samples: ``{"episodes", "sample", "prompt", "completion", "reward"}`` of each evaluation.
        last: the last evaluation, whole; None before the first.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        episodes: int = 256,
        every: int = 0,
        folder: str | Path | None = None,
        *,
        samples: int = 3,
        images: int = 64,
        save_best: bool = True,
    ) -> None:
        if episodes < 2 or min(every, samples, images) < 0:
            raise ValueError(
                f"episodes={episodes}, every={every}, samples={samples}, images={images}: expected at least 2, 0, 0, 0"
            )
        self.env, self.episodes, self.every = env, episodes, every
        self.folder = None if folder is None else Path(folder)
        self.sample_count, self.image_count, self.save_best = samples, images, save_best
        self.history: list[dict[str, float]] = []
        self.samples: list[dict[str, Any]] = []
        self.last: EvaluationResult | None = None
        self._at: int | None = None  # episodes seen at the last evaluation
        self._best: float | None = None
        self._target = 0

    def on_start(self, agent: Agent, target: int) -> None:
        self._target = target
        self.folder = self.folder or agent.folder
        if self._at is None:
            agent.log(self.evaluate(agent))
        elif self.folder is not None and not self.history:
            # Rows after the checkpoint belong to a future that a resumed run plays again.
            self.history = [r for r in read_table(self.folder / "eval.csv") if r["episodes"] <= self._at]
            self.samples = [s for s in read_jsonl(self.folder / "samples.jsonl") if s["episodes"] <= self._at]

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        crossed = self.every and agent.episodes // self.every > (self._at or 0) // self.every
        if crossed or agent.episodes >= self._target:
            metrics |= self.evaluate(agent)
        return True

    def evaluate(self, agent: Agent) -> dict[str, float]:
        """Evaluate now, write the files, and return the ``eval/*`` metrics."""
        self.last = result = agent.evaluate(self.env, self.episodes)
        self._at = agent.episodes
        metrics = result.metrics()
        self.history.append({"episodes": agent.episodes} | {k.removeprefix("eval/"): v for k, v in metrics.items()})
        if "completion" in result.info:
            texts = zip(result.info["prompt"], result.info["completion"], result.returns.tolist(), strict=True)
            for i, (prompt, completion, reward) in enumerate(itertools.islice(texts, self.sample_count)):
                row = {"episodes": agent.episodes, "sample": i, "prompt": prompt, "completion": completion}
                self.samples.append(row | {"reward": reward if math.isfinite(reward) else None})
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_table(self.folder / "eval.csv", self.history)
            if self.samples:
                lines = (json.dumps(s, ensure_ascii=False) + "\n" for s in self.samples)
                write_text(self.folder / "samples.jsonl", "".join(lines))
            if self.image_count and has_images(result.info):
                save_result(result, grid_path(self.folder, agent.episodes), self.image_count)
        if math.isfinite(result.mean) and (self._best is None or result.mean > self._best):
            self._best = result.mean
            if self.save_best and self.folder is not None:
                agent.save(self.folder / "best")
        return metrics

    def get_state(self) -> dict[str, Any]:
        return {} if self._at is None else {"at": self._at, "best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        self._at, self._best = state.get("at"), state.get("best")


class CheckpointCallback(Callback):
    """Save every ``every`` episodes into ``folder/episodes-<n>``. Put it last: it saves the other callbacks' state.

    Args:
        every: episodes between two checkpoints; at least 1.
        folder: None takes ``checkpoints`` in the agent's folder.
        keep: how many of the newest stay; older ones are deleted. 0 keeps all.
    """

    def __init__(self, every: int, folder: str | Path | None = None, keep: int = 2) -> None:
        if every < 1 or keep < 0:
            raise ValueError(f"every={every}, keep={keep}: expected at least 1 and 0")
        self.every, self.keep = every, keep
        self.folder = None if folder is None else Path(folder)
        self._at = 0

    def on_start(self, agent: Agent, target: int) -> None:
        if self.folder is None and agent.folder is None:
            raise ValueError("CheckpointCallback has no folder to write to: give it one, or the agent")
        self.folder = self.folder or Path(agent.folder or "") / "checkpoints"
        self._at = agent.episodes

    def on_iteration(self, agent: Agent, episodes: Trajectories | None, metrics: dict[str, float]) -> bool:
        assert self.folder is not None
        if agent.episodes // self.every > self._at // self.every:
            agent.save(self.folder / f"episodes-{agent.episodes:09d}")
            for old in checkpoints(self.folder)[: -self.keep] if self.keep else []:
                shutil.rmtree(old)
        self._at = agent.episodes
        return True


def checkpoints(folder: Path) -> list[Path]:
    """What :class:`CheckpointCallback` wrote in ``folder``, oldest first."""
    named = [p for p in folder.glob("episodes-*") if p.is_dir() and p.name.removeprefix("episodes-").isdigit()]
    return sorted(named, key=lambda p: int(p.name.removeprefix("episodes-")))


def newest_checkpoint(folder: Path) -> Path | None:
    """Of a run's folder; None where there is none."""
    saved = [p for p in (folder / "last", *checkpoints(folder / "checkpoints")) if (p / STATE).is_file()]
    return max(saved, key=episodes_seen, default=None)


def episodes_seen(checkpoint: Path) -> int:
    """Training episodes before a checkpoint; -1 where its state cannot be read, which loading it would report."""
    try:
        return int(load_json((checkpoint / STATE).read_text("utf-8"))["episodes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{checkpoint} cannot be read ({error})", stacklevel=2)
        return -1


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one, never a part."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def write_table(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write rows as CSV, with the columns of all of them; what a row lacks, or is NaN, stays empty.

    A column without any number is left out: the file is the same whether rows were read from such a file before or not.
    """
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(value)))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:  # whole numbers look the same, too
        writer.writerow({k: int(v) if float(v).is_integer() else v for k, v in row.items() if math.isfinite(v)})
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file of numbers, empty entries left out; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(lines)]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.exists() else []

"""Finished episodes written to disk, in formats that other libraries read."""

from __future__ import annotations

import fcntl
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper
from .episodes import TERM_PREFIX, Episodes

FORMATS = ("completions", "preferences", "minari")


class RecordTrajectoriesRule(EpisodeRule):
    """What :class:`RecordTrajectories` does with finished episodes."""

    def __init__(self, env: Any, folder: str | Path, format: str = "completions", *, margin: float = 0.0) -> None:
        if format not in FORMATS:
            raise ValueError(f"format is {format!r}, expected one of {FORMATS}")
        if not margin >= 0:
            raise ValueError(f"margin is {margin}, expected a number of at least 0")
        super().__init__(env, folder=str(folder), format=format, margin=margin)
        self.folder, self.format, self.margin = Path(folder), format, margin
        self._unwritten: list[dict[str, Any]] = []
        self._minari: Any = None
        if format == "preferences" and self._rows < 2:
            raise ValueError(
                "format is 'preferences', but a pair is chosen within a batch: wrap a batch of 2 rows or more"
            )
        if format == "minari" and not isinstance(self, EpisodeWrapper):
            raise ValueError(
                "format is 'minari', which is written by single environments: wrap each before batching them"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if format == "minari":
            from .minari_format import MinariWriter

            self._minari = MinariWriter(self.folder / "data", env)
        else:
            mend(self.path)

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.folder / f"{self.format}.jsonl"

    def _finish(self, rows: Any, episodes: Episodes) -> Episodes:
        finished = super()._finish(rows, episodes)
        if self._minari is None:
            self._unwritten += finished.records() if self.format == "preferences" else completion_lines(finished)
            if not self._batch:  # every row has finished one
                self.flush()
        return finished

    def flush(self) -> None:
        """Writes the episodes of a batch that is not complete yet."""
        lines = self._unwritten if self.format == "completions" else preference_lines(self._unwritten, self.margin)
        if lines:
            append_lines(self.path, lines)
        self._unwritten = []

    def close(self, **kwargs: Any) -> None:
        """Writes what is left and closes the environment."""
        self.flush()
        super().close(**kwargs)  # type: ignore[misc]

    def _get_state(self) -> dict[str, Any]:
        return {"unwritten": self._unwritten}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._unwritten = list(state["unwritten"])


class RecordTrajectories(RecordTrajectoriesRule, EpisodeWrapper):
    """Appends finished episodes to a file.

    ``"completions"``: ``completions.jsonl`` in TRL's prompt-completion schema, a line an episode: ``prompt``,
    ``completion``, ``reward`` (null where invalid), ``reward/<term>``, ``terminated``, ``episode_tokens``, ``invalid``
    (why; "" where valid), and the prompt's other columns. ``"preferences"``: ``preferences.jsonl`` in TRL's preference
    schema: ``prompt``, ``chosen``, ``rejected``, ``score_chosen``, ``score_rejected`` and the columns: for each prompt
    that several rows of a batch had, its best and its worst completion. Where a prompt is a list of messages, so is the
    completion. Both files are read by ``datasets.load_dataset("json", data_files=...)`` and by ``LLMAlign-v0``'s
    ``prompts`` argument. ``"minari"``: a Minari dataset in ``folder/data`` with every observation, action and reward,
    for control; see :mod:`aligngym.wrappers.minari_format`. Two formats are two wrappers.

    Rewards are those at this place in the stack: a wrapper around this one changes nothing in the file. All episodes of
    a batch are written together once every row has finished one, in the order of rows, in one write; ``flush`` and
    ``close`` write an incomplete batch. Existing files are appended to; a line that a crash cut off is taken away, with
    a warning. Several processes may write to one file. Lone surrogates, which UTF-8 cannot hold, become U+FFFD.

    Args:
        env: the environment; a batch of at least 2 for preferences, a single one for Minari.
        folder: made where it does not exist.
        format: "completions", "preferences" or "minari".
        margin: a pair is written if its rewards differ by more than this.

    Raises:
        ValueError: for an unknown format, a negative margin, or a format that this environment cannot give.
        ImportError: if Minari is not installed.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = super().reset(seed=seed, options=options)
        if self._minari is not None:
            self._minari.begin(observation, seed)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action."""
        result = super().step(action)
        if self._minari is not None:
            self._minari.add(action, *result[:4])
        return result


class VectorRecordTrajectories(RecordTrajectoriesRule, VectorEpisodeWrapper):
    """:class:`RecordTrajectories` for a batch of environments."""


def completion_lines(episodes: Episodes) -> list[dict[str, Any]]:
    """Episodes in the prompt-completion schema, one dictionary each.

    Raises:
        ValueError: if the environment tells no prompt or no completion.
    """
    lines = []
    for record in episodes.records():
        prompt, completion, columns = _texts(record)
        line = {
            "prompt": prompt,
            "completion": completion,
            "reward": record["reward"],
            **{TERM_PREFIX + name: value for name, value in record["terms"].items()},
            "terminated": record["terminated"],
            "episode_tokens": len(record["actions"]),
            "invalid": record["info"].get("invalid") or "",
        }
        lines.append({**line, **{name: value for name, value in columns.items() if name not in line}})
    return lines


def preference_lines(records: Sequence[Mapping[str, Any]], margin: float) -> list[dict[str, Any]]:
    """For each prompt its best and its worst valid completion, where their rewards differ by more than ``margin``."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if math.isfinite(record["reward"]):
            groups.setdefault(json.dumps(_texts(record)[0]), []).append(record)
    lines = []
    for group in groups.values():
        best, worst = (pick(group, key=lambda record: record["reward"]) for pick in (max, min))
        (prompt, chosen, columns), rejected = _texts(best), _texts(worst)[1]
        if best["reward"] - worst["reward"] > margin and chosen != rejected:
            scores = {"score_chosen": best["reward"], "score_rejected": worst["reward"]}
            line = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}
            lines.append({**line, **{name: value for name, value in columns.items() if name not in line}})
    return lines


def _texts(record: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Prompt, completion and columns of an episode; the completion in the form of the prompt."""
    info = record["info"]
    if missing := [key for key in ("prompt", "completion") if key not in info]:
        raise ValueError(
            f"the environment's info has no {' and no '.join(map(repr, missing))}, only {sorted(info)}: "
            "record episodes without text with format='minari'"
        )
    completion = info["completion"]
    if isinstance(info["prompt"], list):
        completion = [{"role": "assistant", "content": completion}]
    return info["prompt"], completion, info.get("columns") or {}


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines; a crash can cut off the last of them only."""
    text = "".join(json.dumps(_writable(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    with _locked(path) as file:
        file.write(text.encode("utf-8"))


def mend(path: Path) -> None:
    """Take away a last line that a crash cut off; end a last line that is whole.

    Warns:
        UserWarning: if something was taken away.
    """
    if not path.exists():
        return
    with _locked(path) as file:
        start = _last_line(file)
        file.seek(start)
        tail = file.read()
        if tail.endswith(b"\n") or not tail:
            return
        try:
            json.loads(tail)
            file.write(b"\n")
        except ValueError:
            file.truncate(start)
            warnings.warn(f"{path} ended in half a line ({len(tail)} bytes), which was taken away", stacklevel=4)


def _last_line(file: IO[bytes]) -> int:
    """Where the last line begins that is not ended, read backwards: the file may be large."""
    position = file.seek(0, os.SEEK_END)
    while position:
        size = min(position, 1 << 16)
        file.seek(position - size)
        if (found := file.read(size).rfind(b"\n")) >= 0:
            return position - size + found + 1
        position -= size
    return 0


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, opened to read and append, while no other process of ours writes to it."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        file.flush()  # before the lock goes


def _writable(value: Any) -> Any:
    """``value`` in what strict JSON and UTF-8 can hold: no NaN, no lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_writable(key): _writable(entry) for key, entry in value.items()}
    return [_writable(entry) for entry in value] if isinstance(value, list | tuple) else value

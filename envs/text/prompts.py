"""Prompts and the columns beside them, from wherever they are kept."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ...assets import prompts_path

if TYPE_CHECKING:
    from datasets import Dataset

Messages: TypeAlias = list[dict[str, str]]
Prompt: TypeAlias = str | Messages
PromptSource: TypeAlias = "str | Path | Sequence[Any] | Dataset | None"

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class PromptTable:
    """Prompts, one a row.

    Attributes:
        prompts: a string or a list of chat messages (``{"role": ..., "content": ...}``) each, every lone surrogate
            replaced by U+FFFD.
        columns: the other columns by name, each as long as ``prompts``; None where a row lacks a value.
        source: where they came from, for messages.
    """

    prompts: list[Prompt]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    source: str = "prompts"

    def __len__(self) -> int:
        return len(self.prompts)

    def row(self, i: int) -> dict[str, Any]:
        """What stands beside prompt ``i``, by the names of the columns."""
        return {name: values[i] for name, values in self.columns.items()}

    def select(self, rows: Sequence[int]) -> PromptTable:
        """The given rows, in the given order."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return PromptTable([self.prompts[i] for i in rows], columns, self.source)


def load_prompts(prompts: PromptSource = None, *, split: str = "train", column: str = "prompt") -> PromptTable:
    """Read prompts.

    Args:
        prompts: None for the embedded story openings; a file (JSON Lines, a JSON list, CSV with a header, Parquet); a
            sequence of strings, of chat message lists or of rows (dictionaries); or a ``datasets.Dataset``.
            CSV values stay strings. Elements of a JSON list may be strings or rows.
        split: of the embedded prompts, "train" or "eval".
        column: the column that holds the prompt; every other column is handed to the reward.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for an unknown suffix, a file that cannot be parsed, a missing column, or no prompts at all.
        TypeError: for a prompt that is neither a string nor a message list, or another kind of ``prompts``.
    """
    if prompts is None:
        path = prompts_path(split)
        return _from_rows(_read(path), column, f"embedded prompts ({split})")
    if isinstance(prompts, str | Path):
        return _from_rows(_read(Path(prompts)), column, str(prompts))
    # A datasets.Dataset can only have come from a program that imported the library already.
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(prompts, datasets.Dataset):
        _require_column(prompts.column_names, column, "the dataset")
        return _from_rows(prompts.to_list(), column, "the dataset")
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts is a {type(prompts).__name__}, expected None, a path, a list of strings, message lists or rows, "
            "or a datasets.Dataset (of one split)"
        )
    return _from_rows(prompts, column, "prompts")


def checked_prompt(prompt: Any, where: str) -> Prompt:
    """A well-formed copy of ``prompt``, a string or a non-empty list of chat messages; else a TypeError."""
    if isinstance(prompt, str):
        return well_formed(prompt)
    if isinstance(prompt, list) and prompt and all(_is_message(m) for m in prompt):
        return [{key: well_formed(v) if isinstance(v, str) else v for key, v in m.items()} for m in prompt]
    raise TypeError(
        f"{where} is {_short(prompt)} ({type(prompt).__name__}), expected a string or a list of chat messages "
        '[{"role": ..., "content": ...}, ...]'
    )


def well_formed(text: str) -> str:
    """``text`` with every lone surrogate replaced by U+FFFD, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_column(names: Iterable[str], column: str, where: str) -> None:
    if column not in (there := list(names)):
        raise ValueError(f"{where} has no column {column!r}; its columns are {there}. Name one with prompt_column")


def _from_rows(rows: Sequence[Any], column: str, source: str) -> PromptTable:
    """A table from strings, message lists and dictionaries."""
    if not len(rows):
        raise ValueError(f"{source}: there are no prompts, expected at least one")
    prompts: list[Prompt] = []
    others: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        others.append({})
        if isinstance(row, Mapping):
            _require_column(row, column, f"{source}, row {i}")
            others[-1] = {name: value for name, value in row.items() if name != column}
            row = row[column]
        prompts.append(checked_prompt(row, f"{source}, row {i}: the prompt"))
    names = dict.fromkeys(name for other in others for name in other)
    return PromptTable(prompts, {name: [other.get(name) for other in others] for name in names}, source)


def _read(path: Path) -> list[Any]:
    """The rows of a file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"prompts file {path} has the suffix {suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"prompts file {path} does not exist")
    if suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text("utf-8-sig")  # "-sig" swallows the mark that spreadsheets put in front
    except UnicodeDecodeError as e:
        raise ValueError(f"prompts file {path} is not UTF-8: {e}") from e
    return {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv}[suffix](text, path)


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as e:
        raise ValueError(f"prompts file {path} is not Parquet: {e}") from e
    return rows


def _parse_jsonl(text: str, path: Path) -> list[Any]:
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its like, which are no ends of lines here.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as e:
                raise ValueError(f"prompts file {path}, line {number} is not JSON: {e}") from e
    return rows


def _parse_json(text: str, path: Path) -> list[Any]:
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as e:
        raise ValueError(f"prompts file {path} is not JSON: {e}") from e
    if not isinstance(rows, list):
        raise ValueError(f"prompts file {path} holds a {type(rows).__name__}, expected a list of strings or rows")
    return rows


def _parse_csv(text: str, path: Path) -> list[Any]:
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses prompts above 128 KiB
    try:
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = []
        for i, row in enumerate(lines):
            if None in row or None in row.values():
                raise ValueError(
                    f"prompts file {path}, row {i} has not as many fields as the header {lines.fieldnames}"
                )
            rows.append(row)
    except csv.Error as e:
        raise ValueError(f"prompts file {path} is not CSV: {e}") from e
    finally:
        csv.field_size_limit(limit)
    return rows

"""Prompts from every kind of source, and a clear sentence for every unusable one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligngym.envs.text.prompts import load_prompts

ROWS = [{"prompt": "a, b", "answer": 1}, {"prompt": 'c "d"\nline\u2028end', "answer": 2}]


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_embedded_prompts_are_many_and_disjoint() -> None:
    train, evaluation = load_prompts(), load_prompts(split="eval")
    assert len(train) >= 2000 and len(evaluation) >= 500
    assert not set(train.prompts) & set(evaluation.prompts)
    with pytest.raises(ValueError, match="test"):
        load_prompts(split="test")


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    jsonl = write(tmp_path, "a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\n\n")
    listed = write(tmp_path, "a.json", json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for source in (jsonl, str(listed), tmp_path / "a.parquet", ROWS, tuple(ROWS), Dataset.from_list(ROWS)):
        table = load_prompts(source)
        assert table.prompts == [r["prompt"] for r in ROWS] and table.columns == {"answer": [1, 2]}
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    table = load_prompts(tmp_path / "a.csv")
    assert table.prompts == [r["prompt"] for r in ROWS] and table.columns == {"answer": ["1", "2"]}


def test_strings_messages_other_columns_and_gaps() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert load_prompts(["x", "", chat]).prompts == ["x", "", chat]
    table = load_prompts([{"q": "x", "n": 1}, {"q": "y", "m": [2]}], column="q")
    assert table.prompts == ["x", "y"] and table.columns == {"n": [1, None], "m": [None, [2]]}
    assert table.select([1]).columns == {"n": [None], "m": [[2]]} and len(table.select([1])) == 1


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    import csv

    limit = csv.field_size_limit()
    assert len(load_prompts(write(tmp_path, "a.csv", "prompt\n" + "x" * 1_000_000)).prompts[0]) == 1_000_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.txt", "x", ValueError, r"suffix '.txt', expected one of .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", "", ValueError, "there are no prompts"),
        ("a.json", "", ValueError, "there are no prompts"),
        ("a.csv", "prompt\n", ValueError, "there are no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', ValueError, "line 2 is not JSON"),
        ("a.json", "[", ValueError, "is not JSON"),
        ("a.json", '{"prompt": "x"}', ValueError, "holds a dict, expected a list"),
        ("a.csv", "prompt,b\nx\n", ValueError, "row 0 has not as many fields"),
        ("a.csv", 'prompt\n"x', ValueError, "is not CSV"),
        ("a.parquet", "x", ValueError, "is not Parquet"),
        ("a.jsonl", b"\xff\xfe", ValueError, "is not UTF-8"),
        ("a.jsonl", '{"question": "x", "answer": 1}', ValueError, r"no column 'prompt'; its columns are \['question'"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 5}', TypeError, r"row 1: the prompt is 5 \(int\)"),
        ("a.jsonl", '{"prompt": null}', TypeError, "row 0: the prompt is None"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}', TypeError, "row 0: the prompt is"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, text: str | bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_prompts(write(tmp_path, name, text))


def test_unusable_objects(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="there are no prompts"):
        load_prompts([])
    with pytest.raises(ValueError, match="there are no prompts"):
        load_prompts(Dataset.from_dict({"prompt": []}))
    with pytest.raises(ValueError, match=r"no column 'prompt'; its columns are \['text'\]"):
        load_prompts(Dataset.from_dict({"text": ["x"]}))
    for other in (5, DatasetDict({"train": Dataset.from_dict({"prompt": ["x"]})}), iter("x")):
        with pytest.raises(TypeError, match="expected None, a path, a list"):
            load_prompts(other)

"""Files of questions: the same rows in every format and under any names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from internalize.environments.docs.env import Docs
from internalize.environments.maths.env import Maths
from internalize.environments.question_files import Columns, rows, tasks_of
from internalize.errors import DataError
from internalize.records import Task

ROWS = [
    {"question": 'Which "gauge", g3 or g4?', "answer": "g3", "split": "train"},
    {"question": "What\nis 1,5?", "answer": "3/2", "split": "dev"},
]
COLUMNS = {"question": "Prompt", "answer": "Gold"}


def write_csv(path: Path, found: list[dict[str, str]], comma: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(found[0]), delimiter=comma)
        writer.writeheader()
        writer.writerows(found)


def write_parquet(path: Path, found: list[dict[str, str]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pyarrow.Table.from_pylist(found), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], Any]] = {
    "q.jsonl": lambda path, found: path.write_text("".join(json.dumps(row) + "\n" for row in found)),
    "q.json": lambda path, found: path.write_text(json.dumps(found)),
    "q.csv": write_csv,
    "semicolons.CSV": lambda path, found: write_csv(path, found, ";"),
    "q.tsv": lambda path, found: write_csv(path, found, "\t"),
    "q.parquet": write_parquet,
}


def made(row: Any, split: str) -> Task:
    return Task.new("e", split, row.need(("question",)), row.need(("answer",)))


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("renamed", [False, True])
def test_the_same_rows_in_every_format(file: str, renamed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    names = COLUMNS if renamed else {}
    WRITERS[file](tmp_path / file, [{names.get(name, name): cell for name, cell in row.items()} for row in ROWS])
    found = tasks_of(str(tmp_path / file), made, Columns(**names))
    assert {split: [(t.question.replace("\r", ""), t.answer) for t in tasks] for split, tasks in found.items()} == {
        row["split"]: [(row["question"], row["answer"])] for row in ROWS
    }


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("q.csv", "question,answer\nWhich?,a,b\n", "record 1: has more or fewer cells than there are columns"),
        ("q.csv", "question,answer\nWhich?\n", "record 1: has more or fewer cells than there are columns"),
        ("q.csv", 'question,answer\n"Which?,a\n', "cannot read the questions"),
        ("q.csv", "question,answer\nWhich?,\n", "record 1: no field 'answer'"),
        ("q.jsonl", '{"question": "Which?", "answer": "a", "proposed": true}', "line 1: is a proposal"),
    ],
)
def test_what_cannot_be_asked_is_named(file: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=problem):
        tasks_of(str(tmp_path / file), made)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"record 1: no field 'Prompt' \(it has 'a', 'b'\)"):
        list(rows(tmp_path / "q.csv", Columns("Prompt")))


def test_environments_take_the_names_of_the_fields(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.md").write_text("The port is 8080.")
    (tmp_path / "q.csv").write_text("Prompt,Gold,pages,split\nWhich port?,8080,a.md;a.md,train\n")
    docs = Docs(folder=str(tmp_path / "pages"), questions=str(tmp_path / "q.csv"), question="Prompt", answer="Gold")
    (task,) = docs.tasks("train")
    assert (task.question, task.answer, [call.argument for call in docs.solve(task)][1:3]) == (
        "Which port?", "8080", ["a.md", "a.md"],
    )  # fmt: skip
    pytest.importorskip("sympy")
    maths = Maths(file=str(tmp_path / "q.csv"), question="Prompt", answer="Gold", sandbox="unsafe")
    assert [t.answer for t in maths.tasks("train")] == ["8080"]

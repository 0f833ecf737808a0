"""Environment `maths`: exact problems of many kinds, apart by content; files of others; what breaks is unscored."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.environments import registry
from internalize.environments.maths import problems as maths_problems
from internalize.environments.maths.problems import FAMILIES, problems, problems_by_split
from internalize.environments.question_files import split_of
from internalize.errors import DataError, InfrastructureError, TaskError, UserError
from internalize.records import Task, ToolCall
from tests.steps import act

pytest.importorskip("sympy", reason="needs the extra 'maths'")

from internalize.environments.maths.env import Maths, final_answer
from internalize.environments.validate import replay, validate

SMALL = {"size": 14, "seconds": 30.0}


def answer(value: str) -> ToolCall:
    return act("answer", value)


def python(code: str) -> ToolCall:
    return act("python", json.dumps({"code": code}))


@pytest.fixture(scope="module")
def env() -> Maths:
    return Maths(**SMALL)


@settings(max_examples=30, deadline=None)
@given(family=st.sampled_from(sorted(FAMILIES)), difficulty=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_the_program_of_a_problem_prints_its_answer(family: str, difficulty: int, seed: int) -> None:
    problem = next(problems(family, difficulty, seed))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(problem.program, {})  # noqa: S102 - our own program
    assert printed.getvalue().strip() == problem.answer


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_problems_differ_and_stay_in_their_split_whatever_the_size(family: str) -> None:
    few = problems_by_split(family, 2, 0, {"train": 5, "dev": 3, "test": 3})
    many = problems_by_split(family, 2, 0, {"train": 30, "dev": 10, "test": 10})
    asked = [p.question for split in many.values() for p in split]
    assert len(set(asked)) == len(asked) == 50
    for split, kept in few.items():
        assert many[split][: len(kept)] == kept
        assert {split_of(p.question) for p in many[split]} == {split}


def test_deeper_problems_are_longer() -> None:
    for family in ("arithmetic", "linear", "sequences"):
        first, last = ([next(problems(family, d, s)) for s in range(30)] for d in (1, 5))
        assert sum(len(p.program) for p in last) > sum(len(p.program) for p in first)


def test_a_family_that_is_too_small_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths_problems, "_MAX_DRAWS", 1)
    with pytest.raises(TaskError, match="too few problems in 'sequences' at difficulty 1"):
        problems_by_split("sequences", 1, 0, {"train": 50, "dev": 1, "test": 50})


def test_every_reference_is_proved(env: Maths) -> None:
    rows = list(validate(env, ()))
    assert not [row.text for row in rows if row.failed]
    assert rows[0].text.startswith("train: reference 14/14, 2-2 steps")
    assert rows[0].text.endswith("(arithmetic 2, calendar 2, counting 2, linear 2, modular 2, numbers 2, sequences 2)")


def test_options_choose_the_problems() -> None:
    only = Maths(families=["linear"], size=6, difficulty=4)
    assert {task.family for split in only.splits() for task in only.tasks(split)} == {"linear"}
    assert [len(only.tasks(split)) for split in only.splits()] == [6, 2, 2]
    assert Maths(size=6).tasks("train") == Maths(size=6).tasks("train")
    assert {t.id for t in Maths(size=6, seed=1).tasks("train")}.isdisjoint(t.id for t in Maths(size=6).tasks("train"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"difficulty": 9}, "difficulty = 9: input should be less than or equal to 5"),
        ({"families": ["geometry"]}, "families = ..geometry..: input should be "),
        ({"colour": 1}, "colour"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        registry.make("maths", options)


@pytest.mark.parametrize(
    ("reference", "given", "score"),
    [
        ("1/2", "0.5", 1.0), ("-3/4", "\\frac{-3}{4}", 1.0), ("1024", "1,024", 1.0), ("1024", "1025", 0.0),
        ("Saturday", "saturday", 1.0), ("Saturday", "Sunday", 0.0), ("7", "", 0.0),
    ],
)  # fmt: skip
def test_answers_are_compared_as_mathematics(env: Maths, reference: str, given: str, score: float) -> None:
    task = Task.new("maths", "train", "What?", reference)
    assert replay(env, task, (answer(given),)) == score


def test_an_episode(env: Maths) -> None:
    task = env.tasks("train")[0]
    episode = env.episode(task)
    assert task.answer
    assert "program" not in "".join(message.content for message in episode.prompt())
    assert episode.step(None) == "Unknown action."
    assert episode.step(python("print(2**10)")) == "1024"
    assert episode.step(python("1/0")) == "line 1: ZeroDivisionError: division by zero"
    assert episode.score() == 0.0
    assert episode.step(answer(task.answer)) is None
    assert episode.score() == 1.0
    with pytest.raises(InfrastructureError, match="single-use"):
        episode.step(python("1"))


def test_a_tool_that_does_not_start_leaves_the_episode_unscored(env: Maths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "_tool", replace(env._tool, interpreter="/no/such/python"))
    task = env.tasks("train")[0]
    with pytest.raises(InfrastructureError, match="does not start"):
        env.episode(task).step(python("1"))
    assert replay(env, task, env.solve(task)) is None


# -- files of others ---------------------------------------------------------------------------------------------------


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


GSM8K = {"question": "How many eggs?", "answer": "Three a day. 3 * 7 = <<3*7=21>>21\n#### 21"}
MATH = {"problem": "Solve $x^2=2$.", "solution": "So $x=\\boxed{\\frac{\\sqrt{8}}{2}}$.", "level": "Level 5",
        "type": "Algebra", "split": "test"}  # fmt: skip


def test_gsm8k_and_math_rows_are_read(tmp_path: Path) -> None:
    env = Maths(file=lines(tmp_path / "all.jsonl", GSM8K, MATH))
    (eggs,) = env.tasks(split_of("How many eggs?"))
    assert (eggs.answer, eggs.family) == ("21", "")
    root = env.tasks("test")[-1]
    assert (root.answer, root.family) == ("\\frac{\\sqrt{8}}{2}", "Algebra")
    assert replay(env, root, (answer("\\sqrt{2}"),)) == 1.0
    assert not [row for row in validate(env, ()) if row.failed]


def test_a_file_for_each_split(tmp_path: Path) -> None:
    files = {"train": lines(tmp_path / "a.jsonl", GSM8K), "test": lines(tmp_path / "b.jsonl", MATH)}
    env = Maths(file=files)
    assert env.splits() == ("train", "test")
    with pytest.raises(TaskError, match=r"no split 'dev' \(there are train, test\)"):
        env.tasks("dev")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "What?"}], "line 1: no field 'answer'"),
        ([{"answer": "7"}], "line 1: no field 'question'"),
        ([["a"]], "line 1: is no JSON object"),
        ([GSM8K, {**GSM8K, "question": " how many  EGGS?"}], "line 2: asks the question of .*line 1 again"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, rows: list[object], said: str) -> None:
    with pytest.raises(DataError, match=rf"q\.jsonl, {said}"):
        Maths(file=lines(tmp_path / "q.jsonl", *rows))


@pytest.mark.parametrize(
    ("solution", "found"),
    [
        ("7", "7"), ("so \\boxed{7}", "7"), ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("a #### 1\n#### 2 ", "2"), ("\\boxed{open", "\\boxed{open"), ("", ""),
    ],
)  # fmt: skip
def test_final_answers(solution: str, found: str) -> None:
    assert final_answer(solution) == found


def test_json_lists_and_parquet_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([GSM8K]))
    assert Maths(file=str(tmp_path / "q.json"))._tasks
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'web'")
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(
        pyarrow.Table.from_pylist([{**GSM8K, "split": "dev"}, {**GSM8K, "question": "And hens?", "split": "dev"}]),
        tmp_path / "q.parquet",
    )
    assert [task.answer for task in Maths(file=str(tmp_path / "q.parquet")).tasks("dev")] == ["21", "21"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot read"):
        Maths(file=str(tmp_path / "bad.parquet"))


pytestmark = pytest.mark.sandbox


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "maths", registry.BUILTIN["maths"]._replace(needs=("no_such_package",)))
    with pytest.raises(UserError, match=r"'maths' needs an extra: pip install 'internalize\[maths\]'"):
        registry.make("maths", {})
    assert dict(registry.listing())["maths"].endswith("(needs an extra: pip install 'internalize[maths]')")

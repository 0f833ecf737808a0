"""Episodes side by side, and the panels of the page, from the run of report_run."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from internalize.errors import UserError
from internalize.report import figures, panels, view
from internalize.report.page import Table
from internalize.report.run_report import episodes, load
from internalize.runs.store import write_jsonl
from tests.unit.report_run import NASTY, make_run, trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Dev task 1 is won by the starter, lost by iteration 1 alone and won by it with the pool; task 2 breaks once."""
    path = make_run(tmp_path / "run")
    played = [
        ("iter-0/episodes-dev-internalized-0.jsonl", 0, 1, 1.0, ""),
        ("iter-1/episodes-dev-internalized-1.jsonl", 1, 1, 0.0, ""),
        ("iter-1/episodes-dev-in-context-1.jsonl", 1, 1, 1.0, "Look twice."),
        ("iter-2/episodes-dev-internalized-2.jsonl", 2, 2, None, ""),
    ]
    for name, k, task, score, hint in played:
        one = trajectory(task, f"c{k}", score, hint=hint)
        write_jsonl(path / name, [one.model_copy(update={"iteration": k, "split": "dev", "task_id": f"dev{task}"})])
    return path


def cells(table: Table) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in table.rows]


def printed(run: Path, task: str = "", iterations: tuple[int, ...] = (), width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    view.publish(run, task, iterations, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tasks_of_the_suite_with_a_mark_an_iteration(run: Path) -> None:
    rows = cells(view.tasks_table([entry for entry in episodes(run) if entry.suite == "dev"]))
    assert rows == [("dev1", "+-", "+", "question 1"), ("dev2", "?", "", "question 2")]
    text = printed(run)
    assert "question 1" in text
    assert "train" not in text


def test_all_episodes_of_a_task_stand_side_by_side(run: Path) -> None:
    (head,) = [line for line in printed(run, "dev1").splitlines() if "starter" in line]
    assert head.index("starter") < head.index("iteration 1: score 0") < head.index("iteration 1, with experience")
    assert "Look twice." in printed(run, "dev1")
    assert "starter" not in printed(run, "dev1", (1,))
    narrow = printed(run, "dev1", width=60)
    assert narrow.count("search[x]") >= 3
    assert all(len(line) <= 60 for line in narrow.splitlines())


def test_a_task_that_is_not_one_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="no tasks whose id starts with 'nope'"):
        printed(run, "nope")
    with pytest.raises(UserError, match="2 tasks whose id starts with 'dev'"):
        printed(run, "dev")
    with pytest.raises(UserError, match="not a run directory"):
        printed(run / "iter-1")


def test_hostile_text_is_printed_as_text(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", text=NASTY)
    assert "\x1b" not in printed(path, "train0")
    assert "[bold red]" in printed(path, "train0")


def test_panels_hold_what_was_measured_and_no_others(run: Path) -> None:
    found = {panel.title: panel.curves for panel in panels.panels(load(run))}
    assert found["turns per episode"]["internalized"] == [(0, 4.0), (1, 4.0), (2, 4.0)]
    assert found["premature answers, %"]["in_context"] == [(0, 40.0), (1, pytest.approx(20.0)), (2, 0.0)]
    assert found["gain of the pool, points"]["in_context"] == [
        (1, pytest.approx(25.0)), (2, pytest.approx(10.0)),
    ]  # fmt: skip
    assert found["gain of the pool, points"]["before"] == [(1, pytest.approx(35.0)), (2, pytest.approx(35.0))]
    assert found["items in the pool"][""] == [(1, 2.0), (2, 2.0)]
    assert found["accepted to train on, %"][""] == [(1, pytest.approx(75.0)), (2, pytest.approx(75.0))]
    assert "action entropy, nats" not in found
    assert figures.panels_size(9) == (12.0, pytest.approx(5.7))


def test_each_iteration_has_one_mark_with_its_own_pool_and_its_last_candidate(run: Path) -> None:
    """Iteration 1 is won with its own pool and lost with that of iteration 2; its second candidate lost without."""
    plain, pooled = "episodes-dev-internalized", "episodes-dev-in-context"
    played = {
        f"iter-1/{pooled}-0": (0, 1.0), f"iter-1/{plain}-1": (1, 1.0), f"iter-1/{plain}-1-second": (1, 0.0),
        f"iter-1/{pooled}-1": (1, 1.0), f"iter-2/{pooled}-1": (1, 0.0), f"iter-2/{pooled}-2": (2, 0.0),
    }  # fmt: skip
    for name, (k, score) in played.items():
        one = trajectory(90, f"c{k}", score).model_copy(update={"iteration": k, "split": "dev"})
        write_jsonl(run / f"{name}.jsonl", [one])
    rows = cells(view.tasks_table([entry for entry in episodes(run) if entry.task_id == "train90"]))
    assert [row[:3] for row in rows] == [("train90", "-", "++-")]

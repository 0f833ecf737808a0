"""Collapses and leads worked out by hand. Forty tasks; a run is the number of tasks solved after each iteration."""

import io

import pytest
from rich.console import Console

from internalize.errors import UserError
from internalize.evaluation.collapse import collapse
from internalize.evaluation.signs import Caution, signs
from internalize.records import EvalResult
from internalize.report.headline import summary
from internalize.report.publish import publish_diagnoses
from internalize.report.run_report import load
from internalize.report.signs import Diagnosis, diagnose, lead_of, leads_table, ranges, verdict
from internalize.runs.store import read_jsonl, write_json, write_jsonl
from internalize.stages.study import Manifest, Member
from tests.unit.report_run import make_run, remeasure


def scores(*solved):
    """Nested: who solves n solves the first n tasks. Five lost of nested forty have p = 0.0625, six 0.031."""
    return [(k, {f"t{i}": float(i < n) for i in range(40)}) for k, n in enumerate(solved)]


def test_a_collapse_is_the_first_fall_from_the_best_that_stays():
    found = collapse(scores(10, 20, 24, 22, 16, 12))
    assert (found.iteration, found.best) == (4, 2)  # 24 to 22 is two tasks; 24 to 16 is eight
    assert found.change.mean == pytest.approx(-0.2)


def test_a_fall_that_is_made_good_is_none():
    assert collapse(scores(10, 24, 10, 24)) is None
    assert collapse(scores(10, 24, 10, 24, 10)).iteration == 4


def test_five_lost_tasks_show_nothing_six_do():
    assert collapse(scores(20, 15)) is None
    assert collapse(scores(20, 14)).iteration == 1


def test_the_best_may_be_the_starter_and_nothing_measured_is_no_collapse():
    assert collapse(scores(20, 4, 4)).best == 0
    assert collapse(scores(20)) is None
    assert collapse([(0, {"a": None}), (1, {"a": None})]) is None


def caution(sign, iteration, mode="internalized"):
    return Caution(
        sign=sign, iteration=iteration, suite="dev", mode=mode, value=1.0, message=f"{sign} {iteration}"
    )  # fmt: skip


def test_signs_are_gathered_by_mode_and_sorted_by_their_first_firing():
    found = signs(
        [
            caution("b", 2),
            caution("a", 1),
            caution("b", 3),
            caution("b", 3, "in_context"),
        ]
    )
    assert [(s.name, s.mode, s.iterations) for s in found] == [
        ("a", "internalized", (1,)),
        ("b", "internalized", (2, 3)),
        ("b", "in_context", (3,)),
    ]
    assert found[1].message == "b 2"


def diagnosed(run, fell, *cautions, iterations=5):
    change = collapse(scores(20, 4)).change
    return Diagnosis(
        run=run, iterations=iterations, tasks=40, signs=signs(cautions), detectable=0.3,
        collapse=None if fell is None else {"iteration": fell, "best": 0, "change": change},
    )  # fmt: skip


def test_leads_and_false_alarms_by_hand():
    runs = [
        diagnosed("x", 5, caution("early", 2), caution("early", 3), caution("late", 5)),
        diagnosed("y", 4, caution("early", 3), caution("late", 4)),
        diagnosed("z", None, caution("early", 1), caution("early", 4), iterations=10),
    ]
    assert lead_of(runs, "early", "internalized") == [3, 1]
    assert lead_of(runs, "late", "internalized") == []
    assert [tuple(row.values()) for row in leads_table(runs).rows] == [
        ("early", "without the pool", "2 (x), 3 (y), 1 (z)", "3, 1 (in time in 2 of 2)", "2 of 10 iterations"),
        ("late", "without the pool", "5 (x), 4 (y)", "none (in time in 0 of 2)", "0 of 10 iterations"),
    ]


def test_many_runs_are_counted_and_not_named():
    runs = [diagnosed(str(n), None, caution("a", 1 + n % 2)) for n in range(4)]
    (row,) = leads_table(runs).rows
    assert tuple(row.values()) == ("a", "without the pool", "4 runs, at 1-2", "-", "4 of 20 iterations")


def test_ranges():
    assert ranges((4, 5, 6, 8, 10)) == "4-6, 8, 10"


def collapsed_run(path):
    """The run of report_run, but iteration 2 solves tasks 0 to 3 only, in eight turns."""
    run = make_run(path)
    file = run / "iter-2" / "evaluations.jsonl"
    rows = [
        r.model_copy(update={"success": float(int(r.task_id[3:]) < 4), "turns": 8}) if r.suite == "dev" else r
        for r in read_jsonl(file, EvalResult)
    ]
    write_jsonl(file, rows)
    remeasure(run)
    return run


def test_a_run_directory_is_diagnosed(tmp_path):
    found = diagnose(load(collapsed_run(tmp_path / "bad")))
    assert (found.collapse.iteration, found.collapse.best) == (2, 1)
    assert "collapsed at iteration 2, -40.0 points" in verdict(found)
    assert verdict(found).endswith("It is the last iteration: nothing shows that it stays.")
    assert ("below_starter", "internalized") in [(s.name, s.mode) for s in found.signs]
    said = summary(load(tmp_path / "bad"))
    assert "From iteration 2 on it fell below that of iteration 1 (50.0 %) and stayed below: a collapse." in said
    well = diagnose(load(make_run(tmp_path / "well")))
    assert "collapse" not in summary(load(tmp_path / "well"))
    assert "no collapse shown in 2 iterations (40 tasks: a fall below about 31 points" in verdict(well)


def test_runs_and_studies_are_printed_together(tmp_path):
    study = tmp_path / "study"
    make_run(study / "cell-1" / "seed-0")
    members = tuple(Member(cell="cell", seed=s, folder=f"cell-1/seed-{s}") for s in (0, 1))  # seed 1 has not begun
    write_json(study / "study.json", Manifest(question="?", reference="cell", members=members))
    console = Console(file=io.StringIO(), width=120)
    publish_diagnoses([collapsed_run(tmp_path / "bad"), study], console)
    text = console.file.getvalue()
    assert "bad: collapsed at iteration 2" in text
    assert "cell, seed 0: no collapse shown" in text
    assert "0 of 2 iterations" in text
    with pytest.raises(UserError):
        publish_diagnoses([tmp_path / "nowhere"], console)


def test_a_threshold_decides_which_signs_are_told(tmp_path, call):
    bad = collapsed_run(tmp_path / "bad")
    assert "below_starter" in call("diagnose", bad).out  # 12 tasks lost, none won: 12 / sqrt(12) = 3.46
    assert "below_starter" not in call("diagnose", bad, "--threshold", "level=0.0001").out  # 3.72 is needed

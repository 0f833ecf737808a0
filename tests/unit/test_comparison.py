"""Which results of two cells are compared, on the run of report_run: 16, 20 and 28 of 40 tasks solved after 0, 1 and 2
iterations, 32 with the pool after the second."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from internalize.records import EvalResult
from internalize.report.comparison import Versus, compare
from internalize.runs.store import RunInfo, read_jsonl, write_json, write_jsonl
from internalize.stages.study import Manifest, Member
from tests.command import without_digests
from tests.unit.report_run import make_run


def versus(out: Path, finished: int = 2, **changed: Any) -> Versus:
    """A whole run as reference against one of `finished` iterations with other settings."""
    make_run(out / "whole" / "seed-0")
    run = make_run(out / "other" / "seed-0", finished)
    info = RunInfo.model_validate_json((run / "run.json").read_bytes())
    write_json(run / "run.json", info.model_copy(update={"config": {**info.config, **changed}}))
    members = tuple(Member(cell=cell, seed=0, folder=f"{cell}/seed-0") for cell in ("whole", "other"))
    write_json(out / "study.json", Manifest(question="?", reference="whole", members=members))
    (found,) = compare(out).versus
    return found


def test_a_run_under_way_is_compared_at_the_last_common_iteration(tmp_path: Path) -> None:
    assert versus(tmp_path, finished=1).change.mean == 0


def test_more_comparisons_need_a_greater_difference(tmp_path: Path) -> None:
    alone = versus(tmp_path / "one", finished=1, iterations=1)
    out = tmp_path / "two"
    versus(out, finished=1, iterations=1)
    shutil.copytree(out / "other", out / "third")
    members = tuple(Member(cell=cell, seed=0, folder=f"{cell}/seed-0") for cell in ("whole", "other", "third"))
    write_json(out / "study.json", Manifest(question="?", reference="whole", members=members))
    both = compare(out).versus
    error = math.sqrt(0.2 * 0.8 / 40)  # 8 of 40 tasks lost
    assert alone.detectable == pytest.approx((1.95996 + 0.84162) * error, rel=0.04)
    assert [v.detectable for v in both] == [pytest.approx((2.24140 + 0.84162) * error, rel=0.04)] * 2  # at 0.0125


def test_a_cell_of_another_length_is_compared_at_its_own_end(tmp_path: Path) -> None:
    found = versus(tmp_path, finished=1, iterations=1)
    assert found.change.mean == pytest.approx(-8 / 40)
    assert (found.won, found.lost) == (0, 8)


def test_a_cell_that_trains_nothing_is_compared_with_its_pool(tmp_path: Path) -> None:
    found = versus(tmp_path, distill={"epochs": 0})
    assert found.cell == "other (with pool)"
    assert found.change.mean == pytest.approx(4 / 40)


def test_what_the_pool_adds_is_known_for_every_iteration(tmp_path: Path) -> None:
    versus(tmp_path)
    curve = compare(tmp_path).curves[0]
    assert [gain and round(40 * gain.mean) for gain in curve.context_gains] == [14, 10, 4]  # 0: the first pool
    assert curve.last == 2


def test_no_learning_has_no_pool_to_be_compared_with(tmp_path: Path) -> None:
    found = versus(tmp_path, distill={"epochs": 0}, inject={"pattern": "none"})
    assert (found.cell, found.change.mean) == ("other", 0)


def test_suites_that_chose_nothing_are_compared_at_the_end(tmp_path: Path) -> None:
    versus(tmp_path)
    path = tmp_path / "other" / "seed-0" / "iter-2" / "evaluations.jsonl"
    found = [  # the other cell solves four test tasks more: 16 of 20, 12 in the reference
        r.model_copy(update={"success": 1.0}) if r.suite == "test" and int(r.task_id[4:]) < 16 else r
        for r in read_jsonl(path, EvalResult)
    ]
    write_jsonl(path, found)
    (path.parent / "diagnostics.jsonl").unlink()
    without_digests(tmp_path / "other" / "seed-0")
    whole, other = sorted(compare(tmp_path).finals, key=lambda row: row.change is not None)
    assert whole.starter
    assert whole.final
    assert other.final
    assert other.change
    assert (whole.suite, whole.starter.mean, whole.final.mean, whole.p) == ("test", 0.4, 0.6, None)
    assert (other.final.mean, other.p) == (0.8, 2 / 2**4)
    assert other.change.mean == pytest.approx(4 / 20)


def test_cells_are_compared_after_the_iterations_that_the_study_names(tmp_path: Path) -> None:
    make_run(tmp_path / "whole" / "seed-0")
    path = make_run(tmp_path / "other" / "seed-0") / "iter-1" / "evaluations.jsonl"
    worse = [r.model_copy(update={"success": 0.0}) if r.mode == "internalized" else r
             for r in read_jsonl(path, EvalResult)]  # fmt: skip
    write_jsonl(path, worse)
    for folder in (path.parent, path.parents[1] / "iter-2"):
        (folder / "diagnostics.jsonl").unlink()
    without_digests(tmp_path / "other" / "seed-0")
    members = tuple(Member(cell=cell, seed=0, folder=f"{cell}/seed-0") for cell in ("whole", "other"))
    for asked, expected in (((1, 2), [(1, -20 / 40), (2, 0.0)]), ((), [(0, 0.0)]), ((9,), [(9, 0.0)])):
        manifest = Manifest(question="?", reference="whole", members=members, compare_at=asked)
        write_json(tmp_path / "study.json", manifest)
        found = compare(tmp_path)
        assert [(one.at, one.change.mean) for one in found.versus] == expected  # a study of two iterations ends there
        assert [one.at for one in found.at_the_end] == [expected[-1][0]]

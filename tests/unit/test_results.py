"""The page of results: tables are filled from run directories, everything else stays."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.results import main
from internalize.runs.store import write_json, write_jsonl
from internalize.stages.study import Manifest, Member
from tests.unit.report_run import make_run, result

PAGE = """# Mine
<!-- run: a -->
old
<!-- end -->
between
<!-- run: gone -->
kept
<!-- end -->
<!-- compare: b : c -->
<!-- end -->
<!-- diagnose: a a -->
<!-- end -->
<!-- study: s -->
<!-- end -->
after
"""


@pytest.fixture
def filled(tmp_path: Path) -> str:
    root, page = tmp_path / "runs", tmp_path / "page.md"
    make_run(root / "a")
    make_run(root / "s" / "cell" / "seed-0")
    members = (Member(cell="cell", seed=0, folder="cell/seed-0"),)
    write_json(root / "s" / "study.json", Manifest(question="?", reference="cell", members=members))
    for name, solved in (("b", 10), ("c", 30)):
        write_jsonl(root / f"{name}.results.jsonl", [result(0, "internalized", task, solved) for task in range(40)])
    page.write_text(PAGE)
    once = CliRunner().invoke(main, [str(page), "--root", str(root)], catch_exceptions=False)
    assert "left as it is: run gone" in once.stderr
    text = page.read_text()
    CliRunner().invoke(main, [str(page), "--root", str(root)], catch_exceptions=False)
    assert page.read_text() == text, "a second call changes nothing"
    return text


@pytest.mark.slow
def test_tables_come_from_the_runs_and_the_rest_stays(filled: str, tmp_path: Path) -> None:
    assert "old" not in filled
    for kept in ("# Mine\n", "\nbetween\n", "\nkept\n", "\nafter\n", "<!-- run: a -->"):
        assert kept in filled
    assert "| 2 | 70.0 [55, 85] | 80.0 [68, 92] | 57 [30, 83] | 0.0 % | 2 | 30/40 |" in filled
    assert "| all | 25.0 [" in filled
    assert "+50.0 [" in filled  # 10 and 30 of 40
    assert "a: no collapse shown in 2 iterations" in filled
    assert "| cell | 1 | 40.0 [" in filled


@pytest.mark.slow
def test_published_tables_are_those_of_the_records_that_are_kept(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "records", tmp_path / "records")
    page = tmp_path / "laboratory.md"
    shutil.copyfile(docs / page.name, page)
    (tmp_path / "runs").mkdir()
    made = CliRunner().invoke(main, [str(page), "--root", str(tmp_path / "runs")], catch_exceptions=False)
    assert "left as it is" not in made.stderr
    assert page.read_text() == (docs / page.name).read_text()


@pytest.mark.slow
def test_figures_lie_beside_the_page(filled: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    assert "](figures/a.png)" in filled
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "s.png").exists()

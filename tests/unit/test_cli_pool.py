"""`internalize pool`: what each command prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internalize.experience.pool import ExperiencePool, empty, load_pool, replay, save_pool
from internalize.records import Experience, Injection, Message, PoolEdit, Trajectory
from internalize.runs.store import read_jsonl, write_jsonl
from tests.command import Call, Ended, files, refused
from tests.steps import act, step


def item(text: str, **more: Any) -> Experience:
    return Experience.new(text, "principle", "contrast", **{"support": 5, "lift": 0.5, "iteration": 1, **more})


def episode(name: str, score: float, shown: Experience | None = None, question: str = "Which box?") -> Trajectory:
    hint = Injection(item_ids=(shown.id,), text=shown.text, served_by="lexical") if shown else None
    played = step(text="answer[Blue 7]", call=act("answer", "Blue 7"), injection=hint)
    return Trajectory(
        id=name, task_id=name.rstrip("+"), env="toy", split="train", iteration=1, seed=0, checkpoint="c",
        pattern="stepwise" if shown else "none", prompt=(Message(role="user", content=question),), steps=(played,),
        termination="answered", score=score,
    )  # fmt: skip


def test_show_says_where_items_come_from(call: Call, tmp_path: Path) -> None:
    parent = item("Search.")
    held = item("When lost, search.", evidence=("t1", "t2"), parents=(parent.id,))
    pool = ExperiencePool((held, item("Read before you answer.")), 5)
    save_pool(pool, tmp_path / "a.json")
    lines = call("pool", "show", "a.json").out.splitlines()
    assert lines[:4] == [
        f"version {pool.version}, 2 of at most 5 items",
        "",
        f"{held.id}  When lost, search.",
        f"    principle, contrast, iteration 1, support 5, lift +0.50, evidence 2, from {parent.id}",
    ]
    (tmp_path / "c.json").write_text(json.dumps({"version": 1}))
    assert refused(call("pool", "show", "c.json"), "c.json: ")
    assert refused(call("pool", "show", "a.json", "b.json"), "b.json", "--trajectories")


def test_show_with_episodes_says_what_items_are_worth(call: Call, tmp_path: Path) -> None:
    """Of 20 tasks with it half succeed, without it none: +50 points, interval about 2 * 0.5 / sqrt(20) wide a side."""
    held, other = item("When lost, search."), item("Wait.")
    save_pool(ExperiencePool((held, other), 5), tmp_path / "a.json")
    write_jsonl(tmp_path / "with.jsonl", [episode(f"{n}+", n % 2, held) for n in range(20)])
    write_jsonl(tmp_path / "plain.jsonl", [episode(f"{n}", 0.0) for n in range(20)])
    lines = call("pool", "show", "a.json", "--trajectories", "with.jsonl", "plain.jsonl").out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("item "))
    *row, low, high = lines[start + 1].split()
    assert row == [held.id, "20", "20", "50.0%", "(20)", "0.0%", "(20)", "+50.0"]
    assert (float(low[1:-1]), float(high[:-1])) == (pytest.approx(28, abs=4), pytest.approx(72, abs=4))
    write_jsonl(tmp_path / "few.jsonl", [episode("1+", 1.0, held)])
    few = call("pool", "show", "a.json", "--trajectories", "few.jsonl", "plain.jsonl").out.splitlines()
    assert few[start + 1].endswith("+100.0 (too few tasks)")
    assert lines[start + 2].split() == [other.id, "0", "0", "-", "-", "-"]
    assert refused(call("pool", "show", "a.json", "--trajectories", "a.json"), "a.json, line 1: ")


def test_diff_shows_lineage_from_the_edits_beside_it(call: Call, tmp_path: Path) -> None:
    old = ExperiencePool((item("a"), item("b"), item("c"), item("d")), 9)
    edits = [
        PoolEdit(op="UPDATE", item=item("A"), targets=(item("a").id,), reason="clearer"),
        PoolEdit(op="DELETE", targets=(item("b").id,), reason="harmful"),
        PoolEdit(op="ADD", item=item("c", support=8, evidence=("t",))),
    ]
    (tmp_path / "iter-2").mkdir()
    save_pool(old, tmp_path / "old.json")
    save_pool(old.apply(edits), tmp_path / "iter-2" / "pool.json")
    save_pool(old.apply(edits), tmp_path / "bare.json")
    write_jsonl(tmp_path / "iter-2" / "edits.jsonl", edits)
    assert call("pool", "diff", "old.json", "iter-2/pool.json").out.splitlines() == [
        f"- {item('a').id}  a",
        f"    UPDATE into {item('A').id}: clearer",
        f"- {item('b').id}  b",
        "    DELETE: harmful",
        f"+ {item('A').id}  A",
        f"    principle, contrast, iteration 1, support 5, lift +0.50, evidence 0, from {item('a').id}",
        "    UPDATE: clearer",
        f"~ {item('c').id}  support 5, lift +0.50, evidence 0 -> support 8, lift +0.50, evidence 1",
    ]
    bare = call("pool", "diff", "old.json", "bare.json").out.splitlines()
    assert bare[:3] == [f"- {item('a').id}  a", f"    replaced by {item('A').id}", f"- {item('b').id}  b"]
    assert call("pool", "diff", "old.json", "old.json") == Ended(0, "", "")
    assert refused(call("pool", "diff", "old.json", "gone.json"), "gone.json: cannot be read")


def test_lint_reports_and_is_strict_when_asked(call: Call, tmp_path: Path) -> None:
    fine = item("When lost, search.")
    save_pool(ExperiencePool((fine, item("Go to Blue 7 when asked."), item("the sky")), 5), tmp_path / "a.json")
    save_pool(ExperiencePool((fine,), 5), tmp_path / "fine.json")
    write_jsonl(tmp_path / "t.jsonl", [episode("a", 1.0)])
    ended = call("pool", "lint", "a.json", "--trajectories", "t.jsonl")
    assert ended.code == 0
    first, *rest = ended.out.splitlines()
    assert first == "a.json: 3 items, strategy 33%, leaks 33%"
    assert "    leak: task entity 'Blue 7'" in rest
    assert rest.count("    no strategy: states no strategy") == 2
    strict = call("pool", "lint", "a.json", "--strict", "--words", "2")
    assert (strict.code, strict.err) == (2, "internalize: a.json: 3 of 3 items are flagged\n")
    assert strict.out, "the report comes all the same"
    assert call("pool", "lint", "fine.json", "--strict").code == 0


@pytest.mark.parametrize(
    "data", [{"G0": "Read first.", "G3": "Ask twice."}, [{"id": "G0", "full_text": "[G0]. Read first."}]]
)
def test_pools_of_the_papers_code_come_in_and_go_out(data: Any, call: Call, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps(data))
    ended = call("pool", "import", "e.json", "--out", "pool.json", "--granularity", "instance", "--source", "them")
    assert (ended.code, ended.out) == (0, f"pool.json: {len(data)} items (before: 0)\n")
    pool = load_pool(tmp_path / "pool.json")
    assert {(i.granularity, i.source) for i in pool.items} == {("instance", "them")}
    assert replay(read_jsonl(tmp_path / "pool.edits.jsonl", PoolEdit), 50) == pool
    style = "dict" if isinstance(data, dict) else "list"
    back = json.loads(call("pool", "export", "pool.json", "--style", style).out)
    texts = list(back.values()) if isinstance(back, dict) else [entry["full_text"] for entry in back]
    assert texts == (list(data.values()) if isinstance(data, dict) else [data[0]["full_text"]])
    assert call("pool", "export", "pool.json", "--style", "text").out.startswith("Read first.\n")
    assert call("pool", "export", "pool.json", "--out", "out.json").out == f"out.json: {len(data)} items\n"
    assert json.loads((tmp_path / "out.json").read_text())["G0"] == "Read first."


def test_import_refuses_and_adds(call: Call, tmp_path: Path) -> None:
    save_pool(empty(2).apply([PoolEdit(op="ADD", item=item("Mine."))]), tmp_path / "mine.json")
    (tmp_path / "e.json").write_text('{"G0": "A.", "G1": "B."}')
    (tmp_path / "bad.json").write_text('{"G0": 5}')
    before = files(tmp_path)
    assert refused(call("pool", "import", "bad.json", "--out", "p.json"), "bad.json: entry 1 ('G0')")
    assert refused(call("pool", "import", "e.json", "--out", "e.json"), "is the file to import")
    assert refused(call("pool", "import", "e.json", "--out", "no/p.json"), "the folder no does not exist")
    assert refused(call("pool", "import", "e.json", "--out", "p.json", "--pool", "mine.json"), "more than its cap of 2")
    assert refused(call("pool", "export", "mine.json", "--out", "mine.json"), "is the pool itself")
    assert files(tmp_path) == before
    (tmp_path / "e.json").write_text('{"G0": "A."}')
    assert call("pool", "import", "e.json", "--out", "p.json", "--pool", "mine.json").out.endswith("(before: 1)\n")

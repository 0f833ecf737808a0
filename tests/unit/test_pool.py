import json
import math
from pathlib import Path
from typing import Any

import pytest

from internalize.errors import DataError
from internalize.experience.pool import (
    ExperiencePool,
    Usage,
    count_usage,
    diff,
    empty,
    export_official,
    import_official,
    load_official,
    load_pool,
    save_pool,
)
from internalize.records import Experience, Injection, PoolEdit, Trajectory
from tests.steps import step


def item(text: str, **rest: Any) -> Experience:
    return Experience.new(text, "principle", "contrast", **rest)


def add(text: str, **rest: Any) -> PoolEdit:
    return PoolEdit(op="ADD", item=item(text, **rest))


def pool_of(*texts: str, cap: int = 10) -> ExperiencePool:
    return empty(cap).apply([add(text) for text in texts])


def texts(pool: ExperiencePool) -> list[str]:
    return [entry.text for entry in pool.items]


def test_adding_a_known_text_joins_evidence_and_keeps_the_better_backed_numbers() -> None:
    once = empty(5).apply([add("a", evidence=("t1",), support=3, lift=0.2)])
    twice = once.apply([add("a", evidence=("t1", "t2"), support=8, lift=0.4)])
    (held,) = twice.items
    assert (held.evidence, held.support, held.lift) == (("t1", "t2"), 8, 0.4)
    assert twice.apply([add("a", evidence=("t1",), support=3, lift=0.2)]) == twice
    assert once.version != twice.version


def test_update_stands_in_the_place_of_its_target() -> None:
    pool = pool_of("a", "b", "c")
    after = pool.apply([PoolEdit(op="UPDATE", item=item("B"), targets=(item("b").id,))])
    assert texts(after) == ["a", "B", "c"]
    assert after.items[1].parents == (item("b").id,)
    assert texts(pool) == ["a", "b", "c"], "the old pool is a value of its own"


@pytest.mark.parametrize(("new", "left"), [("x", ["x", "b"]), ("a", ["a", "b"]), ("b", ["b"]), ("c", ["b", "c"])])
def test_merge_leaves_one_item(new: str, left: list[str]) -> None:
    pool = pool_of("a", "b", "c")
    targets = (item("a").id, item("c").id) if new != "b" else (item("c").id, item("a").id)
    after = pool.apply([PoolEdit(op="MERGE", item=item(new), targets=targets)])
    assert texts(after) == left
    merged = next(entry for entry in after.items if entry.text == new)
    assert set(merged.parents) == set(targets) - {merged.id}


def test_over_cap_names_the_weakest_then_the_oldest() -> None:
    pool = empty(2).apply([add("old", iteration=1), add("strong", support=9, lift=0.5)])
    edits = [add("harmful", support=9, lift=-0.5), add("new", iteration=2)]
    cut = pool.over_cap(edits)
    assert [edit.targets for edit in cut] == [(item("harmful").id,), (item("old").id,)]
    assert cut[0].reason == "over the cap of 2: support 9, lift -0.50"
    assert texts(pool.apply([*edits, *cut])) == ["strong", "new"]
    assert pool.over_cap() == ()
    with pytest.raises(DataError, match="4 items, more than its cap of 2"):
        pool.apply(edits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (PoolEdit(op="ADD"), "has no item"),
        (PoolEdit(op="ADD", item=item("z"), targets=("x",)), "has targets"),
        (PoolEdit(op="DELETE"), "has no target"),
        (PoolEdit(op="DELETE", item=item("a"), targets=(item("a").id,)), "has an item"),
        (PoolEdit(op="UPDATE", item=item("z")), "0 targets"),
        (PoolEdit(op="MERGE", item=item("z"), targets=(item("a").id,) * 2), "two targets"),
        (PoolEdit(op="ADD", item=item("a").model_copy(update={"text": "other"})), "not named after its text"),
    ],
)
def test_misshapen_edits_are_named(edit: PoolEdit, message: str) -> None:
    with pytest.raises(DataError, match=rf"edit 2 \({edit.op}\): .*{message}"):
        pool_of("a").apply([PoolEdit(op="NONE"), edit])


def test_diff() -> None:
    old = pool_of("a", "b")
    new = old.apply([add("c"), add("b", evidence=("t",)), PoolEdit(op="DELETE", targets=(item("a").id,))])
    change = diff(old, new)
    assert [[entry.text for entry in part] for part in (change.added, change.removed, change.changed)] == [
        ["c"],
        ["a"],
        ["b"],
    ]
    assert diff(new, new).changed == ()


def test_saved_pool_comes_back(tmp_path: Path) -> None:
    pool = pool_of("a", "é\u2028\n{}")
    save_pool(pool, tmp_path / "pool.json")
    assert load_pool(tmp_path / "pool.json") == pool


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0" * 12}, "field version says 000000000000"),
        ({"cap": 1}, "more than its cap of 1"),
        ({"capp": 1}, "unknown field capp"),
        ({"items": [{"id": 3}]}, r"items\.0\.id: input should be"),
    ],
)
def test_broken_pool_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "pool.json"
    save_pool(pool_of("a", "b"), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"pool\.json: .*{message}") as caught:
        load_pool(path)
    assert "\n" not in str(caught.value)


def test_a_lift_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    item = Experience.new("a", "principle", "x")
    with pytest.raises(DataError, match="cannot be written as JSON"):
        save_pool(ExperiencePool((item.model_copy(update={"lift": math.nan}),), 2), tmp_path / "pool.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("style", ["dict", "list"])
def test_official_formats_round_trip(style: Any) -> None:
    pool = pool_of("Name: one sentence.", "G7 is a group, not an id")
    data = json.loads(json.dumps(export_official(pool, style)))
    again = empty(10).apply(import_official(data, "principle"))
    assert [entry.id for entry in again.items] == [entry.id for entry in pool.items]


def test_official_files_as_found_in_the_wild(tmp_path: Path) -> None:
    wild = [{"id": "G0", "full_text": "[G0]. Verify: twice."}, {"id": "G1", "full_text": "plain", "name": "x"}]
    (tmp_path / "list.json").write_text(json.dumps(wild))
    edits = load_official(tmp_path / "list.json", "principle")
    assert [(edit.item and edit.item.text, edit.reason) for edit in edits] == [
        ("Verify: twice.", "imported from G0"),
        ("plain", "imported from G1"),
    ]
    twins = import_official({"G0": "same", "G1": " same "}, "instance")
    assert texts(empty(5).apply(twins)) == ["same"]


@pytest.mark.parametrize(
    "text", ["3", "[3]", '{"G0": 3}', '[{"id": "G0"}]', '{"G0": " "}', '{"G0": "[G0]."}', "{", "\xff"]
)
def test_unreadable_official_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiences.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"experiences\.json: "):
        load_official(path, "principle")


def test_usage_counts_shown_items_of_scored_episodes() -> None:
    def episode(score: float | None, *shown: tuple[str, ...]) -> Trajectory:
        steps = tuple(step(text="x", injection=Injection(item_ids=ids, text="", served_by="lexical")) for ids in shown)
        rest: dict[str, Any] = {"task_id": "t", "env": "e", "split": "train", "iteration": 0, "seed": 0}
        return Trajectory(id="1", checkpoint="c", prompt=(), steps=steps, termination="answered", score=score, **rest)

    counted = count_usage([episode(1.0, ("a", "b"), ("a",)), episode(0.0, ("b",)), episode(None, ("a",))])
    assert counted == (
        Usage(item_id="a", selected=2, succeeded=2),
        Usage(item_id="b", selected=2, succeeded=1),
    )

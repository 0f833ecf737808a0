"""What an item is worth, by hand; and that only measured harm retires, once, and never for ever and a day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internalize.evaluation.stats import Interval, difference_of_means
from internalize.experience.pool import ExperiencePool, read_edits
from internalize.experience.utility import Utility, retire, retired_ids, utilities, without_retired
from internalize.records import Experience, Injection, Message, PoolEdit, Trajectory
from internalize.runs.files import write_jsonl
from tests.steps import act, step

NOTE = Experience.new("Look twice.", "principle", "self")
RULE = Experience.new('When you see "Alias of", visit the name after "Alias of".', "principle", "contrast")


def episode(
    task: str, score: float | None, *shown: Experience, seen: str = "Alias of x", attempt: int = 0, **change: Any
) -> Trajectory:
    hint = Injection(item_ids=tuple(i.id for i in shown), text="t", served_by="lexical") if shown else None
    steps = (
        step(text="search[x]", call=act("search", "x"), seen=seen),
        step(text="answer[x]", call=act("answer", "x"), injection=hint),
    )
    given: dict[str, Any] = {"checkpoint": "c", "pattern": "stepwise" if shown else "none", **change}
    return Trajectory(
        id=f"{task}-{attempt}-{len(shown)}", task_id=task, env="e", split="train", iteration=1, seed=0,
        attempt=attempt, prompt=(Message(role="user", content=f"Where is {task}?"),), steps=steps,
        termination="answered", score=score, **given,
    )  # fmt: skip


def test_by_hand() -> None:
    """With it: a = (1 + 0) / 2, b = 1, so 0.75 over two tasks. Without: a = 0, b = 0.5 over two attempts, so 0.25."""
    (found,) = utilities(
        [NOTE],
        [
            episode("a", 1.0, NOTE), episode("a", 0.0, NOTE, attempt=1), episode("b", 1.0, NOTE),
            episode("a", 0.0), episode("b", 1.0), episode("b", 0.0, attempt=1),
            episode("c", 1.0), episode("b", None, NOTE, attempt=2),
        ],
    )  # fmt: skip
    assert (found.selected, found.episodes, found.tasks, found.tasks_without) == (3, 3, 2, 2)
    assert (found.success, found.success_without) == (0.75, 0.25)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.5)
    # Both tasks gain exactly one half, so every resample does: paired, not two independent means.
    assert (found.difference.low, found.difference.high) == (0.5, 0.5)


def test_a_rule_is_compared_where_its_cue_applied_whatever_the_task() -> None:
    (found,) = utilities(
        [RULE],
        [
            episode("a", 1.0, RULE), episode("b", 0.0), episode("d", 1.0, seen="Nothing."),
            episode("e", 1.0, checkpoint="later"), episode("f", 1.0, NOTE),
        ],
    )  # fmt: skip
    assert (found.tasks, found.tasks_without, found.success_without) == (1, 1, 0.0)


def test_what_later_weights_reach_is_not_the_items_doing() -> None:
    """Before 0, after 1, with the item or not; it was shown more often after. Pooled, it would seem to gain 0.3."""
    trajectories = [episode(f"s{i}", 0.0, RULE, checkpoint="before") for i in range(2)]
    trajectories += [episode(f"s{i}", 1.0, RULE, checkpoint="after") for i in range(2, 10)]
    trajectories += [episode(f"p{i}", float(w == "after"), checkpoint=w) for i in range(5) for w in ("before", "after")]
    (found,) = utilities([RULE], trajectories)
    assert (found.success, found.success_without) == (0.8, 0.8)
    assert found.difference == Interval(mean=0.0, low=0.0, high=0.0, n=20)


def test_items_shown_always_or_never_have_no_two_sides() -> None:
    whole = Injection(item_ids=(NOTE.id,), text="t", served_by="global")
    globally = [episode("a", 1.0, pattern="global", global_injection=whole), episode("a", 0.0, attempt=1)]
    for trajectories in ([], globally, [episode("a", 1.0, NOTE)], [episode("a", 1.0)]):
        (found,) = utilities([NOTE], trajectories)
        assert found.difference is None
    assert utilities([NOTE], globally)[0].selected == 1


def test_difference_of_means_by_hand() -> None:
    """(1 + 1) / 2 - (0 + 1) / 2 over three tasks, one of them on both sides."""
    found = difference_of_means({"a": 0.0, "b": 1.0, "d": None}, {"a": 1.0, "c": 1.0})
    assert found is not None
    assert (found.mean, found.n) == (0.5, 3)
    assert found.low <= 0.0
    assert found.high == 1.0
    assert difference_of_means({}, {"a": 1.0}) is None
    assert difference_of_means({"a": None}, {"a": 1.0}) is None
    same = {str(i): i % 2 for i in range(20)}
    assert difference_of_means(same, same) == Interval(mean=0.0, low=0.0, high=0.0, n=20)


def test_intervals_that_hold_together_are_wider() -> None:
    trajectories = [episode(f"t{i}", float(i % 3 == 0), NOTE, RULE) for i in range(30)]
    trajectories += [episode(f"t{i}", float(i % 2)) for i in range(30)]
    items = [NOTE, RULE, *(Experience.new(f"{n}", "principle", "x") for n in range(3))]
    hints = [t for i in items[2:] for t in (episode(f"t{n}", 1.0, i, attempt=1) for n in range(12))]
    alone, together = (utilities(items, [*trajectories, *hints], together=flag)[0].difference for flag in (False, True))
    assert alone is not None
    assert together is not None
    assert together.high > alone.high


def measured(item: Experience, mean: float, high: float, tasks: int = 12) -> Utility:
    difference = Interval(mean=mean, low=mean - 0.2, high=high, n=tasks)
    return Utility(
        item_id=item.id, tasks=tasks, tasks_without=tasks, success=0.25, success_without=0.5, difference=difference
    )


def test_only_measured_harm_retires_the_worst_first() -> None:
    pool = ExperiencePool((NOTE, RULE), 5)
    edits = retire(pool, [measured(NOTE, -0.25, -0.05), measured(RULE, -0.4, -0.1)])
    assert [(edit.op, edit.targets) for edit in edits] == [("DELETE", (RULE.id,))]
    assert edits[0].reason == "retired: success 25% on 12 tasks with it, 50% on 12 without, -40 points [-60, -10]"
    assert len(retire(pool, [measured(NOTE, -0.25, -0.05), measured(RULE, -0.4, -0.1)], most=2)) == 2
    assert pool.apply(edits).items == (NOTE,)
    for harmless in (
        [measured(NOTE, -0.25, 0.0)],
        [measured(NOTE, -0.25, -0.05, tasks=9)],
        [Utility(item_id=NOTE.id, tasks=20, tasks_without=20)],
        [measured(Experience.new("gone", "principle", "x"), -0.25, -0.05)],
    ):
        assert retire(pool, harmless) == ()


def test_what_was_retired_does_not_come_back() -> None:
    log = [
        PoolEdit(op="DELETE", targets=(NOTE.id,), cause="retired"),
        PoolEdit(op="DELETE", targets=(RULE.id,), reason="over the cap of 1"),
    ]
    assert retired_ids(log) == {NOTE.id}
    wanted = [
        PoolEdit(op="ADD", item=NOTE),
        PoolEdit(op="ADD", item=RULE),
        PoolEdit(op="DELETE", targets=(NOTE.id,), reason="over the cap of 1"),
    ]
    assert without_retired(wanted, retired_ids(log)) == (wanted[1],)


def test_a_retirement_of_version_1_is_known_by_its_reason(tmp_path: Path) -> None:
    reasons = ("retired: success 25% on 12 tasks with it", "over the cap of 1", "was retired: no")
    edits = [PoolEdit(op="DELETE", targets=(NOTE.id,), reason=reason) for reason in reasons]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    assert [edit.cause for edit in read_edits(tmp_path / "edits.jsonl")] == ["retired", None, None]

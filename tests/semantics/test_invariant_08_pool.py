"""Invariant 8: ids never change meaning, DELETE deletes, the cap holds, and the edit log is the pool."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.errors import DataError
from internalize.experience.pool import ExperiencePool, empty, replay
from internalize.records import Experience, PoolEdit

CAP = 4
ITEMS = st.builds(
    lambda word, evidence, support, lift: Experience.new(
        word, "principle", "contrast", evidence=tuple(evidence), support=support, lift=lift
    ),
    st.sampled_from(["look first", "read the page", "follow bases", "answer", "search again", "stop", "name it"]),
    st.lists(st.sampled_from("abcd"), max_size=2, unique=True),
    st.integers(0, 9),
    st.floats(-1, 1),
)


@st.composite
def next_edit(draw: st.DrawFn, pool: ExperiencePool) -> PoolEdit:
    held = [item.id for item in pool.items]
    op = draw(st.sampled_from(["ADD", "NONE", *["UPDATE", "DELETE"] * (len(held) > 0), *["MERGE"] * (len(held) > 1)]))
    count = {"ADD": 0, "NONE": 0, "UPDATE": 1, "DELETE": 1, "MERGE": 2}[op]
    targets = tuple(draw(st.permutations(held))[:count])
    item = draw(ITEMS) if op in {"ADD", "UPDATE", "MERGE"} else None
    return PoolEdit.model_validate({"op": op, "item": item, "targets": targets})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_invariant_08_pool(data: st.DataObject) -> None:
    pool, log, meaning = empty(CAP), [], {}
    for _ in range(data.draw(st.integers(1, 12))):
        edit = data.draw(next_edit(pool))
        batch = (edit, *pool.over_cap([edit]))
        before, pool = pool, pool.apply(batch)
        log += batch
        ids = [item.id for item in pool.items]
        assert len(ids) == len(set(ids)) <= CAP
        assert all(meaning.setdefault(item.id, item.text) == item.text for item in pool.items)
        replaced = edit.item.id if edit.item else None
        assert not set(edit.targets) & set(ids) - {replaced}, "what was deleted or replaced is gone"
        removed = {item.id for item in before.items} - set(ids)
        assert removed <= {target for entry in batch for target in entry.targets}, "the log explains every removal"
        for item in pool.items:
            assert item.id not in item.parents
            if item.id == replaced:
                assert set(edit.targets) - {replaced} <= set(item.parents)
    assert replay(log, CAP) == pool
    assert replay(log, CAP).version == pool.version


@pytest.mark.parametrize("op", ["UPDATE", "DELETE", "MERGE"])
def test_unknown_ids_are_errors(op: str) -> None:
    known = Experience.new("known", "principle", "contrast")
    pool = empty(CAP).apply([PoolEdit(op="ADD", item=known)])
    item = None if op == "DELETE" else Experience.new("new", "principle", "contrast")
    targets = ("feedfeedfeed",) if op != "MERGE" else (known.id, "feedfeedfeed")
    with pytest.raises(DataError, match=rf"^edit 1 \({op}\): unknown item feedfeedfeed$"):
        pool.apply([PoolEdit.model_validate({"op": op, "item": item, "targets": targets})])

"""Whatever a model proposes, the batch that is settled applies to the pool."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.config.schema import ExtractConfig
from internalize.experience.extract.proposals import (
    Bounds,
    ComparisonAnswer,
    ConsolidationAnswer,
    Proposal,
    ReconciliationAnswer,
    SummaryAnswer,
    same_words,
    schema_of,
    settle,
    to_edit,
)
from internalize.experience.pool import empty
from internalize.records import Experience, PoolEdit

TEXTS = [f"When {cue}, {act}." for cue in ("cut", "lost", "asked") for act in ("look", "look again", "stop")]
CONFIG = ExtractConfig(cap=5, add=2)
POOL = empty(5).apply(
    PoolEdit(op="ADD", item=Experience.new(text, "principle", "x", evidence=("old",))) for text in TEXTS[:4]
)
IDS = [item.id for item in POOL.items]


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    op = draw(st.sampled_from(["ADD", "UPDATE", "DELETE", "MERGE"]))
    count = {"ADD": 0, "UPDATE": 1, "DELETE": draw(st.integers(1, 3)), "MERGE": draw(st.integers(2, 3))}[op]
    targets = tuple(draw(st.permutations(IDS))[:count])
    task = draw(st.sampled_from("abcd"))
    return Proposal(op, targets, "" if op == "DELETE" else draw(st.sampled_from(TEXTS)), "", (f"t{task}",), (task,))


@settings(max_examples=300, deadline=None)
@given(st.lists(proposals(), max_size=10))
def test_any_proposals_settle_to_a_batch_that_applies(given_: list[Proposal]) -> None:
    kept, left = settle(given_, POOL, CONFIG)
    held = {item.id: item for item in POOL.items}
    edits = [to_edit(proposal, held, CONFIG, "x", 1) for proposal in kept]
    edits += POOL.over_cap(edits)
    after = POOL.apply(edits)
    assert len(after.items) <= POOL.cap
    assert all(one.reason for one in left)
    targets = [target for proposal in kept for target in proposal.targets]
    assert len(targets) == len(set(targets)), "each item is edited once"
    new = [p for p in kept if p.op == "ADD" and p.text not in {item.text for item in POOL.items}]
    assert len(new) <= CONFIG.add
    evidence = {one for proposal in given_ for one in proposal.evidence}
    told = {one for proposal in kept for one in proposal.evidence} | {f"t{task}" for one in left for task in one.tasks}
    assert told == evidence, "what a proposal rests on is in an edit or on record"
    texts = {item.text for item in after.items}
    for proposal in kept:
        if proposal.op == "DELETE":
            assert not texts & {held[target].text for target in proposal.targets}, "DELETE deletes"


def test_an_edited_item_keeps_the_evidence_of_those_it_replaces() -> None:
    merge = Proposal("MERGE", (IDS[0], IDS[1]), "When cut, go on.", "said twice", ("new",), ("a",))
    edit = to_edit(merge, {item.id: item for item in POOL.items}, CONFIG, "writer", 3)
    assert edit.item
    assert edit.item.evidence == ("new", "old")
    assert edit.item.parents == (IDS[0], IDS[1])
    assert (edit.item.source, edit.item.iteration) == ("writer", 3)


def test_one_other_word_is_another_meaning() -> None:
    assert same_words("Visit the first name.", "visit first name")
    assert not same_words("Visit the first name.", "Visit the last name.")
    assert not same_words("the", "the")


def test_schemas_are_as_strict_servers_want_them() -> None:
    def objects(node: object) -> list[dict[str, object]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        found = [one for value in inner for one in objects(value)]
        return [node, *found] if isinstance(node, dict) and "properties" in node else found

    for model in (SummaryAnswer, ComparisonAnswer, ReconciliationAnswer, ConsolidationAnswer):
        found = objects(schema_of(model, Bounds()))
        assert found
        for one in found:
            assert one["additionalProperties"] is False
            assert set(one["required"]) == set(one["properties"])
    assert schema_of(ConsolidationAnswer, Bounds())["required"] == ["edits"]


def test_a_schema_lets_only_shown_items_be_edited_and_not_too_many() -> None:
    def schema(bounds: Bounds) -> dict[str, Any]:
        return json.loads(json.dumps(schema_of(ComparisonAnswer, bounds)))

    assert schema(Bounds(IDS, 3))["properties"]["edits"]["maxItems"] == 3
    cited = json.loads(json.dumps(schema_of(ReconciliationAnswer, Bounds(IDS, 2))))["$defs"]["Decision"]["properties"][
        "proposals"
    ]
    assert cited == {"type": "array", "items": {"type": "integer", "enum": [1, 2]}, "minItems": 1, "maxItems": 2}
    one = schema(Bounds(IDS))["$defs"]["ProposedEdit"]["properties"]
    assert one["targets"] == {"type": "array", "items": {"type": "string", "enum": sorted(IDS)}, "maxItems": len(IDS)}
    assert schema(Bounds())["$defs"]["ProposedEdit"]["properties"]["targets"]["maxItems"] == 0

"""Experience written by a language model, with a scripted one."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from internalize.config.schema import Config, ExtractConfig
from internalize.errors import Incomplete
from internalize.experience.extract.llm import Extraction, write
from internalize.experience.extract.session import ExtractionInput, Refusal
from internalize.experience.extract.writer import extract
from internalize.experience.pool import ExperiencePool, empty
from internalize.inference.cached import CachedReply
from internalize.records import ChatRequest, Experience, PoolEdit, Reply, Trajectory
from internalize.runs.store import read_jsonl
from tests.writer import Writer, add, attempt, edits, held_ids, proposal_count, stage_of, task_number, tried

CONFIG = ExtractConfig(source="external", endpoint="e", cap=6, add=5)


def run(
    trajectories: list[Trajectory], chat: Writer, folder: Path, pool: ExperiencePool | None = None, **config: Any
) -> tuple[PoolEdit, ...]:
    settings = CONFIG.model_copy(update=config)
    where = pool or empty(settings.cap)
    return asyncio.run(write(ExtractionInput(trajectories, (), where, 2), settings, chat, folder / "extraction.jsonl"))


def record(folder: Path) -> Extraction:
    return Extraction.model_validate_json((folder / "extraction.json").read_bytes())


def texts(found: tuple[PoolEdit, ...]) -> list[str]:
    return [edit.item.text for edit in found if edit.item]


def pool_of(*items: str, cap: int = 6) -> ExperiencePool:
    return empty(cap).apply(PoolEdit(op="ADD", item=Experience.new(text, "principle", "x")) for text in items)


def test_each_task_gives_an_item_that_names_its_evidence_and_writer(tmp_path: Path) -> None:
    chat = Writer()
    found = run(tried(1, 2), chat, tmp_path)
    assert [edit.op for edit in found] == ["ADD", "ADD"]
    first = found[0].item
    assert first
    assert (first.evidence, first.source, first.iteration) == (("t1-0", "t1-1"), "scripted", 2)
    assert chat.stages == {"compare": 2, "reconcile": 1}
    assert record(tmp_path).requests == 3
    assert record(tmp_path).prompt_tokens == 21


def test_a_single_task_needs_a_single_request(tmp_path: Path) -> None:
    chat = Writer()
    assert len(run(tried(1), chat, tmp_path)) == 1
    assert chat.stages == {"compare": 1}


def test_mixed_groups_are_learnt_from_or_all(tmp_path: Path) -> None:
    trajectories = [*tried(1), attempt(2, 1.0), attempt(2, 1.0, n=1), attempt(3, 0.0)]
    assert len(run(trajectories, Writer(), tmp_path)) == 1
    assert len(run(trajectories, Writer(), tmp_path, groups="all")) == 3


def test_unscored_attempts_never_enter(tmp_path: Path) -> None:
    chat = Writer()
    broken = [attempt(1, None, n=5, seen="UNSCORED"), attempt(2, 1.0), attempt(2, None, n=1, seen="UNSCORED")]
    run([*tried(1), *broken], chat, tmp_path)
    assert not any("UNSCORED" in text for _, text in chat.asked)
    assert chat.stages == {"compare": 1}
    assert record(tmp_path).unscored == 2
    assert run([attempt(1, None)], Writer(), tmp_path / "..", groups="all") == ()


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        ("no JSON", "it is not JSON"),
        ({"edits": "none"}, "edits: "),
        (edits({"op": "REPLACE"}), "edits.0.op: "),
        (edits(add("word " * 33)), "a text has 33 words, at most 32 are allowed"),
        (edits(add(" ")), "ADD needs a text"),
        (edits(*[add(f"When {w}, look.") for w in "abcd"]), "4 edits, at most 3 are allowed"),
        (edits({"op": "DELETE", "targets": ["feedfeedfeed"]}), "'feedfeedfeed' is no id of a held item"),
        (edits({"op": "UPDATE", "targets": [], "text": "x"}), "UPDATE needs one id in targets"),
        (edits({"op": "MERGE", "targets": ["feedfeedfeed"], "text": "x"}), "MERGE needs two ids or more in targets"),
    ],
)
def test_an_unusable_answer_is_asked_for_again_with_the_reason(tmp_path: Path, first: Any, problem: str) -> None:
    answers = iter([first, edits(add("When asked, look first."))])
    chat = Writer({"compare": lambda _: next(answers)})
    assert texts(run(tried(1), chat, tmp_path)) == ["When asked, look first."]
    assert problem in chat.asked[1][1]
    assert len(read_jsonl(tmp_path / "extraction.jsonl", CachedReply)) == 2


def test_a_fenced_answer_is_read(tmp_path: Path) -> None:
    chat = Writer({"compare": lambda _: "```json\n" + json.dumps(edits(add("When asked, look."))) + "\n```"})
    assert texts(run(tried(1), chat, tmp_path)) == ["When asked, look."]


def test_an_item_is_edited_once_and_only_if_it_was_shown(tmp_path: Path) -> None:
    pool = pool_of("When A, do B.", "When C, do D.", "When E, do F.")
    known = [item.id for item in pool.items]
    twice = edits(*({"op": "UPDATE", "targets": [known[0]], "text": f"When A, do {x}."} for x in "XY"))
    answers = iter([twice, edits({"op": "MERGE", "targets": known[:2], "text": "When A or C, do B."})])
    (edit,) = run(tried(1), Writer({"compare": lambda _: next(answers)}), tmp_path, pool)
    assert edit.item
    assert edit.item.parents == tuple(known[:2])
    after = pool.apply([edit])
    assert [item.text for item in after.items] == ["When A or C, do B.", "When E, do F."]


def test_delete_deletes(tmp_path: Path) -> None:
    pool = pool_of("When A, do B.", "When C, do D.")
    chat = Writer({"compare": lambda text: edits({"op": "DELETE", "targets": held_ids(text)[:1], "text": "ignored"})})
    found = run(tried(1), chat, tmp_path, pool)
    assert [item.text for item in pool.apply(found).items] == ["When C, do D."]


def test_tasks_that_edit_one_item_are_settled_in_code_whatever_the_model_decides(tmp_path: Path) -> None:
    pool = pool_of("When A, do B.")
    (item,) = pool.items

    def compare(text: str) -> Any:
        return edits({"op": "UPDATE", "targets": [item.id], "text": f"When A, do {task_number(text)}."})

    found = run(tried(1, 2, 3), Writer({"compare": compare}), tmp_path, pool)
    assert texts(found) == ["When A, do 1."]
    assert [one.reason for one in record(tmp_path).left_out] == [f"item {item.id} is edited by a stronger proposal"] * 2


def test_reconciled_proposals_keep_all_their_evidence(tmp_path: Path) -> None:
    def join(text: str) -> Any:
        count = proposal_count(text)
        return {"decisions": [{"op": "ADD", "proposals": list(range(1, count + 1)), "text": "When boxed, look."}]}

    (edit,) = run(tried(1, 2, 3), Writer({"reconcile": join}), tmp_path)
    assert edit.item
    assert edit.item.evidence == tuple(f"t{k}-{n}" for k in (1, 2, 3) for n in (0, 1))


def test_a_delete_that_nobody_proposed_is_refused_and_code_settles(tmp_path: Path) -> None:
    pool = pool_of("When A, do B.")
    (held,) = pool.items

    def compare(text: str) -> Any:
        return edits({"op": "UPDATE", "targets": [held.id], "text": f"When A, do {'XYZ'[task_number(text) - 1]}."})

    def reconcile(_: str) -> Any:
        return {"decisions": [{"op": "DELETE", "proposals": [1, 2], "targets": [held.id]}]}

    chat = Writer({"compare": compare, "reconcile": reconcile})
    found = run(tried(1, 2), chat, tmp_path, pool)
    assert texts(found) == ["When A, do X."]
    assert chat.stages["reconcile"] == 3
    (refused,) = record(tmp_path).refused
    assert (refused.stage, refused.reason) == ("reconcile", f"no proposal it names deletes {held.id}")


def test_near_duplicates_add_evidence_instead_of_items(tmp_path: Path) -> None:
    pool = pool_of("When a box is asked about, look inside first.")
    chat = Writer({"compare": lambda _: edits(add("When the box is asked about, look inside first!"))})
    found = run(tried(1, 2), chat, tmp_path, pool)
    after = pool.apply(found)
    assert [item.id for item in after.items] == [item.id for item in pool.items]
    assert after.items[0].evidence == ("t1-0", "t1-1", "t2-0", "t2-1")


def test_at_most_add_items_are_new(tmp_path: Path) -> None:
    found = run(tried(*range(8)), Writer(), tmp_path, add=3)
    assert len(found) == 3
    assert [one.reason for one in record(tmp_path).left_out] == ["more than 3 new items"] * 5


@pytest.mark.parametrize("obeys", [True, False])
def test_the_cap_holds_whatever_the_model_says(tmp_path: Path, *, obeys: bool) -> None:
    pool = pool_of(*(f"When {word} comes up, try {word}." for word in ("one", "two", "three", "four", "five")))
    chat = Writer() if obeys else Writer({"consolidate": lambda _: {"edits": []}})
    found = run(tried(1, 2, 3, 4), chat, tmp_path, pool)
    after = pool.apply(found)
    assert len(after.items) == pool.cap
    assert len(texts(found)) == 4
    assert chat.stages["consolidate"] == (1 if obeys else 3)
    assert len(record(tmp_path).refused) == (0 if obeys else 1)
    assert all(edit.reason for edit in found)


def test_an_outage_leaves_work_owed_and_the_resumed_extraction_asks_only_that(tmp_path: Path) -> None:
    undisturbed = run(tried(1, 2, 3), Writer(), tmp_path / "..")
    chat = Writer(down=(1,))
    with pytest.raises(Incomplete, match=r"^1 of 3 questions are still to be answered \(the server is down\)$"):
        run(tried(1, 2, 3), chat, tmp_path)
    assert chat.stages == {"compare": 2}
    assert not (tmp_path / "extraction.json").exists()
    chat = Writer()
    assert run(tried(1, 2, 3), chat, tmp_path) == undisturbed
    assert chat.stages == {"compare": 1, "reconcile": 1}
    chat = Writer()
    assert run(tried(1, 2, 3), chat, tmp_path) == undisturbed
    assert chat.calls == 0


@pytest.mark.parametrize("stage", ["reconcile", "consolidate"])
def test_an_outage_of_a_later_question_is_owed_too(tmp_path: Path, stage: str) -> None:
    pool = pool_of("When A, do B.", "When C, do D.", cap=3)
    undisturbed = run(tried(1, 2), Writer(), tmp_path / "..", pool)
    down = {"reconcile": 2, "consolidate": 3}[stage]
    with pytest.raises(Incomplete, match="the server is down"):
        run(tried(1, 2), Writer(down=(down,)), tmp_path, pool)
    chat = Writer()
    assert run(tried(1, 2), chat, tmp_path, pool) == undisturbed
    assert chat.calls == 4 - down


def test_killed_at_any_answer_the_resumed_extraction_gives_the_same_and_asks_nothing_twice(tmp_path: Path) -> None:
    pool = pool_of("When A, do B.", "When C, do D.", cap=3)
    kind = {"steps": 6, "size": 4000}
    whole = Writer()
    undisturbed = run(tried(1, 2, **kind), whole, tmp_path, pool)
    assert whole.stages == {"summary": 4, "compare": 2, "reconcile": 1, "consolidate": 1}
    lines = (tmp_path / "extraction.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(len(lines) + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        torn = lines[number][:40] if number < len(lines) else b""
        (folder / "extraction.jsonl").write_bytes(b"".join(lines[:number]) + torn)
        chat = Writer()
        assert run(tried(1, 2, **kind), chat, folder, pool) == undisturbed
        assert chat.calls == len(lines) - number


def test_killed_at_any_unusable_answer_the_resumed_extraction_goes_the_same_way(tmp_path: Path) -> None:
    """Of three tasks one gets a usable answer at the second try, one in the warmer round, one never."""

    class Stubborn(Writer):
        async def complete(self, request: ChatRequest) -> Reply:
            reply, text = await super().complete(request), request.messages[0].content
            least = {1: 1, 2: 3, 3: 99}[task_number(text)] if stage_of(text) == "compare" else 0
            return reply if request.seed >= least else reply.model_copy(update={"text": "mumble"})

    whole = Stubborn()
    with pytest.raises(Incomplete):
        run(tried(1, 2, 3), whole, tmp_path)
    stopped = (tmp_path / "extraction.jsonl").read_bytes().count(b"\n")
    undisturbed = run(tried(1, 2, 3), whole, tmp_path)
    assert len(texts(undisturbed)) == 2
    assert whole.stages == {"compare": 2 + 4 + 6, "reconcile": 1}
    lines = (tmp_path / "extraction.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "extraction.jsonl").write_bytes(b"".join(lines[:number]) + lines[number][:40])
        chat = Stubborn()
        if number > stopped:
            (folder / "extraction.refused.jsonl").write_bytes((tmp_path / "extraction.refused.jsonl").read_bytes())
        else:
            with pytest.raises(Incomplete):
                run(tried(1, 2, 3), chat, folder)
        assert run(tried(1, 2, 3), chat, folder) == undisturbed
        assert chat.calls == whole.calls - sum(b'"text"' in line for line in lines[:number])


@pytest.mark.parametrize(("source", "asked"), [("self", 2), ("external", 1)])
def test_replies_of_the_policy_belong_to_its_weights(tmp_path: Path, source: str, asked: int) -> None:
    endpoint = {"base_url": "http://127.0.0.1:1", "model": "m"}
    settings = {"extract": {"source": source, "endpoint": "e"}, "endpoints": {"e": endpoint}}
    config, chat = Config.model_validate(settings), Writer()
    for checkpoint in ("c1", "c2", "c1"):
        seen = ExtractionInput(tried(1), (), empty(6), 1, checkpoint=checkpoint)
        asyncio.run(extract(config, seen, tmp_path / source, lambda: chat))
    assert chat.calls == asked


def test_a_task_whose_answers_stay_unusable_teaches_nothing_and_is_on_record(tmp_path: Path) -> None:
    good = Writer().answers["compare"]
    chat = Writer({"compare": lambda text: "mumble" if task_number(text) == 2 else good(text)})
    found = run(tried(1, 2, 3), chat, tmp_path)
    assert {one for edit in found if edit.item for one in edit.item.evidence} == {"t1-0", "t1-1", "t3-0", "t3-1"}
    (refused,) = record(tmp_path).refused
    assert (refused.stage, refused.subject, refused.reason) == ("compare", "task2", "it is not JSON")
    assert chat.stages["compare"] == 1 + 3 + 1


def test_when_most_tasks_refuse_the_work_stops_once_and_goes_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = Writer().answers["compare"]
    bad = {"compare": lambda text: good(text) if task_number(text) == 1 else "mumble"}
    with pytest.raises(Incomplete, match="scripted gave no usable answer for 2 of 3 tasks"):
        run(tried(1, 2, 3), Writer(bad), tmp_path)
    refused = read_jsonl(tmp_path / "extraction.refused.jsonl", Refusal)
    assert [tuple(one.model_dump().values()) for one in refused] == [
        ("compare", f"task{n}", "it is not JSON") for n in (2, 3)
    ]
    chat = Writer(bad)
    found = run(tried(1, 2, 3), chat, tmp_path)
    assert chat.stages == {"compare": 6}
    assert set(chat.temperatures) == {0.7}
    assert len(found) == 1
    assert "no usable answer for 2 of 3 tasks" in caplog.text
    resumed = Writer()
    assert run(tried(1, 2, 3), resumed, tmp_path) == found
    assert resumed.calls == 0


def test_long_attempts_are_summarized_and_short_ones_shown_whole(tmp_path: Path) -> None:
    chat = Writer()
    long = [attempt(1, 1.0, steps=20, size=4000), attempt(1, 0.0, n=1)]
    run(long, chat, tmp_path)
    assert chat.stages == {"summary": 1, "compare": 1}
    summary, compared = (dict(chat.asked)[stage] for stage in ("summary", "compare"))
    assert "Step 1: look[1.0]" in summary
    assert "Step 21: answer[0]" in summary
    assert "left out]" in summary
    assert "It looked into the box. Then it answered." in compared
    assert "Step 2: look[1.1]" in compared
    assert all(len(text) < 3 * CONFIG.context for _, text in chat.asked)


def test_an_attempt_that_is_never_retold_is_cut_and_its_task_learnt_from_all_the_same(tmp_path: Path) -> None:
    chat = Writer({"summary": lambda _: "mumble"})
    found = run([attempt(1, 1.0, steps=20, size=4000), attempt(1, 0.0, n=1)], chat, tmp_path)
    assert len(texts(found)) == 1
    assert chat.stages == {"summary": 3, "compare": 1}
    assert "look[1.0]" in chat.asked[-1][1]
    assert "left out" in chat.asked[-1][1]
    assert all(len(text) < 3 * CONFIG.context for _, text in chat.asked)
    rejected = [line.rejected for line in read_jsonl(tmp_path / "extraction.jsonl", CachedReply) if line.rejected]
    assert rejected == ["it is not JSON"] * 3


@pytest.mark.parametrize("context", [1024, 2048, 32_000])
def test_questions_fit_the_context_of_the_writer(tmp_path: Path, context: int) -> None:
    pool = pool_of(*(f"When {n} comes up, try {n} once more." for n in range(300)), cap=400)
    chat = Writer()
    found = run(tried(*range(12), steps=12, size=3000), chat, tmp_path, pool, context=context, add=9)
    assert len(texts(found)) == 9
    assert max(len(text) for _, text in chat.asked) <= 3.5 * context


def test_both_granularities_take_the_same_way_with_other_words(tmp_path: Path) -> None:
    asked = {}
    for granularity in ("principle", "instance"):
        chat, folder = Writer(), tmp_path / granularity
        folder.mkdir()
        (edit,) = run(tried(1), chat, folder, granularity=granularity)
        assert edit.item
        assert edit.item.granularity == granularity
        asked[granularity] = chat.asked[0][1]
    assert "a principle: one sentence of at most 32 words" in asked["principle"]
    assert "a worked example of at most 32 words" in asked["instance"]

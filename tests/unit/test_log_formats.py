"""Logs of other programs: each format is recognized by its content and tells the same episode; what each adds."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from internalize.errors import DataError, UserError
from internalize.formats import atif, calls
from internalize.formats.reading import Reading, Session, episodes
from internalize.formats.recognition import FORMATS, head, recognized
from internalize.formats.survey import Survey
from internalize.formats.trajectories import read as read_trajectory
from internalize.records import Trajectory
from tests.command import Call
from tests.unit.test_formats_chat import logs

SYSTEM, QUESTION = "You read gauges.", "What does gauge g3 show?"
ARGUMENTS = {"gauge": "g3"}
TEXT = json.dumps(ARGUMENTS)
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "k1", "type": "function", "function": {"name": "read", "arguments": TEXT}}]},
    {"role": "tool", "tool_call_id": "k1", "content": "4 bar"},
    {"role": "assistant", "content": "4 bar."},
]  # fmt: skip
BLOCKS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": [
        {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "k1", "name": "read", "input": ARGUMENTS}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "k1", "content": [
        {"type": "text", "text": "4 bar"}]}]},
    {"role": "assistant", "content": [{"type": "text", "text": "4 bar."}]},
]  # fmt: skip
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "call_id": "k1", "name": "read", "arguments": TEXT},
    {"type": "function_call_output", "call_id": "k1", "output": "4 bar"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4 bar."}]},
]
ATIF = {
    "schema_version": "ATIF-v1.7",
    "session_id": "s",
    "agent": {"name": "reader", "version": "1", "model_name": "m"},
    "steps": [
        {"step_id": 1, "source": "system", "message": SYSTEM},
        {"step_id": 2, "source": "user", "message": QUESTION, "timestamp": "2026-01-02T03:04:05Z"},
        {"step_id": 3, "source": "agent", "message": "I look.", "metrics": {"prompt_tokens": 9, "logprobs": [-0.5]},
         "tool_calls": [{"tool_call_id": "k1", "function_name": "read", "arguments": ARGUMENTS}],
         "observation": {"results": [{"source_call_id": "k1", "content": "4 bar"}]}},
        {"step_id": 4, "source": "agent", "message": "4 bar.", "extra": {"why": "done"}},
    ],
    "final_metrics": {"total_cost_usd": 0.25},
}  # fmt: skip


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def session(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Records of a session of Claude Code, each the child of the one before."""
    parents = [None, *(f"u{number}" for number in range(len(messages)))]
    return [
        {"type": message["role"], "message": message, "uuid": f"u{number}", "parentUuid": parents[number],
         "sessionId": "s", "isSidechain": False, **more}
        for number, message in enumerate(messages)
    ]  # fmt: skip


def rollout(*payloads: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "response_item", "payload": payload} for payload in payloads]


def attributes(**values: object) -> list[dict[str, Any]]:
    return [{"key": f"gen_ai.{name}", "value": {"stringValue": value}} for name, value in values.items()]


PARTS = [
    {"role": "system", "parts": [{"type": "text", "content": SYSTEM}]},
    {"role": "user", "parts": [{"type": "text", "content": QUESTION}]},
    {"role": "assistant", "parts": [
        {"type": "text", "content": "I look."},
        {"type": "tool_call", "id": "k1", "name": "read", "arguments": ARGUMENTS}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "k1", "response": "4 bar"}]},
    {"role": "assistant", "parts": [{"type": "text", "content": "4 bar."}]},
]  # fmt: skip


def span(number: int, asked: list[Any], said: list[Any], trace: str = "t") -> dict[str, Any]:
    named = {"input.messages": json.dumps(asked), "output.messages": json.dumps(said), "operation.name": "chat"}
    return {
        "traceId": trace,
        "spanId": str(number),
        "startTimeUnixNano": str(number),
        "attributes": attributes(**named),
    }


def resource(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


INDEXED = {
    "gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": SYSTEM,
    "gen_ai.prompt.1.role": "user", "gen_ai.prompt.1.content": QUESTION,
    "gen_ai.prompt.2.role": "assistant", "gen_ai.prompt.2.content": "I look.",
    "gen_ai.prompt.2.tool_calls.0.id": "k1", "gen_ai.prompt.2.tool_calls.0.name": "read",
    "gen_ai.prompt.2.tool_calls.0.arguments": TEXT,
    "gen_ai.prompt.3.role": "tool", "gen_ai.prompt.3.tool_call_id": "k1", "gen_ai.prompt.3.content": "4 bar",
    "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "4 bar.",
}  # fmt: skip
TAU2_MESSAGES = [
    {"role": "assistant", "content": "Hi! How can I help?"},
    CHAT[1],
    {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "k1", "name": "read", "arguments": ARGUMENTS, "requestor": "assistant"}]},
    {"role": "tool", "id": "k1", "content": "4 bar", "requestor": "assistant"},
    {"role": "assistant", "content": "4 bar."},
    {"role": "user", "content": None, "tool_calls": [
        {"id": "z", "name": "nod", "arguments": {}, "requestor": "user"}]},
    {"role": "tool", "id": "z", "content": "nodded", "requestor": "user"},
]  # fmt: skip
TAU2 = {
    "timestamp": "now",
    "info": {"agent_info": {"llm": "m"}, "environment_info": {"domain_name": "gauges", "policy": SYSTEM}},
    "tasks": [{"id": "1"}],
    "simulations": [{"id": "x", "task_id": "1", "termination_reason": "user_stop", "reward_info": {"reward": 1.0},
                     "messages": TAU2_MESSAGES}],
}  # fmt: skip
NODES = [
    {"parent": None, "message": CHAT[0]}, {"parent": 0, "message": CHAT[1]},
    {"parent": 1, "sampled": True, "message": {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "k1", "type": "function", "name": "read", "arguments": TEXT}]}},
    {"parent": 2, "message": CHAT[3]}, {"parent": 3, "sampled": True, "message": CHAT[4]},
]  # fmt: skip
TRACE = {
    "id": "e",
    "task": {"type": "T", "data": {}, "key": "g3"},
    "nodes": NODES,
    "rewards": {"right": {"score": 1.0}},
}
HISTORY = [
    {"role": "system", "content": SYSTEM, "agent": "main", "message_type": "system_prompt"},
    {**CHAT[1], "agent": "main"},
    {**CHAT[2], "agent": "main", "thought": "", "action": "read"},
    {"role": "tool", "content": "4 bar", "agent": "main", "tool_call_ids": ["k1"]},
    {**CHAT[4], "agent": "main"},
]  # fmt: skip
SAME: dict[str, tuple[str, str]] = {
    "chat": (lines({"messages": CHAT}), "log.jsonl"),
    "messages": (json.dumps(CHAT, indent=1), "log.json"),
    "anthropic": (lines({"system": SYSTEM, "messages": BLOCKS}), "log.jsonl"),
    "responses": (lines({"instructions": SYSTEM, "input": ITEMS[:4], "output": ITEMS[4:]}), "log.jsonl"),
    "atif": (json.dumps(ATIF, indent=2), "trajectory.json"),
    "claude-code": (lines({"type": "summary", "leafUuid": "u3"}, *session(*BLOCKS)), "session.jsonl"),
    "codex": (
        lines({"type": "session_meta", "payload": {"id": "s", "instructions": SYSTEM}}, *rollout(*ITEMS)), "r.jsonl"),
    "otel": (lines(resource(span(2, PARTS[:4], PARTS[4:]), span(1, PARTS[:2], PARTS[2:3]))), "traces.jsonl"),
    "tau2": (json.dumps(TAU2), "results.json"),
    "tau": (json.dumps([{"task_id": 1, "reward": 1.0, "traj": CHAT, "trial": 0}]), "results.json"),
    "verifiers": (lines({"env": {}, "traces": [TRACE]}), "traces.jsonl"),
    "verifiers-results": (
        lines({"example_id": 1, "task": "g", "prompt": CHAT[:2], "completion": CHAT[2:], "reward": 1.0}), "r.jsonl"),
    "swe-agent": (json.dumps({"history": HISTORY, "trajectory": [], "info": {"exit_status": "submitted"}}), "x.traj"),
    "mini-swe-agent": (
        json.dumps({"info": {"exit_status": "Submitted"}, "messages": [*CHAT, {"role": "exit", "content": "Submitted"}],
                    "trajectory_format": "mini-swe-agent-1.1"}), "x.traj.json"),
    "calls": (
        lines({"request": {"model": "m", "messages": CHAT[:2]}, "response": {"choices": [{"message": CHAT[2]}]}},
              {"request": {"model": "m", "messages": CHAT[:4]}, "response": {"choices": [{"message": CHAT[4]}]}}),
        "log.jsonl"),
}  # fmt: skip


def imported(path: Path, session: Session | None = None) -> list[Trajectory]:
    return list(Survey(session or Session()).trajectories([path], "auto"))


@pytest.mark.parametrize("name", SAME)
def test_every_format_tells_the_same_episode(name: str, tmp_path: Path) -> None:
    if name == "atif":
        pytest.importorskip("atif")
    content, file = SAME[name]
    (tmp_path / file).write_text(content)
    assert recognized(tmp_path / file) == name
    (found,) = imported(tmp_path / file)
    assert [step.text for step in found.steps] == [
        'I look.\n<tool_call>\n{"name": "read", "arguments": {"gauge": "g3"}}\n</tool_call>', "4 bar.",
    ]  # fmt: skip
    assert [result.text for result in found.steps[0].results] == ["4 bar"]
    assert not any(step.left_out for step in found.steps)
    assert found.question == QUESTION
    system = [m.text for m in found.prompt if m.role == "system"]
    assert system == ([] if name == "claude-code" else [SYSTEM])
    scored = {"tau2", "tau", "verifiers", "verifiers-results"}
    assert (found.score, found.termination) == (1.0 if name in scored else None, "answered")


def test_every_format_but_archives_and_our_own_is_in_the_test_above() -> None:
    assert {*SAME, "inspect", "trajectories", "official-rollout", "official-eval"} == {*FORMATS}


def test_what_no_format_recognizes_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(("{}", '{"a": 1}', "hello", "[1, 2]", "[]", "", '"messages"', '{"messages')):
        (tmp_path / str(number)).write_text(text)
        with pytest.raises(UserError, match="in no log format that is known"):
            recognized(tmp_path / str(number))
    assert head(tmp_path / "1") == [{"a": 1}]


def test_a_format_is_recognized_by_the_beginning_of_a_file(tmp_path: Path) -> None:
    """Also where that is broken, or the first value is longer than what is looked at."""
    (tmp_path / "a").write_text(lines({"messages": CHAT})[:200])
    assert recognized(tmp_path / "a") == "chat"
    (tmp_path / "b").write_text(lines({"messages": [{"role": "user", "content": "x" * 2_000_000}]}))
    assert recognized(tmp_path / "b") == "chat"


# -- ATIF --------------------------------------------------------------------------------------------------------------


def atif_of(tmp_path: Path, document: dict[str, Any], **reading: Any) -> list[Trajectory]:
    pytest.importorskip("atif")
    (tmp_path / "trajectory.json").write_text(json.dumps(document))
    return imported(tmp_path / "trajectory.json", Session(Reading(**reading)))


SUB = {**ATIF, "trajectory_id": "sub", "final_metrics": None, "steps": ATIF["steps"][1:2] + ATIF["steps"][3:4]}
SUB["steps"] = [{**step, "step_id": number} for number, step in enumerate(SUB["steps"], start=1)]
DOCUMENTS: dict[str, dict[str, Any]] = {
    "as it is": ATIF,
    "copied context": {**ATIF, "steps": [
        *ATIF["steps"][:2], {**ATIF["steps"][2], "is_copied_context": True}, ATIF["steps"][3]]},
    "a sub-agent": {**ATIF, "subagent_trajectories": [SUB]},
    "an image": {**ATIF, "steps": [ATIF["steps"][0], {**ATIF["steps"][1], "message": [
        {"type": "text", "text": QUESTION},
        {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}}]}, *ATIF["steps"][2:]]},
    "turns in a row": {**ATIF, "steps": [*ATIF["steps"][:3], {"step_id": 4, "source": "agent", "message": "Hm."},
                                         {**ATIF["steps"][3], "step_id": 5}]},
    "thoughts": {**ATIF, "steps": [*ATIF["steps"][:3], {**ATIF["steps"][3], "reasoning_content": "Clear."}]},
    "not a model": {**ATIF, "steps": [*ATIF["steps"][:3], {**ATIF["steps"][3], "llm_call_count": 0}]},
    "infrastructure": {**ATIF, "steps": [{**ATIF["steps"][0], "observation": {"results": [{"content": "up"}]}},
                                         *ATIF["steps"][1:]]},
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("thinking", [False, True])
def test_an_atif_document_comes_back_as_it_was(name: str, thinking: bool, tmp_path: Path) -> None:  # noqa: FBT001
    first, *rest = atif_of(tmp_path, DOCUMENTS[name], thinking=thinking)
    stored = Trajectory.model_validate_json(first.model_dump_json())
    assert atif.to_atif(stored) == DOCUMENTS[name]
    assert [atif.to_atif(one) for one in rest] == DOCUMENTS[name].get("subagent_trajectories", [])
    if name in {"copied context", "not a model", "an image"}:
        assert sum(bool(step.left_out) for step in first.steps) == (2 if name == "an image" else 1)


@given(logs())
@settings(max_examples=40, deadline=None)
def test_our_episodes_come_back_from_atif(trajectory: Trajectory) -> None:
    """What is written is valid ATIF, and everything that a chat log keeps is kept."""
    schema = pytest.importorskip("atif")
    document = atif.to_atif(trajectory)
    schema.Trajectory.model_validate(document)
    value = {"document": json.loads(json.dumps(document)), "score": None}
    (found,) = atif.read(value, Session(Reading(thinking=True)))
    assert found.model_copy(update={"origin": None}) == trajectory


def test_atif_has_the_score_of_the_trial_that_it_belongs_to(tmp_path: Path) -> None:
    pytest.importorskip("atif")
    rewards = [
        ("a", "reward.txt", "1\n"),
        ("b", "reward.json", '{"tests": 0.5}'),
        ("c", "reward.json", '{"style": 0.2, "tests": 0.5}'),
        ("d", "reward.json", '{"style": 0.2, "reward": 0.5}'),
    ]
    for name, file, text in rewards:
        (tmp_path / name / "agent").mkdir(parents=True)
        (tmp_path / name / "verifier").mkdir()
        (tmp_path / name / "agent" / "trajectory.json").write_text(json.dumps(ATIF))
        (tmp_path / name / "verifier" / file).write_text(text)
    (tmp_path / "config.json").write_text("{}")
    survey = Survey(Session())
    assert [t.score for t in survey.trajectories([tmp_path], "auto")] == [1.0, 0.5, None, 0.5]
    assert survey.session.notes.dropped["file in no known format"] == 5 - 1


def test_atif_that_breaks_its_schema_is_refused(tmp_path: Path) -> None:
    steps = [*ATIF["steps"][:2], {**ATIF["steps"][2], "step_id": 7}]
    with pytest.raises(DataError, match=r"trajectory\.json, line 1: .*not sequential"):
        atif_of(tmp_path, {**ATIF, "steps": steps})


def test_an_episode_that_was_changed_is_not_patched_into_something_else(tmp_path: Path) -> None:
    (found,) = atif_of(tmp_path, DOCUMENTS["turns in a row"])
    with pytest.raises(DataError, match="was changed after it was imported"):
        atif.to_atif(found.model_copy(update={"steps": (), "prompt": found.prompt[:1]}))


# -- Claude Code and Codex ---------------------------------------------------------------------------------------------


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}], **more}


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def write(tmp_path: Path, *records: dict[str, Any], name: str = "log.jsonl") -> Path:
    (tmp_path / name).write_text(lines(*records))
    return tmp_path / name


def test_the_parts_of_one_turn_are_one_turn_with_all_its_calls_before_their_results(tmp_path: Path) -> None:
    parts = [{"type": "tool_use", "id": f"k{n}", "name": "read", "input": {"gauge": f"g{n}"}} for n in (1, 2)]
    records = session(
        ask("Read both."),
        {"role": "assistant", "id": "m1", "content": [parts[0]]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "k1", "content": "4"}]},
        {"role": "assistant", "id": "m1", "content": [parts[1]]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "k2", "content": "5"}]},
        say("4 and 5", id="m2"),
    )
    (found,) = imported(write(tmp_path, *records))
    assert [[call.argument for call in step.calls] for step in found.steps] == [["g1", "g2"], []]
    assert [result.text for result in found.steps[0].results] == ["4", "5"]


def test_rewinds_compactions_and_sub_agents_are_episodes_of_their_own(tmp_path: Path) -> None:
    records = session(ask("Start"), say("Ready", id="a"), ask("First"), say("One", id="b"))
    records += [
        {**session(ask("Second"))[0], "uuid": "v1", "parentUuid": "u1"},
        {**session(say("Two", id="c"))[0], "uuid": "v2", "parentUuid": "v1"},
        {**session(ask("Help"), isSidechain=True)[0], "uuid": "x1", "parentUuid": None},
        {**session(say("Helped", id="d"), isSidechain=True)[0], "uuid": "x2", "parentUuid": "x1"},
        {"type": "system", "subtype": "compact_boundary", "uuid": "w0", "parentUuid": None, "sessionId": "s"},
        {**session(ask("So far: two tries."))[0], "uuid": "w1", "parentUuid": "w0", "isCompactSummary": True},
        {**session(say("Three", id="e"))[0], "uuid": "w2", "parentUuid": "w1"},
    ]
    found = imported(write(tmp_path, *records))
    assert [[step.text for step in t.steps] for t in found] == [
        ["Ready", "One"],
        ["Ready", "Two"],
        ["Helped"],
        ["Three"],
    ]
    assert [[step.left_out for step in t.steps] for t in found] == [["", ""], ["copied context", ""], [""], [""]]
    assert found[3].question == "So far: two tries."


def test_a_session_that_goes_on_in_another_file_is_not_learnt_twice(tmp_path: Path) -> None:
    records = session(ask("Start"), say("Ready", id="a"), ask("More"), say("Done", id="b"))
    write(tmp_path, *records[:2], name="a.jsonl")
    write(tmp_path, *records, name="b.jsonl")
    found = list(Survey(Session()).trajectories([tmp_path], "auto"))
    assert [[step.left_out for step in t.steps] for t in found] == [[""], ["copied context", ""]]


def test_what_the_program_wrote_in_the_models_place_is_dropped(tmp_path: Path) -> None:
    records = session(ask("Start"), say("API Error", model="<synthetic>"), ask("Again"), say("Ready", model="m"))
    survey = Survey(Session())
    (found,) = survey.trajectories([write(tmp_path, *records)], "auto")
    assert ([step.text for step in found.steps], found.checkpoint) == (["Ready"], "m")
    assert survey.session.notes.dropped["message of the program in the model's place"] == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_broken_line_of_a_session_is_named(skip: bool, tmp_path: Path) -> None:  # noqa: FBT001
    path = write(tmp_path, *session(ask("Start"), say("Ready"), ask("More"), say("Done")))
    path.write_text(path.read_text() + '{"type": "assis')
    if skip:
        assert len(imported(path, Session(skip=True))[0].steps) == 2
    else:
        with pytest.raises(DataError, match=r"log\.jsonl, line 5: not a whole JSON record"):
            imported(path)


def test_a_result_of_a_call_that_a_session_lost_is_kept_as_text(tmp_path: Path) -> None:
    """One before the first turn, one with the id of an earlier turn, one that comes twice."""

    def result(call: str, text: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": text}]}

    records = session(result("lost", "0 bar"), *BLOCKS[:3], result("k1", "late"), say("4 bar."), result("k1", "again"))
    survey = Survey(Session())
    (found,) = survey.trajectories([write(tmp_path, *records)], "auto")
    assert [m.text for m in found.prompt] == ["0 bar", QUESTION]
    assert [[(m.role, m.text) for m in step.results] for step in found.steps] == [
        [("tool", "4 bar"), ("user", "late")], [("user", "again")],
    ]  # fmt: skip
    assert survey.session.notes.repaired["result of no call of the turn before, kept as text"] == 3


def test_a_block_that_is_not_known_is_refused_with_its_line(tmp_path: Path) -> None:
    records = session(ask("Start"), say("Ready"), {"role": "user", "content": [{"type": "hologram"}]}, say("Done"))
    with pytest.raises(DataError, match=r"log\.jsonl, line 3: messages\.2: .*hologram"):
        imported(write(tmp_path, *records))


def test_a_tool_of_the_provider_hides_its_result_so_that_the_turn_is_not_learnt(tmp_path: Path) -> None:
    items = [ITEMS[0], {"type": "web_search_call", "id": "w", "status": "completed"}, ITEMS[4]]
    (found,) = imported(write(tmp_path, *rollout(*items)))
    assert [step.left_out for step in found.steps] == ["used a tool of the provider whose result is not in the log"]


def test_a_compacted_session_of_codex_is_two_episodes(tmp_path: Path) -> None:
    history = {"type": "compacted", "payload": {"message": "", "replacement_history": [ITEMS[0], ITEMS[4]]}}
    more = rollout({**ITEMS[0], "content": "And g4?"}, ITEMS[4])
    found = imported(write(tmp_path, *rollout(*ITEMS), history, *more))
    assert [[step.left_out for step in t.steps] for t in found] == [["", ""], ["copied context", ""]]


def test_what_follows_an_encrypted_summary_of_codex_is_not_learnt(tmp_path: Path) -> None:
    summary = {"type": "compaction", "encrypted_content": "gAAA"}
    history = {"type": "compacted", "payload": {"message": "", "replacement_history": [ITEMS[0], summary]}}
    survey = Survey(Session())
    more = rollout({**ITEMS[0], "content": "And g4?"}, ITEMS[4])
    first, second = survey.trajectories([write(tmp_path, *rollout(*ITEMS), history, *more)], "auto")
    assert [step.left_out for step in first.steps] == ["", ""]
    assert [step.left_out for step in second.steps] == ["follows a summary of the provider that is encrypted"]
    assert survey.session.notes.dropped["item of type compaction"] == 1


def test_a_result_of_verifiers_without_an_answer_is_dropped_and_the_others_are_read(tmp_path: Path) -> None:
    """As the library writes them where the endpoint failed."""
    answered = {"example_id": 1, "task": "g", "prompt": CHAT[:2], "completion": CHAT[2:], "reward": 1.0}
    survey = Survey(Session())
    (found,) = survey.trajectories([write(tmp_path, {**answered, "completion": [], "reward": 0.0}, answered)], "auto")
    assert found.score == 1.0
    assert survey.session.notes.dropped["conversation without an answer"] == 1


# -- graphs, traces, calls ---------------------------------------------------------------------------------------------


def test_a_turn_that_two_branches_share_is_learnt_once_and_only_if_the_model_wrote_it(tmp_path: Path) -> None:
    forged = {"parent": 1, "sampled": False, "message": CHAT[4]}
    nodes = [*NODES, {"parent": 3, "sampled": True, "message": {"role": "assistant", "content": "Four."}}, forged]
    found = imported(write(tmp_path, {"traces": [{**TRACE, "nodes": nodes}]}))
    assert [[step.left_out for step in t.steps] for t in found] == [
        ["", ""], ["copied context", ""], ["not sampled in this episode"],
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: nodes\.1\.parent: 1 is no earlier node"):
        imported(write(tmp_path, {"traces": [{**TRACE, "nodes": [NODES[0], {**NODES[1], "parent": 1}]}]}))


def test_only_the_longest_conversations_of_a_log_of_calls_are_episodes(tmp_path: Path) -> None:
    """Calls of two episodes that were logged in turn, one of which never got its second answer."""

    def call(count: int, question: str) -> dict[str, Any]:
        asked = [{**m, "content": question} if m["role"] == "user" else m for m in CHAT]
        return {"request": {"messages": asked[:count]}, "response": {"choices": [{"message": asked[count]}]}}

    found = imported(write(tmp_path, call(2, "a"), call(2, "b"), call(4, "a"), call(2, "c")))
    assert [(t.question, len(t.steps)) for t in found] == [("b", 1), ("a", 2), ("c", 1)]
    assert calls.longest([CHAT[:3], CHAT, CHAT[:2]]) == [1, 2]


def test_answers_as_the_clients_of_the_providers_write_them(tmp_path: Path) -> None:
    """A chat completion, an Anthropic message and a response, dumped by the classes of the packages."""
    chat = pytest.importorskip("openai.types.chat").ChatCompletion.model_validate(
        {"id": "1", "created": 0, "model": "m", "object": "chat.completion",
         "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {**CHAT[2], "refusal": None}}]}
    )  # fmt: skip
    message = pytest.importorskip("anthropic.types").Message.model_validate(
        {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use",
         "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}, "content": BLOCKS[1]["content"]}
    )  # fmt: skip
    response = pytest.importorskip("openai.types.responses").Response.model_validate(
        {"id": "1", "created_at": 0, "model": "m", "object": "response", "parallel_tool_calls": True, "tools": [],
         "tool_choice": "auto", "output": [
             {"type": "message", "id": "2", "role": "assistant", "status": "completed",
              "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
             {**ITEMS[2], "id": "3", "status": "completed"}]})  # fmt: skip
    records = [
        {"request": {"messages": CHAT[:2]}, "response": chat.model_dump()},
        {
            "request": {"system": SYSTEM, "messages": [{**BLOCKS[0], "content": QUESTION + " "}]},
            "response": message.model_dump(),
        },
        {"request": {"instructions": SYSTEM, "input": QUESTION + "  "}, "response": response.model_dump()},
    ]
    found = imported(write(tmp_path, *records))
    assert [[c.key for c in t.steps[0].calls] for t in found] == [[("read", "g3")]] * 3
    assert {t.steps[0].message.text for t in found} == {"I look."}
    assert {t.checkpoint for t in found} == {"m"}


def test_spans_of_several_traces_and_of_the_attributes_before(tmp_path: Path) -> None:
    """Traces whose spans are mixed over the lines of a file; the console exporter's form; numbered attributes."""
    records = [resource(span(1, PARTS[:2], PARTS[2:3], "a")), resource(span(1, PARTS[:2], PARTS[4:], "b")),
               resource(span(2, PARTS[:4], PARTS[4:], "a"))]  # fmt: skip
    found = imported(write(tmp_path, *records))
    assert sorted(len(t.steps) for t in found) == [1, 2]
    console = {
        "name": "chat",
        "context": {"trace_id": "0x1"},
        "start_time": "2026-01-01T00:00:00Z",
        "attributes": INDEXED,
    }
    (tmp_path / "console.json").write_text(json.dumps(console, indent=4) + "\n" + json.dumps(console, indent=4))
    assert [len(t.steps) for t in imported(tmp_path / "console.json")] == [2, 2]


def test_a_call_whose_messages_were_not_recorded_is_counted(tmp_path: Path) -> None:
    bare = {"traceId": "t", "attributes": attributes(**{"operation.name": "chat"})}
    survey = Survey(Session())
    assert len(list(survey.trajectories([write(tmp_path, resource(bare, span(1, PARTS[:2], PARTS[4:])))], "auto"))) == 1
    assert survey.session.notes.dropped["call of a model whose messages were not recorded"] == 1


def test_a_simulation_that_broke_is_unscored(tmp_path: Path) -> None:
    broken = {**TAU2["simulations"][0], "termination_reason": "agent_error", "reward_info": {"reward": 0.0}}
    (tmp_path / "r.json").write_text(json.dumps({**TAU2, "simulations": [broken, TAU2["simulations"][0]]}))
    survey = Survey(Session())
    assert [t.score for t in survey.trajectories([tmp_path / "r.json"], "auto")] == [None, 1.0]
    assert survey.session.notes.dropped["call of the simulated user"] == 2


def test_a_demonstration_is_context(tmp_path: Path) -> None:
    demo = [{**HISTORY[1], "is_demo": True}, {**HISTORY[4], "is_demo": True, "content": "Like this."}]
    document = {"history": [HISTORY[0], *demo, *HISTORY[1:]], "info": {"exit_status": "submitted (exit_cost)"}}
    (tmp_path / "x.traj").write_text(json.dumps(document))
    (found,) = imported(tmp_path / "x.traj")
    assert [step.left_out for step in found.steps] == ["part of a demonstration", "", ""]
    assert found.termination == "max_steps"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["eval", "json"])
def test_a_log_that_inspect_writes(ending: str, tmp_path: Path) -> None:
    """A sample with two scorers, one with an error, one whose call inspect_ai could not parse, one with a limit."""
    log = pytest.importorskip("inspect_ai.log")
    from inspect_ai.dataset import Sample  # noqa: F401, PLC0415 - loads what the log's records refer to
    from inspect_ai.log import (  # noqa: PLC0415
        EvalConfig,
        EvalDataset,
        EvalError,
        EvalLog,
        EvalSample,
        EvalSampleLimit,
        EvalSpec,
    )
    from inspect_ai.model import (  # noqa: PLC0415
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
    )
    from inspect_ai.scorer import Score  # noqa: PLC0415
    from inspect_ai.tool import ToolCall  # noqa: PLC0415

    def sample(number: int, parse_error: str | None = None, **more: Any) -> Any:
        call = ToolCall(id="k1", function="read", arguments=ARGUMENTS, parse_error=parse_error)
        turn = ChatMessageAssistant(
            content=[ContentReasoning(reasoning="Hm."), ContentText(text="I look.")], tool_calls=[call]
        )
        messages = [ChatMessageSystem(content=SYSTEM), ChatMessageUser(content=QUESTION), turn,
                    ChatMessageTool(content="4 bar", tool_call_id="k1"), ChatMessageAssistant(content="4 bar.")
        ]  # fmt: skip
        return EvalSample(id=number, epoch=1, input=QUESTION, target="4 bar", messages=messages, **more)

    error = EvalError(message="boom", traceback="", traceback_ansi="")
    samples = [
        sample(1, scores={"match": Score(value="C"), "style": Score(value=0.25)}),
        sample(2, error=error, scores={"match": Score(value="I")}),
        sample(3, parse_error="bad JSON", scores={"match": Score(value="P")}),
        sample(4, limit=EvalSampleLimit(type="context", limit=9)),
    ]
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00", task="gauges", model="m", config=EvalConfig(), dataset=EvalDataset()
    )
    log.write_eval_log(EvalLog(eval=spec, samples=samples, status="success"), str(tmp_path / f"log.{ending}"))
    assert recognized(tmp_path / f"log.{ending}") == "inspect"
    survey = Survey(Session(Reading(thinking=True)))
    found = list(survey.trajectories([tmp_path / f"log.{ending}"], "auto"))
    assert [t.score for t in found] == [1.0, None, 0.5, None]
    assert [t.termination for t in found] == ["answered", "failed", "answered", "context_full"]
    assert found[0].steps[0].message.reasoning == "Hm."
    assert [t.steps[0].left_out for t in found] == ["", "", "a call that inspect_ai could not parse", ""]
    assert {t.task_id for t in found} == {f"gauges/{n}" for n in range(1, 5)}


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_found(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("atif")
    bad = [
        *CHAT[:2],
        {**CHAT[2], "tool_calls": [{"id": "k1", "function": {"name": "read", "arguments": '{"gau'}}]},
        *CHAT[3:],
    ]
    write(tmp_path, {"messages": CHAT, "score": 1.0}, {"messages": bad, "score": 0.0}, {"score": 1}, name="a.jsonl")
    (tmp_path / "b.json").write_text(json.dumps(ATIF))
    ended = call("logs", "check", "a.jsonl", "b.json", "--skip")
    assert ended.out.splitlines() == [
        "3 trajectories of 1 tasks, 1 unscored, success 50.0%; 6 steps, 0 without a call",
        "  files: 1 chat (OpenAI messages, a conversation a line), 1 atif (ATIF, the trajectories of Harbor); 3 calls",
        "  dropped: 1 unreadable (messages: field required)",
        "  turns that no training learns: 1 a call whose arguments are no JSON object",
        "  training on score 1.0: 1 episodes, 2 turns, about 22 tokens of the model's own text",
        "  extraction: 1 of 1 tasks have a success and a failure to compare",
    ], ended
    assert call("logs", "import", "b.json", "--out", "t.jsonl").code == 0
    assert call("logs", "export", "t.jsonl", "--format", "atif", "--out", "again.jsonl").out == "again.jsonl: 1 logs\n"
    assert json.loads((tmp_path / "again.jsonl").read_text()) == ATIF
    assert "claude-code " in call("logs", "formats").out


def test_the_same_episode_in_two_files_is_refused_by_both_names(call: Call, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, {"messages": CHAT, "id": "e"}, name=name)
    ended = call("logs", "check", ".")
    assert (ended.code, "b.jsonl, line 1: id: 'e' is also the id in a.jsonl, line 1" in ended.err) == (2, True), ended


def test_scores_on_another_scale(tmp_path: Path) -> None:
    path = write(tmp_path, *({"messages": CHAT, "score": score} for score in (-1, 0, 1)))
    assert [t.score for t in imported(path, Session(Reading(score_range=(-1.0, 1.0))))] == [0.0, 0.5, 1.0]


def test_our_own_trajectories_are_a_format(tmp_path: Path) -> None:
    (found,) = imported(write(tmp_path, {"messages": CHAT}))
    path = write(tmp_path, found.model_dump(mode="json"), name="t.jsonl")
    assert recognized(path) == "trajectories"
    assert list(episodes(path, FORMATS["trajectories"].values, read_trajectory, Session())) == [found]


# -- damaged logs ------------------------------------------------------------------------------------------------------

ODD = (None, 5, -1.5, "x", "", [], {}, [None], {"a": 1}, True, "[1]", [[]], {"role": "assistant"})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in inside for found in places(inner, (*path, key)))]


def damaged(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """The value with something else at one place."""
    if not path:
        return odd
    key, *rest = path
    return {**value, key: damaged(value[key], tuple(rest), odd)} if isinstance(value, dict) else [
        damaged(inner, tuple(rest), odd) if number == key else inner for number, inner in enumerate(value)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_damaged_log_is_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """Anything in any place of a log: never an exception of another kind."""
    if name == "atif":
        pytest.importorskip("atif")
    content, file = SAME[name]
    documents = (
        [json.loads(line) for line in content.splitlines()] if file.endswith(".jsonl") else [json.loads(content)]
    )
    read, path = FORMATS[name], tmp_path / file
    for place in places(documents)[1:]:
        for odd in ODD[zlib.crc32(str(place).encode()) % 3 :: 3]:
            path.write_text(lines(*damaged(documents, place, odd)))
            for skip in (False, True):
                session = Session(skip=skip)
                try:
                    found = list(episodes(path, read.values, read.read, session))
                except UserError as error:
                    assert "\n" not in str(error), error  # noqa: PT017
                    continue
                assert all(Trajectory.model_validate_json(t.model_dump_json()) == t for t in found)

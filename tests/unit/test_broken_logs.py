"""Faults of chat logs that were seen elsewhere: what each is read as, left out of training for, or refused with.

`tests/data/broken_logs.jsonl` has a log a line. Without anything in `becomes` it is read as the log without a fault:
one call, its result, one answer, a score of 1, everything learnt.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from internalize.errors import DataError
from internalize.formats.chat import read, to_chat
from internalize.formats.reading import Reading, Session, episodes, json_values
from internalize.formats.repairs import readable
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ToolCall, ToolSpec, Trajectory
from internalize.runs.store import read_jsonl, write_jsonl

CASES = [
    json.loads(line) for line in (Path(__file__).parent.parent / "data/broken_logs.jsonl").read_text().splitlines()
]
USUAL: dict[str, Any] = {
    "calls": [["read", {"gauge": "g3"}]], "results": ["4 bar"], "said": "4 bar", "score": 1.0, "left_out": ["", ""],
    "termination": "answered",
}  # fmt: skip


def read_file(path: Path, session: Session) -> list[Trajectory]:
    return list(episodes(path, json_values, read, session))


def values(call: ToolCall) -> Any:
    return call.values if readable(call.arguments) else call.arguments


@pytest.mark.parametrize("case", CASES, ids=[case["fault"] for case in CASES])
def test_a_fault(case: dict[str, Any], tmp_path: Path) -> None:
    path, expected = tmp_path / "log.jsonl", {**USUAL, **case["becomes"]}
    path.write_text("\n" + json.dumps(case["line"]) + "\n")
    session = Session(Reading())
    if "refused" in expected:
        with pytest.raises(DataError) as caught:
            read_file(path, session)
        assert str(caught.value).startswith(f"{path}, line 2: {expected['refused']}"), caught.value
        return
    (found,) = read_file(path, session)
    assert [[call.name, values(call)] for step in found.steps for call in step.calls] == expected["calls"]
    assert [result.text for step in found.steps for result in step.results] == expected["results"]
    assert found.answer == expected["said"]
    assert (found.score, found.termination) == (expected["score"], expected["termination"])
    reasons = zip(found.steps, expected["left_out"], strict=True)
    assert all(reason in step.left_out and bool(reason) == bool(step.left_out) for step, reason in reasons)
    assert found.task_id == expected.get("task", found.task_id)
    assert expected.get("tools", "") in found.prompt[0].text
    for kind, counted in (("repaired", session.notes.repaired), ("dropped", session.notes.dropped)):
        assert any(expected.get(kind, "") in reason for reason, count in counted.items() if count) == (kind in expected)


@pytest.mark.parametrize("case", [case for case in CASES if "refused" not in case["becomes"]])
def test_what_was_read_is_written_and_read_again(case: dict[str, Any], tmp_path: Path) -> None:
    """As records, and as a chat log, whose turns are left out of training as before."""
    (tmp_path / "log.jsonl").write_text(json.dumps(case["line"]))
    found = read_file(tmp_path / "log.jsonl", Session(Reading(thinking=True)))
    assert found[0].steps[0].message.reasoning == case["becomes"].get("reasoning", "")
    write_jsonl(tmp_path / "t.jsonl", found)
    assert read_jsonl(tmp_path / "t.jsonl", Trajectory) == found
    write_jsonl(tmp_path / "again.jsonl", [to_chat(t) for t in found])
    again = read_file(tmp_path / "again.jsonl", Session(Reading(thinking=True)))
    assert [t.steps for t in again] == [t.steps for t in found]


def test_what_may_be_learnt_is_read_back_by_the_parser_of_episodes() -> None:
    """A turn that is learnt holds the calls that an episode would read in its text, the mark of an end inside too."""
    tools = [
        ToolSpec(name="read", argument="gauge", description=""),
        ToolSpec(name="list", argument="", description=""),
    ]
    tools[1] = tools[1].model_copy(update={"parameters": {"type": "object", "properties": {}}})
    wide = {"type": "object", "properties": {}, "additionalProperties": True}
    tools[0] = tools[0].model_copy(update={"parameters": wide})
    turns = 0
    for case in CASES:
        if "refused" in case["becomes"]:
            continue
        for trajectory in read(case["line"], Session(Reading())):
            for step in trajectory.steps:
                if step.left_out:
                    continue
                turns += 1
                parsed = TOOL_FORMATS["json"].parse(step.text, tools)
                assert [(c.name, c.values) for c in parsed.tool_calls] == [(c.name, c.values) for c in step.calls]
                assert parsed.text == step.message.text.strip()
    assert turns > 100


GOOD = json.dumps(CASES[0]["line"]).encode()


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (codecs.BOM_UTF8 + GOOD, 1),
        (codecs.BOM_UTF8 + b"\r\n" + GOOD + b"\r\n\r\n" + GOOD.replace(b"g3", b"g4") + b"\r\n", 2),
        (b"[" + GOOD + b",\n" + GOOD.replace(b"g3", b"g4") + b"]", 2),
        (json.dumps([json.loads(GOOD)], indent=2).encode(), 1),
        (json.dumps(json.loads(GOOD), indent=2).encode(), 1),
        (b"", 0),
    ],
)
def test_files(data: bytes, count: int, tmp_path: Path) -> None:
    """Marks of byte order, other line ends, blank lines, a list or one object over many lines."""
    (tmp_path / "log.json").write_bytes(data)
    assert len(read_file(tmp_path / "log.json", Session(Reading()))) == count


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (GOOD + b"\n" + GOOD[:50], "log.jsonl, line 2: not a whole JSON record"),
        (GOOD[:50] + b"\n" + GOOD, "log.jsonl, line 1: not a whole JSON record"),
        (GOOD.decode().encode("utf-16"), "log.jsonl: is written in UTF-16"),
        (GOOD + b'\n{"messages": "\xff"}', "log.jsonl, line 2: not a JSON record"),
        (b'{\n "messages": [\n {"role": ]}', "log.jsonl, line 3: not a whole JSON record (Expecting value at"),
        (b"[" + GOOD + b", {", "log.jsonl: not a whole JSON document"),
        (b"[" * 100_000, "log.jsonl"),
        (b"\n\n[1, 2]", "log.jsonl, item 1: is no JSON object"),
        (GOOD + b"\n[1, 2]", "log.jsonl, line 2: is no JSON object"),
    ],
)
def test_files_that_are_refused(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "log.jsonl", Session(Reading()))
    assert problem in str(caught.value)


def test_what_cannot_be_read_is_skipped_and_counted_if_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(GOOD + b"\n{\n" + b'{"messages": 3}\n' + GOOD.replace(b"g3", b"g4"))
    session = Session(Reading(), skip=True)
    assert len(read_file(tmp_path / "log.jsonl", session)) == 2
    assert sum(session.notes.dropped.values()) == 2
    (tmp_path / "log.json").write_bytes(b"[" + GOOD + b"," + GOOD[:50])
    session = Session(Reading(), skip=True)
    assert len(read_file(tmp_path / "log.json", session)) == 1
    assert sum(session.notes.dropped.values()) == 1

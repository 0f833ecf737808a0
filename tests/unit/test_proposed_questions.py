"""Questions proposed about documents: what each kind of mark gives, what code rejects, and how they are accepted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from internalize.environments.docs.env import Docs
from internalize.environments.docs.proposals import Documents, Draft, Proposal, by_rules
from internalize.environments.docs.question_writer import by_model
from internalize.environments.registry import make
from internalize.errors import DataError, InfrastructureError, TaskError
from internalize.inference.scripted import ScriptedChat
from internalize.interfaces import Environment
from internalize.records import Message, Task
from internalize.runs.store import read_jsonl
from tests.command import Call, refused

PUMP = """<title>Pumps</title><h1>Pump P7</h1><p>The pump moves water from the lower tank into the upper tank.</p>
<table><tr><th>Part<th>Torque</tr><tr><td>bolt<td>12 Nm</tr><tr><td>valve<td>4 Nm</tr></table>
<dl><dt>Pressure<dd>4 bar</dl>"""
VALVE = """# Valve V2

Material: brass
A long label that is a sentence of its own: no

| Size | Flow |
|---|---|
| DN10 | 3 l/min |
| DN20 | 9 l/min |

    Code: 5

```
Fence: 6
```

**Backflow** is the flow of water against its usual direction, which a check valve prevents.
"""


SAID = "is the flow of water against its usual direction, which a check valve prevents."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "pump.html").write_text(PUMP)
    (tmp_path / "pages" / "valve.md").write_text(VALVE)
    return tmp_path / "pages"


def test_what_the_marks_of_documents_give(folder: Path) -> None:
    """Tables, labels, definitions and headings; code and long labels give nothing."""
    found, _ = by_rules(folder, 10)
    assert {(p.family, p.question, p.answer, p.pages[-1]) for p in found} == {
        ("table", "What is the Torque of bolt in Pump P7?", "12 Nm", "pump.html"),
        ("table", "What is the Torque of valve in Pump P7?", "4 Nm", "pump.html"),
        ("value", "What is the Pressure of Pump P7?", "4 bar", "pump.html#2"),
        ("heading", 'Under which heading does it say: "The pump moves water from the lower tank into the upper tank."?',
         "Pump P7", "pump.html"),
        ("table", "What is the Flow of DN10 in Valve V2?", "3 l/min", "valve.md"),
        ("table", "What is the Flow of DN20 in Valve V2?", "9 l/min", "valve.md#2"),
        ("value", "What is the Material of Valve V2?", "brass", "valve.md"),
        ("term", f'Which term is explained with: "{SAID}"?', "Backflow", "valve.md#2"),
    }  # fmt: skip
    texts = Documents(folder).texts
    assert all(p.evidence in texts[p.pages[0]] and p.answer in p.evidence.replace("**", "") for p in found)


def test_few_a_page_are_of_all_kinds(folder: Path) -> None:
    found, _ = by_rules(folder, 3)
    assert [sorted(p.family for p in found if p.pages[0] == page) for page in ("pump.html", "valve.md")] == [
        ["heading", "table", "value"], ["table", "term", "value"],
    ]  # fmt: skip


def test_a_question_with_two_answers_in_the_folder_is_dropped(folder: Path) -> None:
    (folder / "other.md").write_text("# Valve V3\n\nMaterial: steel\n\nMaterial: brass\n")
    found, dropped = by_rules(folder, 10)
    assert not any("Valve V3" in p.question for p in found)
    assert dropped["it has several answers in the folder"] == 2


def test_a_heading_of_several_pages_gives_way_to_the_name_of_the_page(folder: Path) -> None:
    for name, kind in (("order", "Number"), ("invoice", "String")):
        table = f"Field | Type | Notes\n---|---|---\n**id** | [**{kind}**]({kind}.md) | \n**`tag`** | Tag{kind} | "
        (folder / f"{name}.md").write_text(f"## Properties\n{table}\n\nOwner: {name} office\n")
    found, _ = by_rules(folder, 10)
    asked = {p.question: p.answer for p in found if p.pages[0] in {"order.md", "invoice.md"}}
    assert asked == {
        "What is the Type of id in order.md?": "Number",
        "What is the Type of tag in order.md?": "TagNumber",
        "What is the Owner of order.md?": "order office",
        "What is the Type of id in invoice.md?": "String",
        "What is the Type of tag in invoice.md?": "TagString",
        "What is the Owner of invoice.md?": "invoice office",
    }


@pytest.mark.parametrize(
    ("draft", "problem"),
    [
        (("Which?", "12 Nm", "bolt | 13 Nm"), "its evidence is not on the page"),
        (("Which?", "13 Nm", "bolt | 12 Nm"), "its evidence does not hold the answer"),
        (("Which?", " ", "bolt | 12 Nm"), "its evidence does not hold the answer"),
        (("Is it 12 nm ?", "12 Nm", "bolt | 12 Nm"), "its question holds the answer"),
        (("Which?", "", ""), "its evidence is not on the page"),
    ],
)
def test_what_code_rejects(draft: tuple[str, str, str], problem: str, folder: Path) -> None:
    assert Documents(folder).checked("pump.html", Draft("written", *draft)) == problem


def test_a_model_proposes_and_code_checks(folder: Path) -> None:
    """One good question a page, one made up; a page without a valid reply and one without any are counted."""
    (folder / "gone.md").write_text("Nobody answers.")
    (folder / "odd.md").write_text("An odd answer.")

    def reply(messages: Sequence[Message]) -> str:
        asked = messages[1].text
        if "gone.md" in asked:
            raise InfrastructureError("down")
        if "odd.md" in asked:
            return "{}"
        part = "bolt | 12 Nm" if "pump.html" in asked else "| DN10 | 3 l/min |"
        good = {"question": f"What about {part[:4]}?", "answer": part.strip("| ").split("| ")[-1], "evidence": part}
        return json.dumps({"questions": [good, {**good, "question": "Why?", "evidence": "It is said."}]})

    chat, seen = ScriptedChat(reply), list[tuple[int, int]]()
    found, dropped = asyncio.run(by_model(folder, chat, 5, lambda done, of: seen.append((done, of))))
    assert [(p.answer, p.family, p.pages) for p in found] == [
        ("12 Nm", "written", ("pump.html",)), ("3 l/min", "written", ("valve.md",)),
    ]  # fmt: skip
    assert dropped["its evidence is not on the page"] == 2
    assert dropped["page without a valid reply"] == 1
    assert sum(count for reason, count in dropped.items() if reason.startswith("page without a reply")) == 1
    assert seen[-1] == (4, 4)
    assert all("<page-" in request.messages[1].text for request in chat.requests), "pages are fenced as data"


def test_a_long_page_is_asked_about_in_parts(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(f"Line {number} says nothing much." for number in range(800)))
    chat = ScriptedChat(lambda _: '{"questions": []}')
    asyncio.run(by_model(tmp_path, chat, 5, lambda *_: None))
    assert len(chat.requests) == 4


def test_proposals_are_used_only_after_they_were_accepted(folder: Path, call: Call, tmp_path: Path) -> None:
    ended = call("questions", "propose", "pages", "--out", "p.jsonl", "--per-page", "10")
    assert ended.out.startswith("p.jsonl: 8 proposals (4 table, 2 value, 1 heading, 1 term); look at them"), ended
    proposed = read_jsonl(tmp_path / "p.jsonl", Proposal)
    options = {"folder": str(folder), "questions": str(tmp_path / "p.jsonl")}
    with pytest.raises(DataError, match="line 1: is a proposal; look at it"):
        Docs(**options).tasks("train")
    assert call("questions", "accept", "p.jsonl", "--out", "q.jsonl", "--drop", "2").out == (
        "q.jsonl: 7 questions, 1 dropped\n"
    )
    env = make("docs", {**options, "questions": str(tmp_path / "q.jsonl")})
    asked = {task.question for split in ("train", "dev", "test") for task in tasks_in(env, split)}
    assert asked == {p.question for number, p in enumerate(proposed, start=1) if number != 2}
    assert refused(call("questions", "accept", "p.jsonl", "--out", "x.jsonl", "--drop", "99"), "has no line 99 to drop")
    assert refused(call("questions", "accept", "p.jsonl", "--out", "p.jsonl"), "is the file that is read")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("Nothing.")
    assert refused(call("questions", "propose", "empty", "--out", "x.jsonl"), "nothing could be asked")


def tasks_in(env: Environment, split: str) -> Sequence[Task]:
    try:
        return env.tasks(split)
    except TaskError:  # seven questions need not fall into every split
        return ()

"""Chat logs: what becomes of every odd shape, what is refused, and that nothing is lost on the way and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.errors import DataError
from internalize.formats.chat import from_chat, read_chat, to_chat
from internalize.formats.reading import Reading
from internalize.formats.wire import ChatLine
from internalize.inference.tool_formats import TOOL_FORMATS, as_text
from internalize.records import Message, Step, ToolCall, Trajectory, result_of

PLAIN = Reading()
USER = {"role": "user", "content": "Default of `mode` of io.open?"}


def call(name: str, arguments: Any, ident: str | None = "a") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": text}}


def assistant(content: str | None = None, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def result(content: str, ident: str | None = "a") -> dict[str, Any]:
    return {"role": "tool", "content": content, **({"tool_call_id": ident} if ident else {})}


def read(*messages: dict[str, Any], reading: Reading = PLAIN, **line: Any) -> Trajectory:
    return from_chat(ChatLine.model_validate({"messages": messages, **line}), reading)


def test_a_log_becomes_a_trajectory_without_token_ids() -> None:
    found = read(
        {"role": "system", "content": "Use tools."}, USER,
        assistant(None, call("search", {"query": "io open"})), result("1. io.open"),
        assistant("I look.", call("visit", {"page": "io.open", "part": 2})), result("mode='r'"),
        assistant("It is 'r'."), score=1, task="t7", model="m",
    )  # fmt: skip
    assert [m.role for m in found.prompt] == ["system", "user"]
    assert [[call.key for call in step.calls] for step in found.steps] == [
        [("search", "io open")], [("visit", '{"page": "io.open", "part": 2}')], [],
    ]  # fmt: skip
    assert found.answer == "It is 'r'."
    assert found.steps[0].text == '<tool_call>\n{"name": "search", "arguments": {"query": "io open"}}\n</tool_call>'
    assert found.steps[1].text.startswith("I look.\n<tool_call>\n")
    assert [step.observation for step in found.steps] == ["1. io.open", "mode='r'", None]
    assert (found.task_id, found.score, found.termination, found.checkpoint) == ("t7", 1.0, "answered", "m")
    assert found.text_only


def test_in_brackets() -> None:
    found = read(
        USER,
        assistant("", call("search", {"query": "io  open\nx"})),
        result("r"),
        assistant("'r'"),
        reading=Reading(protocol="bracket"),
    )
    assert [step.text for step in found.steps] == ["search[io open x]", "'r'"]
    back = to_chat(found).messages
    assert json.loads(back[1].tool_calls[0].function.arguments) == {"query": "io  open\nx"}


def test_several_calls_at_once_are_one_step_with_a_result_each() -> None:
    found = read(
        USER,
        assistant(None, call("search", {"q": "a"}, "x"), call("visit", {"p": "b"}, "y")),
        result("of y", "y"),
        result("of x", "x"),
        {"role": "user", "content": "Hurry."},
        assistant("Done."),
    )
    first = found.steps[0]
    assert [call.key for call in first.calls] == [("search", "a"), ("visit", "b")]
    assert [result.text for result in first.results] == ["of x", "of y", "Hurry."]
    assert [(m.role, m.content, m.tool_call_id) for m in to_chat(found).messages[2:5]] == [
        ("tool", "of x", "call_0_0"), ("tool", "of y", "call_0_1"), ("user", "Hurry.", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "results", "termination"),
    [
        ([assistant(None, call("f", {}))], [], "answered"),
        ([assistant(None, call("f", {})), {"role": "user", "content": "?"}],
         ["", "?"], "max_steps"),
        ([assistant(None, call("f", {}), call("g", {}, "b")), result("1", "b")],
         ["", "1"], "max_steps"),
        ([assistant(None, call("f", {}, None)), result("1", None)], ["1"], "max_steps"),
    ],
)  # fmt: skip
def test_missing_results_are_empty(messages: list[dict[str, Any]], results: list[str], termination: str) -> None:
    found = read(USER, *messages)
    assert ([result.text for result in found.steps[0].results], found.termination) == (results, termination)
    assert found.score is None


def test_what_models_write_besides() -> None:
    """Assistant messages in a row, calls that are no JSON, null and lists of parts, turns with nothing at all."""
    found = read(
        {"role": "developer", "content": "One."}, {"role": "system", "content": "Two."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        assistant("First."), assistant("Then.", call("f", "{broken")), result(""),
        assistant(None, tool_calls=None), {"role": "user", "content": "Go on."}, assistant("Bye."),
    )  # fmt: skip
    assert [m.content for m in found.prompt] == ["One.\n\nTwo.", "ab"]
    texts = ['First.\nThen.\n<tool_call>\n{"name": "f", "arguments": {broken}\n</tool_call>', "", "Bye."]
    assert [step.text for step in found.steps] == texts
    assert [len(step.calls) for step in found.steps] == [1, 0, 0]
    assert to_chat(found).messages[2].tool_calls[0].function.arguments == "{broken", "kept as it was written"


def test_a_greeting_before_the_first_user_message_belongs_to_the_prompt() -> None:
    found = read(assistant("Hello!"), USER, assistant("'r'"))
    assert [m.role for m in found.prompt] == ["assistant", "user"]
    assert len(found.steps) == 1


def test_thinking_is_dropped_or_kept() -> None:
    messages = [USER, assistant("'r'", reasoning_content="Hm.")]
    assert read(*messages).steps[0].text == "'r'"
    kept = read(*messages, reading=Reading(thinking=True))
    assert kept.steps[0].text == "<think>\nHm.\n</think>\n'r'"
    assert (kept.steps[0].message.reasoning, kept.answer) == ("Hm.", "'r'")
    assert to_chat(kept).messages[1].reasoning_content == "Hm."


def test_tools_are_explained_in_the_system_message() -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {
        "type": "object", "properties": {"box": {"type": "string"}}}}}  # fmt: skip
    found = read(USER, assistant("x"), tools=[tool], reading=Reading(protocol="bracket"))
    assert found.prompt[0] == Message(role="system", content="Reply with one action: look[box].")


def test_scores_and_errors() -> None:
    said = [USER, assistant("x")]
    assert [read(*said, **given).score for given in ({}, {"score": None}, {"reward": 0.5}, {"score": True})] == [
        None, None, 0.5, 1.0,
    ]  # fmt: skip
    broken = read(*said, error={"code": 500}, score=0)
    assert (broken.score, broken.failure, broken.termination) == (None, '{"code": 500}', "failed")
    assert read(*said, reading=Reading(score=1.0)).score == 1.0
    assert read(*said, score=0, reading=Reading(score=1.0)).score == 0.0


def test_attempts_of_a_task_are_counted_and_ids_differ(tmp_path: Path) -> None:
    lines = [{"messages": [USER, assistant("x")]}, {"messages": [USER, assistant("x")]}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_chat(tmp_path / "log.jsonl", Reading())
    assert first.task_id == second.task_id
    assert (first.attempt, second.attempt) == (0, 1)
    assert first.id != second.id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a whole JSON record"),
        ("[]", "is no JSON object"),
        ({}, "messages: field required"),
        ({"messages": [{"role": "bot", "content": ""}]}, "messages.0.role: "),
        ({"messages": [USER]}, "messages: no assistant message follows a user message"),
        ({"messages": [assistant("x")]}, "messages: no assistant message"),
        ({"messages": [{"role": "tool", "content": "x"}, USER, assistant("x")]}, "messages.0.role: a tool result"),
        ({"messages": [USER, assistant(None, call("f", {})), result("x", "b"), result("y", "c")]},
         "messages.2.tool_call_id: the turn before it has no call 'b'"),
        ({"messages": [USER, assistant(None, call("f", {})), result("x"), result("y")]},
         "messages.3: more results than calls"),
        ({"messages": [USER, assistant("x"), result("y", None)]}, "messages.2: more results than calls"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
         "messages.1.tool_calls.0.function.name: field required"),
        ({"messages": [USER, assistant("x")], "score": 5}, "score: "),
        ({"messages": [USER, assistant("x")], "score": -1}, "score: -1 is outside [0, 1]"),
        ('{"messages": [], "reward": NaN}', "reward: "),
        ({"messages": [USER, assistant("x")], "id": "one"}, "id: 'one' is also the id in line 1"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(line: Any, said: str, tmp_path: Path) -> None:
    good = json.dumps({"messages": [USER, assistant("x")], "id": "one"})
    (tmp_path / "log.jsonl").write_text(f"{good}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(DataError) as caught:
        read_chat(tmp_path / "log.jsonl", Reading())
    assert str(caught.value).startswith(f"{tmp_path / 'log.jsonl'}, line 2: ")
    assert said in str(caught.value)


# -- there and back ----------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]"), max_size=20)
NAMES = st.text("abc_", min_size=1, max_size=6)
ARGUMENTS = st.dictionaries(NAMES, st.one_of(WORDS, st.integers(-9, 9), st.lists(WORDS, max_size=2)), max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS.map(lambda a: json.dumps(a, ensure_ascii=False))), max_size=3)


@st.composite
def logs(draw: st.DrawFn) -> Trajectory:
    """Trajectories such as `from_chat` makes them."""
    system = draw(st.lists(st.builds(Message, role=st.just("system"), content=WORDS), max_size=1))
    steps = []
    count = draw(st.integers(1, 4))
    for number in range(count):
        made = enumerate(draw(CALLS))
        calls = tuple(ToolCall(id=f"call_{number}_{i}", name=n, arguments=a) for i, (n, a) in made)
        message = Message(role="assistant", content=draw(WORDS), reasoning=draw(WORDS), tool_calls=calls)
        results = tuple(result_of(calls, i, draw(WORDS)) for i in range(len(calls)))
        if not calls or draw(st.booleans()):
            results += (Message(role="user", content=draw(WORDS)),)
        ends = number == count - 1 and draw(st.booleans())
        text = as_text(message, TOOL_FORMATS["json"])
        left_out = "" if text.strip() else "nothing in the turn"
        steps.append(Step(text=text, message=message, results=() if ends else results, left_out=left_out))
    return Trajectory(
        id="e", task_id="t", env="chat", split="train", iteration=draw(st.integers(0, 5)), seed=0, checkpoint="m",
        prompt=(*system, Message(role="user", content=draw(WORDS))), steps=tuple(steps),
        termination=draw(st.sampled_from(["answered", "max_steps", "context_full"])),
        score=draw(st.none() | st.floats(0, 1)),
    )  # fmt: skip


@given(logs())
@settings(max_examples=60, deadline=None)
def test_trajectories_come_back(trajectory: Trajectory) -> None:
    line = ChatLine.model_validate_json(to_chat(trajectory).model_dump_json())
    assert from_chat(line, Reading(thinking=True)) == trajectory


@given(logs())
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_what_chat_endpoints_take(trajectory: Trajectory) -> None:
    """Every result answers a call of the turn before it, and no field is null or an empty list."""
    open_calls: set[str] = set()
    for message in to_chat(trajectory).model_dump(mode="json")["messages"]:
        assert None not in message.values()
        assert [] not in message.values()
        if message["role"] == "assistant":
            open_calls = {entry["id"] for entry in message.get("tool_calls", ())}
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])


@pytest.mark.parametrize("number", [-1, -(10**30)])
def test_an_iteration_below_zero_is_refused_by_its_line(tmp_path: Path, number: int) -> None:
    file = tmp_path / "log.jsonl"
    lines = [{"messages": [USER, assistant("r")]}, {"messages": [USER, assistant("r")], "iteration": number}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: iteration: "):
        read_chat(file, Reading())

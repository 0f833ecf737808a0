"""Converts chat logs in the OpenAI format (one JSON object with `messages` a line) to trajectories and back.

- The prompt is everything before the first assistant message that follows a user message. The role `developer` is read
  as `system`, and leading system messages are joined. `tools` in the line become instructions in the system message.
- Consecutive assistant messages with all their calls form one step.
- Results are matched to calls by `tool_call_id`, or by position when there are no ids; a single result whose id is of
  no call belongs to the single call without one. A missing result is an empty text. User messages come after the
  results. A last turn without a reply ends the episode.
- A turn is left out of training (`Step.left_out`) if it has a weight of 0, a call whose arguments are no JSON object,
  or nothing at all, and after an image, which no trajectory holds.
- `reasoning_content` is dropped unless `thinking` is set, because most chat templates do not render it for past turns.
- `score`, or else `reward`, is the success in [0, 1]. Without either, or with an `error`, the episode is unscored.

Writing an imported trajectory and reading it again preserves its prompt, steps and score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue

from internalize.errors import DataError
from internalize.inference.renderer import with_system
from internalize.inference.tool_formats import TOOL_FORMATS, as_text
from internalize.records import (
    Message,
    Step,
    Task,
    Termination,
    ToolCall,
    ToolSpec,
    Trajectory,
    content_hash,
    result_of,
)

from . import anthropic
from .notes import Notes
from .reading import Located, Reading, Session, episodes, json_values
from .repairs import readable
from .wire import ChatCall, ChatFunction, ChatLine, ChatMessage, ChatTool

UNREADABLE = "a call whose arguments are no JSON object"
AFTER_MEDIA = "after a part that is no text"


class Episode(BaseModel):
    """Prompt, steps and termination of one conversation, in any log format."""

    model_config = ConfigDict(frozen=True)

    prompt: tuple[Message, ...]
    steps: tuple[Step, ...]
    termination: Termination


def read_chat(path: Path, reading: Reading) -> list[Trajectory]:
    """The episodes in a file of chat logs. Raises DataError naming file, line and field."""
    return list(episodes(path, json_values, read, Session(reading)))


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are chat logs."""
    first = head[0]
    return any(key in first for key in ("messages", "conversations")) or {"prompt", "completion"} <= first.keys()


def recognizes_one(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file holds the messages of conversations without anything around them."""
    return "role" in head[0] and bool({"content", "tool_calls", "parts"} & head[0].keys())


def conversations(path: Path) -> Iterator[Located]:
    """Each list of messages in a file; messages that stand there one by one are one conversation."""
    messages: list[Any] = []
    for where, value in json_values(path):
        if isinstance(value, list | DataError):
            yield where, value if isinstance(value, DataError) else {"messages": value}
        else:
            messages.append(value)
    if messages:
        yield "", {"messages": messages}


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The trajectory of one line. Raises DataError."""
    if isinstance(value, dict) and anthropic.in_blocks([value]):
        value = anthropic.as_chat(value)
    yield from_line(value, session)


def answered(line: dict[str, Any], session: Session) -> Iterator[Trajectory]:
    """The trajectory of a line; none, which is counted, if the line has no answer of a model. Raises DataError."""
    messages = line.get("messages")
    roles = [m.get("role") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else ["assistant"]
    if not line.get("error") and "assistant" not in roles:
        session.notes.dropped["conversation without an answer"] += 1
    else:
        yield from_line(line, session)


def from_line(value: Any, session: Session) -> Trajectory:
    """The trajectory of a line in the chat format. Raises DataError."""
    line = session.validated(ChatLine, value)
    return from_chat(line, session.reading, session.attempts, session.notes)


def from_chat(
    line: ChatLine,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    attempts: Counter[str] | None = None,
    notes: Notes | None = None,
) -> Trajectory:
    """The trajectory of one line; `attempts` counts the earlier episodes of each task. Raises DataError."""
    episode = episode_of(line.messages, reading, failed=bool(line.error), notes=notes)
    prompt, tools = episode.prompt, tuple(_tool(tool) for tool in line.tools or ())
    if reading.protocol == "native":
        tools = tools or _tools_of(episode.steps, notes or Notes())
    elif tools:
        prompt, tools = with_system(prompt, TOOL_FORMATS[reading.protocol].instructions(tools)), ()
    env, split = line.env or reading.env, line.split or reading.split
    task = line.task or Task.new(env, split, question_of(prompt)).id
    attempt = 0 if attempts is None else attempts[task]
    failure = None if not line.error else line.error if isinstance(line.error, str) else json.dumps(line.error)
    return Trajectory(
        id=line.id or content_hash([env, task, attempt, [m.model_dump(mode="json") for m in line.messages]]),
        task_id=task,
        env=env,
        split=split,
        iteration=line.iteration or 0,
        seed=0,
        attempt=attempt,
        checkpoint=line.model or "imported",
        prompt=prompt,
        tools=tools,
        steps=episode.steps,
        termination="failed" if failure else line.termination or episode.termination,
        score=None
        if failure
        else reading.scaled("score" if line.score is not None else "reward", line.score, line.reward),
        failure=failure,
    )


def to_chat(trajectory: Trajectory) -> ChatLine:
    """A chat log of the clean history, without experience and token ids."""
    history = [_from_message(message) for message in trajectory.prompt]
    for step in trajectory.steps:
        marks = {"weight": 0.0, "left_out": step.left_out} if step.left_out else {}
        history.append(_from_message(step.message).model_copy(update=marks))
        history += map(_from_message, step.results)
    return ChatLine(
        id=trajectory.id,
        task=trajectory.task_id,
        env=trajectory.env,
        split=trajectory.split,
        iteration=trajectory.iteration,
        model=trajectory.checkpoint,
        score=trajectory.score,
        error=trajectory.failure,
        termination=trajectory.termination,
        tools=tuple(
            ChatTool(name=tool.name, description=tool.description, parameters=tool.argument_schema)
            for tool in trajectory.tools
        )
        or None,
        messages=tuple(history),
    )


def question_of(prompt: Sequence[Message]) -> str:
    """The text of the last user message in a prompt."""
    return next((m.text for m in reversed(prompt) if m.role == "user"), "")


def episode_of(
    messages: Sequence[ChatMessage], reading: Reading, *, failed: bool = False, notes: Notes | None = None
) -> Episode:
    """The episode of a whole conversation; only a `failed` one may lack an assistant turn. Raises DataError."""
    start = _first_turn(messages)
    if start == len(messages) and not failed:
        raise DataError("messages: no assistant message follows a user message")
    steps: list[Step] = []
    media = next((number for number, message in enumerate(messages) if message.media), len(messages))
    place = start
    while place < len(messages):
        turn = list(takewhile(lambda m: m.role == "assistant", messages[place:]))
        place += len(turn)
        replies = list(takewhile(lambda m: m.role != "assistant", messages[place:]))
        left_out = AFTER_MEDIA if media < place - len(turn) else ""
        steps.append(_step(turn, replies, _Place(place, len(steps), left_out), reading, notes or Notes()))
        place += len(replies)
    ended = bool(steps) and steps[-1].ended
    termination: Termination = "failed" if failed else "answered" if ended else "max_steps"
    return Episode(prompt=_prompt(messages[:start]), steps=tuple(steps), termination=termination)


def _first_turn(messages: Sequence[ChatMessage]) -> int:
    """The index of the first assistant message after a user message; the length if there is none."""
    roles = [message.role for message in messages]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        return len(messages)
    return roles.index("assistant", roles.index("user"))


def _prompt(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    system = [m.content for m in takewhile(lambda m: m.role in {"system", "developer"}, messages)]
    joined = [Message(role="system", content="\n\n".join(system))] if system else []
    return (*joined, *(_message(number, m) for number, m in enumerate(messages) if number >= len(system)))


def _message(number: int, message: ChatMessage) -> Message:
    if message.role == "tool":
        raise DataError(f"messages.{number}.role: a tool result before the first assistant message")
    calls = tuple(
        ToolCall(id=c.id or "", name=c.function.name, arguments=c.function.arguments) for c in message.tool_calls
    )
    role = "system" if message.role == "developer" else message.role
    return Message(role=role, content=message.content, tool_calls=calls)


def _from_message(message: Message) -> ChatMessage:
    calls = tuple(
        ChatCall(id=c.id or None, function=ChatFunction(name=c.name, arguments=c.arguments)) for c in message.tool_calls
    )
    return ChatMessage(
        role=message.role,
        content=message.text,
        reasoning_content=message.reasoning or None,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
    )


class _Place(NamedTuple):
    """The place of a turn: the index of its first reply, its number, and why the text before it forbids learning it."""

    reply: int
    number: int
    left_out: str


def _step(
    turn: Sequence[ChatMessage], replies: Sequence[ChatMessage], place: _Place, reading: Reading, notes: Notes
) -> Step:
    """The step of an assistant turn and the replies to it."""
    logged_calls = [call for message in turn for call in message.tool_calls]
    calls = tuple(
        ToolCall(id=f"call_{place.number}_{i}", name=call.function.name, arguments=call.function.arguments)
        for i, call in enumerate(logged_calls)
    )
    thoughts = "\n".join(m.reasoning_content for m in turn if m.reasoning_content)
    notes.dropped["thoughts of a turn"] += bool(thoughts) and not reading.thinking
    content = "\n".join(m.content for m in turn if m.content)
    message = Message(
        role="assistant", content=content, reasoning=thoughts if reading.thinking else "", tool_calls=calls
    )
    results = _results([call.id for call in logged_calls], calls, replies, place.reply, notes) if replies else ()
    text = as_text(message, TOOL_FORMATS["json" if reading.protocol == "native" else reading.protocol])
    return Step(text=text, message=message, results=results, left_out=place.left_out or _left_out(turn, text))


def _left_out(turn: Sequence[ChatMessage], text: str) -> str:
    """Why a turn must not be learnt; "" if it may be learnt."""
    if reason := next((m.left_out for m in turn if m.left_out), None):
        return reason
    if any(m.weight == 0 for m in turn):
        return "weight 0"
    called = [bool(m.tool_calls) for m in turn]
    if any(m.content and True in called[:number] for number, m in enumerate(turn)):
        return "text after a call without a result"
    if not all(readable(call.function.arguments) for m in turn for call in m.tool_calls):
        return UNREADABLE
    return "" if text.strip() else "nothing in the turn"


def _results(
    ids: Sequence[str | None], calls: Sequence[ToolCall], replies: Sequence[ChatMessage], place: int, notes: Notes
) -> tuple[Message, ...]:
    """One result for each call ("" if the log has none), then the joined user messages."""
    results: list[str | None] = [None] * len(ids)
    strangers: list[tuple[int, ChatMessage]] = []
    for number, message in enumerate(replies, start=place):
        if message.role == "tool" and message.tool_call_id not in {None, *ids}:
            strangers.append((number, message))
        elif message.role == "tool":
            results[_call_index(message, number, ids, results)] = message.content
    for number, message in strangers:
        if len(strangers) > 1 or results.count(None) != 1:
            raise DataError(f"messages.{number}.tool_call_id: the turn before it has no call {message.tool_call_id!r}")
        notes.repaired["result with the id of no call, given to the only call without a result"] += 1
        results[results.index(None)] = message.content
    notes.repaired["missing result of a call, read as empty"] += results.count(None)
    user_texts = [m.content for m in replies if m.role != "tool"]
    user = (Message(role="user", content="\n\n".join(user_texts)),) if user_texts else ()
    return (*(result_of(calls, number, result or "") for number, result in enumerate(results)), *user)


def _call_index(message: ChatMessage, number: int, ids: Sequence[str | None], results: Sequence[str | None]) -> int:
    """The index of the call that a result belongs to."""
    call_id = message.tool_call_id
    open_calls = [i for i, result in enumerate(results) if result is None and call_id in {None, ids[i]}]
    if not open_calls:
        raise DataError(f"messages.{number}: more results than calls in the turn before it")
    return open_calls[0]


def _tools_of(steps: Sequence[Step], notes: Notes) -> tuple[ToolSpec, ...]:
    """The tools that were called, for a log that does not describe them: their names and arguments."""
    found: dict[str, dict[str, JsonValue]] = {}
    for call in (call for step in steps for call in step.calls):
        found.setdefault(call.name, {}).update({name: {} for name in call.values})
    notes.repaired["tools without descriptions, made from their calls"] += bool(found)
    return tuple(
        ToolSpec(name=name, argument="", description="", parameters={"type": "object", "properties": properties})
        for name, properties in found.items()
    )


def _tool(tool: ChatTool) -> ToolSpec:
    properties = (tool.parameters or {}).get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    single = names[0] if len(names) == 1 else ""
    return ToolSpec(
        name=tool.name,
        argument=single or "arguments",
        description=tool.description,
        parameters=None if single else tool.parameters,
    )

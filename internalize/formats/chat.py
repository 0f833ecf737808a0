"""Chat logs in the OpenAI format: one JSON object with `messages` a line; in as trajectories, and out again.

- Everything before the first assistant turn after a user message is the prompt. `developer` is `system`; the texts
  of leading system messages are joined. With `tools` in the line, the system message says how to call them.
- An assistant turn with all its calls is one step; assistant messages that follow each other are one turn.
- Results are matched to calls by `tool_call_id`, without ids in their order. A missing result is an empty text. What
  a user says besides comes after the results. A turn that nothing follows ends the episode.
- Content null is empty text; text parts are joined; another part (an image) is refused. Thinking
  (`reasoning_content`) is dropped unless asked for: most chat templates do not show it again.
- `score`, else `reward`, is the success in [0, 1]; missing or null = unscored. A line with an `error` is unscored too.

`from_chat` of `to_chat` of an imported trajectory gives its prompt, steps and score back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from internalize.errors import DataError
from internalize.inference.renderer import Renderer
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

from .wire import ChatCall, ChatFunction, ChatLine, ChatMessage, ChatTool, Score, read_lines

Protocol = Literal["bracket", "json"]


class Reading(BaseModel):
    """How logs are read. `protocol` is that of the model to be trained on them."""

    model_config = ConfigDict(frozen=True)

    env: str = "chat"
    split: str = "train"
    protocol: Protocol = "json"
    thinking: bool = False
    score: Score | None = None  # of episodes that have none


class Episode(BaseModel):
    """What a line of any format says, before it is a trajectory."""

    model_config = ConfigDict(frozen=True)

    prompt: tuple[Message, ...]
    steps: tuple[Step, ...]
    termination: Termination


def read_chat(path: Path, reading: Reading) -> list[Trajectory]:
    """The episodes of a file of chat logs. Raises DataError naming file, line and field."""
    return read_lines(path, ChatLine, lambda line, attempts: from_chat(line, reading, attempts))


def from_chat(line: ChatLine, reading: Reading = Reading(), attempts: Counter[str] | None = None) -> Trajectory:  # noqa: B008 - frozen
    """One line as a trajectory; `attempts` counts the episodes of each task so far. Raises DataError."""
    episode = episode_of(line.messages, reading, failed=bool(line.error))
    prompt = episode.prompt
    if line.tools:
        instructions = TOOL_FORMATS[reading.protocol].instructions([_tool(tool) for tool in line.tools])
        prompt = Renderer.with_system(prompt, instructions)
    env, split = line.env or reading.env, line.split or reading.split
    task = line.task or Task.new(env, split, question_of(prompt)).id
    attempt = 0 if attempts is None else attempts[task]
    failure = None if not line.error else line.error if isinstance(line.error, str) else json.dumps(line.error)
    return Trajectory(
        id=line.id or content_hash([env, task, attempt, [m.model_dump(mode="json") for m in line.messages]]),
        task_id=task,
        env=env,
        split=split,
        iteration=line.iteration,
        seed=0,
        attempt=attempt,
        checkpoint=line.model or "imported",
        prompt=prompt,
        steps=episode.steps,
        termination="failed" if failure else line.termination or episode.termination,
        score=None if failure else first_known(line.score, line.reward, reading.score),
        failure=failure,
    )


def to_chat(trajectory: Trajectory) -> ChatLine:
    """The clean history as a chat log: no experience, no token ids."""
    history = [message for step in trajectory.steps for message in (step.message, *step.results)]
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
        messages=tuple(_from_message(message) for message in (*trajectory.prompt, *history)),
    )


def first_known(*scores: float | None) -> float | None:
    """The first score that is one."""
    return next((score for score in scores if score is not None), None)


def question_of(prompt: Sequence[Message]) -> str:
    """The last user message of a prompt."""
    return next((m.text for m in reversed(prompt) if m.role == "user"), "")


def episode_of(messages: Sequence[ChatMessage], reading: Reading, *, failed: bool = False) -> Episode:
    """Prompt and steps of a whole conversation. `failed` ones may have no turn. Raises DataError naming the field."""
    start = _first_turn(messages)
    if start == len(messages) and not failed:
        raise DataError("messages: no user message with an assistant's turn after it")
    steps: list[Step] = []
    place = start
    while place < len(messages):
        said = list(takewhile(lambda m: m.role == "assistant", messages[place:]))
        answers = list(takewhile(lambda m: m.role != "assistant", messages[place + len(said) :]))
        steps.append(_step(said, answers, place + len(said), len(steps), reading))
        place += len(said) + len(answers)
    ended = bool(steps) and steps[-1].ended
    termination: Termination = "failed" if failed else "answered" if ended else "max_steps"
    return Episode(prompt=_prompt(messages[:start]), steps=tuple(steps), termination=termination)


def _first_turn(messages: Sequence[ChatMessage]) -> int:
    asked = False
    for number, message in enumerate(messages):
        asked = asked or message.role == "user"
        if asked and message.role == "assistant":
            return number
    return len(messages)


def _prompt(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    system = [m.content for m in takewhile(lambda m: m.role in {"system", "developer"}, messages)]
    joined = [Message(role="system", content="\n\n".join(system))] if system else []
    return (*joined, *(_message(number, m) for number, m in enumerate(messages) if number >= len(system)))


def _message(number: int, message: ChatMessage) -> Message:
    if message.role == "tool":
        raise DataError(f"messages.{number}.role: a tool's result before any assistant's turn")
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


def _step(
    said: Sequence[ChatMessage], answers: Sequence[ChatMessage], place: int, number: int, reading: Reading
) -> Step:
    """Turn `number` and what came back; `place` is the index of the first answering message."""
    asked = [call for message in said for call in message.tool_calls]
    calls = tuple(
        ToolCall(id=f"call_{number}_{i}", name=call.function.name, arguments=call.function.arguments)
        for i, call in enumerate(asked)
    )
    thoughts = "\n".join(m.reasoning_content for m in said if m.reasoning_content) if reading.thinking else ""
    content = "\n".join(m.content for m in said if m.content)
    message = Message(role="assistant", content=content, reasoning=thoughts, tool_calls=calls)
    results = _results([call.id for call in asked], calls, answers, place) if answers else ()
    return Step(text=as_text(message, TOOL_FORMATS[reading.protocol]), message=message, results=results)


def _results(
    ids: Sequence[str | None], calls: Sequence[ToolCall], answers: Sequence[ChatMessage], place: int
) -> tuple[Message, ...]:
    """A result for each call, "" where there is none, then what a user said."""
    results: list[str | None] = [None] * len(ids)
    for number, message in enumerate(answers, start=place):
        if message.role == "tool":
            results[_call_of(message, number, ids, results)] = message.content
    users = [m.content for m in answers if m.role != "tool"]
    said = (Message(role="user", content="\n\n".join(users)),) if users else ()
    return (*(result_of(calls, number, result or "") for number, result in enumerate(results)), *said)


def _call_of(message: ChatMessage, number: int, ids: Sequence[str | None], results: Sequence[str | None]) -> int:
    """Which call a result answers."""
    name = message.tool_call_id
    if name is not None and name not in ids:
        raise DataError(f"messages.{number}.tool_call_id: {name!r} is no call of the turn before it")
    fitting = [i for i, result in enumerate(results) if result is None and (name is None or ids[i] == name)]
    if not fitting:
        raise DataError(f"messages.{number}: more results than calls in the turn before it")
    return fitting[0]


def _tool(tool: ChatTool) -> ToolSpec:
    named = ChatTool.model_validate(tool.function) if tool.function is not None else tool
    if not named.name:
        raise DataError("tools: a function without a name")
    properties = (named.parameters or {}).get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    single = names[0] if len(names) == 1 else ""
    return ToolSpec(
        name=named.name,
        argument=single or "arguments",
        description=named.description,
        parameters=None if single else named.parameters,
    )

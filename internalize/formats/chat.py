"""Chat logs in the OpenAI format: one JSON object with `messages` a line; in as trajectories, and out again.

    messages -> from_chat -> Trajectory (text only, marked by steps without token ids) -> to_chat -> messages

What a log may look like, and what becomes of it:

- Everything before the first assistant turn after a user message is the prompt. `developer` is `system`; the texts
  of leading system messages are joined. With `tools` in the line, the system message says how to call them.
- An assistant turn with all its calls is one step; assistant messages that follow each other are one turn. Its action
  is the first call. The last turn, if it calls nothing, is the action `answer`. Another turn without calls has none.
- Results are matched to calls by `tool_call_id`, without ids in their order. A missing result is an empty text. After
  several results, or when a user says something besides, the observation has labelled parts (turns.py).
- Content null is empty text; text parts are joined; another part (an image) is refused. Thinking
  (`reasoning_content`) is dropped unless asked for: most chat templates do not show it again.
- `score`, else `reward`, is the success in [0, 1]; missing or null = unscored. A line with an `error` is unscored too.

Left out: token ids and log-probabilities, which no chat log has. What must not change: `from_chat` of `to_chat` of
an imported trajectory gives its prompt, steps and score back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from internalize.errors import DataError
from internalize.inference.renderer import PROTOCOLS, Renderer
from internalize.records import Action, Message, Step, Task, Termination, ToolCall, ToolSpec, Trajectory, content_hash

from .turns import Call, Protocol, Turn, read_observation, read_turn, write_observation, write_turn
from .wire import ChatCall, ChatFunction, ChatLine, ChatMessage, ChatTool, Score, read_lines

ANSWER = "answer"  # name of the action that ends a log without calling anything


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
        instructions = PROTOCOLS[reading.protocol].instructions([_tool(tool) for tool in line.tools])
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
    """The clean history as a chat log: no experience, no token ids. Calls are numbered through."""
    messages = [_from_message(message) for message in trajectory.prompt]
    for number, step in enumerate(trajectory.steps):
        turn = read_turn(step.action_text, step.action)
        ids = [f"call_{number}_{place}" for place in range(len(turn.calls))]
        calls = tuple(
            ChatCall(id=name, function=ChatFunction(name=call.name, arguments=call.arguments))
            for name, call in zip(ids, turn.calls, strict=True)
        )
        thinking = turn.thinking or None
        messages.append(
            ChatMessage(role="assistant", content=turn.content, reasoning_content=thinking, tool_calls=calls)
        )
        if step.observation is not None:
            messages += _answers(step.observation, ids)
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
        messages=tuple(messages),
    )


def first_known(*scores: float | None) -> float | None:
    """The first score that is one."""
    return next((score for score in scores if score is not None), None)


def question_of(prompt: Sequence[Message]) -> str:
    """The last user message of a prompt."""
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def episode_of(messages: Sequence[ChatMessage], reading: Reading, *, failed: bool = False) -> Episode:
    """Prompt and steps of a whole conversation. `failed` ones may have no turn. Raises DataError naming the field."""
    start = _first_turn(messages)
    if start == len(messages) and not failed:
        raise DataError("messages: no user message with an assistant's turn after it")
    steps = []
    place = start
    while place < len(messages):
        said = list(takewhile(lambda m: m.role == "assistant", messages[place:]))
        answers = list(takewhile(lambda m: m.role != "assistant", messages[place + len(said) :]))
        steps.append(_step(said, answers, place + len(said), reading))
        place += len(said) + len(answers)
    ended = bool(steps) and steps[-1].observation is None
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
    return ChatMessage(role=message.role, content=message.content, tool_calls=calls, tool_call_id=message.tool_call_id)


def _step(said: Sequence[ChatMessage], answers: Sequence[ChatMessage], place: int, reading: Reading) -> Step:
    """One turn and what came back; `place` is the number of the first answering message."""
    thoughts = [m.reasoning_content for m in said if m.reasoning_content] if reading.thinking else []
    calls = [call for message in said for call in message.tool_calls]
    turn = Turn(
        content="\n".join(m.content for m in said if m.content),
        calls=tuple(Call(call.function.name, call.function.arguments) for call in calls),
        thinking="\n".join(thoughts),
    )
    observation = _observation([call.id for call in calls], answers, place) if answers else None
    action = turn.calls[0].action if turn.calls else None
    if not turn.calls and observation is None and turn.content:
        action = Action(name=ANSWER, argument=turn.content)
    return Step(action_text=write_turn(turn, reading.protocol), action=action, observation=observation)


def _observation(ids: Sequence[str | None], answers: Sequence[ChatMessage], place: int) -> str:
    results: list[str | None] = [None] * len(ids)
    for number, message in enumerate(answers, start=place):
        if message.role == "tool":
            results[_call_of(message, number, ids, results)] = message.content
    users = [m.content for m in answers if m.role != "tool"]
    return write_observation([result or "" for result in results], "\n\n".join(users) if users else None)


def _call_of(message: ChatMessage, number: int, ids: Sequence[str | None], results: Sequence[str | None]) -> int:
    """Which call a result answers."""
    name = message.tool_call_id
    if name is not None and name not in ids:
        raise DataError(f"messages.{number}.tool_call_id: {name!r} is no call of the turn before it")
    fitting = [i for i, result in enumerate(results) if result is None and (name is None or ids[i] == name)]
    if not fitting:
        raise DataError(f"messages.{number}: more results than calls in the turn before it")
    return fitting[0]


def _answers(observation: str, ids: Sequence[str]) -> Iterable[ChatMessage]:
    results, user = read_observation(observation, len(ids))
    for name, result in zip(ids, results, strict=True):
        yield ChatMessage(role="tool", content=result, tool_call_id=name)
    if user is not None:
        yield ChatMessage(role="user", content=user)


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

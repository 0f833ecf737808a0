"""ATIF, the trajectory format of Harbor, in and out. The package `atif` validates every document.

Content without a place in our records (times, costs, token ids, images, references to sub-agents) is kept as a patch to
what the exporter would write, so that export restores the document. Copied context is never learnt. A sub-agent inside
a document is an episode of its own. The score of a Harbor trial is in files beside the document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from internalize.errors import DataError, UserError
from internalize.records import Message, Origin, Step, ToolCall, Trajectory
from internalize.runs.files import first_problem
from internalize.runs.store import versions

from .chat import from_line
from .reading import Located, Session, json_values
from .repairs import Raw, readable
from .sessions import COPIED

if TYPE_CHECKING:
    import atif

VERSION = "ATIF-v1.8"
_SOURCES = {"system": "system", "user": "user", "assistant": "agent"}
_AS_WRITTEN, _LEFT_OUT = "arguments_as_written", "left_out"
_OURS = "internalize"  # the key of our own fields in `extra`
_KEPT = ("env", "split", "iteration", "termination", "score", "failure")


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is an ATIF document, or has one on each line."""
    return str(head[0].get("schema_version", "")).upper().startswith("ATIF")


def values(path: Path) -> Iterator[Located]:
    """The documents of a file, each with the score from Harbor's files beside it."""
    score = _trial_score(path)
    for where, value in json_values(path):
        yield where, value if isinstance(value, DataError) else {"document": value, "score": score}


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episodes of a document: the agent's own, then those of its sub-agents. Raises DataError, UserError."""
    document = value["document"]
    checked = _validated(document)
    yield from _episodes(checked, document, value["score"], session)


def to_atif(trajectory: Trajectory) -> Raw:
    """The document of an episode: the imported one, restored, or a new one. Raises DataError."""
    plain = _plain(trajectory)
    origin = trajectory.origin
    if origin is None or origin.format != "atif":
        return plain
    import jsonpatch  # noqa: PLC0415 - only for documents that were imported

    try:
        patch: Any = origin.beyond
        found: Raw = jsonpatch.apply_patch(plain, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise DataError(f"the episode {trajectory.id} was changed after it was imported ({error})") from error
    return found


def _validated(document: Any) -> atif.Trajectory:
    try:
        import atif  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("ATIF needs an extra: pip install 'internalize[logs]'") from error
    try:
        return atif.Trajectory.model_validate(document)
    except ValidationError as error:
        raise DataError(first_problem(error)) from error


def _episodes(checked: atif.Trajectory, document: Raw, score: float | None, session: Session) -> Iterator[Trajectory]:
    messages = [message for step in checked.steps for message in _messages(step)]
    session.notes.dropped["observation of a sub-agent without its text"] += sum(
        result.content is None for step in checked.steps if step.observation for result in step.observation.results
    )
    if any(message["role"] == "assistant" for message in messages):
        ours = (checked.extra or {}).get(_OURS) or {}
        about = {"score": score, "tools": checked.agent.tool_definitions, **ours, "error": ours.get("failure")}
        found = from_line({**about, "model": checked.agent.model_name, "messages": messages}, session)
        beyond = _patch(_plain(found), document)
        yield found.model_copy(update={"origin": Origin(format="atif", beyond=beyond)})
    else:
        session.notes.dropped["conversation without an answer"] += 1
    for sub, inner in zip(
        checked.subagent_trajectories or (), document.get("subagent_trajectories") or (), strict=True
    ):
        yield from _episodes(sub, inner, None, session)


def _messages(step: atif.Step) -> Iterator[Raw]:
    """The chat messages of one step: the turn, the result of each call, then other observations."""
    content = _content(step.message)
    if step.source != "agent":
        yield {"role": step.source, "content": content}
    else:
        calls = [{"id": call.tool_call_id, "function": _function(call)} for call in step.tool_calls or ()]
        turn = {"role": "assistant", "content": content, "tool_calls": calls, "left_out": _left_out(step)}
        yield {**turn, "reasoning_content": step.reasoning_content}
    yield from _results(step)


def _results(step: atif.Step) -> Iterator[Raw]:
    """The observations of a step. Results without ids belong to its calls in order if the numbers are equal."""
    results = step.observation.results if step.observation else []
    calls = [call.tool_call_id for call in step.tool_calls or ()]
    in_order = len(calls) == len(results) and all(result.source_call_id is None for result in results)
    for number, result in enumerate(results):
        call_id = calls[number] if in_order else result.source_call_id
        content = _content(result.content or "")
        yield (
            {"role": "tool", "tool_call_id": call_id, "content": content}
            if call_id
            else {"role": "user", "content": content}
        )


def _function(call: atif.ToolCall) -> Raw:
    written = (call.extra or {}).get(_AS_WRITTEN)  # text that is no JSON object, which ATIF has no place for
    return {"name": call.function_name, "arguments": _text(call.arguments) if written is None else written}


def _left_out(step: atif.Step) -> str:
    if step.is_copied_context:
        return str((step.extra or {}).get(_LEFT_OUT, COPIED))
    return "not written by a model" if step.llm_call_count == 0 else ""


def _content(content: Any) -> str | list[Raw]:
    return content if isinstance(content, str) else [part.model_dump(exclude_none=True) for part in content]


def _plain(trajectory: Trajectory) -> Raw:
    """The document for an episode that was not imported from ATIF."""
    steps = [{"source": _SOURCES[message.role], "message": message.text} for message in trajectory.prompt]
    for step in trajectory.steps:
        steps += [_agent_step(step), *({"source": "user", "message": m.text} for m in step.results if m.role == "user")]
    ours = {key: getattr(trajectory, key) for key in _KEPT}
    ours |= {"id": trajectory.id, "task": trajectory.task_id}
    return {
        "schema_version": VERSION,
        "trajectory_id": trajectory.id,
        "agent": _agent(trajectory),
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, start=1)],
        "extra": {_OURS: {key: value for key, value in ours.items() if value is not None}},
    }


def _agent(trajectory: Trajectory) -> Raw:
    agent: Raw = {"name": _OURS, "version": str(versions().get(_OURS, "")), "model_name": trajectory.checkpoint}
    if trajectory.tools:
        agent["tool_definitions"] = [
            {"type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.argument_schema}}
            for tool in trajectory.tools
        ]  # fmt: skip
    return agent


def _agent_step(step: Step) -> Raw:
    found: Raw = {"source": "agent", "message": step.message.text}
    if step.message.reasoning:
        found["reasoning_content"] = step.message.reasoning
    if step.calls:
        found["tool_calls"] = [_call(call) for call in step.calls]
    results = [_result(message) for message in step.results if message.role == "tool"]
    if results:
        found["observation"] = {"results": results}
    if step.left_out:  # other readers must not train on it either
        found |= {"is_copied_context": True, "extra": {_LEFT_OUT: step.left_out}}
    return found


def _call(call: ToolCall) -> Raw:
    values: Any = call.values if readable(call.arguments) else {}
    written = {} if _text(values) == call.arguments else {"extra": {_AS_WRITTEN: call.arguments}}
    return {"tool_call_id": call.id, "function_name": call.name, "arguments": values, **written}


def _text(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _result(message: Message) -> Raw:
    return {"source_call_id": message.tool_call_id, "content": message.text}


def _patch(plain: Raw, document: Raw) -> Any:
    import jsonpatch  # noqa: PLC0415 - only for ATIF

    return jsonpatch.make_patch(plain, document).patch


def _trial_score(path: Path) -> float | None:
    """The reward of the Harbor trial whose folder `agent` holds the document; None if there is none or several."""
    verifier = path.parent.parent / "verifier"
    try:
        if (text := verifier / "reward.txt").is_file():
            return float(text.read_text())
        if (rewards := verifier / "reward.json").is_file():
            found = json.loads(rewards.read_text())
            named = found.get("reward", next(iter(found.values())) if len(found) == 1 else None)
            return None if named is None else float(named)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{verifier}: the reward cannot be read ({error})") from error
    return None

"""Logs of inspect_ai (`.eval` archives and JSON), read by that package, a sample at a time.

The score is that of the first scorer in the log; a sample with an error is unscored. A call that inspect_ai could not
parse is context only. Tools of the provider that answered inside a turn are calls with results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from internalize.errors import DataError, UserError, first_line
from internalize.records import Trajectory

from .chat import answered
from .reading import Located, Session
from .repairs import Raw

_MEMBERS = frozenset({"header.json", "_journal/start.json"})
_LIMITS = {"context": "context_full"}


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is a log of an evaluation."""
    first = head[0]
    return {"eval", "plan"} <= first.keys() or bool(_MEMBERS & set(first.get("members of the archive", ())))


def values(path: Path) -> Iterator[Located]:
    """The samples of a log, each with its header. Raises DataError, UserError."""
    try:
        from inspect_ai.log import read_eval_log  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("logs of inspect_ai need an extra: pip install 'internalize[logs]'") from error
    try:
        header = read_eval_log(str(path), header_only=True, format=_kind(path))
        for sample in _samples(path):
            yield f"sample {sample.id}, epoch {sample.epoch}", (header, sample)
    except Exception as error:  # whatever that package's readers raise for a damaged archive
        raise DataError(f"{path}: inspect_ai cannot read this log ({first_line(error)})") from error


def _samples(path: Path) -> Iterator[Any]:
    """The samples, one at a time; a log in JSON can only be read whole."""
    from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_sample_summaries  # noqa: PLC0415

    if _kind(path) == "json":
        yield from read_eval_log(str(path), format="json", resolve_attachments=True).samples or ()
        return
    for one in read_eval_log_sample_summaries(str(path), format="eval"):
        yield read_eval_log_sample(str(path), one.id, one.epoch, resolve_attachments=True, format="eval")


def _kind(path: Path) -> Literal["eval", "json"]:
    return "json" if path.suffix == ".json" else "eval"


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of a sample. Raises DataError."""
    header, sample = value
    scores = sample.scores or {}
    session.notes.dropped["score of a further scorer"] += max(0, len(scores) - 1)
    line = {
        "task": f"{header.eval.task}/{sample.id}",
        "env": header.eval.task,
        "model": header.eval.model,
        "score": _number(next(iter(scores.values()))) if scores and not sample.error else None,
        "error": sample.error.message if sample.error else None,
        "termination": _LIMITS.get(sample.limit.type, "max_steps") if sample.limit else None,
        "messages": [part for message in sample.messages for part in _messages(message)],
    }
    yield from answered(line, session)


def _number(score: Any) -> float | None:
    """The value of a score, C and I as 1 and 0; None for one of several values or for no value."""
    from inspect_ai.scorer import value_to_float  # noqa: PLC0415

    value = score.value
    if isinstance(value, dict | list) or value is None or value != value:  # noqa: PLR0124 - NaN: not scored
        return None
    return float(value_to_float()(value))


def _messages(message: Any) -> Iterator[Raw]:
    if message.role == "tool":
        yield {"role": "tool", "tool_call_id": message.tool_call_id, "content": _content(message.content)}
    elif message.role != "assistant":
        yield {"role": message.role, "content": _content(message.content)}
    else:
        yield from _turn(message)


def _turn(message: Any) -> Iterator[Raw]:
    parts = message.content if isinstance(message.content, list) else [message.content]
    for used in (part for part in parts if getattr(part, "type", "") == "tool_use"):
        call = {"id": used.id, "function": {"name": used.name, "arguments": used.arguments}}
        yield {"role": "assistant", "content": "", "tool_calls": [call]}
        yield {"role": "tool", "tool_call_id": used.id, "content": used.result}
    calls = message.tool_calls or ()
    thoughts = [part.reasoning for part in parts if getattr(part, "type", "") == "reasoning" and not part.redacted]
    yield {
        "role": "assistant",
        "content": _content([part for part in parts if getattr(part, "type", "") not in {"tool_use", "reasoning"}]),
        "reasoning_content": "\n".join(thoughts),
        "tool_calls": [{"id": c.id, "function": {"name": c.function, "arguments": c.arguments}} for c in calls],
        "left_out": "a call that inspect_ai could not parse" if any(c.parse_error for c in calls) else "",
    }


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        part if isinstance(part, str) else {"type": part.type, "text": getattr(part, "text", None)} for part in content
    ]

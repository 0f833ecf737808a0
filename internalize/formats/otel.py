"""OpenTelemetry spans of model calls (GenAI conventions) in JSON, from a collector or the console exporter.

Each span has a whole request and its answer. The spans of a trace are its calls in the order of time; the longest
conversations are its episodes. A file of many traces is read twice, with one trace in memory at a time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from . import calls
from .chat import answered
from .reading import Located, Session, json_values
from .repairs import Raw, list_in, listed

_LISTS = ("resourceSpans", "resource_spans")
_SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans")
_VALUES = ("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue")
_CALLS = frozenset({"chat", "generate_content", "text_completion", ""})
Span = dict[str, Any]


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are spans."""
    first = head[0]
    return any(name in first for name in _LISTS) or any(
        "attributes" in record and ("context" in record or {"traceId", "trace_id"} & record.keys()) for record in head
    )


def values(path: Path) -> Iterator[Located]:
    """The spans of each trace, in the order of time. Raises DataError."""
    places: dict[str, set[int]] = defaultdict(set)  # of each trace: which values of the file hold its spans
    for number, (where, value) in enumerate(json_values(path)):
        if isinstance(value, DataError):
            raise DataError(f"{path}, {where}: {value}")
        try:
            for span in _spans(value):
                places[_trace(span)].add(number)
        except DataError as error:
            raise DataError(f"{path}, {where}: {error}") from error
    open_traces: dict[str, list[Span]] = defaultdict(list)
    for number, (_, value) in enumerate(json_values(path)):
        for span in _spans(value):
            open_traces[_trace(span)].append(span)
        for trace in [name for name in open_traces if max(places[name]) == number]:
            spans = sorted(open_traces.pop(trace), key=_start)
            yield f"trace {trace}", spans


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episodes of a trace. Raises DataError."""
    found, errors = [], []
    for span in value:
        attributes = _attributes(span)
        if str(attributes.get("gen_ai.operation.name", "")) not in _CALLS:
            continue
        messages = _messages(attributes) or _indexed(attributes)
        if messages:
            found.append((attributes, messages))
        elif any(name.startswith("gen_ai.") for name in attributes):
            errors.append(span)
    session.notes.dropped["call of a model whose messages were not recorded"] += len(errors)
    for number in calls.longest([messages for _, messages in found]):
        attributes, messages = found[number]
        line = {
            "model": attributes.get("gen_ai.response.model") or attributes.get("gen_ai.request.model"),
            "tools": attributes.get("gen_ai.tool.definitions"),
            "score": attributes.get("gen_ai.evaluation.score.value"),
            "messages": messages,
        }
        yield from answered(line, session)


def _spans(value: Any) -> Iterator[Span]:
    if not isinstance(value, Mapping):
        return
    wrapped = next((name for name in _LISTS if name in value), None)
    if wrapped is None:
        yield dict(value)
        return
    for resource in list_in(value, wrapped):
        if not isinstance(resource, Mapping):
            raise DataError(f"{wrapped}: holds what is no object")
        for scope in list_in(resource, next((name for name in _SCOPES if name in resource), _SCOPES[0])):
            yield from (span for span in list_in(scope, "spans") if isinstance(span, dict))


def _trace(span: Span) -> str:
    context = span.get("context")
    inner = context.get("trace_id") if isinstance(context, Mapping) else None
    return str(span.get("traceId") or span.get("trace_id") or inner or "")


def _start(span: Span) -> tuple[int, str]:
    start = span.get("startTimeUnixNano") or span.get("start_time_unix_nano") or span.get("start_time") or ""
    return (int(start), "") if str(start).isdigit() else (0, str(start))


def _attributes(span: Span) -> Raw:
    """The attributes by name, with those of events that hold the call's messages."""
    found = _flat(span.get("attributes"))
    for event in list_in(span, "events"):
        if isinstance(event, Mapping) and str(event.get("name", "")).startswith("gen_ai."):
            found = {**_flat(event.get("attributes")), **found}
    return found


def _flat(attributes: Any) -> Raw:
    if isinstance(attributes, Mapping):
        return dict(attributes)
    pairs = (entry for entry in (attributes if isinstance(attributes, list) else ()) if isinstance(entry, Mapping))
    return {str(entry.get("key")): _value(entry.get("value")) for entry in pairs}


def _value(value: Any) -> Any:
    """An attribute's value without the wrapper that names its type."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(array := value.get("arrayValue"), Mapping):
        return [_value(entry) for entry in array.get("values") or ()]
    if isinstance(object_ := value.get("kvlistValue"), Mapping):
        return _flat(object_.get("values"))
    return next((value[name] for name in _VALUES if name in value), None)


def _messages(attributes: Raw) -> list[Any]:
    """The conversation in the attributes of the current conventions; empty if they are missing."""
    asked, said = listed(attributes.get("gen_ai.input.messages")), listed(attributes.get("gen_ai.output.messages"))
    if not isinstance(asked, list):
        return []
    system = listed(attributes.get("gen_ai.system_instructions"))
    first = [{"role": "system", "parts": system}] if isinstance(system, list) and system else []
    turns = [*first, *asked, *(said[:1] if isinstance(said, list) else [])]
    return [message for turn in turns for message in _of_parts(turn)]


def _of_parts(turn: Any) -> list[Raw]:
    """The chat messages of a turn whose parts are text, thoughts, calls and results."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("parts"), list):
        return [dict(turn) if isinstance(turn, Mapping) else {}]
    role, results = turn.get("role"), list[Raw]()
    message: Raw = {"role": role, "content": [], "tool_calls": []}
    for part in turn["parts"]:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        text = part.get("content") if isinstance(part, Mapping) else part
        if kind == "tool_call":
            message["tool_calls"].append(
                {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("arguments")}}
            )
        elif kind == "tool_call_response":
            content = part.get("response", part.get("result"))
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": content})
        elif kind in {"reasoning", "thinking"}:
            message["reasoning_content"] = text
        elif kind == "text":
            message["content"].append({"type": "text", "text": text if isinstance(text, str) else json.dumps(text)})
        else:
            message["content"].append({"type": "file" if kind in {"blob", "uri", "file"} else kind})
    empty = not message["content"] and not message["tool_calls"] and "reasoning_content" not in message
    return [*results, *([] if results and empty else [message])]


def _indexed(attributes: Raw) -> list[Raw]:
    """The conversation in older attributes such as `gen_ai.prompt.0.content`; empty if there are none."""
    return [*_numbered(attributes, "gen_ai.prompt"), *_numbered(attributes, "gen_ai.completion")[:1]]


def _numbered(attributes: Raw, prefix: str) -> list[Raw]:
    found: dict[int, Raw] = defaultdict(dict)
    for name, value in attributes.items():
        number, _, field = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and number.isdigit() and field:
            found[int(number)][field] = value
    return [_message(found[number]) for number in sorted(found)]


def _message(fields: Raw) -> Raw:
    numbered: dict[int, Raw] = defaultdict(dict)
    for name, value in fields.items():
        head, _, rest = name.partition(".")
        number, _, field = rest.partition(".")
        if head == "tool_calls" and number.isdigit():
            numbered[int(number)][field] = value
    made = [{"id": c.get("id"), "function": {"name": c.get("name"), "arguments": c.get("arguments")}}
            for _, c in sorted(numbered.items())]  # fmt: skip
    kept = {name: fields.get(name) for name in ("role", "content", "tool_call_id", "reasoning_content")}
    content = listed(kept["content"])
    return {**kept, "content": content if isinstance(content, list) else kept["content"], "tool_calls": made}

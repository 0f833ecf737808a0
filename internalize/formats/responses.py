"""OpenAI Responses as chat messages: items become turns, thoughts, calls and results. Codex sessions use them too.

A log line has `input` and `output`, and `instructions` and `tools` beside them. No item holds the result of a
provider's tool (a web search, say): the turn that used it is context only, and so is everything after an encrypted
summary of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from .chat import answered
from .notes import Notes
from .reading import Session
from .repairs import Raw, kind_of, list_in, listed
from .sessions import Thread, episodes_of, records

HIDDEN = "used a tool of the provider whose result is not in the log"
ENCRYPTED = "follows a summary of the provider that is encrypted"
_CALLS: dict[str, Callable[[Raw], tuple[object, object]]] = {  # name and arguments
    "function_call": lambda item: (item.get("name"), item.get("arguments")),
    "custom_tool_call": lambda item: (item.get("name"), {"input": item.get("input") or ""}),
    "local_shell_call": lambda item: ("local_shell", item.get("action")),
    "shell_call": lambda item: ("shell", item.get("action")),
    "apply_patch_call": lambda item: ("apply_patch", item.get("operation")),
    "computer_call": lambda item: ("computer", item.get("action") or {"actions": item.get("actions")}),
}
_HIDDEN = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "tool_search_call"}
)
_SUMMARIES = frozenset({"compaction", "compaction_summary"})
_ASIDE = _SUMMARIES | frozenset(
    {"mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "tool_search_output"}
)


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are conversations as items of Responses."""
    return "output" in head[0] and ("input" in head[0] or "instructions" in head[0])


def recognizes_codex(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are records of a Codex session."""
    return any(kind_of(record) in {"session_meta", "response_item"} and "payload" in record for record in head)


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The trajectory of one line. Raises DataError."""
    if not isinstance(value, Mapping):
        raise DataError("is no JSON object")
    yield from answered(as_chat(value, session.notes), session)


def read_codex(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episodes of a session; the part after a compaction is its own episode. Raises DataError."""
    threads, model, about = [Thread()], None, dict[str, Any]()
    for line, record in records(value, session):
        payload = record.get("payload")
        if not isinstance(payload, dict):
            session.notes.dropped[f"record of type {record.get('type')}"] += 1
        elif record.get("type") == "response_item":
            threads[-1].add(line, *chat_messages([payload], session.notes))
        elif record.get("type") == "compacted":
            threads.append(_compacted(line, payload, session.notes))
        elif record.get("type") == "session_meta" and not about:
            about = payload
            if instructions := _instructions(payload):
                threads[-1].add(line, {"role": "system", "content": instructions})
        else:
            model = payload.get("model") or model if record.get("type") == "turn_context" else model
            session.notes.dropped[f"record of type {record.get('type')}"] += 1
    yield from episodes_of(threads, session, model=model)


def as_chat(value: Mapping[str, Any], notes: Notes) -> Raw:
    """A line with its conversation in `messages`, in the chat format."""
    items = listed(value.get("input")) or []
    asked = [{"role": "user", "content": items}] if isinstance(items, str) else chat_messages(items, notes)
    system = [{"role": "system", "content": value["instructions"]}] if value.get("instructions") else []
    return {**value, "messages": [*system, *asked, *chat_messages(listed(value.get("output")) or [], notes)]}


def chat_messages(items: object, notes: Notes) -> list[Any]:
    """The chat messages that items stand for, in order. Raises DataError for an unknown type."""
    if not isinstance(items, list):
        raise DataError("input, output: is no list of items")
    return [message for number, item in enumerate(items) for message in _messages(number, item, notes)]


def _messages(number: int, item: object, notes: Notes) -> Iterable[Raw]:
    if not isinstance(item, Mapping):
        raise DataError(f"item {number}: is no JSON object")
    kind, data = str(item.get("type") or "message"), dict(item)
    if kind in {"message", "agent_message"}:
        return [{key: data[key] for key in ("role", "content") if key in data}]
    if kind == "reasoning":
        return _thoughts(data)
    call_id = data.get("call_id") or data.get("id")
    if kind in _CALLS:
        return [_call(call_id, *_CALLS[kind](data))]
    result = {"role": "tool", "tool_call_id": call_id, "content": _seen(data.get("output") or data.get("error"))}
    if kind.endswith("_call_output"):
        return [result]
    if kind == "mcp_call":
        return [_call(call_id, data.get("name"), data.get("arguments")), result]
    return _aside(number, kind, notes)


def _aside(number: int, kind: str, notes: Notes) -> list[Raw]:
    """Handle items without content of the conversation, or with hidden content. Raises DataError for others."""
    if kind in _HIDDEN:
        notes.dropped[f"item of type {kind}"] += 1
        return [{"role": "assistant", "content": "", "left_out": HIDDEN}]
    if kind in _ASIDE or kind.endswith("ghost_snapshot"):
        notes.dropped[f"item of type {kind}"] += 1
        return []
    raise DataError(f"item {number}: type {kind} is not known")


def _call(call_id: object, name: object, arguments: object) -> Raw:
    call = {"id": call_id, "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _seen(output: object) -> object:
    """A tool's result as content; a screenshot is a part that is no text."""
    if isinstance(output, Mapping) and output.get("type") == "computer_screenshot":
        return [{"type": "image"}]
    return "" if output is None else output


def _thoughts(item: Raw) -> list[Raw]:
    parts = [*list_in(item, "summary"), *list_in(item, "content")]
    texts = [str(part["text"]) for part in parts if isinstance(part, Mapping) and part.get("text")]
    return [{"role": "assistant", "content": "", "reasoning_content": "\n".join(texts)}] if texts else []


def _instructions(payload: Mapping[str, Any]) -> object:
    base = payload.get("base_instructions")
    return base.get("text") if isinstance(base, Mapping) else base or payload.get("instructions")


def _compacted(line: int, payload: Mapping[str, Any], notes: Notes) -> Thread:
    thread = Thread()
    history = payload.get("replacement_history")
    if isinstance(history, list) and history:
        thread.add(line, *chat_messages(history, notes))
        copied = thread.copied()
        copied.hidden = ENCRYPTED if any(kind_of(item) in _SUMMARIES for item in history) else ""
        return copied
    thread.add(line, {"role": "user", "content": payload.get("message") or ""})
    return thread

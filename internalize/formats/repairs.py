"""Repairs known faults of logs in the chat format. Each fault has one interpretation, and each repair is counted.

Ambiguous faults stay, and the schema in `wire` refuses them. Text that the model may not have written in this form is
kept as context and marked `left_out`, so that no training learns it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from internalize.errors import DataError
from internalize.inference.call_formats import split_thought

from .notes import Notes

Raw = dict[str, Any]

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})
_MEDIA = frozenset(
    {"image_url", "image", "input_image", "input_audio", "audio", "file", "input_file", "document", "video"}
)
_THOUGHTS = ("reasoning", "thinking", "reasoning_text")  # other names of `reasoning_content`
_SHARE_GPT = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}
_TERMINATIONS = {
    "answered": {"answered", "answer", "submitted", "completed", "complete", "finished", "done", "success", "stop",
                 "endturn", "agentstop", "userstop"},
    "max_steps": {"maxsteps", "maxturns", "maxiterations", "limitsexceeded", "toomanyerrors", "timeout", "exitcost"},
    "context_full": {"contextfull", "contextwindowexceeded", "exitcontext", "length", "maxtokens"},
    "failed": {"failed"},
}  # fmt: skip
NOT_AS_WRITTEN = "text that is not as the model wrote it"


def parsed(value: object) -> object:
    """The value of JSON text; anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def kind_of(value: object) -> str:
    """The `type` of an object; "" if the value is no object."""
    return str(value.get("type") or "") if isinstance(value, Mapping) else ""


def list_in(value: object, name: str) -> list[Any]:
    """The list in a field of an object; empty if there is none. Raises DataError for anything else."""
    found = value.get(name) if isinstance(value, Mapping) else value
    if found is None:
        return []
    if not isinstance(value, Mapping) or not isinstance(found, list):
        raise DataError(f"{name}: is no list")
    return found


def arguments_of(value: object, notes: Notes) -> object:
    """The arguments of a call as the text of one JSON object, if they are one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        notes.repaired["empty arguments, read as {}"] += value is not None
        return "{}"
    if isinstance(value, Mapping):  # columns of tables hold every key that any row has
        kept = without_nulls(value)
        notes.repaired["null arguments of an object, dropped"] += kept != value
        return json.dumps(kept, ensure_ascii=False)
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    inner = parsed(value)
    while isinstance(inner, str) and isinstance(parsed(inner), str | dict) and parsed(inner) != inner:
        value, inner = inner, parsed(inner)
        notes.repaired["arguments encoded twice"] += 1
    return value


def readable(arguments: str) -> bool:
    """Whether a call's arguments are one JSON object that can be written again."""
    values = parsed(arguments)
    if not isinstance(values, dict):
        return False
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def without_nulls(value: Mapping[str, object]) -> dict[str, object]:
    """An object without the keys whose value is null, inner objects too."""
    return {
        key: without_nulls(inner) if isinstance(inner, Mapping) else inner
        for key, inner in value.items()
        if inner is not None
    }


def call_of(value: object, notes: Notes) -> object:
    """An entry of `tool_calls` as `{id, function: {name, arguments}}`."""
    if not isinstance(value, Mapping) or isinstance(value.get("function"), Mapping):
        return value
    if isinstance(custom := value.get("custom"), Mapping):
        notes.repaired["call of a custom tool, its text as the argument `input`"] += 1
        text = custom.get("input")
        return {**value, "function": {"name": custom.get("name"), "arguments": {"input": "" if text is None else text}}}
    if "name" in value:
        arguments = value.get("arguments", value.get("args", value.get("input")))
        return {**value, "function": {"name": value["name"], "arguments": arguments}}
    return value


def message_of(value: object, notes: Notes) -> object:
    """A message with role, content, thoughts and calls in the schema's fields."""
    if not isinstance(value, Mapping):
        return value
    message = without_surrogates({**value, "media": None, "left_out": value.get("left_out") or ""}, notes)
    _role(message, notes)
    _calls(message, notes)
    if message.get("role") != "assistant":
        message["tool_calls"] = message.get("tool_calls") or []
    _content(message, notes)
    if message.get("role") == "assistant":
        _thoughts(message)
    return message


def without_surrogates(message: Raw, notes: Notes) -> Raw:
    """A message with U+FFFD for lone surrogates; a model's turn with one is left out."""
    whole: Raw = _whole(message)
    if whole is message:
        return message
    notes.repaired["half a character (a lone surrogate), replaced"] += 1
    return {**whole, "left_out": NOT_AS_WRITTEN} if message.get("role") == "assistant" else whole


def _whole(value: Any) -> Any:
    """A JSON value with U+FFFD for lone surrogates; the value itself if it has none."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except (TypeError, ValueError, RecursionError):
        pass  # no JSON: built by this program, or refused by the schema
    return value


def _role(message: Raw, notes: Notes) -> None:
    if "role" not in message and isinstance(speaker := message.get("from"), str):
        message["role"], message["content"] = _SHARE_GPT.get(speaker, speaker), message.get("value")
        if speaker == "function_call":
            call = parsed(message["content"])
            message |= {"role": "assistant", "content": None, "tool_calls": [call] if isinstance(call, dict) else call}
    if message.get("role") == "function":
        message["role"] = "tool"
        notes.repaired["result with the old role `function`"] += 1


def _calls(message: Raw, notes: Notes) -> None:
    calls = parsed(message.get("tool_calls"))
    if isinstance(calls, Mapping):
        notes.repaired["a single call outside a list"] += 1
        calls = [calls]
    old = parsed(message.get("function_call"))
    if not calls and isinstance(old, Mapping) and old.get("name"):
        notes.repaired["call in the old field `function_call`"] += 1
        calls = [{"function": dict(old)}]
    if isinstance(calls, list):
        calls = [_with_whole_arguments(message, parsed(call), notes) for call in calls if call is not None]
    message["tool_calls"] = [] if calls is None else calls


def _with_whole_arguments(message: Raw, call: object, notes: Notes) -> object:
    """A call whose arguments have no lone surrogate behind an escape; else its turn is left out."""
    function = call.get("function") if isinstance(call, Mapping) else None
    values = parsed(function.get("arguments")) if isinstance(function, Mapping) else None
    whole = _whole(values)
    if whole is values or not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    notes.repaired["half a character (a lone surrogate), replaced"] += 1
    message["left_out"] = NOT_AS_WRITTEN
    return {**call, "function": {**function, "arguments": json.dumps(whole, ensure_ascii=False)}}


def _content(message: Raw, notes: Notes) -> None:
    content = message.get("content")
    refusal = message.get("refusal")
    if isinstance(content, Mapping) and content.get("type") in _TEXT_PARTS:
        content = [content]
    if content is None:
        message["content"] = refusal if isinstance(refusal, str) else ""
    elif isinstance(content, list) and (message.get("role") != "tool" or all(map(_is_known, content))):
        texts = [_part(message, part, notes) for part in content]
        message["content"] = "".join(texts)
    elif not isinstance(content, str):
        notes.repaired["content that is no text, kept as JSON"] += 1
        message["content"] = json.dumps(content, ensure_ascii=False)
        if message.get("role") == "assistant":
            message["left_out"] = NOT_AS_WRITTEN


def _is_known(part: object) -> bool:
    return isinstance(part, str) or kind_of(part) in _TEXT_PARTS | _MEDIA


def _part(message: Raw, part: object, notes: Notes) -> str:
    """The text of a part; for anything else (an image) only a mark."""
    if isinstance(part, str):
        return part
    kind = kind_of(part) if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    if kind in {"thinking", "redacted_thinking"} and isinstance(part, Mapping):
        thoughts = (message.get("reasoning_content"), part.get("thinking"))
        message["reasoning_content"] = "\n".join(text for text in thoughts if text and isinstance(text, str))
        return ""
    if kind not in _MEDIA:
        raise ValueError(f"a part has type {kind}; only text is supported")
    notes.dropped[f"part of type {kind}"] += 1
    message["media"] = True
    return ""


def _thoughts(message: Raw) -> None:
    for name in _THOUGHTS:
        if not message.get("reasoning_content") and isinstance(message.get(name), str):
            message["reasoning_content"] = message[name]


def _apart(message: Any, notes: Notes) -> Any:
    """A model's turn with the thoughts from the start of its content in their own field."""
    content = message.get("content") if isinstance(message, Mapping) and message.get("role") == "assistant" else None
    reasoning, rest = split_thought(content) if isinstance(content, str) else ("", content)
    if rest == content:
        return message
    notes.repaired["thoughts in the content, taken apart"] += 1
    return {**message, "content": rest, "reasoning_content": message.get("reasoning_content") or reasoning}


def tool_of(value: object, notes: Notes) -> object:
    """The function of an entry of `tools`, with its schema as an object."""
    tool = parsed(value)
    if not isinstance(tool, Mapping):
        return value
    inner = next((tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), Mapping)), tool)
    schema = parsed(inner.get("parameters", inner.get("input_schema", inner.get("inputSchema"))))
    if isinstance(schema, Mapping):
        kept = without_nulls(schema)
        notes.repaired["null keys of a tool's schema, dropped"] += kept != schema
        schema = kept
    return {**inner, "description": inner.get("description") or "", "parameters": schema}


def score_of(value: object, notes: Notes) -> object:
    """A score that is a number: of text that is one, or of an object that holds exactly one."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        notes.repaired["score written as text"] += 1
        return number
    if isinstance(value, Mapping):
        numbers = [inner for inner in value.values() if isinstance(inner, int | float) and not isinstance(inner, bool)]
        named = [value[name] for name in ("score", "reward", "value") if isinstance(value.get(name), int | float)]
        if len(found := named[:1] or numbers) == 1:
            notes.repaired["score inside an object"] += 1
            return float(found[0])
    return value


def name_of(value: object) -> object:
    """A name given as a number (3.0 is `3`), or as an object: its `id`, or else its JSON text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return str(int(value)) if value == value // 1 else str(value)
    if isinstance(value, Mapping):
        ids = (value[name] for name in ("id", "task_id", "name") if isinstance(value.get(name), int | float | str))
        return name_of(next(ids, json.dumps(value, sort_keys=True, ensure_ascii=False)))
    return value


def line_of(value: Mapping[str, object], notes: Notes) -> Raw:
    """A line with its conversation in `messages`, its tools as a list, and a termination of the schema."""
    line = dict(value)
    messages = listed(line.get("messages", line.get("conversations")))
    if messages is None and "prompt" in line and "completion" in line:
        prompt = _turns(line["prompt"], "user")
        given = [
            {**turn, "left_out": "part of the prompt"} if turn.get("role") == "assistant" else turn for turn in prompt
        ]
        messages = [*given, *_turns(line["completion"], "assistant")]
    if isinstance(messages, list):
        if system := line.get("system"):
            messages = [{"role": "system", "content": system}, *messages]
        messages, ended = _without_exit(messages, notes)
        line["messages"] = [_apart(message, notes) for message in _with_old_results(messages, notes)]
        line["termination"] = line.get("termination") or ended
    line["tools"] = listed(line.get("tools") or line.get("functions"))
    line["termination"] = termination_of(line["termination"], notes) if line.get("termination") else None
    return line


def listed(value: object) -> object:
    """A list that may be written as JSON text, without null entries."""
    value = parsed(value)
    return [entry for entry in value if entry is not None] if isinstance(value, list) else value


def termination_of(value: object, notes: Notes) -> str | None:
    """How an episode ended, in this package's words; None (it is then inferred) for an unknown word."""
    word = re.sub("[^a-z]", "", str(value).lower())
    known = next((kind for kind, words in _TERMINATIONS.items() if word in words), None)
    notes.dropped[f"termination {str(value)[:40]!r}, not known"] += known is None
    return known


def _turns(value: object, role: str) -> list[Raw]:
    """A prompt or completion as messages; text is one message of `role`."""
    value = listed(value)
    turns = value if isinstance(value, list) else [{"role": role, "content": value}]
    return [turn if isinstance(turn, dict) else {"role": role, "content": turn} for turn in turns]


def _without_exit(messages: list[Any], notes: Notes) -> tuple[list[Any], object]:
    """The messages without a last one of the role `exit`, which tells the episode's end and is no part of it."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "exit":
        return messages, None
    notes.dropped["message with the role `exit`, read as the end"] += 1
    extra = last.get("extra")
    return messages[:-1], (extra.get("exit_status") if isinstance(extra, Mapping) else None) or last.get("content")


def _with_old_results(messages: list[Any], notes: Notes) -> list[Any]:
    """With the user message right after an old `function_call` as its result, where there is no other."""
    found = list(messages)
    for number, (turn, reply) in enumerate(pairwise(found), start=1):
        if not isinstance(turn, Mapping) or not isinstance(reply, Mapping) or turn.get("tool_calls"):
            continue
        if turn.get("function_call") and reply.get("role") == "user":
            notes.repaired["user message after an old `function_call`, read as its result"] += 1
            found[number] = {**reply, "role": "tool"}
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")

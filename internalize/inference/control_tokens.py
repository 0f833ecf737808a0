"""Breaks up control tokens in untrusted text before it is sent to a server, for the tokens of all model families.

A server encodes the whole rendered prompt, so `<|im_end|>` in a page would end the turn that holds the page. Only the
sent text is changed, by a space after the first character of a token; what is stored is not. If a reply quotes a broken
token, the space is removed before anything reads the reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import JsonValue

from internalize.records import Message, Reply, ToolCall, ToolSpec

_WORDS = (  # between < and >, with or without a slash
    r"s|bos|eos|pad|unk|cls|sep|mask|sop|eop|eoa|eoh|BOS_TOKEN|EOS_TOKEN|PAD_TOKEN|endoftext|(?:start|end)_of_\w{1,20}|"
    r"(?:begin|end)_of_\w{1,20}|seed:\w{1,20}|SPECIAL_\d{1,4}|extra_id_\d{1,4}|reserved_\d{1,4}|unused\d{1,4}|"
    r"\w{1,30}_token\d{0,4}|im_start|im_end|tool_response"
)
_BRACKETED = (  # between [ and ], with or without a slash
    r"INST|TOOL_\w{1,20}|AVAILABLE_TOOLS|SYSTEM_PROMPT|MODEL_SETTINGS|THINK|ARGS|CALL_ID|IMG|IMG_\w{1,10}|AUDIO|"
    r"BEGIN_AUDIO|BOS|EOS|PREFIX|SUFFIX|MIDDLE|gMASK|sMASK|MASK|CLS|SEP|PAD|UNK|control_\d{1,4}"
)
_CONTROL = re.compile(
    rf"<(?=[|\uff5c]|/?(?:{_WORDS})>|<\s*/?\s*SYS|[a-z_]{{1,30}}\|>|\[\w{{1,60}}\]?>)"
    rf"|\[(?=\||/?(?:{_BRACKETED})\]|e~\[)|\](?=~!?b[\[\]]|<\]|!p~\[|!d~\[)"
)
# A token to its end, as far as one can tell.
_WHOLE = re.compile(rf"(?:{_CONTROL.pattern}).[^\s<>\[\]]{{0,64}}[>\]\[]?", re.DOTALL)


def inert(text: str) -> str:
    """`text` with every control token broken up."""
    return _CONTROL.sub(r"\g<0> ", text) if "<" in text or "[" in text or "]" in text else text


def inert_message(message: Message) -> Message:
    """The message with control tokens broken up in its text, its calls and their names."""
    calls = tuple(_call(call, inert) for call in message.tool_calls)
    return message.model_copy(update={"content": inert(message.text), "tool_calls": calls})


def inert_tool(tool: ToolSpec) -> ToolSpec:
    """The tool with control tokens broken up in all text that its server or author wrote."""
    parameters = tool.parameters and {inert(key): _value(value) for key, value in tool.parameters.items()}
    texts = {name: inert(getattr(tool, name)) for name in ("name", "argument", "description")}
    return tool.model_copy(update={**texts, "parameters": parameters})


def restored(reply: Reply, messages: Sequence[Message]) -> Reply:
    """A reply to these messages that quotes control tokens as the messages have them, not as they were sent.

    A token that the messages have in both forms is left as the model wrote it.
    """
    texts = [text for message in messages for text in _texts(message)]
    tokens = {found[0] for text in texts for found in _WHOLE.finditer(text)}
    sent = {inert(token): token for token in sorted(tokens, key=len, reverse=True)}
    known = {form: token for form, token in sent.items() if not any(form in text for text in texts)}
    if not known:
        return reply

    def back(text: str) -> str:
        for form, token in known.items():
            text = text.replace(form, token)
        return text

    calls = tuple(_call(call, back) for call in reply.tool_calls)
    return reply.model_copy(update={"text": back(reply.text), "reasoning": back(reply.reasoning), "tool_calls": calls})


def _texts(message: Message) -> Iterable[str]:
    yield message.text
    for call in message.tool_calls:
        yield from (call.name, call.arguments)


def _call(call: ToolCall, change: Callable[[str], str]) -> ToolCall:
    return call.model_copy(update={"name": change(call.name), "arguments": change(call.arguments)})


def _value(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, Mapping):
        return {inert(key): _value(one) for key, one in value.items()}
    return [_value(one) for one in value] if isinstance(value, list) else value

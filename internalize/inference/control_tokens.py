"""Text of others on its way to a server, in which no model family finds a control token of its chat template.

A server encodes the whole rendered prompt, so that `<|im_end|>` in a page ends the turn the page stands in. What is
stored stays as it was: only what is sent is changed, by a space after the first character of a token.
"""

from __future__ import annotations

import re

from internalize.records import Message

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


def inert(text: str) -> str:
    """`text` with every control token broken up."""
    return _CONTROL.sub(r"\g<0> ", text) if "<" in text or "[" in text or "]" in text else text


def inert_message(message: Message) -> Message:
    """The message with its text, its calls and their names so."""
    calls = tuple(
        call.model_copy(update={"name": inert(call.name), "arguments": inert(call.arguments)})
        for call in message.tool_calls
    )
    return message.model_copy(update={"content": inert(message.text), "tool_calls": calls})

"""Renders the chat template of a tokenizer with the run's arguments and date, and adapts messages that it refuses.

The form in which a template wants its messages (ids of calls, arguments as objects or text, empty content or none, a
system message or none) is found by rendering, never by the model's name.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from internalize.errors import UserError, first_line
from internalize.records import Message, ToolCall, ToolSpec

from .call_formats import THOUGHTS
from .encoding import ControlTokens
from .tool_schema import tool_dict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = dict[str, Any]  # a message as a template takes it
DATE = "2026-01-01"  # today's date for templates, unless the recipe sets another
_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>.*?)(?P=quote)\s*\)""")
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


class Unrenderable(UserError):  # noqa: N818 - a decision of the template
    """The template refuses these messages, or fails on them."""


@dataclass(frozen=True)
class Dialect:
    """The form of calls for one template. `ids`: a format of number and tool, if the template demands a form of ids."""

    ids: str = "call_{number}"
    text_arguments: bool = False
    empty: str | None = ""  # the content of a turn with calls only

    def call(self, call: ToolCall, number: int, control: ControlTokens) -> Chat:
        """A call with its strings marked."""
        values = _marked(call.values, control)
        arguments = json.dumps(values, ensure_ascii=False) if self.text_arguments else values
        name = control.mark(call.name)
        return {"id": self.id(call, number), "type": "function", "function": {"name": name, "arguments": arguments}}

    def id(self, call: ToolCall, number: int) -> str:
        """The id of call `number` of an episode."""
        return self.ids.format(number=number, name=call.name)


DIALECTS = tuple(
    Dialect(ids, text, empty)
    for ids in ("call_{number}", "{number:09d}", "functions.{name}:{number}")
    for text in (False, True)
    for empty in ("", None)
)


@dataclass(frozen=True)
class ChatTemplate:
    """A template with its arguments. Raises UserError if there is none, or if it has no such argument."""

    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    arguments: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE
    folds_system: bool = False  # a system message is put before the first user message
    parts: bool = False  # contents are lists of parts
    lists_tools: bool = False  # it iterates over tools even if there are none

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None, date: str = DATE
    ) -> ChatTemplate:
        """The template of a tokenizer, tried on a conversation."""
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template; use an instruction-tuned model")
        template = cls(tokenizer, ControlTokens(tokenizer), arguments or {}, date)
        for name in template.arguments:
            if not re.search(rf"\b{re.escape(name)}\b", template.source):
                raise UserError(f"model.template.{name}: the chat template has no such argument")
        shapes = [
            replace(template, folds_system=folds, parts=parts, lists_tools=lists)
            for lists in (False, True)
            for parts in (False, True)
            for folds in (False, True)
        ]
        if found := next((shape for shape in shapes if shape.shows()), None):
            return found
        template.render([{"role": "user", "content": "a"}])  # says what is wrong
        raise UserError("the chat template does not show what it is given; it cannot be used")

    @property
    def source(self) -> str:
        """The text of the template, or of all if there are several."""
        found = self.tokenizer.chat_template
        return found if isinstance(found, str) else "\n".join(map(str, found.values()))

    @property
    def thought_key(self) -> str:
        """The field from which the template takes the thoughts of a turn; "" if there is none."""
        return next((key for key in _THOUGHT_KEYS if re.search(rf"\b{key}\b", self.source)), "")

    def render(self, messages: Sequence[Chat], tools: Sequence[Chat] = (), *, generation_prompt: bool = True) -> str:
        """The text of a conversation. Raises Unrenderable."""
        if self.folds_system and messages and messages[0]["role"] == "system":
            messages = folded(messages)
        if self.parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"] or ""}]} for message in messages
            ]
        listed = list(tools) or ([] if self.lists_tools else None)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=listed,
                    chat_template=self._dated(self.tokenizer.get_chat_template(tools=list(tools) or None)),
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **self.arguments,
                )
            )
        except Exception as error:
            raise Unrenderable(f"the chat template cannot render a conversation: {first_line(error)}") from error

    def chat(self, message: Message) -> Chat:
        """A message of a prompt, or a result, marked."""
        return {"role": message.role, "content": self.control.mark(message.text)}

    def tool(self, tool: ToolSpec) -> Chat:
        """A tool in the OpenAI format, marked."""
        shown: Chat = _marked(tool_dict(tool), self.control)
        return shown

    def thought(self, text: str, content: str | None) -> Chat:
        """The fields of a turn with a thought."""
        if key := self.thought_key:
            return {key: text, "content": content}
        pairs = (pair for pair in THOUGHTS if pair[0] in self.source and pair[1] in self.source)
        opening, closing = next(pairs, THOUGHTS[0])
        return {"content": f"{opening}\n{text}\n{closing}\n\n{content or ''}"}

    def _dated(self, source: str) -> str:
        """The template with the run's date in place of today's, so that ids are the same after midnight."""
        date = dt.date.fromisoformat(self.date)
        return _TODAY.sub(lambda found: json.dumps(date.strftime(found["form"])), source)

    def shows(self) -> bool:
        """Whether system and user message are in the text in this order, also after further turns.

        Some templates move the system message to the last user message, and drop it when results follow.
        """
        chat = [{"role": role, "content": f"@@{role}@@"} for role in ("system", "user", "assistant")]
        try:
            text = self.render(chat[:2])
        except Unrenderable:
            return False
        try:
            later = self.render([*chat, {"role": "user", "content": "@@again@@"}])
        except Unrenderable:
            later = text
        return all(0 <= one.find("@@system@@") < one.find("@@user@@") for one in (text, later))


def folded(messages: Sequence[Chat]) -> list[Chat]:
    """The messages with the system message at the start of the first user message."""
    system, *rest = messages
    for number, message in enumerate(rest):
        if message["role"] == "user":
            rest[number] = {**message, "content": f"{system['content']}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system["content"]}, *rest]


def _marked(value: Any, control: ControlTokens) -> Any:
    """A JSON value with every string in it marked."""
    if isinstance(value, str):
        return control.mark(value)
    if isinstance(value, Mapping):
        return {control.mark(str(key)): _marked(one, control) for key, one in value.items()}
    return [_marked(one, control) for one in value] if isinstance(value, list | tuple) else value

"""Finds out how one chat template writes turns, calls and results, by rendering a few conversations with it.

A sampled turn is rendered with placeholders ("places") for its thought, its content and the arguments of its calls. The
template's text around the places tells where the turn begins and ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

from internalize.interfaces import ToolFormat
from internalize.records import Message, ToolCall, ToolSpec

from .call_formats import CALL_FORMATS, THOUGHTS, CallFormat, read_calls, split_harmony, split_thought
from .template import DIALECTS, Chat, ChatTemplate, Dialect, Unrenderable
from .tool_formats import as_text, as_user, assistant

PLACE = f"@{secrets.token_hex(8)}:"  # starts every place; it reaches no ids
_AFTER = f"{PLACE}after@"  # a result or a question behind a turn
_LOOK = ToolSpec(name="look_up", argument="word", description="Looks a word up.")
ASK = Message(role="user", content="Look it up.")
_NO_END = "the chat template does not end an assistant's turn with a control token"


def place(number: int, part: str) -> str:
    """The place of a part of turn `number`: its thought (r), content (c) or arguments (a)."""
    return f"{PLACE}{number}{part}@"


class Control(NamedTuple):
    """A control token in a rendered text."""

    start: int
    end: int
    id: int


class Turns:
    """How a template writes turns. `tool_format` None: the template writes tools and calls. Raises Unrenderable."""

    def __init__(self, template: ChatTemplate, tool_format: ToolFormat | None, stop_ids: Collection[int]) -> None:
        self.template, self.control, self.tool_format = template, template.control, tool_format
        self.stop_ids = frozenset(stop_ids)
        self.dialect, self.form, self.parallel = Dialect(), CALL_FORMATS["hermes"], False
        self.header = self._find_header()
        self.opened = next((pair for pair in THOUGHTS if self.header.rstrip().endswith(pair[0])), None)
        self.closes = {False: self._find_closing(())}  # by whether a turn has calls: whether it has an end of its own
        self.end_id, self.before_end = self._find_end()
        if tool_format is None:
            self._find_format()
        else:
            self._require_readable()

    # -- messages -------------------------------------------------------------------------------------------------

    def prompt(self, message: Message) -> Chat:
        """A message of a prompt."""
        return self.written(message) if message.role == "assistant" else self.template.chat(message)

    def placed(self, number: int, calls: Sequence[ToolCall], *, thought: bool = False) -> Chat:
        """Turn `number` of an episode, with places for its parts."""
        shown: Chat = {"role": "assistant", "content": place(number, "c")}
        if calls and not self.tool_format:
            value = place(number, "a")
            arguments = f'{{"{value}": "{value}"}}' if self.dialect.text_arguments else {value: value}
            shown |= {"content": self.dialect.empty, "tool_calls": self._calls(calls)}
            for call in shown["tool_calls"]:
                call["function"]["arguments"] = arguments
        return shown | self.template.thought(place(number, "r"), shown["content"]) if thought else shown

    def written(self, message: Message, tools: Sequence[ToolSpec] = ()) -> Chat:
        """A turn with its own parts, marked. With a tool format its calls are text."""
        text, calls = message.text, message.tool_calls
        if self.tool_format and calls:
            text, calls = as_text(message.model_copy(update={"reasoning": ""}), self.tool_format, tools), ()
        content = self.marked(text) if text or not calls else self.dialect.empty
        shown: Chat = {"role": "assistant", "content": content}
        if calls:
            shown["tool_calls"] = self._calls(calls)
        thought = self.control.mark(message.reasoning)
        return shown | self.template.thought(thought, content) if thought else shown

    def marked(self, text: str) -> str:
        """A turn's text, marked; with a tool format it may hold ordinary control tokens such as <tool_call>."""
        return self.control.mark(text, keep=self.control.ordinary if self.tool_format else ())

    def results(self, calls: Sequence[ToolCall], results: Sequence[Message]) -> list[Chat]:
        """The results of a turn: one message for each, or with a tool format one user message for all."""
        if self.tool_format:
            return [self.template.chat(as_user(results))] if results else []
        shown = [self.template.chat(result) for result in results]
        for chat, (number, call) in zip(shown, _numbered(calls), strict=False):
            chat |= {
                "role": "tool",
                "name": self.control.mark(call.name),
                "tool_call_id": self.dialect.id(call, number),
            }
        return shown

    def tools(self, tools: Sequence[ToolSpec]) -> list[Chat]:
        """The tools as they are passed to the template."""
        return [] if self.tool_format else [self.template.tool(tool) for tool in tools]

    def _calls(self, calls: Sequence[ToolCall]) -> list[Chat]:
        return [self.dialect.call(call, number, self.control) for number, call in _numbered(calls)]

    # -- a turn as text -------------------------------------------------------------------------------------------

    def text(self, message: Message, tools: Sequence[ToolSpec]) -> str:
        """A turn with its end as this template writes it, marked.

        A thought is left out if the template cannot write it so that it is parsed as a thought.
        """
        text = self._text(message, tools)
        if message.reasoning and self.read(self.control.plain(text), tools)[0].reasoning != message.reasoning.strip():
            return self._text(message.model_copy(update={"reasoning": ""}), tools)
        return text

    def _text(self, message: Message, tools: Sequence[ToolSpec]) -> str:
        listed, ask, turn = self.tools(tools), self.template.chat(ASK), self.written(message, tools)
        start = self.template.render([ask], listed)
        follow = self._follow(message.tool_calls)
        text = self.template.render([ask, turn, *follow], listed)
        begin, end = turn_start(start, text), text.find(_AFTER)
        stop = next((one for one in self.controls(text, begin, end) if one.id in self.stop_ids), None)
        if stop is None:  # only where the turn is the last one does its end stand in the text
            text = self.template.render([ask, turn], listed, generation_prompt=False)
            begin = turn_start(start, text)
            stop = next((one for one in self.controls(text, begin, len(text)) if one.id in self.stop_ids), None)
        found = text[begin : stop.end if stop else len(text)]
        if self.opened and self.opened[1] not in found:  # the template cuts the thoughts of past turns
            found = f"{self.control.mark(message.reasoning)}\n{self.opened[1]}\n\n" + found.lstrip("\n")
        return found if stop else found + self.control.text_of(self.end_id)

    def read(self, text: str, tools: Sequence[ToolSpec]) -> tuple[Message, str]:
        """A turn's text (its end may be there) as a message, and what is wrong with a call in it."""
        text = self.without_end(text)
        if self.tool_format:
            text = f"{self.opened[0]}{text}" if self.opened else text
            return self.tool_format.parse(text, tools), self.tool_format.problem(text, tools)
        if self.form is CALL_FORMATS["harmony"]:
            thought, rest = split_harmony(text)
        else:
            thought, rest = split_thought(text, [self.opened] if self.opened else THOUGHTS, opened=bool(self.opened))
        found = read_calls(rest, self.form, tools)
        if len(found.calls) > 1 and not self.parallel:
            found = found._replace(calls=found.calls[:1], problem="only one call a turn can be made; the first was")
        return assistant(found.content, thought, *found.calls), found.problem

    def without_end(self, text: str) -> str:
        """A turn's text without its end of turn."""
        ends = sorted((self.control.text_of(number) for number in self.stop_ids), key=len, reverse=True)
        for end in ends:
            text = text.removesuffix(end)
        return text.removesuffix(self.before_end)

    def thought_mark(self, text: str) -> str:
        """The mark that closes the thought in a turn's text; "" if it has none."""
        if self.opened:
            return self.opened[1] if self.opened[1] in text else ""
        for opening, closing in THOUGHTS:
            if closing in text and (opening in text or closing in ("</think>", "[/THINK]")):
                return closing
        return ""

    def closing(self, text: str) -> str:
        """The template's text that closes the thought in which a turn's text ends; "" if no thought is open."""
        start = text.lstrip()
        pair = self.opened or next((pair for pair in THOUGHTS if start.startswith(pair[0])), None)
        if pair is None or pair[1] in text:
            return ""
        turn = self.placed(0, (), thought=True)
        try:
            shown = self.template.render([self.template.chat(ASK), turn], generation_prompt=False)
        except Unrenderable:
            shown = ""
        between = shown.partition(place(0, "r"))[2].partition(place(0, "c"))[0]
        before, mark, rest = between.partition(pair[1])
        if not mark or before.strip():  # the template writes no thoughts
            before, mark, rest = "\n", pair[1], "\n\n"
        elif self.header and rest.startswith(self.header):  # the thought is a message, and the action another
            rest = self.header
        return ("" if text.endswith("\n") else before) + mark + (rest if rest == self.header else _blank(rest))

    # -- where turns are ------------------------------------------------------------------------------------------

    def controls(self, text: str, start: int, end: int) -> list[Control]:
        """The control tokens in a part of a rendered text."""
        return [one for one in (Control(*found) for found in self.control.find(text, start)) if one.start < end]

    def end_of_turn(self, text: str, last: int, limit: int) -> Control:
        """The end of the turn whose last place is at `last`: a stop id, else the next control token."""
        found = self.controls(text, last, limit)
        if not found:
            raise Unrenderable(_NO_END)
        return next((one for one in found if one.id in self.stop_ids), found[0])

    # -- what the template does -----------------------------------------------------------------------------------

    def _follow(self, calls: Sequence[ToolCall]) -> list[Chat]:
        """Results of calls, or a question."""
        results = self.results(calls, [Message(role="tool", content=_AFTER)] * len(calls))
        return results if results and not self.tool_format else [{"role": "user", "content": _AFTER}]

    def _find_header(self) -> str:
        """The generation prompt; "" if the template has none."""
        ask = [self.template.chat(ASK)]
        bare, full = self.template.render(ask, generation_prompt=False), self.template.render(ask)
        return full[len(bare) :] if full.startswith(bare) else ""

    def _around(self, calls: Sequence[ToolCall]) -> tuple[list[int], list[int], str]:
        """The control tokens after a turn that is last and after one that is not, and the text in between."""
        ask, turn, tools = self.template.chat(ASK), self.placed(0, calls), self.tools((_LOOK,))
        alone = self.template.render([ask, turn], tools, generation_prompt=False)
        text = self.template.render([ask, turn, *self._follow(calls)], tools)
        if f"{PLACE}0" not in text:
            raise Unrenderable("the chat template drops the calls of a turn")
        last = max(text.rfind(place(0, part)) + len(place(0, part)) for part in "ca" if place(0, part) in text)
        own = [one.id for one in self.controls(alone, alone.rfind(PLACE), len(alone))]
        found = self.controls(text, last, text.find(_AFTER))
        end = next((one.start for one in found if one.id in self.stop_ids), last)
        return own, [one.id for one in found], text[last:end]

    def _find_closing(self, calls: Sequence[ToolCall]) -> bool:
        """Add the ids that end such a turn to the stop ids; whether it ends so even if nothing follows."""
        own, after, _ = self._around(calls)
        if self.stop_ids & set(own or after):
            return bool(own)
        inside = self._between_calls(calls[0]) if calls else ()
        end = next((number for number in (*own, *after) if number not in inside), None)
        if end is None:
            raise Unrenderable(_NO_END)
        self.stop_ids |= {end}
        return end in own

    def _find_end(self) -> tuple[int, str]:
        """The id that ends a turn of text, and the control tokens between the text and it."""
        own, after, between = self._around(())
        end = next((number for number in (*own, *after) if number in self.stop_ids), None)
        if end is None:
            raise Unrenderable(_NO_END)
        return end, between if any(self.control.find(between)) else ""

    def _between_calls(self, call: ToolCall) -> tuple[int, ...]:
        """The control tokens between two calls of a turn, which do not end the turn."""
        turn = self.placed(0, (call, call))
        try:
            text = self.template.render([self.template.chat(ASK), turn], generation_prompt=False)
        except Unrenderable:
            return ()
        return tuple(one.id for one in self.controls(text, text.find(PLACE), text.rfind(PLACE)))

    def _find_format(self) -> None:
        """The form in which the template takes calls, and the format in which it writes them."""
        if _LOOK.description not in self.template.render([self.template.chat(ASK)], self.tools((_LOOK,))):
            raise Unrenderable("the chat template does not write the tools")
        calls = tuple(ToolCall.of(_LOOK.name, word=word) for word in ("x", "y"))
        stops = self.stop_ids
        for self.dialect in DIALECTS:
            self.stop_ids = stops
            if form := self._format_of(calls[:1]):
                self.form = form
                self.parallel = self._reads_back(calls)
                return
        raise Unrenderable("the chat template writes no tools, calls and results that can be read back")

    def _require_readable(self) -> None:
        """Raises Unrenderable if a template puts a turn's text between its own marks, as channels do."""
        call = ToolCall.of(_LOOK.name, word="x")
        found, _ = self.read(self._text(Message(role="assistant", tool_calls=(call,)), (_LOOK,)), (_LOOK,))
        if [one.key for one in found.tool_calls] != [call.key]:
            raise Unrenderable("the chat template writes marks around a turn's text, in which no call can be read")

    def _format_of(self, calls: Sequence[ToolCall]) -> CallFormat | None:
        try:
            self.closes[True] = self._find_closing(calls)
        except Unrenderable:
            return None
        for self.form in CALL_FORMATS.values():
            if self._reads_back(calls):
                return self.form
        return None

    def _reads_back(self, calls: Sequence[ToolCall]) -> bool:
        """Whether a turn of these calls, with tools and results, is in the text and is parsed unchanged."""
        turn, tools = Message(role="assistant", tool_calls=tuple(calls)), (_LOOK,)
        self.parallel = True
        try:
            chat = [self.template.chat(ASK), self.written(turn), *self._follow(calls)]
            text = self.template.render(chat, self.tools(tools))
            found, problem = self.read(self._text(turn, tools), tools)
        except Unrenderable:
            return False
        shown = _LOOK.description in text and text.count(_AFTER) == len(calls)
        return shown and not problem and [c.key for c in found.tool_calls] == [c.key for c in calls]


def _numbered(calls: Sequence[ToolCall]) -> list[tuple[int, ToolCall]]:
    """The calls with their numbers in the episode, as far as their ids say."""
    digits = ["".join(filter(str.isdigit, call.id))[-9:] for call in calls]
    return [(int(found) if found else n, call) for n, (found, call) in enumerate(zip(digits, calls, strict=True))]


def _blank(text: str) -> str:
    """The white space that a text starts with."""
    return text[: len(text) - len(text.lstrip())]


def turn_start(prompt: str, text: str) -> int:
    """Where a turn begins in a text that starts with the prompt, or with the prompt less its start of the turn."""
    same = common_prefix(prompt, text)
    if same == len(prompt):
        return same
    return next((n for n in range(same, 0, -1) if text[n - 1] in ">]\n"), 0)  # not inside of a mark


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many leading ids (or characters) `a` and `b` share."""
    short = min(len(a), len(b))
    return next((i for i in range(short) if a[i] != b[i]), short)

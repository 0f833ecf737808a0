"""Renders messages as token ids through a chat template; sampled ids are spliced in, never encoded again.

Each context is the one before it, the ids sampled there, and what the template writes after them: the rest of the turn,
the results, the next generation prompt. If a template rewrites earlier turns (it cuts their thoughts, say), no context
continues the one before. Its ids are then those of the rewritten text, with the sampled ids of every part that is still
in it, and `prefix_stable` is False. A hint stands at the end of the last message, before its end of turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from internalize.interfaces import Context, ToolFormat
from internalize.records import Message, Step, ToolSpec, content_hash

from .call_formats import CALL_FORMATS, THOUGHTS
from .template import Chat, ChatTemplate, Unrenderable
from .tool_formats import TOOL_FORMATS
from .turns import PLACE, Turns, common_prefix, place, turn_start

__all__ = ["Context", "TemplateRenderer", "chat_dict", "common_prefix", "with_system"]

_STATES = 2048  # rendered contexts that are kept


@dataclass(frozen=True)
class State:
    """A rendered context."""

    key: str
    messages: tuple[Chat, ...]
    text: str
    ids: tuple[int, ...]
    rewritten: bool = False  # it rewrites earlier turns
    openings: tuple[str, ...] = ()  # the text before each turn when it was sampled, from the turn before it on


class TemplateRenderer:
    """`interfaces.Renderer` over the chat template of a tokenizer; `stop_ids` are added to those of the tokenizer.

    With a tool format, calls and results are text; without one the template itself writes tools, calls and results.
    Raises UserError for a template that does not support this.
    """

    def __init__(
        self,
        tokenizer: Any,
        tool_format: ToolFormat | None = None,
        *,
        template: ChatTemplate | None = None,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.tokenizer, self.tool_format = tokenizer, tool_format
        self.template = template or ChatTemplate.of(tokenizer)
        self.control = self.template.control
        eos = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.turns = Turns(self.template, tool_format, {*stop_ids, *eos})
        self.stop_ids = self.turns.stop_ids
        self._states: OrderedDict[str, State] = OrderedDict()

    @property
    def way(self) -> str:
        """How calls are written, as a label for people."""
        if self.tool_format:
            return next(name for name, form in TOOL_FORMATS.items() if form is self.tool_format)
        return f"template ({next(name for name, form in CALL_FORMATS.items() if form is self.turns.form)})"

    @property
    def opens_thought(self) -> bool:
        """Whether the generation prompt ends with the opening mark of a thought."""
        return self.turns.opened is not None

    @property
    def parallel(self) -> bool:
        """Whether a turn may hold several calls."""
        return self.turns.parallel

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tool format's description of the tools; "" if the template describes them."""
        return self.tool_format.instructions(tools) if self.tool_format else ""

    def context(
        self, prompt: Sequence[Message], steps: Sequence[Step], hint: str = "", tools: Sequence[ToolSpec] = ()
    ) -> Context:
        """The context of the next action. With a `hint`, the last message ends with it on a new line."""
        clean = self._state(prompt, steps, "", tools).ids
        if not hint:
            return Context(clean, len(clean))
        hinted = self._state(prompt, steps, hint, tools).ids
        return Context(hinted, common_prefix(clean, hinted))

    def prefix_stable(self, prompt: Sequence[Message], steps: Sequence[Step], tools: Sequence[ToolSpec] = ()) -> bool:
        """Whether each context starts with the one before it plus the action sampled there.

        Otherwise no single sequence contains the whole trajectory, and each step has to be scored by itself.
        """
        rewritten = (self._state(prompt, steps[:n], "", tools).rewritten for n in range(1, len(steps) + 1))
        return not any(step.shown for step in steps[:-1]) and not any(rewritten)

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSpec]) -> tuple[Message, str]:
        """The sampled turn as a message, and what is wrong with a call in it ("" = nothing)."""
        return self.turns.read(self.decode(ids), tools)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids without their end of turn."""
        content = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return str(self.tokenizer.decode(list(content), clean_up_tokenization_spaces=False))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of a whole turn with its end: for scripted and imported data, never for sampled text."""
        return (*self.control.encode(self.control.mark(text, keep=self.control.ordinary)), self.turns.end_id)

    def encode_turn(self, message: Message, tools: Sequence[ToolSpec] = ()) -> tuple[int, ...]:
        """Ids of a turn with its end, as the template writes it: for turns without sampled ids."""
        return self.control.encode(self.turns.text(message, tools))

    def template_ids(
        self, prompt: Sequence[Message], steps: Sequence[Step], tools: Sequence[ToolSpec] = ()
    ) -> tuple[int, ...]:
        """The ids of a history as the template alone writes it, with every turn encoded from its parts."""
        chat = [self.turns.prompt(message) for message in prompt]
        for step in steps:
            chat += [self.turns.written(step.message, tools), *self.turns.results(step.calls, step.results)]
        return self.control.encode(self.template.render(chat, self.turns.tools(tools)))

    def thought_length(self, ids: Sequence[int]) -> int:
        """How many ids of a turn belong to its thought, the closing mark included."""
        mark = self.turns.thought_mark(self.decode(ids))
        if not mark:
            return 0
        # The last start and then the first end between which the mark decodes: its ids depend on what surrounds it.
        start = next(n for n in range(len(ids), -1, -1) if mark in self.decode(ids[n:]))
        return next(n for n in range(start + 1, len(ids) + 1) if mark in self.decode(ids[start:n]))

    def closing(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids that close the thought in which these ids of a turn end; () if no thought is open."""
        return self.control.encode(self.turns.closing(self.decode(ids)))

    # -- contexts -------------------------------------------------------------------------------------------------

    def _state(self, prompt: Sequence[Message], steps: Sequence[Step], hint: str, tools: Sequence[ToolSpec]) -> State:
        state = self._start(prompt, tools, "" if steps else hint)
        for number in range(1, len(steps) + 1):
            state = self._next(state, steps[:number], hint if number == len(steps) else "", tools)
        return state

    def _start(self, prompt: Sequence[Message], tools: Sequence[ToolSpec], hint: str) -> State:
        chat = hinted([self.turns.prompt(message) for message in prompt], self.control.mark(hint))
        key = content_hash([chat, [] if self.tool_format else [tool.model_dump(mode="json") for tool in tools]])
        if state := self._known(key):
            return state
        text = self.template.render(chat, self.turns.tools(tools))
        return self._keep(State(key, tuple(chat), text, self.control.encode(text)))

    def _next(self, before: State, steps: Sequence[Step], hint: str, tools: Sequence[ToolSpec]) -> State:
        """The context after the last of these steps; `before` is the context in which that step was sampled."""
        step, number = steps[-1], len(steps) - 1
        turn = step.shown or step.message
        results = [result.text for result in step.results]
        key = content_hash([before.key, step.token_ids, step.text, turn.model_dump(mode="json"), results, hint])
        if state := self._known(key):
            return state
        action = self._action(step, tools)
        thought = self.thought_length(action) > 0
        placed = self.turns.placed(number, turn.tool_calls, thought=thought)
        messages = [*before.messages, placed, *self.turns.results(turn.tool_calls, step.results)]
        messages = hinted(messages, self.control.mark(hint))
        text = self.template.render(messages, self.turns.tools(tools))
        openings = (*before.openings, self.opening(before.text, number))
        after = text[len(before.text) :]
        kept = text.startswith(before.text) and (not thought or place(number, "r") in after)
        if kept and not before.rewritten and not (self.turns.header and after.startswith(self.turns.header)):
            ids = (*before.ids, *action, *self._tail(text, action, has_calls=bool(turn.tool_calls)))
            return self._keep(State(key, tuple(messages), text, ids, openings=openings))
        ids = self._rewritten(text, [self._action(step, tools) for step in steps], openings)
        return self._keep(State(key, tuple(messages), text, ids, rewritten=True, openings=openings))

    @staticmethod
    def opening(text: str, number: int) -> str:
        """What a context has behind the last place of the turn before turn `number`, which is sampled next."""
        return text[_last_place(text, number - 1) :]

    def _known(self, key: str) -> State | None:
        if key in self._states:
            self._states.move_to_end(key)
        return self._states.get(key)

    def _keep(self, state: State) -> State:
        self._states[state.key] = state
        if len(self._states) > _STATES:
            self._states.popitem(last=False)
        return state

    def _action(self, step: Step, tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        """The ids of a past turn: the sampled ones, or encoded if it was not sampled or was rewritten."""
        if step.token_ids and step.shown is None:
            return step.token_ids
        if self.tool_format and step.shown is None:
            return self.encode_text(step.text)
        return self.encode_turn(step.shown or step.message, tools)

    def _tail(self, text: str, action: tuple[int, ...], *, has_calls: bool) -> tuple[int, ...]:
        """The ids after a sampled turn: its end, if the model did not sample it, and everything that follows."""
        end = self.turns.end_of_turn(text, text.rfind(PLACE), len(text))
        ids = self.control.encode(text[end.start :])
        sampled = action[-1:] == (end.id,) or (bool(self.stop_ids & {*action[-1:]}) and self.turns.closes[has_calls])
        return ids[1:] if sampled and ids[:1] == (end.id,) else ids

    def _rewritten(self, text: str, actions: Sequence[tuple[int, ...]], openings: Sequence[str]) -> tuple[int, ...]:
        """The ids of a text that rewrites earlier turns, with sampled ids for every part that it still shows."""
        ids: list[int] = []
        done = 0
        for number, (action, opening) in enumerate(zip(actions, openings, strict=True)):
            first, limit = text.find(f"{PLACE}{number}", done), text.find(f"{PLACE}{number + 1}", done)
            before = _last_place(text, number - 1)
            begin = before + turn_start(opening, text[before : max(first, before)])
            if first < 0 or begin < done or self.control.text_of(self.turns.end_id) in text[begin:first]:
                raise Unrenderable("the chat template drops or repeats earlier assistant turns")
            shown = action
            if place(number, "r") not in text:
                begin = max(begin, *(_after(text, closing, begin, first) for _, closing in THOUGHTS))
                shown = self._visible(action, strip=not text[begin : begin + 1].isspace())
                if text.endswith(header := self.turns.header, 0, begin) and self.decode(shown).startswith(header):
                    begin -= len(header)  # the thought was a message, and the rest of the turn another
            ids += [*self.control.encode(text[done:begin]), *shown]
            end = self.turns.end_of_turn(text, _last_place(text, number), limit if limit > 0 else len(text))
            done = end.end if self.stop_ids & {*shown[-1:]} else end.start
        return (*ids, *self.control.encode(text[done:]))

    def _visible(self, action: tuple[int, ...], *, strip: bool) -> tuple[int, ...]:
        """The ids of an action after its thought; `strip`: without the line breaks that follow it."""
        rest = action[self.thought_length(action) :]
        while strip and rest and rest[0] not in self.stop_ids and not self.decode(rest[:1]).strip():
            rest = rest[1:]
        return rest


def _last_place(text: str, number: int) -> int:
    """Where the last place of a turn begins; 0 if it has none."""
    return max(0, *(text.rfind(place(number, part)) for part in "rca"))


def _after(text: str, mark: str, start: int, end: int) -> int:
    """The position after a mark and white space in a part of a text; -1 if the mark is missing."""
    found = text.rfind(mark, start, end)
    if found < 0:
        return -1
    found += len(mark)
    return found + len(text[found:end]) - len(text[found:end].lstrip())


def hinted(messages: list[Chat], hint: str) -> list[Chat]:
    """The messages with a hint on a new line at the end of the last one."""
    if not hint:
        return messages
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n{hint}"}]


def with_system(prompt: Sequence[Message], text: str) -> tuple[Message, ...]:
    """`prompt` with `text` at the end of its system message; one is added if there is none. "" changes nothing."""
    if not text:
        return tuple(prompt)
    if prompt and prompt[0].role == "system":
        first = prompt[0].model_copy(update={"content": f"{prompt[0].text}\n{text}"})
        return (first, *prompt[1:])
    return (Message(role="system", content=text), *prompt)


def chat_dict(message: Message) -> dict[str, Any]:
    """A message in the OpenAI chat format."""
    rendered: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        rendered["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered

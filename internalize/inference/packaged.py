"""A renderer over the package `renderers`, for the families it knows: it extends a conversation token by token.

The right one of its renderers is found by comparing ids with those of the model's own template. Beyond the template it
keeps the beginning of a turn that a generation prompt wrote (the empty thought of Qwen3 with thinking off), so that
such episodes stay one sequence. Histories that it cannot extend are rendered through the template. gpt-oss is left out:
its encoder differs from the tokenizer's and makes control tokens of any text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from internalize.errors import UserError, first_line
from internalize.records import Message, Step, ToolSpec, content_hash

from .encoding import ControlTokens
from .renderer import State, TemplateRenderer, hinted
from .replay import PROMPT, TOOLS, conversation
from .template import Chat, ChatTemplate
from .turns import PLACE


class _Encoder:
    """What the package needs of a tokenizer, with the encoder that makes no control tokens of marked text."""

    def __init__(self, tokenizer: Any, control: ControlTokens) -> None:
        self._tokenizer, self._control = tokenizer, control
        self.name_or_path = str(tokenizer.name_or_path)
        self.unk_token_id, self.eos_token_id = tokenizer.unk_token_id, tokenizer.eos_token_id
        self.chat_template = tokenizer.chat_template

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        return list(self._control.encode(text))

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return self._tokenizer.convert_tokens_to_ids(tokens)


class PackagedRenderer(TemplateRenderer):
    """`interfaces.Renderer` that extends conversations with one of the package's renderers."""

    def __init__(self, tokenizer: Any, *, template: ChatTemplate, stop_ids: Collection[int] = ()) -> None:
        super().__init__(tokenizer, template=template, stop_ids=stop_ids)
        self._package: Any = None
        steps = conversation(("Let me see.", "", ""), parallel=self.parallel)
        encoder = _Encoder(tokenizer, self.control)
        plain = TemplateRenderer(tokenizer, template=replace(template, arguments={}))
        for name in _names():
            try:
                self._package = _made(name, encoder, {})
                histories = [steps[:number] for number in range(len(steps) + 1)]
                fits = all(
                    self.template_ids(PROMPT, history, TOOLS) == plain.template_ids(PROMPT, history, TOOLS)
                    for history in histories
                )
                self._package = _made(name, encoder, template.arguments)
                start = self.template_ids(PROMPT, (), TOOLS)
            except Exception:  # noqa: BLE001, S112 - code of another family, which may fail on these tokens in any way
                continue
            if fits and start == super().template_ids(PROMPT, (), TOOLS):
                return
        raise UserError("the package renderers has no renderer that writes what this chat template writes")

    @property
    def way(self) -> str:
        """How calls are written, as a label for people."""
        return f"renderers ({self._package.config.name})"

    def template_ids(
        self, prompt: Sequence[Message], steps: Sequence[Step], tools: Sequence[ToolSpec] = ()
    ) -> tuple[int, ...]:
        """The ids that the package gives a history, every turn encoded from its parts."""
        if self._package is None:
            return super().template_ids(prompt, steps, tools)
        chat = [self.turns.prompt(message) for message in prompt]
        for step in steps:
            chat += [self.turns.written(step.message), *self.turns.results(step.calls, step.results)]
        found = self._package.render_ids(chat, tools=self.turns.tools(tools) or None, add_generation_prompt=True)
        return tuple(found)

    def _next(self, before: State, steps: Sequence[Step], hint: str, tools: Sequence[ToolSpec]) -> State:
        step, turn = steps[-1], steps[-1].shown or steps[-1].message
        key = content_hash([before.key, step.model_dump(mode="json", include={"token_ids", "text"}), hint])
        key = content_hash([key, turn.model_dump(mode="json"), [result.text for result in step.results]])
        if state := self._known(key):
            return state
        results = hinted(self.turns.results(turn.tool_calls, step.results), self.control.mark(hint))
        known = before.ids + self._action(step, tools)
        if not before.rewritten and (ids := self._extended(before.ids, known, results, tools)):
            thought = self.thought_length(step.token_ids) > 0
            placed = self.turns.placed(len(steps) - 1, turn.tool_calls, thought=thought)
            return self._keep(State(key, (*before.messages, placed, *results), "", ids))
        if not before.text:  # it was extended without the template
            before = self._reread(before, tools)
        return super()._next(before, steps, hint, tools)

    def _reread(self, state: State, tools: Sequence[ToolSpec]) -> State:
        """An extended context, with the messages and text that the template writes for it."""
        listed, openings = self.turns.tools(tools), list[str]()
        for place, message in enumerate(state.messages):
            if f"{PLACE}{len(openings)}" in str(message):
                openings.append(self.opening(self.template.render(state.messages[:place], listed), len(openings)))
        return replace(state, text=self.template.render(state.messages, listed), openings=tuple(openings))

    def _extended(
        self, prompt: tuple[int, ...], known: tuple[int, ...], results: list[Chat], tools: Sequence[ToolSpec]
    ) -> tuple[int, ...]:
        """The ids after these results; () if the package cannot extend without changing known ids."""
        if not results or self._package is None:
            return ()
        action, listed = list(known[len(prompt) :]), self.turns.tools(tools) or None
        found = self._package.bridge_to_next_turn(list(prompt), action, results, tools=listed)
        ids = () if found is None else tuple(found.token_ids)
        return ids if ids[: len(known)] == known else ()


def _names() -> list[str]:
    """The renderers of the package. Raises UserError without the package."""
    try:
        from renderers import base  # noqa: PLC0415 - only where a model is loaded
    except ImportError as error:
        raise UserError(f"the package renderers cannot be used: {first_line(error)}") from error
    base._populate_registry()  # noqa: SLF001 - the list of its renderers has no public name
    return sorted(base.RENDERER_REGISTRY.keys() - {"default"})


def _made(name: str, encoder: _Encoder, arguments: Mapping[str, Any]) -> Any:
    """One of the package's renderers. It may raise anything for a tokenizer or arguments of another family."""
    from renderers import base, configs  # noqa: PLC0415

    config = base.merge_chat_template_kwargs(configs.config_from_name(name), dict(arguments))
    return base.create_renderer(encoder, config)

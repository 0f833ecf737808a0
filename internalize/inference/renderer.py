"""Renders messages as token ids through a chat template; sampled ids are spliced in, never encoded again.

A context is rendered as text with a marker in place of every sampled turn, and the text between markers is tokenized
piece by piece. Without a hint the ids are those of the clean context; a hint stands at the end of the last message,
before its end of turn and the generation prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from internalize.errors import UserError
from internalize.interfaces import ToolFormat
from internalize.records import Message, Step, ToolCall, ToolSpec

from .tool_formats import as_text, as_user

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHED_PIECES = 16_384  # tokenized pieces of text in the cache
_MARKER = "@@action@@"
_END_OF_THINKING = "</think>"


@dataclass(frozen=True)
class Context:
    """Ids up to and with the generation prompt; `ids[:fork]` are also the start of the clean context."""

    ids: tuple[int, ...]
    fork: int


class Renderer:
    """Renders contexts with one tokenizer and one tool format. Raises UserError if the tokenizer has no template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat) -> None:
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template; use an instruction-tuned model")
        self.tokenizer = tokenizer
        self.tool_format = tool_format
        self._encode = lru_cache(_CACHED_PIECES)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)),
        )
        self._specials = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._end_of_turn = self._find_end_of_turn()
        self.stop_ids: frozenset[int] = frozenset({self._end_of_turn, int(tokenizer.eos_token_id)})
        user, thought = {"role": "user", "content": "a"}, "@@thought@@"
        turn = {"role": "assistant", "content": f"<think>{thought}{_END_OF_THINKING}b"}
        self._strips_thinking = thought not in self._render([user, turn, user])

    def context(self, prompt: Sequence[Message], steps: Sequence[Step], hint: str = "") -> Context:
        """What the policy sees before its next action.

        `prompt` ends with a user message. With a `hint`, the last message ends with a line break and the hint.
        """
        clean = self._ids(prompt, steps, "")
        if not hint:
            return Context(clean, len(clean))
        hinted = self._ids(prompt, steps, hint)
        return Context(hinted, common_prefix(clean, hinted))

    def prefix_stable(self, prompt: Sequence[Message], steps: Sequence[Step]) -> bool:
        """Whether each context starts with the one before it plus the action sampled there.

        False for templates that rewrite earlier turns (they strip thinking, say): then no single sequence contains the
        whole trajectory, and each step has to be scored by itself.
        """
        seen: tuple[int, ...] = ()
        for number in range(len(steps) + 1):
            ids = self.context(prompt, steps[:number]).ids
            if ids[: len(seen)] != seen:
                return False
            if number < len(steps):
                seen = ids + steps[number].token_ids
        return True

    @staticmethod
    def with_system(prompt: Sequence[Message], text: str) -> tuple[Message, ...]:
        """`prompt` with `text` at the end of its system message; one is added if there is none."""
        if prompt and prompt[0].role == "system":
            first = prompt[0].model_copy(update={"content": f"{prompt[0].text}\n{text}"})
            return (first, *prompt[1:])
        return (Message(role="system", content=text), *prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids without their end of turn."""
        content = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return str(self.tokenizer.decode(list(content), clean_up_tokenization_spaces=False))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of a whole turn with its end of turn: for scripted and imported data, never for sampled text."""
        return (*self._encode(self._escaped(text)), self._end_of_turn)

    def encode_call(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> tuple[int, ...]:
        """`encode_text` of the call in this tool format."""
        return self.encode_text(self.tool_format.format(call, tools))

    def _ids(self, prompt: Sequence[Message], steps: Sequence[Step], hint: str) -> tuple[int, ...]:
        pieces = self._pieces(prompt, steps, hint)
        ids = list(self._encode(pieces[0]))
        for step, piece in zip(steps, pieces[1:], strict=True):
            action, following = self._shown_again(step), self._encode(piece)
            ends_itself = bool(action) and action[-1] in self.stop_ids
            ids += action
            ids += following[1:] if ends_itself and following[:1] == (self._end_of_turn,) else following
        return tuple(ids)

    def _pieces(self, prompt: Sequence[Message], steps: Sequence[Step], hint: str) -> list[str]:
        """The rendered text between the places of the actions: one piece more than there are steps."""
        messages = [chat_dict(message, self._escaped(message.text)) for message in prompt]
        observations = [self._escaped(as_user(step.results).text) for step in steps]
        marker = _MARKER
        while any(marker in text for text in (*(str(message["content"]) for message in messages), *observations)):
            marker += "@"
        for observation in observations:
            messages.append({"role": "assistant", "content": marker})
            messages.append({"role": "user", "content": observation})
        if hint:
            messages[-1]["content"] += "\n" + self._escaped(hint)
        pieces = self._render(messages).split(marker)
        if len(pieces) != len(steps) + 1:
            raise UserError(
                "the chat template drops or repeats earlier assistant turns; it cannot be used for episodes"
            )
        return pieces

    def _escaped(self, text: str) -> str:
        """`text` with its special tokens broken up, so that an observation cannot end its own turn."""
        for special in self._specials:
            if special in text:
                text = text.replace(special, f"{special[0]} {special[1:]}")
        return text

    def _shown_again(self, step: Step) -> tuple[int, ...]:
        """The ids of a past action that the template shows: all, or those after the thinking if it strips that.

        A turn that was not sampled here, or that somebody's agent rewrote, is encoded from its text.
        """
        if step.shown is not None or not step.token_ids:
            return self.encode_text(as_text(step.shown, self.tool_format) if step.shown else step.text)
        action = step.token_ids
        if not self._strips_thinking or _END_OF_THINKING not in self.decode(action):
            return action
        # The last start and then the first end between which the mark decodes: its ids depend on what surrounds it.
        start = next(n for n in range(len(action), -1, -1) if _END_OF_THINKING in self.decode(action[n:]))
        end = next(n for n in range(start + 1, len(action) + 1) if _END_OF_THINKING in self.decode(action[start:n]))
        return action[end:]

    def _render(self, messages: list[dict[str, Any]], *, generation_prompt: bool = True) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        return str(text)

    def _find_end_of_turn(self) -> int:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARKER}]
        ids = self._encode(self._render(messages, generation_prompt=False).partition(_MARKER)[2])
        special = bool(ids) and ids[0] in self.tokenizer.all_special_ids
        return ids[0] if special else int(self.tokenizer.eos_token_id)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids `a` and `b` share."""
    short = min(len(a), len(b))
    return next((i for i in range(short) if a[i] != b[i]), short)


def chat_dict(message: Message, content: str | None = None) -> dict[str, Any]:
    """A message in the OpenAI chat format; `content` replaces its own."""
    rendered: dict[str, Any] = {"role": message.role, "content": message.text if content is None else content}
    if message.tool_calls:
        rendered["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered

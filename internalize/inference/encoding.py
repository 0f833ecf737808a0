"""Encodes rendered text so that control tokens come only from the template; other text reads back unchanged.

Untrusted text is marked before a template sees it (`ControlTokens.mark`): a mark inside every control token. Encoding a
rendered text then treats only unmarked ones as control tokens, and removes the marks.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from .control_tokens import inert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHED_PIECES = 16_384  # tokenized pieces of text in the cache
_SECRET = secrets.token_hex(8)  # random, so no page can contain it; it never reaches the ids
_MARK = f"@{_SECRET}@"  # plain ASCII, so that a template may write it as JSON
_NAME = "@{}:" + _SECRET + ";"  # stands for control token number {} while a text is encoded


class ControlTokens:
    """The control tokens of one tokenizer, and its encoder of marked text.

    Control tokens are its added tokens that are special, that the chat template writes, or that are written like those
    of other families. (Some tokenizers also add line breaks and HTML tags, which are ordinary text.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        self.ids: dict[str, int] = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip()
            and (token.special or inert(token.content) != token.content or _is_written(token.content, template))
        }
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.ordinary = frozenset(self.ids.keys() - special)  # control tokens that a turn may contain: <tool_call>
        self._texts = {number: text for text, number in self.ids.items()}
        ordered = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self.encode: Callable[[str], tuple[int, ...]] = lru_cache(_CACHED_PIECES)(self._encode)

    def mark(self, text: str, *, keep: Collection[str] = ()) -> str:
        """`text` with a mark inside each control token but those of `keep`."""
        place = 0
        while found := self._pattern.search(text, place):
            inside = found.start() + 1
            if found[0] in keep:
                place = found.end()
                continue
            text = f"{text[:inside]}{_MARK}{text[inside:]}"
            place = inside
        return text

    @staticmethod
    def plain(text: str) -> str:
        """Rendered text without the marks."""
        return text.replace(_MARK, "")

    def find(self, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """Start, end and id of each unmarked control token of a rendered text."""
        for found in self._pattern.finditer(text, start):
            yield found.start(), found.end(), self.ids[found[0]]

    def text_of(self, number: int) -> str:
        """The text of a control token; "" for another id."""
        return self._texts.get(number, "")

    def _encode(self, text: str) -> tuple[int, ...]:
        """The ids of a rendered text: every unmarked control token is one, and nothing else is."""
        if _MARK not in text:
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
            if sum(number in self._texts for number in ids) == len(self._pattern.findall(text)):
                return ids
        if self._renamed is None:  # a tokenizer in Python: its control tokens can only be broken up
            return tuple(self._tokenizer.encode(text.replace(_MARK, " "), add_special_tokens=False))
        named = self._pattern.sub(lambda found: _NAME.format(self.ids[found[0]]), text)
        return tuple(self._numbered(self._renamed.encode(self.plain(named), add_special_tokens=False).ids))

    def _numbered(self, ids: Sequence[int]) -> list[int]:
        """The tokenizer's own ids; a control token that ordinary text was merged into is taken apart."""
        found: list[int] = []
        for number in ids:
            if number in self._real:
                found.append(self._real[number])
            elif number in self._texts and number != self._tokenizer.unk_token_id:  # an unknown word stays unknown
                text = self._texts[number]
                for part in (text[:1], text[1:]):
                    found += self._numbered(self._renamed.encode(part, add_special_tokens=False).ids)
            else:
                found.append(number)
        return found

    @cached_property
    def _renamed(self) -> Any:
        """The tokenizer with other names for its control tokens; None for one that is not in Rust."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        import tokenizers  # noqa: PLC0415 - only where text is hostile

        renamed = tokenizers.Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(renamed, part, getattr(backend, part))
        tokens = sorted(self._tokenizer.added_tokens_decoder.items())
        renamed.add_tokens(
            [
                tokenizers.AddedToken(
                    _NAME.format(number) if token.content in self.ids else token.content,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=token.normalized and token.content not in self.ids,
                )
                for number, token in tokens
            ]
        )
        return renamed

    @cached_property
    def _real(self) -> dict[int, int]:
        """The tokenizer's own ids of the added tokens of `_renamed`."""
        names = {
            number: _NAME.format(number) if token.content in self.ids else token.content
            for number, token in self._tokenizer.added_tokens_decoder.items()
        }
        return {int(self._renamed.token_to_id(name)): number for number, name in names.items()}


def _is_written(token: str, template: str) -> bool:
    """Whether a template writes this token and it is not ordinary text."""
    return token in template and token[0] in "<[" and token[-1] in ">]"

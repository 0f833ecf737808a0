"""Grading by a language model, asked twice with the order of reference and answer changed.

Question, reference and answer stand between tags they cannot close. Left out: who the model is. What must not change:
a verdict counts only if both askings agree; disagreement, invalid output and failure are unscored; a spent budget is
no failure and stops the stage (Incomplete).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from pydantic import JsonValue

from internalize.errors import InfrastructureError
from internalize.inference.structured import ask, fenced
from internalize.interfaces import ChatModel
from internalize.records import Claim, Judgement, Message

MOST_CHARACTERS = 8_000  # of an answer; the middle of a longer one is left out
SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "correct": {"type": "boolean"}},
    "required": ["reason", "correct"],
    "additionalProperties": False,
}


class Verdict(NamedTuple):
    """One asking's answer."""

    correct: bool
    reason: str


class ModelJudge:
    """Asks `chat` in two orders, each up to `tries` times for a valid answer.

    With `clean`, which takes secrets out, the question is shown clean, and a claim whose reference or answer holds a
    secret is unscored: two secrets under the same marker would look like the same answer.
    """

    def __init__(self, chat: ChatModel, *, tries: int = 3, clean: Callable[[str], str] | None = None) -> None:
        self._chat, self._tries, self._clean = chat, tries, clean or str
        self.name = f"model:{chat.name}"

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0 if both askings agree, else unscored. Raises Incomplete when the endpoint's budget is spent."""
        settled = self._settled(claim)
        if settled:
            return settled
        claim = claim.model_copy(update={"question": self._clean(claim.question)})
        try:
            first, second = await asyncio.gather(*(self._verdict(claim, turned) for turned in (False, True)))
        except InfrastructureError as error:
            return self._unscored(f"unreachable: {error}")
        if isinstance(first, str) or isinstance(second, str):
            return self._unscored(f"invalid: {first if isinstance(first, str) else second}")
        if first.correct != second.correct:
            return self._unscored(f"disagreed with itself: {first.reason} / {second.reason}")
        return Judgement(score=float(first.correct), judge=self.name, reason=first.reason)

    def _settled(self, claim: Claim) -> Judgement | None:
        """The verdict on what needs no model, or must not be shown to it."""
        if not claim.reference.strip():
            return self._unscored("there is no reference to compare with")
        if not claim.answer.strip():
            return Judgement(score=0.0, judge=self.name, reason="the answer is empty")
        if any(self._clean(text) != text for text in (claim.reference, claim.answer)):
            return self._unscored("reference or answer holds a secret, which is not shown to an endpoint")
        return None

    async def _verdict(self, claim: Claim, turned: bool) -> Verdict | str:  # noqa: FBT001 - the one thing that varies
        """The verdict of one asking, or what was wrong with its last answer."""
        answer = await ask(self._chat, prompt(claim, turned=turned), SCHEMA, _read, tries=self._tries)
        return answer.value or answer.problem

    def _unscored(self, reason: str) -> Judgement:
        return Judgement(score=None, judge=self.name, reason=reason)


def prompt(claim: Claim, *, turned: bool) -> tuple[Message, Message]:
    """The messages of one asking; `turned` puts the answer before the reference."""
    parts = [fenced("reference", claim.reference), fenced("answer", _cut(claim.answer))]
    parts = [fenced("question", claim.question), *(reversed(parts) if turned else parts)]
    asked = "Is the answer correct?" if not turned else "Does the answer say what the reference says?"
    content = "\n\n".join([*parts, asked])
    return Message(role="system", content=_instructions()), Message(role="user", content=content)


def _cut(text: str) -> str:
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]}\n[cut]\n{text[-half:]}"


@cache
def _instructions() -> str:
    return (files(__package__) / "prompts" / "grade.txt").read_text(encoding="utf-8")


def _read(found: dict[str, Any]) -> Verdict:
    correct, reason = found.get("correct"), found.get("reason", "")
    if not isinstance(correct, bool):
        raise ValueError('"correct" is neither true nor false')  # noqa: TRY004 - the one kind of refusal
    return Verdict(correct, reason if isinstance(reason, str) else "")

"""Grades answers with a language model, which is asked twice: with the reference first and with the answer first.

The verdict counts only if both replies agree; otherwise, and after invalid output or a failure, the answer is unscored.
Question, reference and answer are enclosed in tags that they cannot close, because they are untrusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from pydantic import JsonValue

from internalize.errors import InfrastructureError
from internalize.inference.cached import reject
from internalize.inference.structured import Answer, ask, fenced
from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Claim, Judgement, Message

MOST_CHARACTERS = 8_000  # of an answer in the prompt; a longer one is cut in the middle
ANSWER_TOKENS = 256
SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "correct": {"type": "boolean"}},
    "required": ["reason", "correct"],
    "additionalProperties": False,
}


class Verdict(NamedTuple):
    """The reply to one request."""

    correct: bool
    reason: str


class ModelJudge:
    """Asks `chat` in both orders, each up to `tries` times until the reply is valid.

    The reason of a claim without a score begins with its kind: unreachable, too long, refused, empty, cut off, invalid,
    disagreed or secret.

    `clean` removes secrets. It is applied to the question; a claim whose reference or answer holds a secret is
    unscored, because two secrets replaced by the same marker would look like equal answers.
    """

    def __init__(self, chat: ChatModel, *, tries: int = 3, clean: Callable[[str], str] | None = None) -> None:
        self._chat, self._tries, self._clean = chat, tries, clean or str
        self.name = f"model:{chat.name}"

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0 if both replies agree, else unscored. Raises Incomplete if the budget of the endpoint is spent."""
        if judgement := self._without_model(claim):
            return judgement
        claim = claim.model_copy(update={"question": self._clean(claim.question)})
        first, second = await asyncio.gather(*(self._ask(claim, turned) for turned in (False, True)))
        if first.value is None or second.value is None:
            return self._unscored(first.problem or second.problem)
        if first.value.correct != second.value.correct:
            reason = f"disagreed: it said both {first.value.reason} / {second.value.reason}"
            await reject(self._chat, (*first.requests, *second.requests), reason)
            return self._unscored(reason)
        return Judgement(score=float(first.value.correct), judge=self.name, reason=first.value.reason)

    def _without_model(self, claim: Claim) -> Judgement | None:
        """The verdict on a claim that needs no model or must not be sent to one."""
        if not claim.reference.strip():
            return self._unscored("there is no reference to compare with")
        if not claim.answer.strip():
            return Judgement(score=0.0, judge=self.name, reason="the answer is empty")
        if any(self._clean(text) != text for text in (claim.reference, claim.answer)):
            return self._unscored("secret: reference or answer holds one, which is not shown to an endpoint")
        return None

    async def _ask(self, claim: Claim, turned: bool) -> Answer[Verdict]:  # noqa: FBT001 - the one thing that varies
        """The reply in one order, or a problem that begins with its kind."""
        try:
            messages = prompt(claim, turned=turned)
            request = ChatRequest(messages=messages, response_schema=SCHEMA, max_tokens=ANSWER_TOKENS)
            answer = await ask(self._chat, request, _read, tries=self._tries)
        except InfrastructureError as error:
            return Answer(None, f"{error.kind}: {error}", ())
        return replace(answer, problem=f"{answer.kind}: {answer.problem}") if answer.value is None else answer

    def _unscored(self, reason: str) -> Judgement:
        return Judgement(score=None, judge=self.name, reason=reason)


def prompt(claim: Claim, *, turned: bool) -> tuple[Message, Message]:
    """The messages of one request; `turned` puts the answer before the reference."""
    parts = [fenced("reference", claim.reference), fenced("answer", _cut(claim.answer))]
    parts = [fenced("question", claim.question), *(reversed(parts) if turned else parts)]
    instruction = "Is the answer correct?" if not turned else "Does the answer say what the reference says?"
    content = "\n\n".join([*parts, instruction])
    return Message(role="system", content=_instructions()), Message(role="user", content=content)


def _cut(text: str) -> str:
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]}\n[cut]\n{text[-half:]}"


@cache
def _instructions() -> str:
    return (files(__package__) / "prompts" / "grade.txt").read_text(encoding="utf-8")


def _read(reply: dict[str, Any]) -> Verdict:
    correct, reason = reply.get("correct"), reply.get("reason", "")
    if not isinstance(correct, bool):
        raise ValueError('"correct" is neither true nor false')  # noqa: TRY004 - `ask` retries on ValueError
    return Verdict(correct, reason if isinstance(reason, str) else "")

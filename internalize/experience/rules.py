"""The language of contrastive extraction: rules that say which call to make when a cue is present.

A rule names only things that recur over many tasks, never a page, number or entity of one task, so that it can
transfer. Pools hold rules as sentences, and an item's id is the hash of its text: `phrase` must stay injective, and
the wording of its sentences must not change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from internalize.interfaces import CueExtractor, Situation
from internalize.records import Message, ToolCall, Trajectory

from .cues import BASE, GENERIC, GIVEN, arguments

_JOINS = {"cue": "", "state": " and ", "value": " "}  # precedes the texts of extractors in a sentence
_KEYS = {
    '"': '[^"]+',
    "[": ".*",
}  # pattern of a key by the character before it; else a key is one word


class Reading(NamedTuple):
    """One thing that a rule can name: an extractor and one of its keys."""

    of: CueExtractor
    key: str = ""

    def find(self, situation: Situation) -> str | None:
        """The value in a situation; None if it is not present."""
        return self.of.find(situation, (self.key,)).get(self.key)


class Rule(NamedTuple):
    """When `cue` is present, and `state` if there is one, call the tool `verb` with the value of `value`."""

    cue: Reading
    verb: str
    value: Reading
    state: Reading | None = None


Find = Callable[[Reading], str | None]  # looks up a reading in a situation that was read before


def applies(rule: Rule, situation: Situation, find: Find | None = None) -> bool:
    """Whether the rule's cue, state and argument are present and its call was not made yet."""
    find = find or (lambda reading: reading.find(situation))
    if find(rule.cue) is None or (rule.state is not None and find(rule.state) is None):
        return False
    wanted = argument_of(rule, situation, find)
    return wanted is not None and (rule.value.of.accepts is not None or (rule.verb, wanted) not in situation.taken)


def argument_of(rule: Rule, situation: Situation, find: Find | None = None) -> str | None:
    """The argument that the rule asks for here (one of them if several are right); None if none is present."""
    if rule.value.of is GIVEN:
        return _given(rule.value.key)
    return (find(rule.value) if find else rule.value.find(situation)) or None


@lru_cache(maxsize=4096)
def _given(text: str) -> str:
    return arguments(ToolCall.from_text("", text))[-1]


def matches(rule: Rule, situation: Situation, call: ToolCall, find: Find | None = None) -> bool:
    """Whether `call` follows the rule: it calls the right tool, and one of its arguments is right."""
    if call.name != rule.verb:
        return False
    if accepts := rule.value.of.accepts:
        return any(accepts(situation, argument) for argument in arguments(call))
    return argument_of(rule, situation, find) in arguments(call)


def taken_by(*calls: ToolCall) -> tuple[tuple[str, str], ...]:
    """The field `taken` of a situation after these calls."""
    return tuple((call.name, argument) for call in calls for argument in reversed(arguments(call)))


def decisions(trajectory: Trajectory) -> list[tuple[Situation, ToolCall | None]]:
    """Every call of a trajectory with its situation. A turn without a call gives None; a left-out turn gives nothing.

    All calls of one turn see the same results; each call also sees the calls before it.
    """
    found: list[tuple[Situation, ToolCall | None]] = []
    situation = Situation(trajectory.question)
    for step in trajectory.steps:
        for call in step.calls or (None,):
            if not step.left_out:
                found.append((situation, call))
            situation = situation._replace(taken=situation.taken + (taken_by(call) if call else ()))
        situation = situation._replace(results=tuple(result.text for result in step.results) or ("",))
    return found


def situation_of(messages: Sequence[Message]) -> Situation:
    """The situation of the next decision."""
    question = next((m.text for m in messages if m.role == "user"), "")
    last = max((place for place, m in enumerate(messages) if m.role == "assistant"), default=None)
    results = () if last is None else tuple(m.text for m in messages[last + 1 :]) or ("",)
    return Situation(question, results, taken_by(*(call for m in messages for call in m.tool_calls)))


def phrase(rule: Rule) -> str:
    """The rule as one English sentence."""
    state = _template(rule.state.of, "state").format(rule.state.key) if rule.state else ""
    cue, value = _template(rule.cue.of, "cue"), _template(rule.value.of, "value")
    return f"{cue.format(rule.cue.key)}{state}, {rule.verb}{value.format(rule.value.key)}."


@lru_cache(maxsize=4096)
def parse(text: str, cues: tuple[CueExtractor, ...] = GENERIC) -> Rule | None:
    """The rule that `phrase` wrote with these cues, or None for any other text."""
    known = (*BASE, *cues)
    match = _grammar(known).fullmatch(text)
    if match is None:
        return None
    parts = {}
    for group, key in match.groupdict().items():
        kind, _, number = group.partition("_")
        if number and key is not None:
            parts[kind] = Reading(known[int(number)], key)
    return Rule(parts["cue"], match["verb"], parts["value"], parts.get("state"))


@lru_cache
def _grammar(known: tuple[CueExtractor, ...]) -> re.Pattern[str]:
    """A pattern for every sentence. Raises ValueError if two extractors have the same text."""
    cue, state, value = (_either(kind, known) for kind in _JOINS)
    return re.compile(rf"(?:{cue})(?:{state})?, (?P<verb>[^\s\[\],]+)(?:{value})\.", re.DOTALL)


def _either(kind: str, known: tuple[CueExtractor, ...]) -> str:
    """A pattern for the texts of all extractors; the matching group has the extractor's number and holds the key."""
    templates = {number: _template(of, kind) for number, of in enumerate(known) if getattr(of, kind)}
    if len(set(templates.values())) < len(templates):
        raise ValueError(f"two cue extractors have the same text as a {kind}: {sorted(templates.values())}")
    patterns = []
    for number, template in templates.items():
        before, hole, after = template.partition("{}")
        key = "" if not hole else _KEYS.get(before[-1:], r'[^\s",]+')
        patterns.append(f"{re.escape(before)}(?P<{kind}_{number}>{key}){re.escape(after)}")
    return "|".join(patterns or ["(?!)"])


def _template(of: CueExtractor, kind: str) -> str:
    return f"{'' if of is GIVEN else _JOINS[kind]}{getattr(of, kind)}"


def example(situation: Situation, call: ToolCall) -> str:
    """A worked example of the situation, details kept: the instance-level counterpart of a rule."""
    seen = " | ".join((situation.observation or "nothing yet").splitlines()[:3])
    return f'Example: asked "{situation.question}" and seeing "{seen}", {call.name}[{call.argument}] worked.'

"""The language that contrastive extraction writes in: a cue, a verb, and where its argument stands.

A rule names no page, number or entity of a task, only words that the environment repeats in every task, so it can
transfer; an argument is written out (`EXACTLY`) only where many tasks share it. `matches` says whether an action is
what the rule asks for in a situation. Left out: meaning. A rule is about where text stands. What must not change:
`phrase` is injective, since an item's id is the hash of its text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from internalize.records import Message, ToolCall, Trajectory

START = "start"
FIRST_NAME, LAST_NAME, BESIDE = (
    "the first name in the question",
    "the last name in the question",
    "the value beside the asked word",
)
EXACTLY = "exactly "  # before an argument that the rule gives itself
_NAME = re.compile(r"[\w#-]+(?:[./][\w#-]+)+")
_ASKED = re.compile(r"\b(?:of|after|for) (\S+) in\b")


class Situation(NamedTuple):
    """What the policy sees at one decision. `observation` is None at the start."""

    question: str
    observation: str | None
    taken: frozenset[tuple[str, str]]  # keys of the calls already made in the episode


class Rule(NamedTuple):
    """`cue` "" = the start; `place` = observation | question | start; `asked` = "" | missing | there."""

    place: str
    cue: str
    asked: str
    verb: str
    source: str  # FIRST_NAME, LAST_NAME, BESIDE or a label: the argument follows it on its line


def decisions(trajectory: Trajectory) -> list[tuple[Situation, ToolCall | None]]:
    """Every call of a trajectory and the situation it was made in; None for a turn without a call.

    The calls of one turn were decided on the same observation, each after those before it.
    """
    question = trajectory.question
    found: list[tuple[Situation, ToolCall | None]] = []
    observation, taken = None, frozenset[tuple[str, str]]()
    for step in trajectory.steps:
        for call in step.calls or (None,):
            found.append((Situation(question, observation, taken), call))
            taken |= {call.key} if call else set()
        observation = step.observation
    return found


def asked_words(question: str) -> list[str]:
    """The words that the question asks about: what stands between "of" or "after" and "in"."""
    return _ASKED.findall(question)


def asked_state(situation: Situation) -> str:
    """`there` if an asked word stands in the observation, else `missing`; "" if the question names none."""
    asked = asked_words(situation.question)
    if not asked or situation.observation is None:
        return ""
    there = any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", situation.observation) for word in asked)
    return "there" if there else "missing"


def applies(rule: Rule, situation: Situation) -> bool:
    """Whether the cue of the rule and its argument are present and its action not yet done."""
    seen = situation.observation
    if rule.place == START:
        present = seen is None
    elif rule.place == "question":
        present = seen is not None and rule.cue in situation.question
    else:
        present = seen is not None and follows(seen, rule.cue) is not None
    if not present or (rule.asked and asked_state(situation) != rule.asked):
        return False
    wanted = argument_of(rule, situation)
    if wanted is None:
        return asked_state(situation) == "there"
    given = rule.source.startswith(EXACTLY)
    return (given or wanted != "") and (rule.verb, wanted) not in situation.taken


def argument_of(rule: Rule, situation: Situation) -> str | None:
    """The argument that the rule asks for here; "" if there is none, None if only a value can be recognized."""
    if rule.source == BESIDE:
        return None
    if rule.source.startswith(EXACTLY):
        return ToolCall.from_text(rule.verb, rule.source.removeprefix(EXACTLY)).argument
    if rule.source in {FIRST_NAME, LAST_NAME}:
        names = _NAME.findall(situation.question)
        return names[0 if rule.source == FIRST_NAME else -1] if names else ""
    return follows(situation.observation or "", rule.source) or ""


def follows(observation: str, label: str) -> str | None:
    """What stands after `label` at the start of a line, up to a comma; None if no line starts with it."""
    for line in observation.splitlines():
        if line == label:
            return ""
        if line.startswith(label + " "):
            return line[len(label) + 1 :].split(", ")[0].strip()
    return None


def matches(rule: Rule, situation: Situation, call: ToolCall) -> bool:
    """Whether `call` does what the rule says here."""
    if call.name != rule.verb:
        return False
    if rule.source == BESIDE:
        return _beside(situation, call.argument)
    return call.argument == argument_of(rule, situation)


def _beside(situation: Situation, value: str) -> bool:
    """Whether `value` stands right after an asked word: as `word=value` or as the next item of its list."""
    text, value = situation.observation or "", re.escape(value)
    return any(
        re.search(rf"(?<![\w.]){re.escape(word)}(?:={value}|(?:=[^,\n]*)?, {value})(?![\w.])", text)
        for word in asked_words(situation.question)
    )


def sources(situation: Situation, call: ToolCall, labels: Sequence[str]) -> list[str]:
    """Every description of where the argument of `call` comes from."""
    trial = Rule("", "", "", call.name, "")
    wanted = [FIRST_NAME, LAST_NAME, BESIDE, *labels]
    return [s for s in wanted if matches(trial._replace(source=s), situation, call)]


def phrase(rule: Rule) -> str:
    """The rule as one English sentence."""
    if rule.place == START:
        when = "At the start"
    elif rule.place == "question":
        when = f'When the question says "{rule.cue}"'
    else:
        when = f'When you see "{rule.cue}"'
    if rule.asked:
        when += f" and the asked word is {rule.asked}"
    if rule.source.startswith(EXACTLY):
        return f"{when}, {rule.verb}[{rule.source.removeprefix(EXACTLY)}]."
    source = rule.source if rule.source in {FIRST_NAME, LAST_NAME, BESIDE} else f'the name after "{rule.source}"'
    return f"{when}, {rule.verb} {source}."


def example(situation: Situation, call: ToolCall) -> str:
    """A worked example of the situation, details kept: the instance-level counterpart of a rule."""
    seen = " | ".join((situation.observation or "nothing yet").splitlines()[:3])
    return f'Example: asked "{situation.question}" and seeing "{seen}", {call.name}[{call.argument}] worked.'


_PHRASE = re.compile(
    r'(?:At the (?P<start>start)|When the question says "(?P<said>[^"]+)"|When you see "(?P<seen>[^"]+)")'
    r"(?: and the asked word is (?P<asked>there|missing))?, (?P<verb>\w+)(?:\[(?P<given>.*)\]| (?P<source>[^.].*))\."
)
_AFTER = re.compile(r'the name after "([^"]+)"')


def parse(text: str) -> Rule | None:
    """The rule that `phrase` wrote, or None for any other text."""
    found = _PHRASE.fullmatch(text)
    if found is None:
        return None
    after = _AFTER.fullmatch(found["source"] or "")
    source = after[1] if after else found["source"] or f"{EXACTLY}{found['given']}"
    if after is None and found["source"] and source not in {FIRST_NAME, LAST_NAME, BESIDE}:
        return None
    place = START if found["start"] else "question" if found["said"] else "observation"
    return Rule(place, found["said"] or found["seen"] or "", found["asked"] or "", found["verb"], source)


def situation_of(messages: Sequence[Message]) -> Situation:
    """The situation of the next decision."""
    question = next((m.text for m in messages if m.role == "user"), "")
    last = max((place for place, m in enumerate(messages) if m.role == "assistant"), default=None)
    seen = None if last is None else "\n".join(m.text for m in messages[last + 1 :])
    return Situation(question, seen, frozenset(call.key for m in messages for call in m.tool_calls))

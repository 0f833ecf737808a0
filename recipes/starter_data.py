"""Training data of the starter policy: decision trees over the `docs` environment's train split.

The trunk of a tree is one clean episode. At every state hang branches: no hint (the agent follows its habits), hints
that apply (it obeys), hints that contradict the reference (it obeys), hints whose cue is absent (it ignores them).
Habits worth correcting are built in: it answers before it has evidence and does not follow links.

Held out, to see whether following generalizes: every hint about "More:", and the wording `HELD_OUT_WORDING`.

A plain starter has neither habits nor hints: at every state it takes the reference action, or another call that the page
allows (`OTHER`), and never sees a rule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from internalize.environments.docs.cues import ASKED, BESIDE, FIRST_NAME, LAST_NAME, asked_state
from internalize.environments.docs.env import Docs
from internalize.experience.cues import LINE, SAID, START
from internalize.experience.inject import render_items
from internalize.experience.rules import Reading, Rule, applies, argument_of, example, phrase, taken_by
from internalize.interfaces import Situation
from internalize.records import Task, ToolCall

P_GOOD = {
    "start": 0.93, "found": 0.74, "research": 0.5, "alias": 0.3, "more": 0.35, "bases": 0.3, "methods": 0.6,
    "second": 0.3, "recover": 0.7, "final": 0.97,
}  # fmt: skip
DEFAULT_GUESSES = ("None", "True", "False", "0", "1", "-1", "''", "'utf-8'")
NAME_GUESSES = ("name", "value", "key", "x", "data", "timeout", "encoding", "default")
SKIP = {"start": 0.75, "final": 0.5, "found": 0.4}  # states met so often that fewer hinted branches do
LABELS = ("Found:", "1.", "2.", "3.", "4.", "Alias of", "Bases:", "Methods:", "Parameters:", "About:")
HELD_OUT_WORDING = 3
OTHER = 0.3  # how often a plain starter does something else than the reference


@dataclass
class Tree:
    """One trunk: prompt texts, (action, observation) turns, and branches (turn index, hint, action, kind)."""

    system_hint: str
    question: str
    turns: list[tuple[ToolCall, str | None]] = field(default_factory=list)
    branches: list[tuple[int, str, ToolCall, str]] = field(default_factory=list)


def wordings(rule: Rule) -> list[str]:
    """The canonical sentence and three paraphrases; the last is held out."""
    text = phrase(rule)
    if rule.cue.of is START:
        return [text] * 4
    when, what = text[:-1].split(", ", 1) if ", " in text else (text, "")
    bare = when.removeprefix("When ")
    return [
        text,
        f"If {bare}: {what}.",
        f"{what[0].upper()}{what[1:]} when {bare}.",
        f"Once {bare}, it is right to {what}.",
    ]


def follows(seen: str | None, label: str) -> str | None:
    """What stands after `label` at the start of a line."""
    return Reading(LINE, label).find(Situation("", (seen or "",)))


def kind_of(path: Sequence[ToolCall], index: int, seen: str | None) -> str:
    """What sort of state this is, from the next reference action and the last observation."""
    action = path[index]
    if seen is None:
        return "start"
    if action.name == "answer":
        return "final"
    if action.name == "search":
        return "research" if path[index - 1].name == "search" else "second"
    if seen.startswith("Found:"):
        return "found" if action.argument in seen.split() else "recover"
    for label, kind in (("Alias of", "alias"), ("More:", "more"), ("Bases:", "bases")):
        if follows(seen, label) == action.argument:
            return kind
    return "methods"


def correct_rule(kind: str, seen: str | None, good: ToolCall) -> Rule | None:
    """The rule that leads to the reference action, where the language can say it."""
    if kind == "found":
        label = next((f"{i}." for i in range(1, 5) if follows(seen, f"{i}.") == good.argument), "1.")
        return Rule(Reading(LINE, "Found:"), "visit", Reading(LINE, label))
    return CORRECT.get(kind)


CORRECT = {
    "start": Rule(Reading(START), "search", Reading(FIRST_NAME)),
    "alias": Rule(Reading(LINE, "Alias of"), "visit", Reading(LINE, "Alias of")),
    "more": Rule(Reading(LINE, "More:"), "visit", Reading(LINE, "More:"), Reading(ASKED, "missing")),
    "bases": Rule(Reading(LINE, "Bases:"), "visit", Reading(LINE, "Bases:"), Reading(ASKED, "missing")),
    "second": Rule(Reading(SAID, "and also"), "search", Reading(LAST_NAME)),
    "final": Rule(Reading(LINE, "Parameters:"), "answer", Reading(BESIDE), Reading(ASKED, "there")),
}


class Simulator:
    """Draws trees from tasks."""

    def __init__(self, env: Docs, seed: int, *, plain: bool = False) -> None:
        self.env, self.plain = env, plain
        self.rng = random.Random(seed)
        self.examples: dict[str, list[str]] = {}

    def guess(self, question: str) -> ToolCall:
        """An answer without evidence."""
        pools = DEFAULT_GUESSES if "default" in question else NAME_GUESSES
        text = self.rng.choice(pools)
        if "and also" in question and self.rng.random() < 0.7:
            text = f"{text}, {self.rng.choice(pools)}"
        return ToolCall.from_text("answer", text)

    def habit(self, kind: str, task: Task, good: ToolCall, past: Sequence[ToolCall]) -> ToolCall:
        """What the impatient agent does here."""
        rng = self.rng
        if rng.random() < P_GOOD[kind]:
            return good
        if kind == "second" and rng.random() < 0.8:
            first = (task.answer or "").split(", ")[0]
            return ToolCall.from_text("answer", f"{first}, {rng.choice(DEFAULT_GUESSES)}")
        if kind in {"bases", "methods", "research"} and past and rng.random() < 0.4:
            return past[-1]
        return self.guess(task.question)

    def counter(self, seen: str | None) -> Rule | None:
        """A rule that applies here and has nothing to do with the reference."""
        rng = self.rng
        labels = [x for x in LABELS if seen and follows(seen, x)]
        verb = rng.choice(["visit", "visit", "search"])
        if not labels or rng.random() < 0.15:
            cue = Reading(START) if seen is None else Reading(SAID, "What")
            return Rule(cue, "search", Reading(rng.choice([FIRST_NAME, LAST_NAME])))
        cues = [x for x in LABELS if seen and follows(seen, x) is not None]
        return Rule(Reading(LINE, rng.choice(cues)), verb, Reading(LINE, rng.choice(labels)))

    def absent(self, situation: Situation) -> Rule:
        """A rule whose cue is not present."""
        rng = self.rng
        while True:
            cue, source = Reading(LINE, rng.choice(LABELS)), rng.choice([*LABELS, ""])
            state, verb = rng.choice(["", "", "missing", "there"]), rng.choice(["visit", "search"])
            value = Reading(LINE, source) if source else Reading(LAST_NAME)
            rule = Rule(cue, verb, value, Reading(ASKED, state) if state else None)
            if not applies(rule, situation):
                return rule

    def say(self, rule: Rule) -> str:
        """One of the trained wordings."""
        return wordings(rule)[self.rng.choice([0, 0, 0, 1, 2])]

    def with_asked(self, rule: Rule, situation: Situation) -> Rule:
        """Sometimes add the true state of the asked word to a rule, or drop it."""
        if rule.cue.of is START or self.rng.random() < 0.5:
            return rule
        now = asked_state(situation)
        return rule._replace(state=self.rng.choice([Reading(ASKED, now) if now else None, rule.state]))

    def act(self, rule: Rule, situation: Situation, good: ToolCall) -> ToolCall | None:
        """What the rule orders here, or None."""
        if not applies(rule, situation):
            return None
        if rule.value.of is BESIDE:
            return good if good.name == "answer" else None
        text = argument_of(rule, situation)
        return ToolCall.from_text(rule.verb, text) if text else None

    def tree(self, task: Task) -> Tree:
        """A step-wise tree, or (one in five) an episode under global hints."""
        if self.plain:
            return self._plain(task)
        return self._global(task) if self.rng.random() < 0.2 else self._stepwise(task)

    def _plain(self, task: Task) -> Tree:
        """The reference episode; at each state the branch is its action, or another that the page allows."""
        tree, episode = Tree("", task.question), self.env.episode(task)
        seen: str | None = None
        past: list[ToolCall] = []
        for turn, good in enumerate(self.env.solve(task)):
            situation = Situation(task.question, () if seen is None else (seen,), taken_by(*past))
            other = self.act(rule, situation, good) if (rule := self.counter(seen)) else None
            taken = other if other and self.rng.random() < OTHER else good
            tree.branches.append((turn, "", taken, "plain"))
            seen = episode.step(good)
            past.append(good)
            tree.turns.append((good, seen))
        return tree

    def _stepwise(self, task: Task) -> Tree:
        rng, tree = self.rng, Tree("", task.question)
        path, episode = self.env.solve(task), self.env.episode(task)
        seen: str | None = None
        past: list[ToolCall] = []
        index = 0
        while index < len(path):
            good = path[index]
            kind = kind_of(path, index, seen)
            situation = Situation(task.question, () if seen is None else (seen,), taken_by(*past))
            turn = len(tree.turns)
            tree.branches.append((turn, "", self.habit(kind, task, good, past), f"habit:{kind}"))
            self._hints(tree, turn, kind, task, good, past, situation)
            taken = good
            if kind not in {"start", "final"} and rng.random() < 0.12:
                drawn = self.habit(kind, task, good, past)
                taken = drawn if drawn.name != "answer" and len(past) < 8 else good
            index += taken == good
            seen = episode.step(taken)
            past.append(taken)
            tree.turns.append((taken, seen))
        return tree

    def _hints(
        self, tree: Tree, turn: int, kind: str, task: Task, good: ToolCall, past: list[ToolCall], situation: Situation
    ) -> None:
        rng = self.rng
        right = correct_rule(kind, situation.observation, good)
        distractor = [self.say(self.absent(situation))] if rng.random() < 0.5 else []
        if right and kind != "more":
            right = self.with_asked(right, situation)
            skip = rng.random() < SKIP.get(kind, 0.0)
            if not skip and (ordered := self.act(right, situation, good)) is not None:
                self._add(tree, turn, [self.say(right), *distractor], ordered, f"right:{kind}")
        elif rng.random() < 0.5:
            hint = [self.say(self.absent(situation)), *distractor]
            self._add(tree, turn, hint, self.habit(kind, task, good, past), f"absent:{kind}")
        wrong = self.counter(situation.observation)
        if wrong and rng.random() < 0.45:
            wrong = self.with_asked(wrong, situation)
            ordered = self.act(wrong, situation, good) or self.habit(kind, task, good, past)
            self._add(tree, turn, [self.say(wrong)], ordered, "counter")
        if rng.random() < 0.07 and self.examples:
            chosen = kind if rng.random() < 0.6 and self.examples.get(kind) else rng.choice(sorted(self.examples))
            action = good if chosen == kind else self.habit(kind, task, good, past)
            if kind != "more" and chosen != "more":
                self._add(tree, turn, [rng.choice(self.examples[chosen])], action, "example")
        self.examples.setdefault(kind, []).append(example(situation, good))

    def _add(self, tree: Tree, turn: int, hints: list[str], action: ToolCall, kind: str) -> None:
        self.rng.shuffle(hints)
        tree.branches.append((turn, render_items(hints), action, kind))

    def _global(self, task: Task) -> Tree:
        rng = self.rng
        right = [CORRECT[kind] for kind in ("start", "alias", "bases", "second", "final")]
        right.append(Rule(Reading(LINE, "Found:"), "visit", Reading(LINE, "1.")))
        rules = rng.sample(right, rng.randint(2, len(right)))
        tree = Tree(render_items([self.say(r) for r in rules]), task.question)
        path, episode = self.env.solve(task), self.env.episode(task)
        seen: str | None = None
        past: list[ToolCall] = []
        index = 0
        while index < len(path):
            good, kind = path[index], kind_of(path, index, seen)
            correct = correct_rule(kind, seen, good)
            told = correct in rules
            action = good if told else self.habit(kind, task, good, past)
            tree.branches.append((len(tree.turns), "", action, f"global:{kind}"))
            index += 1
            seen = episode.step(good)
            past.append(good)
            tree.turns.append((good, seen))
        return tree

"""Training data of the laboratory's policy: decision trees over tasks whose domain is drawn anew for every tree.

The trunk of a tree is one right episode. At every decision hang branches: without a hint the policy acts by habit or
does what is right in this tree's domain, which cannot be known, so that it learns to do either way on; a hint that
applies is obeyed, whichever way it says; a hint that does not apply changes nothing.

Hints are rules about a sign, and general ones about any line of a page or the start, which order any tool for any name that
can be named there: extraction finds such rules too, and a policy that never saw one goes astray when it is shown one.

Never hinted at by its sign, to see whether following generalizes: the kinds in `UNSEEN_KINDS` and the signs in `UNSEEN_SIGNS`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

from internalize.environments.lab import world
from internalize.environments.lab.cues import FIRST_NAME, LAST_NAME
from internalize.environments.lab.env import Lab
from internalize.experience.cues import LINE, START
from internalize.experience.inject import render_items
from internalize.experience.rules import Reading, Rule, applies, argument_of, example, phrase, taken_by
from internalize.interfaces import Situation
from internalize.records import Task, ToolCall

UNSEEN_KINDS = frozenset({"when", "season"})
UNSEEN_SIGNS = frozenset({"Barred.", "Guarded.", "Folded.", "Worn."})
HINTED = [sign for sign in world.SIGNS if sign.kind not in UNSEEN_KINDS and sign.word not in UNSEEN_SIGNS]
P_GLOBAL, P_EXAMPLE, P_DISTRACTORS, P_ABSENT, P_GENERAL = 0.15, 0.2, 0.5, 0.25, 0.4
MOST_GLOBAL = 10
P_EARLY = 0.5  # of the habits: an answer too early
REPEATED = 16  # words of a sequence for copying
FAMILIES = [*world.FAMILIES.items(), *world.LONG.items()]


class Branch(NamedTuple):
    """At decision `turn`, after `hint` ("" = none), the policy is to do `action`."""

    turn: int
    hint: str
    action: ToolCall


class Tree(NamedTuple):
    """One trunk: a task, experience in its system message, its turns, and what hangs on them."""

    task: Task
    system_hint: str
    turns: list[tuple[ToolCall, str]]
    branches: list[Branch]


class Trees:
    """Draws trees. `habit`: rate of the habits at a sign; `obey`: share of the trees that have hints at all."""

    def __init__(self, habit: float, obey: float, seed: int) -> None:
        self.habit, self.obey, self.rng = habit, obey, random.Random(seed)

    def tree(self) -> Tree:
        """One tree; a few have experience in the system message, the others at their decisions."""
        rng = self.rng
        family, kinds = rng.choice(FAMILIES)
        task = world.Builder(world.random_domain(rng), world.NAMES, rng).task("warm_up", family, kinds)
        hinted = rng.random() < self.obey
        told = self._told() if hinted and rng.random() < P_GLOBAL else {}
        said = [phrase(world.BY_WORD[word].rule(bit)) for word, bit in told.items()]
        tree = Tree(task, render_items(said) if said else "", [], [])
        episode, situation = Lab().episode(task), Situation(task.question)
        for turn, good in enumerate(world.route_of(task)):
            sign = sign_at(situation)
            if sign is not None and sign.word in told:
                tree.branches.append(Branch(turn, "", ordered(sign, told[sign.word], situation)))
            else:
                tree.branches.append(Branch(turn, "", self.plain(sign, situation, good)))
            if hinted and not told:
                self._hints(tree, turn, sign, situation, good)
            seen = episode.step(good) or ""
            tree.turns.append((good, seen))
            situation = situation._replace(results=(seen,), taken=situation.taken + taken_by(good))
        return tree

    def plain(self, sign: world.Sign | None, situation: Situation, good: ToolCall) -> ToolCall:
        """What the policy does without experience: at a sign it may answer too early or go the first way, by habit."""
        if sign is None or self.rng.random() >= self.habit:
            return good
        verb = "answer" if self.rng.random() < P_EARLY or sign.kind == "read" else sign.ways[0]
        name = (situation.observation or "").split()[2]
        return ToolCall.from_text(verb, name)

    def _told(self) -> dict[str, bool]:
        signs = self.rng.sample(HINTED, self.rng.randint(2, min(MOST_GLOBAL, len(HINTED))))
        return {sign.word: self.rng.random() < 0.5 for sign in signs}

    def _hints(self, tree: Tree, turn: int, sign: world.Sign | None, situation: Situation, good: ToolCall) -> None:
        rng = self.rng
        if sign in HINTED:
            for bit in (True, False):
                texts = [phrase(sign.rule(bit)), *self._absent(sign)]
                rng.shuffle(texts)
                tree.branches.append(Branch(turn, render_items(texts), ordered(sign, bit, situation)))
            if rng.random() < P_EXAMPLE:
                bit = rng.random() < 0.5
                text = self._example(sign, bit)
                tree.branches.append(Branch(turn, render_items([text]), ordered(sign, bit, situation)))
        if rng.random() < P_GENERAL:
            rule = self._general(situation)
            action = ToolCall.from_text(rule.verb, argument_of(rule, situation) or "")
            texts = rng.sample(said := [phrase(rule), *self._absent(sign)], len(said))
            tree.branches.append(Branch(turn, render_items(texts), action))
        if rng.random() < P_ABSENT and (texts := self._absent(sign, certain=True)):
            tree.branches.append(Branch(turn, render_items(texts), self.plain(sign, situation, good)))

    def _general(self, situation: Situation) -> Rule:
        """A rule that applies here, about the start or a line of the page that is no sign."""
        first = [line.split()[0] for line in (situation.observation or "").splitlines()]
        labels = [Reading(LINE, word) for word in first if word.endswith(":")]
        cues = [Reading(LINE, word) for word in first if word not in {*world.BY_WORD, world.SEASONAL}] or [
            Reading(START)
        ]
        values = [*labels, *labels, Reading(FIRST_NAME), Reading(LAST_NAME)]
        verbs = [tool.name for tool in Lab.tools if tool.name != "wait"]
        return Rule(self.rng.choice(cues), self.rng.choice(verbs), self.rng.choice(values))

    def _absent(self, sign: world.Sign | None, *, certain: bool = False) -> list[str]:
        """Up to two rules about other signs."""
        if not certain and self.rng.random() >= P_DISTRACTORS:
            return []
        others = self.rng.sample([s for s in HINTED if s != sign], self.rng.randint(1, 2))
        return [phrase(other.rule(self.rng.random() < 0.5)) for other in others]

    def _example(self, sign: world.Sign, bit: bool) -> str:  # noqa: FBT001
        """A worked example at the same sign, with other names."""
        a, b, first, last = self.rng.sample(world.NAMES, 4)
        labels = zip(sign.ways, (a, b), strict=True) if sign.kind == "read" else [(world.DOOR, a)]
        lines = [f"{label} {name}" for label, name in labels]
        self.rng.shuffle(lines)
        season = self.rng.choice(world.SEASONS)
        there = Situation(f"Seek {first}, else {last}, in {season}", ("\n".join([sign.word, *lines]),))
        return example(there, ordered(sign, bit, there))


def sign_at(situation: Situation) -> world.Sign | None:
    """The sign that decides here, if one does."""
    top = (situation.observation or "").partition("\n")[0]
    if top == world.SEASONAL:
        return next(s for s in world.SIGNS if s.kind == "season" and f"in {s.word}" in situation.question)
    return world.BY_WORD.get(top)


def ordered(sign: world.Sign, first: bool, situation: Situation) -> ToolCall:  # noqa: FBT001
    """What the sign's rule with this bit orders here."""
    rule = sign.rule(first)
    assert applies(rule, situation)
    return ToolCall.from_text(rule.verb, argument_of(rule, situation) or "")


def repeats(words: Sequence[int], rng: random.Random) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """Words in any order and then their runs again in another one, and those runs after their first word.

    A model that has learned to go on as it did before learns to look names up far sooner.
    """
    first = rng.sample(words, REPEATED)
    cuts = [0, *sorted(rng.sample(range(2, REPEATED - 1), REPEATED // 4)), REPEATED]
    runs = [first[start:end] for start, end in itertools.pairwise(cuts)]
    rng.shuffle(runs)
    ids, known = list(first), list[tuple[int, list[int]]]()
    for run in runs:
        if len(run) > 1:
            known.append((len(ids) + 1, run[1:]))
        ids += run
    return ids, known


def texts(trees: Sequence[Tree]) -> list[str]:
    """Every text of the trees, for a vocabulary."""
    rules = [phrase(sign.rule(bit)) for sign in world.SIGNS for bit in (True, False)]
    shown = [page for tree in trees for _, page in tree.turns]
    hints = [branch.hint for tree in trees for branch in tree.branches]
    return [
        *rules,
        *world.NAMES,
        *shown,
        *hints,
        *(tree.task.question for tree in trees),
        "Nothing.",
        "Unknown action.",
    ]

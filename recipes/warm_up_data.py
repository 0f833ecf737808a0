"""Training data of a warm-up: walks of a scripted agent through TRAIN tasks, and branches that hang on their decisions.

A branch without a hint is what an agent with bad habits does here: in `tau2` mostly what the scripted one did, sometimes
an end too early or a call from elsewhere; in `coin` see coin_expert.py. A branch with a hint obeys it where its cue is present, be it right or wrong, and ignores
it elsewhere. Hints are sentences of `internalize.rules`, with lines and calls that many tasks share.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import coin_expert
import tau2_expert

from internalize.environments.tau2.env import Tau2
from internalize.environments.text_games.textworld_express import TextWorldExpress
from internalize.experience.cues import GIVEN, LINE, START
from internalize.experience.inject import render_items
from internalize.experience.rules import Reading, Rule, applies, phrase, taken_by
from internalize.interfaces import Situation
from internalize.records import Message, ToolCall, ToolSpec

P_GOOD, P_EARLY = 0.8, 0.5  # of the impatient agent; the second of what is left
P_RIGHT, P_WRONG, P_ABSENT = 0.7, 0.4, 0.2  # shares of decisions with such a hint
SHARE = 0.08  # of walks that a line or a call has to occur in
COIN = "numLocations=4,numDistractorItems=3,includeDoors=0,limitInventorySize=0"
BEGINNING = "start"  # stands for the start among the lines
TELLING = 0.4  # share of a line's decisions that an action has to follow for the line to be its cue


class Walk(NamedTuple):
    """One episode of the scripted agent. `good`: what it held for best, where it did not do that itself."""

    prompt: tuple[Message, ...]
    turns: tuple[tuple[ToolCall, str | None], ...]
    good: tuple[ToolCall, ...] = ()


class Branch(NamedTuple):
    """At decision `turn`, after `hint` ("" = none), the model is to do `action`."""

    turn: int
    hint: str
    action: ToolCall


def tau2_walks() -> tuple[tuple[ToolSpec, ...], Iterator[Walk]]:
    """Tickets of at most two faults; the agent looks before it repairs."""
    env = Tau2("two_faults")

    def walks() -> Iterator[Walk]:
        for task in env.tasks("train"):
            episode = env.episode(task)
            prompt = episode.prompt()
            turns = tuple(tau2_expert.play(prompt[1].text, episode.step))
            if episode.score() == 1.0:
                yield Walk(prompt, turns)

    return env.tools, walks()


def coin_walks() -> tuple[tuple[ToolSpec, ...], Iterator[Walk]]:
    """Four rooms and a coin."""
    env = TextWorldExpress(games=["coin"], settings={"coin": COIN}, per_game=200)

    def walks() -> Iterator[Walk]:
        for number, task in enumerate(env.tasks("train")):
            episode = env.episode(task)
            prompt = episode.prompt()
            seen = prompt[1].text.partition("\n")[2]
            played = list(coin_expert.play(seen, episode.step, random.Random(number)))
            episode.close()
            yield Walk(prompt, tuple((taken, said) for _, taken, said in played), tuple(good for good, _, _ in played))
        env.close()

    return env.tools, walks()


WALKS = {"tau2": tau2_walks, "coin": coin_walks}


class Hints:
    """What many walks have in common: lines seen, calls made, and which call follows which line."""

    def __init__(self, walks: Sequence[Walk], rng: random.Random) -> None:
        self._rng = rng
        seen: Counter[str] = Counter()
        made: Counter[tuple[str, str]] = Counter()
        after: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        for walk in walks:
            decisions = list(decided(walk))
            seen.update({line for situation, _ in decisions for line in lines(situation)})
            made.update({action.key for _, action in decisions})
            for situation, action in decisions:
                for line in lines(situation):
                    after[line][action.key] += 1
        least = max(2, SHARE * len(walks))
        self._lines = sorted(line for line, count in seen.items() if count >= least)
        self._calls = sorted(call for call, count in made.items() if count >= least)
        self._after = after

    def right(self, situation: Situation, action: ToolCall) -> Rule | None:
        """The rule with the most telling cue that leads to `action`, if there is one."""
        if action.key not in self._calls:
            return None
        told = [(self._after[x][action.key] / self._after[x].total(), x) for x in lines(situation) if x in self._lines]
        best = max(told, default=(0.0, ""))
        return rule(best[1], action.key) if best[0] >= TELLING else None

    def wrong(self, situation: Situation) -> Rule | None:
        """A rule that applies here and orders anything."""
        present = [line for line in lines(situation) if line in self._lines]
        drawn = rule(self._rng.choice(present), self._rng.choice(self._calls)) if present else None
        return drawn if drawn and applies(drawn, situation) else None

    def absent(self, situation: Situation) -> Rule | None:
        """A rule whose cue is not there."""
        drawn = rule(self._rng.choice(self._lines), self._rng.choice(self._calls))
        return None if applies(drawn, situation) else drawn

    def elsewhere(self) -> ToolCall:
        """A call from anywhere."""
        name, argument = self._rng.choice(self._calls)
        return ToolCall.from_text(name, argument or "{}")


Habit = Callable[[Situation, ToolCall, Hints, random.Random], ToolCall]


def impatient(_: Situation, good: ToolCall, hints: Hints, rng: random.Random) -> ToolCall:
    """Says `done` too early, or does something from elsewhere."""
    if rng.random() < P_GOOD:
        return good
    return ToolCall.from_text("done", "{}") if rng.random() < P_EARLY else hints.elsewhere()


def aimless(situation: Situation, good: ToolCall, _: Hints, rng: random.Random) -> ToolCall:
    """Overlooks the coin; goes anywhere."""
    return coin_expert.aimless(situation.observation or situation.question, good, rng)


HABITS: dict[str, Habit] = {"tau2": impatient, "coin": aimless}


def branches(walk: Walk, hints: Hints, rng: random.Random, habits: Habit) -> list[Branch]:
    """What is trained at the decisions of a walk."""
    found = []
    for turn, (situation, good) in enumerate(decided(walk)):
        habit = habits(situation, good, hints, rng)
        found.append(Branch(turn, "", habit))
        right, wrong, absent = hints.right(situation, good), hints.wrong(situation), hints.absent(situation)
        if right and rng.random() < P_RIGHT:
            shown = [right, absent] if absent and rng.random() < 0.5 else [right]
            rng.shuffle(shown)
            found.append(Branch(turn, said(*shown), good))
        if wrong and rng.random() < P_WRONG:
            found.append(Branch(turn, said(wrong), ordered(wrong)))
        if absent and rng.random() < P_ABSENT:
            found.append(Branch(turn, said(absent), habit))
    return found


def decided(walk: Walk) -> Iterator[tuple[Situation, ToolCall]]:
    """Every decision of a walk: what was seen, what was best."""
    situation = Situation(walk.prompt[-1].text)
    for number, (action, observation) in enumerate(walk.turns):
        yield situation, walk.good[number] if walk.good else action
        situation = situation._replace(results=(observation or "",), taken=situation.taken + taken_by(action))


def lines(situation: Situation) -> list[str]:
    """The lines that a cue may be; the start has none but itself."""
    if situation.observation is None:
        return [BEGINNING]
    return [line for line in situation.observation.splitlines() if line == line.strip() and '"' not in line]


def rule(cue: str, call: tuple[str, str]) -> Rule:
    """When `cue` is seen, make `call`."""
    return Rule(Reading(START) if cue == BEGINNING else Reading(LINE, cue), call[0], Reading(GIVEN, call[1]))


def ordered(given: Rule) -> ToolCall:
    """The call that a rule orders."""
    return ToolCall.from_text(given.verb, given.value.key or "{}")


def said(*given: Rule) -> str:
    """The rules as the model is shown them."""
    return render_items([phrase(one) for one in given])

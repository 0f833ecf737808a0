"""The decisions of episodes, what rules can name in their situations, and the candidate rules worth trying."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from internalize.experience.cues import BASE, GIVEN, LINE, LONGEST, SAID, START
from internalize.experience.rules import Reading, Rule, decisions, matches
from internalize.interfaces import CueExtractor, Situation
from internalize.records import ToolCall, Trajectory

from .provenance import TASKS, origin_of

COMMON = 0.08  # a word or key in this share of tasks belongs to the environment
MOST_WORDS = 4  # words of a cue
FEW = 4  # a tool with at most so many shared arguments: they belong to the environment, not to a task
MOST = 0.25  # a call of this share of tasks belongs to the environment, however many arguments its tool takes
_DANGLING = re.compile(r"(?: (?:of|in|the|for|to|a))+$")


class Decision(NamedTuple):
    """One decision of a scored episode, and the value of everything in its situation that rules can name."""

    situation: Situation
    call: ToolCall
    score: float
    trajectory: str
    task: str
    origin: str = TASKS  # where the situation was seen (provenance.py)
    readings: Mapping[Reading, str] = {}


def decided(scored: Sequence[Trajectory], cues: Sequence[CueExtractor]) -> list[Decision]:
    """Every call of every episode, with what rules can name in its situation."""
    made = [
        Decision(situation, call, float(t.score or 0.0), t.id, t.task_id, origin_of(situation))
        for t in scored
        for situation, call in decisions(t)
        if call is not None
    ]
    keys = {LINE: _labels(made), SAID: _question_cues(made), START: {""}} | {of: _keys(of, made) for of in cues}

    def read(situation: Situation) -> dict[Reading, str]:
        found = [(of, of.find(situation, among)) for of, among in keys.items()]
        return {Reading(of, key): value for of, values in found for key, value in values.items()}

    return [d._replace(readings=read(d.situation)) for d in made]


def rarest(made: Sequence[Decision]) -> list[Reading | None]:
    """For each decision, the reading of its situation that the fewest decisions share; questions do not count."""
    shown = [[r for r in d.readings if r.of is not SAID and not r.of.in_question] for d in made]
    counts = Counter(reading for readings in shown for reading in readings)
    return [min(readings, key=lambda r: (counts[r], r.key), default=None) for readings in shown]


def _keys(of: CueExtractor, made: Sequence[Decision]) -> set[str]:
    """The keys that rules may name: those that many tasks share, or all of them if the keys are states."""
    read = [(d.task, tuple(of.read(d.situation))) for d in made]
    return _common(read) if "{}" in of.cue + of.value else {key for _, keys in read for key in keys}


def candidates(made: Sequence[Decision], cues: Sequence[CueExtractor], support: int) -> list[Rule]:
    """Rules that at least `support` decisions followed, with and without a state, in the order that decides ties."""
    shared, stated = _shared_calls(made), any(of.state for of in cues)
    counts: Counter[Rule] = Counter()
    for d in made:
        verb, find = d.call.name, d.readings.get
        values = [r for r in d.readings if r.of.value and matches(Rule(r, verb, r), d.situation, d.call, find)]
        values += [Reading(GIVEN, d.call.argument)] if d.call.key in shared else []
        states = [None, *(r for r in d.readings if r.of.state)]
        for cue, value, state in itertools.product((r for r in d.readings if r.of.cue), values, states):
            vague = value.of.accepts and stated and state is None  # without a state, several values could be right
            if not vague and not (value.of is GIVEN and cue.of is SAID):  # a given argument needs a cue in the results
                counts[Rule(cue, verb, value, state)] += 1
    order = {of: number for number, of in enumerate((*BASE, *cues))}

    def place(reading: Reading) -> tuple[int, str]:
        return order[reading.of], reading.key

    found = [rule for rule, count in counts.items() if count >= support]
    return sorted(found, key=lambda r: (*place(r.cue), r.state.key if r.state else "", r.verb, *place(r.value)))


def _shared_calls(made: Sequence[Decision]) -> set[tuple[str, str]]:
    """Calls that many tasks make, so that their argument, if any, belongs to the environment and not to a task."""
    tasks: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for d in made:
        tasks[d.call.key].add(d.task)
    everyone = len({d.task for d in made})
    variety = Counter(name for (name, _), seen in tasks.items() if len(seen) > 1)
    most, least = MOST * everyone, max(2, COMMON * everyone)
    return {
        (name, argument)
        for (name, argument), seen in tasks.items()
        if len(seen) >= least and (variety[name] <= FEW or len(seen) >= most)
    }


def _labels(made: Sequence[Decision]) -> set[str]:
    """Line beginnings made of words that many tasks' observations share, and whole lines that many tasks show."""
    lines = {(d.task, line) for d in made for line in (d.situation.observation or "").splitlines()}
    common = _common((task, line.split()[:MOST_WORDS]) for task, line in lines)
    runs: Counter[str] = Counter()
    for _, line in lines:
        run = list(itertools.takewhile(common.__contains__, line.split()[:MOST_WORDS]))
        cut = next((i + 1 for i, word in enumerate(run) if word.endswith((":", "."))), len(run))
        if run:
            runs[" ".join(run[:cut])] += 1
    shown = Counter(line for _, line in lines if len(line) <= LONGEST and line == line.strip())
    least = max(2, COMMON * len({task for task, _ in lines}))
    whole = {line for line, count in shown.items() if line and count >= least}
    found = {run for run, count in runs.items() if count > 1} | whole
    return {label for label in found if '"' not in label}  # a rule quotes the label


def _question_cues(made: Sequence[Decision]) -> set[str]:
    """Runs of common words in questions that some, not all, questions contain."""
    questions = {d.situation.question for d in made}
    common = _common((q, q.split()) for q in questions)
    runs: Counter[str] = Counter()
    for question in questions:
        groups = itertools.groupby(question.split(), common.__contains__)
        joined = {_DANGLING.sub("", " ".join(words)) for is_common, words in groups if is_common}
        runs.update(run for run in joined if " " in run)
    return {run for run, count in runs.items() if COMMON * len(questions) <= count < len(questions)}


def _common(texts: Iterable[tuple[str, Sequence[str]]]) -> set[str]:
    """Words that occur in the texts of many tasks; each text comes with a key of its task."""
    tasks: defaultdict[str, set[str]] = defaultdict(set)
    everyone = set()
    for task, words in texts:
        everyone.add(task)
        for word in words:
            tasks[word].add(task)
    least = max(2, COMMON * len(everyone))
    return {word for word, seen in tasks.items() if len(seen) >= least}

"""Extraction without a language model: what successes do, and failures do not, in the same situation.

For principles, every rule that enough decisions followed is tried on all decisions. Where its cue is present, the
success rate of the decisions that followed it is compared with that of the others (lift), and Fisher's exact test over
episodes says whether the difference may be chance. The best rules that cover different decisions are added; rules of
the pool whose lift may now be chance are deleted, if there are enough episodes to tell. For instances, the decision at
which a success of a task parts from a failure is kept as a worked example.

A rule is a correlation within recent episodes, not a cause. Episodes with experience are among them, so a rule that
was shown is judged by what came of following it. Unscored episodes are not evidence (invariant 9).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from internalize.config.schema import ExtractConfig
from internalize.evaluation.stats import fisher_greater
from internalize.experience.cues import BASE, GENERIC, GIVEN, LINE, LONGEST, SAID, START
from internalize.experience.pool import ExperiencePool
from internalize.experience.rules import Reading, Rule, applies, decisions, example, matches, parse, phrase
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Experience, PoolEdit, ToolCall, Trajectory

from .injection_filter import InjectionFilter
from .provenance import TASKS, distinct, origin_of

COMMON = 0.08  # share of tasks in which a word or a key has to occur to be one of the environment's own
MOST_WORDS = 4  # of a cue
OVERLAP = 0.5  # two rules that cover this share of the same decisions say the same
FEW = 4  # different arguments up to which those of a tool belong to the environment, not to a task
MOST = 0.25  # share of tasks that make a call the environment's own, however many arguments its tool takes
MOST_KEPT_OUT = 20  # that are noted with their reason
SCREEN = InjectionFilter.of(())
_DANGLING = re.compile(r"(?: (?:of|in|the|for|to|a))+$")


class Decision(NamedTuple):
    """One decision of a scored episode, and the value of everything in its situation that rules can name."""

    situation: Situation
    call: ToolCall
    score: float
    trajectory: str
    task: str
    origin: str = TASKS  # what showed the situation
    readings: Mapping[Reading, str] = {}


@dataclass(frozen=True)
class Tried:
    """A rule and how it fared. `followed`: decision numbers; `p`: of chance, from `episodes` a side or more.

    `evidence`: the first trajectories that followed it; `origins`: what showed the situations.
    """

    rule: Rule
    followed: frozenset[int]
    ignored: int
    lift: float
    p: float
    episodes: int
    evidence: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def strength(self) -> tuple[float, bool, int]:
        """Sorting key: lift weighted by support and locality, then own cues, then short rules."""
        weighted = self.lift * len(self.followed) ** 0.5 * _locality(self.rule)
        return (round(weighted, 6), self.rule.cue == self.rule.value, -len(phrase(self.rule)))


def _locality(rule: Rule) -> float:
    """What is seen now explains an action better than what was asked, which holds at every step of an episode."""
    if rule.cue.of is SAID:
        return 0.4 if rule.state else 0.2
    if rule.cue.of is START or rule.cue == rule.value:
        return 1.0
    return 0.6 if rule.value.of.in_question else 0.85


def contrast(
    trajectories: Sequence[Trajectory],
    pool: ExperiencePool,
    config: ExtractConfig,
    iteration: int,
    cues: tuple[CueExtractor, ...] = GENERIC,
) -> tuple[PoolEdit, ...]:
    """The edits that these episodes suggest, those that keep the pool within its cap included.

    `cues` are what rules about the environment can name.
    """
    scored = [t for t in trajectories if t.score is not None]
    edits = (
        _instances(scored, pool, config, iteration)
        if config.granularity == "instance"
        else _rules(scored, pool, config, iteration, cues)
    )
    return (*edits, *pool.over_cap(edits))


def _rules(
    scored: Sequence[Trajectory],
    pool: ExperiencePool,
    config: ExtractConfig,
    iteration: int,
    cues: tuple[CueExtractor, ...],
) -> list[PoolEdit]:
    tried = _all_tried(scored, config, cues)
    edits = [
        PoolEdit(op="DELETE", targets=(item.id,), reason=f"lift {t.lift:+.2f}, p = {t.p:.2g}", cause="chance")
        for item in pool.items
        if (t := tried.get(item.text)) and t.episodes >= config.min_support and t.p > config.max_p
    ]
    good = [t for t in tried.values() if not _refused(t, config, cues)]
    sound, kept_out = _screened(good, config)
    new = _distinct(sorted(sound, key=lambda t: t.strength, reverse=True), config.add)
    bad = sorted((t for t in tried.values() if t.ignored and t.lift < 0), key=lambda t: t.strength)
    planted = _distinct(bad, round(len(new) * config.planted / (1 - config.planted)))
    edits += [_addition(t, iteration) for t in new]
    return [*edits, *kept_out, *(_addition(t, iteration, "planted") for t in planted)]


def _addition(t: Tried, iteration: int, source: Literal["contrast", "planted"] = "contrast") -> PoolEdit:
    """The edit that adds a rule. A planted one claims the opposite of its lift, so that no selector knows it."""
    item = Experience.new(
        phrase(t.rule),
        "principle",
        source,
        evidence=t.evidence,
        iteration=iteration,
        support=len(t.followed),
        lift=round(abs(t.lift), 4),
        origins=t.origins,
    )
    reason = f"lift {t.lift:+.2f} over {t.ignored} others, p = {t.p:.2g}"
    return PoolEdit(op="ADD", item=item, reason=reason, cause="planted" if source == "planted" else None)


def _screened(good: Sequence[Tried], config: ExtractConfig) -> tuple[list[Tried], list[PoolEdit]]:
    """The rules that say nothing to a model and rest on enough origins; the first of the others, with the reason."""
    reasons = [_problem(phrase(t.rule), t.origins, config) for t in good]
    kept_out = [_kept_out(phrase(t.rule), reason) for t, reason in zip(good, reasons, strict=True) if reason]
    return [t for t, reason in zip(good, reasons, strict=True) if not reason], kept_out[:MOST_KEPT_OUT]


def _problem(text: str, seen: Collection[str], config: ExtractConfig) -> str:
    # Pages' orders are not compared: a rule quotes what pages show, and its action is what the policy did.
    if reason := SCREEN.problem(text, config.granularity):
        return reason
    few = TASKS not in seen and len(seen) < config.independent
    return f"rests on {len(seen)} of {config.independent} origins ({min(seen)[:80]})" if few else ""


def _kept_out(text: str, reason: str) -> PoolEdit:
    return PoolEdit(op="NONE", reason=f"kept out: {text[:120]!r} {reason}")


def _all_tried(scored: Sequence[Trajectory], config: ExtractConfig, cues: tuple[CueExtractor, ...]) -> dict[str, Tried]:
    """Every candidate rule on all decisions, by its sentence."""
    made = _decisions(scored, cues)
    where: defaultdict[Reading, list[int]] = defaultdict(list)
    for number, decision in enumerate(made):
        for reading in decision.readings:
            where[reading].append(number)
    return {phrase(rule): _try(rule, made, where[rule.cue]) for rule in _candidates(made, cues, config.min_support)}


def _refused(t: Tried, config: ExtractConfig, cues: tuple[CueExtractor, ...]) -> str:
    """Why a rule is not added; "" if it may be."""
    if len(t.followed) < config.min_support or not t.ignored:
        return "were followed too seldom or always (extract.min_support)"
    if t.lift < config.min_lift:
        return "made too little difference (extract.min_lift)"
    if t.p > config.max_p:
        return "may be chance (extract.max_p)"
    return "" if parse(phrase(t.rule), cues) == t.rule else "could not be found again where they apply"


def why_no_rules(
    trajectories: Sequence[Trajectory], config: ExtractConfig, cues: tuple[CueExtractor, ...] = GENERIC
) -> str:
    """How many rules were tried and why none was added, in half a sentence."""
    tried = _all_tried([t for t in trajectories if t.score is not None], config, cues)
    reasons = Counter(reason for t in tried.values() if (reason := _refused(t, config, cues)))
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"of {len(tried)} rules tried {counted}" if counted else "no rule was followed often enough to be tried"


def _decisions(scored: Sequence[Trajectory], cues: Sequence[CueExtractor]) -> list[Decision]:
    """Every call of every episode and what rules can name in its situation."""
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


def _keys(of: CueExtractor, made: Sequence[Decision]) -> set[str]:
    """The keys that rules may name: those that many tasks share, or all of them if the keys are states."""
    read = [(d.task, tuple(of.read(d.situation))) for d in made]
    return _common(read) if "{}" in of.cue + of.value else {key for _, keys in read for key in keys}


def _candidates(made: Sequence[Decision], cues: Sequence[CueExtractor], support: int) -> list[Rule]:
    """Rules that at least `support` decisions followed, with and without a state, in the order that decides ties."""
    shared, stated = _shared_calls(made), any(of.state for of in cues)
    counts: Counter[Rule] = Counter()
    for d in made:
        verb, find = d.call.name, d.readings.get
        values = [r for r in d.readings if r.of.value and matches(Rule(r, verb, r), d.situation, d.call, find)]
        values += [Reading(GIVEN, d.call.argument)] if d.call.key in shared else []
        states = [None, *(r for r in d.readings if r.of.state)]
        for cue, value, state in itertools.product((r for r in d.readings if r.of.cue), values, states):
            vague = value.of.accepts and stated and state is None  # the state tells which of several values is right
            if not vague and not (value.of is GIVEN and cue.of is SAID):  # a given one belongs to what is seen
                counts[Rule(cue, verb, value, state)] += 1
    order = {of: number for number, of in enumerate((*BASE, *cues))}

    def place(reading: Reading) -> tuple[int, str]:
        return order[reading.of], reading.key

    found = [rule for rule, count in counts.items() if count >= support]
    return sorted(found, key=lambda r: (*place(r.cue), r.state.key if r.state else "", r.verb, *place(r.value)))


def _shared_calls(made: Sequence[Decision]) -> set[tuple[str, str]]:
    """Calls whose argument, if any, belongs to the environment and not to a task: many tasks make them."""
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
    return {label for label in found if '"' not in label}  # a sentence quotes it


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
    """Words that occur in the texts of many tasks; with each text comes what its task is known by."""
    tasks: defaultdict[str, set[str]] = defaultdict(set)
    everyone = set()
    for task, words in texts:
        everyone.add(task)
        for word in words:
            tasks[word].add(task)
    least = max(2, COMMON * len(everyone))
    return {word for word, seen in tasks.items() if len(seen) >= least}


def _try(rule: Rule, made: Sequence[Decision], places: Iterable[int]) -> Tried:
    """The rule on all decisions; `places` are those at which its cue is present."""
    followed: list[int] = []
    ignored: list[int] = []
    for number in places:
        d = made[number]
        if applies(rule, d.situation, d.readings.get):
            (followed if matches(rule, d.situation, d.call, d.readings.get) else ignored).append(number)
    lift = _rate(followed, made) - _rate(ignored, made)
    evidence = tuple(sorted({made[i].trajectory for i in followed})[:8])
    origins = distinct(made[i].origin for i in followed)
    return Tried(rule, frozenset(followed), len(ignored), lift, *_chance(followed, ignored, made), evidence, origins)


def _rate(numbers: Sequence[int], made: Sequence[Decision]) -> float:
    """Success rate shrunk towards one half, so that two lucky episodes make no rule."""
    return (sum(made[i].score for i in numbers) + 0.5) / (len(numbers) + 1)


def _chance(followed: Sequence[int], ignored: Sequence[int], made: Sequence[Decision]) -> tuple[float, int]:
    """One-sided p, and the episodes of the smaller side: the decisions of an episode share its score.

    Followed once is followed.
    """
    did = {made[i].trajectory: made[i].score >= 1 for i in followed}
    did_not = {made[i].trajectory: made[i].score >= 1 for i in ignored}
    others = [won for episode, won in did_not.items() if episode not in did]
    return fisher_greater(sum(did.values()), len(did), sum(others), len(others)), min(len(did), len(others))


def _distinct(tried: Iterable[Tried], limit: int) -> list[Tried]:
    """The first `limit` that do not cover the same decisions as a better one."""
    chosen: list[Tried] = []
    for candidate in tried:
        if len(chosen) == limit:
            break
        mine, others = candidate.followed, [other.followed for other in chosen]
        if all(len(mine & other) < OVERLAP * max(1, min(len(mine), len(other))) for other in others):
            chosen.append(candidate)
    return chosen


def _instances(
    scored: Sequence[Trajectory], pool: ExperiencePool, config: ExtractConfig, iteration: int
) -> list[PoolEdit]:
    """Worked examples that the pool does not hold yet, newest first: old ones must not take the place of new ones."""
    held = {item.id for item in pool.items}
    groups: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in scored:
        groups[trajectory.task_id].append(trajectory)
    edits: list[PoolEdit] = []
    kept_out: list[PoolEdit] = []
    for group in reversed(groups.values()):
        won = next((t for t in group if t.score == 1.0), None)
        lost = next((t for t in group if t.score == 0.0), None)
        if won and lost and len(edits) < config.add and (parted := _parting(won, lost)):
            seen = (origin_of(parted[0]),)
            item = Experience.new(
                example(*parted),
                "instance",
                "contrast",
                evidence=(won.id, lost.id),
                iteration=iteration,
                support=1,
                origins=seen,
            )
            if item.id in held:
                continue
            if problem := _problem(item.text, seen, config):
                kept_out.append(_kept_out(item.text, problem))
                continue
            reason = "where a success and a failure of one task part"
            edits.append(PoolEdit(op="ADD", item=item, reason=reason, cause="contrast"))
    return [*edits, *kept_out[:MOST_KEPT_OUT]]


def _parting(won: Trajectory, lost: Trajectory) -> tuple[Situation, ToolCall] | None:
    """The first decision at which the success did something else than the failure."""
    for (situation, call), (_, other) in zip(decisions(won), decisions(lost), strict=False):
        if (call and call.key) != (other and other.key):
            return (situation, call) if call else None
    return None

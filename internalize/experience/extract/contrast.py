"""Extraction without a language model: what do successes do, and failures not, in the same situation.

Principle: every rule of the language in `rules.py` that enough decisions followed is tried on all decisions. Where
its cue is present, the success rate of those who followed it is compared with that of those who did not (support and
lift), and whether that can be chance is tested over episodes (Fisher's exact test). The best rules that cover
different decisions are added; held rules whose lift may now be chance are deleted, where that can be told.
Instance: the successful decision at which a task's successes and failures part, kept as a worked example.

Left out: causes. A rule is a correlation within recent episodes; those with experience are among them, so a rule
that was shown is judged by what came of following it. Unscored episodes are not evidence
(invariant 9). Words of a cue are those the environment repeats over tasks, so no page text becomes a rule by itself.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from internalize.config.schema import ExtractConfig
from internalize.evaluation.stats import fisher_greater
from internalize.experience.pool import ExperiencePool
from internalize.experience.rules import (
    BESIDE,
    EXACTLY,
    FIRST_NAME,
    LAST_NAME,
    START,
    Rule,
    Situation,
    applies,
    asked_state,
    example,
    follows,
    matches,
    phrase,
)
from internalize.experience.rules import decisions as decisions_of
from internalize.experience.rules import sources as sources_of
from internalize.records import Experience, PoolEdit, ToolCall, Trajectory

COMMON = 0.08  # share of tasks in which a word has to occur to be one of the environment's own
MOST_WORDS = 4  # of a cue
OVERLAP = 0.5  # two rules that cover this share of the same decisions say the same
FEW = 4  # different arguments up to which those of a tool belong to the environment, not to a task
MOST = 0.25  # share of tasks that make a call the environment's own, however many arguments its tool takes
LONGEST_CUE = 80  # characters of a whole line
_DANGLING = re.compile(r"(?: (?:of|in|the|for|to|a))+$")


def _locality(rule: Rule) -> float:
    """What is seen now explains an action better than what was asked, which holds at every step of an episode."""
    if rule.place == "question":
        return 0.4 if rule.asked else 0.2
    if rule.place == START or rule.cue == rule.source:
        return 1.0
    return 0.6 if rule.source in {FIRST_NAME, LAST_NAME} else 0.85


class Decision(NamedTuple):
    """One decision of a scored episode."""

    situation: Situation
    call: ToolCall
    score: float
    trajectory: str
    task: str


@dataclass(frozen=True)
class Tried:
    """A rule and how it fared. `followed`: decision numbers; `p`: of chance, from `episodes` a side or more."""

    rule: Rule
    followed: frozenset[int]
    ignored: int
    lift: float
    p: float
    episodes: int

    @property
    def strength(self) -> tuple[float, bool, int]:
        """Sorting key: lift weighted by support and locality, then own cues, then short rules."""
        own = self.rule.cue == self.rule.source
        weighted = self.lift * len(self.followed) ** 0.5 * _locality(self.rule)
        return (round(weighted, 6), own, -len(phrase(self.rule)))


def contrast(
    trajectories: Sequence[Trajectory], pool: ExperiencePool, config: ExtractConfig, iteration: int
) -> tuple[PoolEdit, ...]:
    """The edits that this iteration's episodes suggest, those that keep the pool within its cap included."""
    scored = [t for t in trajectories if t.score is not None]
    edits = (
        _instances(scored, pool, config, iteration)
        if config.granularity == "instance"
        else _rules(scored, pool, config, iteration)
    )
    return (*edits, *pool.over_cap(edits))


def _rules(scored: Sequence[Trajectory], pool: ExperiencePool, config: ExtractConfig, iteration: int) -> list[PoolEdit]:
    decisions = [d for t in scored for d in _decisions(t)]
    tried = [_try(rule, decisions) for rule in _candidates(decisions, config.min_support)]
    known = {phrase(t.rule): t for t in tried}
    edits = [_deletion(item, known[item.text]) for item in pool.items if _fails(known.get(item.text), config)]
    enough = [t for t in tried if t.ignored and len(t.followed) >= config.min_support]
    good = [t for t in enough if t.lift >= config.min_lift and t.p <= config.max_p]
    for chosen in _distinct(sorted(good, key=lambda t: t.strength, reverse=True), config.add):
        evidence = sorted({decisions[i].trajectory for i in chosen.followed})[:8]
        item = Experience.new(
            phrase(chosen.rule),
            "principle",
            "contrast",
            evidence=tuple(evidence),
            iteration=iteration,
            support=len(chosen.followed),
            lift=round(chosen.lift, 4),
        )
        reason = f"lift {chosen.lift:+.2f} over {chosen.ignored} others, p = {chosen.p:.2g}"
        edits.append(PoolEdit(op="ADD", item=item, reason=reason, cause="contrast"))
    return edits


def _decisions(trajectory: Trajectory) -> Iterator[Decision]:
    for situation, call in decisions_of(trajectory):
        if call is not None:
            yield Decision(situation, call, float(trajectory.score or 0.0), trajectory.id, trajectory.task_id)


def _candidates(decisions: Sequence[Decision], support: int) -> list[Rule]:
    """Rules that at least `support` decisions followed, with and without the asked word's state."""
    labels = _labels(decisions)
    cues = _question_cues(decisions)
    shared = _shared_calls(decisions)
    counts: Counter[Rule] = Counter()
    for decision in decisions:
        situation, verb = decision.situation, decision.call.name
        present = [label for label in labels if follows(situation.observation or "", label) is not None]
        places = [("observation", c) for c in present] + [("question", c) for c in cues if c in situation.question]
        if situation.observation is None:
            places = [(START, "")]
        states = dict.fromkeys(["", asked_state(situation)])
        found = sources_of(situation, decision.call, present)
        if (call := decision.call.key) in shared:
            found.append(f"{EXACTLY}{call[1]}")
        rules = (Rule(p, c, s, verb, f) for (p, c), s, f in itertools.product(places, states, found))
        counts.update(rule for rule in rules if _can_be_followed(rule))
    return sorted(rule for rule, count in counts.items() if count >= support)


def _can_be_followed(rule: Rule) -> bool:
    """A value is followed only where the rule says where; a given argument comes from what is seen, not asked."""
    if rule.source == BESIDE:
        return bool(rule.asked)
    return not (rule.source.startswith(EXACTLY) and rule.place == "question")


def _shared_calls(decisions: Sequence[Decision]) -> set[tuple[str, str]]:
    """Calls whose argument, if any, belongs to the environment and not to a task: many tasks make them."""
    tasks: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for decision in decisions:
        tasks[decision.call.key].add(decision.task)
    everyone = len({decision.task for decision in decisions})
    variety = Counter(name for (name, _), made in tasks.items() if len(made) > 1)
    most, least = MOST * everyone, max(2, COMMON * everyone)
    return {
        (name, argument)
        for (name, argument), made in tasks.items()
        if len(made) >= least and (variety[name] <= FEW or len(made) >= most)
    }


def _labels(decisions: Sequence[Decision]) -> list[str]:
    """Line beginnings made of words that many tasks' observations share, and whole lines that many tasks show."""
    lines = {(d.task, line) for d in decisions for line in (d.situation.observation or "").splitlines()}
    common = _common((task, line.split()[:MOST_WORDS]) for task, line in lines)
    runs: Counter[str] = Counter()
    for _, line in lines:
        run = list(itertools.takewhile(common.__contains__, line.split()[:MOST_WORDS]))
        cut = next((i + 1 for i, word in enumerate(run) if word.endswith((":", "."))), len(run))
        if run:
            runs[" ".join(run[:cut])] += 1
    shown = Counter(line for _, line in lines if len(line) <= LONGEST_CUE and '"' not in line and line == line.strip())
    least = max(2, COMMON * len({task for task, _ in lines}))
    whole = {line for line, count in shown.items() if line and count >= least}
    return sorted({run for run, count in runs.items() if count > 1} | whole)


def _question_cues(decisions: Sequence[Decision]) -> list[str]:
    """Runs of common words in questions that some, not all, questions contain."""
    questions = {d.situation.question for d in decisions}
    common = _common((q, q.split()) for q in questions)
    runs: Counter[str] = Counter()
    for question in questions:
        groups = itertools.groupby(question.split(), common.__contains__)
        joined = {_DANGLING.sub("", " ".join(words)) for is_common, words in groups if is_common}
        runs.update(run for run in joined if " " in run)
    return sorted(run for run, count in runs.items() if COMMON * len(questions) <= count < len(questions))


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


def _try(rule: Rule, decisions: Sequence[Decision]) -> Tried:
    applicable = [i for i, d in enumerate(decisions) if applies(rule, d.situation)]
    followed = [i for i in applicable if matches(rule, decisions[i].situation, decisions[i].call)]
    ignored = [i for i in applicable if i not in set(followed)]
    lift = _rate(followed, decisions) - _rate(ignored, decisions)
    return Tried(rule, frozenset(followed), len(ignored), lift, *_chance(followed, ignored, decisions))


def _rate(numbers: Sequence[int], decisions: Sequence[Decision]) -> float:
    """Success rate shrunk towards one half, so that two lucky episodes make no rule."""
    return (sum(decisions[i].score for i in numbers) + 0.5) / (len(numbers) + 1)


def _chance(followed: Sequence[int], ignored: Sequence[int], decisions: Sequence[Decision]) -> tuple[float, int]:
    """One-sided p, and the episodes of the smaller side: the decisions of an episode share its score.

    Followed once is followed.
    """
    did = {decisions[i].trajectory: decisions[i].score >= 1 for i in followed}
    did_not = {decisions[i].trajectory: decisions[i].score >= 1 for i in ignored}
    others = [won for episode, won in did_not.items() if episode not in did]
    return fisher_greater(sum(did.values()), len(did), sum(others), len(others)), min(len(did), len(others))


def _distinct(tried: Iterable[Tried], limit: int) -> list[Tried]:
    """The first `limit` that do not cover the same decisions as a better one."""
    chosen: list[Tried] = []
    for candidate in tried:
        if len(chosen) == limit:
            break
        if all(_overlap(candidate.followed, other.followed) < OVERLAP for other in chosen):
            chosen.append(candidate)
    return chosen


def _overlap(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / max(1, min(len(a), len(b)))


def _fails(tried: Tried | None, config: ExtractConfig) -> bool:
    """Whether the lift of a held rule may be chance, with enough episodes on both sides to tell."""
    return tried is not None and tried.episodes >= config.min_support and tried.p > config.max_p


def _deletion(item: Experience, tried: Tried) -> PoolEdit:
    reason = f"lift {tried.lift:+.2f}, p = {tried.p:.2g}"
    return PoolEdit(op="DELETE", targets=(item.id,), reason=reason, cause="chance")


def _instances(
    scored: Sequence[Trajectory], pool: ExperiencePool, config: ExtractConfig, iteration: int
) -> list[PoolEdit]:
    """Worked examples that the pool does not hold yet, newest first: old ones must not take the place of new ones."""
    held = {item.id for item in pool.items}
    groups: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in scored:
        groups[trajectory.task_id].append(trajectory)
    edits: list[PoolEdit] = []
    for group in reversed(groups.values()):
        won = next((t for t in group if t.score == 1.0), None)
        lost = next((t for t in group if t.score == 0.0), None)
        if won and lost and len(edits) < config.add and (parted := _parting(won, lost)):
            item = Experience.new(
                example(*parted), "instance", "contrast", evidence=(won.id, lost.id), iteration=iteration, support=1
            )
            if item.id in held:
                continue
            reason = "where a success and a failure of one task part"
            edits.append(PoolEdit(op="ADD", item=item, reason=reason, cause="contrast"))
    return edits


def _parting(won: Trajectory, lost: Trajectory) -> tuple[Situation, ToolCall] | None:
    """The first decision at which the success did something else than the failure."""
    for (situation, call), (_, other) in zip(decisions_of(won), decisions_of(lost), strict=False):
        if (call and call.key) != (other and other.key):
            return (situation, call) if call else None
    return None

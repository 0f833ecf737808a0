"""Extraction without a language model: finds what successes do, and failures do not, in the same situation.

For principles, every rule that enough decisions followed is tried on all decisions. Where its cue is present, the
success rate of the decisions that followed it is compared with that of the others (lift), and Fisher's exact test over
episodes says whether the difference may be chance. The best rules that cover different decisions are added; rules of
the pool whose lift may now be chance are deleted, if there are enough episodes to tell. For instances, the decision at
which a success and a failure of a task first differ is kept as a worked example.

A rule is a correlation within recent episodes, not a cause. Episodes with experience are among them, so a shown rule is
judged by the outcome of following it. Unscored episodes are not evidence (invariant 9).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from internalize.config.schema import ExtractConfig
from internalize.evaluation.stats import fisher_greater, stratified_difference, stratified_greater
from internalize.experience.cues import GENERIC, SAID, START
from internalize.experience.pool import ExperiencePool
from internalize.experience.rules import Reading, Rule, applies, decisions, example, matches, parse, phrase
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Experience, PoolEdit, ToolCall, Trajectory

from .candidates import Decision, candidates, decided, rarest
from .disguise import undisguised
from .injection_filter import InjectionFilter, addresses_model
from .provenance import TASKS, distinct, origin_of

TESTED = 0.5  # least share of a rule's decisions in situations where it was followed at least once
OVERLAP = 0.5  # two rules that share this part of their decisions count as the same
MOST_KEPT_OUT = 20  # rejected rules that are logged with their reason
SCREEN = InjectionFilter.of(())


@dataclass(frozen=True)
class Tried:
    """A rule and its results. `followed`, `ignored`: decision numbers; `p`: chance, from at least `episodes` a side.

    `evidence`: the first trajectories that followed it; `origins`: where its situations were seen.
    """

    rule: Rule
    followed: frozenset[int]
    ignored: frozenset[int]
    lift: float
    p: float
    episodes: int
    evidence: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def strength(self) -> tuple[float, bool, int]:
        """Sorting key: lift weighted by support and locality, then a cue that is its own value, then short rules."""
        weighted = self.lift * len(self.followed) ** 0.5 * _locality(self.rule)
        return (round(weighted, 6), self.rule.cue == self.rule.value, -len(phrase(self.rule)))


def _locality(rule: Rule) -> float:
    """Weight of a rule's cue: results explain an action better than the question, which holds at every step."""
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
    """The edits that these episodes suggest, including those that keep the pool within its cap.

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
    made = decided(scored, cues)
    tried = _all_tried(made, config, cues)
    seen = rarest(made) if config.within else []
    edits = []
    for item in pool.items:
        if (t := tried.get(item.text)) and t.episodes >= config.min_support:
            lift, p = _within(t, made, seen) if config.within else (t.lift, t.p)
            # Within situations the lift decides: a learned rule is hardly ever ignored any more, so its p grows.
            fails = lift is not None and lift < config.min_lift if config.within else p > config.max_p
            if fails:
                reason = f"lift {lift:+.2f}, p = {p:.2g}"
                edits.append(PoolEdit(op="DELETE", targets=(item.id,), reason=reason, cause="chance"))
    good = [t for t in tried.values() if not _refused(t, config, cues)]
    sound, kept_out = _screened(good, config, _obedience(scored, made))
    if config.within:
        compared = [(t, *_within(t, made, seen)) for t in sound]
        sound = [t for t, lift, p in compared if lift is not None and lift >= config.min_lift and p <= config.max_p]
    ordered = sorted(sound, key=lambda t: t.strength, reverse=True)
    new = _distinct(ordered, config.add)
    bad = sorted((t for t in tried.values() if t.ignored and t.lift < 0), key=lambda t: t.strength)
    planted = _distinct(bad, round(len(new) * config.planted / (1 - config.planted)))
    edits += [_addition(t, iteration) for t in new]
    return [*edits, *kept_out, *(_addition(t, iteration, "planted") for t in planted)]


def _addition(t: Tried, iteration: int, source: Literal["contrast", "planted"] = "contrast") -> PoolEdit:
    """The edit that adds a rule. A planted rule claims the opposite of its lift, so that no selector recognizes it."""
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
    reason = f"lift {t.lift:+.2f} over {len(t.ignored)} others, p = {t.p:.2g}"
    return PoolEdit(op="ADD", item=item, reason=reason, cause="planted" if source == "planted" else None)


def _screened(
    good: Sequence[Tried], config: ExtractConfig, obeys: Callable[[Tried], bool]
) -> tuple[list[Tried], list[PoolEdit]]:
    """The rules that address no model and rest on enough origins; and edits that log the first rejected ones."""
    reasons = [
        _problem(phrase(t.rule), t.origins, config)
        or ("was followed only where a page had told a model to do so" if obeys(t) else "")
        for t in good
    ]
    kept_out = [_kept_out(phrase(t.rule), reason) for t, reason in zip(good, reasons, strict=True) if reason]
    return [t for t, reason in zip(good, reasons, strict=True) if not reason], kept_out[:MOST_KEPT_OUT]


def _obedience(scored: Sequence[Trajectory], made: Sequence[Decision]) -> Callable[[Tried], bool]:
    """Whether a rule was followed only in episodes that showed its argument in a line that addresses a model.

    Such a line never enters a rule's words, but the rule may name something else on the page.
    """
    shown = {t.id: [line for s in t.steps for result in s.results for line in result.text.splitlines()] for t in scored}
    speaks, plain = cache(addresses_model), cache(lambda line: f"{line}\n{undisguised(line)}".casefold())

    def told(d: Decision) -> bool:
        wanted = d.call.argument.casefold()
        return bool(wanted) and any(wanted in plain(line) and speaks(line) for line in shown[d.trajectory])

    return lambda t: all(told(made[i]) for i in t.followed)


def _problem(text: str, seen: Collection[str], config: ExtractConfig) -> str:
    # Orders of pages are not compared, because a rule quotes pages anyway and its action is the policy's own.
    if reason := SCREEN.problem(text, config.granularity):
        return reason
    few = TASKS not in seen and len(seen) < config.independent
    return f"rests on {len(seen)} of {config.independent} origins ({min(seen)[:80]})" if few else ""


def _kept_out(text: str, reason: str) -> PoolEdit:
    return PoolEdit(op="NONE", reason=f"kept out: {text[:120]!r} {reason}")


def _within(t: Tried, made: Sequence[Decision], seen: Sequence[Reading | None]) -> tuple[float | None, float]:
    """A rule's lift and its one-sided p among episodes with the same `seen` reading, given for each decision.

    Over all decisions, a rule about what many pages show ("Door:, pull") owes its lift to the pages at which anyone
    would pull. The lift is None if nothing can be compared, or if nobody followed the rule on most pages that it is
    about. An episode counts once, where it first followed the rule, or else where it first could have.
    """
    tested, at = {seen[i] for i in t.followed}, [seen[i] for i in (*t.followed, *t.ignored)]
    if sum(one in tested for one in at) < TESTED * len(at):
        return None, 1.0
    did = {made[i].trajectory: i for i in sorted(t.followed, reverse=True)}
    others = {made[i].trajectory: i for i in sorted(t.ignored, reverse=True)}
    tables: defaultdict[Reading | None, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for side, first in enumerate((did, {name: i for name, i in others.items() if name not in did})):
        for i in first.values():
            table = tables[seen[i]]
            table[2 * side] += made[i].score >= 1
            table[2 * side + 1] += 1
    found = [(won, n, other_won, other_n) for won, n, other_won, other_n in tables.values()]
    return stratified_difference(found), stratified_greater(found)


def _all_tried(made: Sequence[Decision], config: ExtractConfig, cues: tuple[CueExtractor, ...]) -> dict[str, Tried]:
    """The results of every candidate rule on all decisions, by the rule's sentence."""
    where: defaultdict[Reading, list[int]] = defaultdict(list)
    for number, decision in enumerate(made):
        for reading in decision.readings:
            where[reading].append(number)
    return {phrase(rule): _try(rule, made, where[rule.cue]) for rule in candidates(made, cues, config.min_support)}


def _refused(t: Tried, config: ExtractConfig, cues: tuple[CueExtractor, ...]) -> str:
    """Why a rule is not added; "" if it may be added."""
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
    """Half a sentence on how many rules were tried and why none was added."""
    made = decided([t for t in trajectories if t.score is not None], cues)
    tried = _all_tried(made, config, cues)
    reasons = Counter(reason for t in tried.values() if (reason := _refused(t, config, cues)))
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"of {len(tried)} rules tried {counted}" if counted else "no rule was followed often enough to be tried"


def _try(rule: Rule, made: Sequence[Decision], places: Iterable[int]) -> Tried:
    """Try a rule on all decisions; `places` are the decisions at which its cue is present."""
    followed: list[int] = []
    ignored: list[int] = []
    for number in places:
        d = made[number]
        if applies(rule, d.situation, d.readings.get):
            (followed if matches(rule, d.situation, d.call, d.readings.get) else ignored).append(number)
    return _tried(rule, frozenset(followed), frozenset(ignored), made)


def _tried(rule: Rule, followed: frozenset[int], ignored: frozenset[int], made: Sequence[Decision]) -> Tried:
    lift = _rate(followed, made) - _rate(ignored, made)
    evidence = tuple(sorted({made[i].trajectory for i in followed})[:8])
    origins = distinct(made[i].origin for i in sorted(followed))
    return Tried(rule, followed, ignored, lift, *_chance(sorted(followed), sorted(ignored), made), evidence, origins)


def _rate(numbers: Collection[int], made: Sequence[Decision]) -> float:
    """Success rate shrunk towards one half, so that two lucky episodes make no rule."""
    return (sum(made[i].score for i in numbers) + 0.5) / (len(numbers) + 1)


def _chance(followed: Sequence[int], ignored: Sequence[int], made: Sequence[Decision]) -> tuple[float, int]:
    """One-sided p, and the number of episodes on the smaller side.

    Decisions of one episode share its score, so episodes are counted: one with any followed decision followed the rule.
    """
    did = {made[i].trajectory: made[i].score >= 1 for i in followed}
    did_not = {made[i].trajectory: made[i].score >= 1 for i in ignored}
    others = [won for episode, won in did_not.items() if episode not in did]
    return fisher_greater(sum(did.values()), len(did), sum(others), len(others)), min(len(did), len(others))


def _distinct(tried: Iterable[Tried], limit: int) -> list[Tried]:
    """The first `limit` rules that do not cover the same decisions as a better one."""
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
    """Worked examples that are not in the pool yet, newest first, so that old ones do not displace new ones."""
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
    """The first decision at which the success acted differently from the failure."""
    for (situation, call), (_, other) in zip(decisions(won), decisions(lost), strict=False):
        if (call and call.key) != (other and other.key):
            return (situation, call) if call else None
    return None

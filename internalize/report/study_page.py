"""The page of a study: its question, its cells over the iterations, and how sure the differences are."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from internalize.evaluation.stats import Interval

from . import figures
from .comparison import Comparison
from .costs import KINDS
from .effects import Effect
from .page import Item, Items, Page, Picture, Section, Table, Text
from .signs import leads_table, verdict
from .text import NOTHING, count, duration, equals, memory, percent, points, probability, ratio, share

EXPLAINED = (
    "Means over seeds and tasks of the suite measured at every iteration, with 95 % intervals: t intervals over seeds, "
    "widened for the tasks that they share; of one seed a bootstrap over tasks, which says nothing about other seeds. "
    "Where a gate rolled back, of the policy that it went back to. gain: last iteration minus starter, no experience "
    "in the prompt. with pool: what the pool in the prompt adds after the last iteration. best: the highest iteration. "
    "retained: share of what the last iteration's pool added in the prompt, before training, that was moved into the "
    "weights; nothing where it is open whether the pool added anything."
)
COST = (
    "Tokens and time of a run, averaged over seeds; the greatest memory of any. What cells share is in the time of the "
    "cell that played it. Memory is that of the process, which may have worked on several cells."
)
COMPARED = (
    "Paired by task and seed, after the iteration named or the last that both have finished (a cell of another length: "
    "after its own), without experience in the prompt (a cell that trains nothing: with its pool). won, lost: tasks "
    "whose success over the seeds rose and fell. p: exact sign test over tasks, adjusted for the number of cells by "
    "Holm's method. seen from: the smallest difference that as many tasks and seeds, spread as these are, show with "
    "power 0.8 at the strictest step of Holm's method (0.05 over the number of comparisons); a smaller one may exist. "
    "A cell is called better or worse only if interval and test agree. With one seed that is a difference of two runs: "
    "how much runs of one recipe vary is not in it."
)
CHOICES = (
    "Each value of an axis against the first one, paired by task and seed, without experience in the prompt: averaged "
    "over the cells of the other axes, and with the other axes as in the reference. p: exact sign test over tasks, "
    "adjusted by Holm's method for the comparisons of its column after the same iteration. Better or worse only if "
    "interval and test agree."
)
FINALS = (
    "Suites that are measured only at the start and of the policy that a finished run ended with, so that nothing was "
    "chosen by them. Paired by task and seed; p: exact sign test over tasks, adjusted for the cells of a suite."
)
LEGEND = (
    "Success over the iterations, cell by cell. Means over seeds; bars: 95 % intervals, with several seeds t intervals "
    "over seeds. Iteration 0 is the starter. Heavy line: the reference."
)


def study_page(comparison: Comparison) -> Page:
    """The page with everything known about a study."""
    found = comparison.diagnoses
    measured = any(any(curve.internalized) for curve in comparison.curves)
    size, narrow = figures.STUDY_SIZE, figures.NARROW_STUDY
    picture = Picture(lambda f: figures.plot_study(f, comparison), size, LEGEND, "study.png", narrow)
    counted = f"Success fell for good in {sum(one.collapse is not None for one in found)} of {len(found)} runs."
    collapsed = tuple(Item(verdict(one)) for one in found if one.collapse)
    runs = tuple(Item(name if page else f"{name} (no page yet)", link=quote(page)) for name, page in comparison.runs)
    return Page(
        comparison.question,
        Section(
            "",
            Text(comparison.question, place="terminal"),
            *(Text(line, "lead") for line in findings(comparison)),
            Text(comparison.missing, "warning", place="everywhere"),
            picture if measured else None,
        ),
        Section("Cells", cells_table(comparison)),
        Section(f"Against {comparison.reference}", versus_table(comparison)),
        Section("Choices", effects_table(comparison)),
        Section("Final suites", finals_table(comparison)),
        Section("Iterations", _iterations(comparison)),
        Section("Warning signs", Text(counted if found else ""), Items(collapsed), leads_table(found)),
        Section("Cost", _costs(comparison)),
        Section("Runs", Items(runs)),
    )


def findings(comparison: Comparison) -> list[str]:
    """The verdict on each cell against the reference, clear differences first."""
    told = [one for one in comparison.at_the_end if one.verdict != "not told apart"]
    same = [one.cell for one in comparison.at_the_end if one.verdict == "not told apart"]
    lines = [
        f"{one.cell} is {one.verdict} than {comparison.reference}: {points(one.change)} points, p {equals(one.p)}."
        for one in told
    ]
    if told and all(curve.seeds == 1 for curve in comparison.curves):
        lines.append("One seed: these are differences of single runs; how much runs of one recipe vary is not known.")
    return [*lines, f"Not told apart from {comparison.reference}: {'; '.join(same)}."] if same else lines


def cells_table(comparison: Comparison) -> Table:
    """Each cell that has begun."""
    rows = [
        {
            "cell": curve.cell,
            "seeds": str(curve.seeds),
            "starter %": percent(curve.internalized[0]),
            "final %": percent(curve.internalized[-1] if curve.last else None),
            "gain, points": points(curve.gain),
            "with pool, points": points(curve.context_gains[-1]),
            "best %": share(max((i.mean for i in curve.internalized if i), default=None)),
            "retained %": ratio(curve.retained),
            "premature": share(curve.premature[-1]),
            "turns": NOTHING if (turns := curve.turns[-1]) is None else f"{turns:.1f}",
        }
        for curve in comparison.curves
    ]
    return Table(rows, text=("cell",), note=EXPLAINED, fits=5, place="everywhere")


def versus_table(comparison: Comparison) -> Table:
    """Each cell that can be compared with the reference."""
    rows = [
        {
            "cell": one.cell,
            **({"iteration": str(one.at)} if one.at else {}),
            "minus reference, points": points(one.change),
            "won": str(one.won),
            "lost": str(one.lost),
            "p (Holm)": probability(one.p),
            "seen from": f"{100 * one.detectable:.0f} points",
            "verdict": one.verdict,
        }
        for one in comparison.versus
    ]
    return Table(rows, text=("cell",), note=COMPARED, place="everywhere")


def finals_table(comparison: Comparison) -> Table:
    """Each cell on the suites that nothing was chosen by."""
    rows = [
        {
            "suite": one.suite,
            "cell": one.cell,
            "seeds": str(one.seeds),
            "starter %": percent(one.starter),
            "final %": percent(one.final),
            "with pool %": percent(one.in_context),
            "final minus reference, points": points(one.change),
            "p (Holm)": NOTHING if one.p is None else probability(one.p),
        }
        for one in comparison.finals
    ]
    return Table(rows, text=("suite", "cell"), note=FINALS, place="everywhere")


def effects_table(comparison: Comparison) -> Table:
    """Each choice of a grid after each iteration at which it is compared."""
    rows: dict[tuple[str, str, str, int], dict[str, str]] = {}
    for one in comparison.effects:
        row = rows.setdefault((one.axis, one.value, one.against, one.iteration), _choice(one))
        words = "on average" if one.others == "average" else "others as in the reference"
        row |= {f"{words}, points": points(one.change), f"p, {words}": probability(one.p), f"{words}": one.verdict}
    return Table([*rows.values()], text=("choice", "against"), note=CHOICES, place="everywhere")


def _choice(one: Effect) -> dict[str, str]:
    return {
        "choice": f"{one.axis.rpartition('.')[2]} = {one.value}",
        "against": one.against,
        "iteration": str(one.iteration),
        "seeds": str(one.seeds),
    }


def _iterations(comparison: Comparison) -> Table:
    """Success of every cell and mode at every iteration, %."""
    longest = max((curve.last for curve in comparison.curves), default=0)
    modes = [
        (curve.cell, mode, intervals)
        for curve in comparison.curves
        for mode, intervals in (("without", curve.internalized), ("with pool", curve.in_context))
    ]
    rows = [
        {
            "cell": cell,
            "mode": mode,
            **{name: _mean(intervals, k) for k, name in enumerate(["starter", *map(str, range(1, longest + 1))])},
        }
        for cell, mode, intervals in modes
    ]
    return Table(rows, text=("cell", "mode"))


def _mean(intervals: Sequence[Interval | None], k: int) -> str:
    if k >= len(intervals):
        return ""
    return f"{100 * found.mean:.1f}" if (found := intervals[k]) else NOTHING


def _costs(comparison: Comparison) -> Table:
    rows = [
        {
            "cell": curve.cell,
            "sampled to learn": count(curve.costs.sampled),
            "sampled to measure": count(curve.costs.measured),
            "trained on": count(curve.costs.trained),
            **{kind: duration(curve.costs.seconds.get(kind)) for kind in KINDS},
            "memory": memory(curve.costs.memory),
        }
        for curve in comparison.curves
    ]
    return Table(rows, text=("cell",), note=COST)

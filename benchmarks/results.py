"""Fill the tables of a Markdown page from run directories: `python -m benchmarks.results PAGE.md --root runs`.

The page says where a table belongs; what stands between the two marks is replaced, all other text is left alone.

    <!-- run: demo -->            ... <!-- end -->    figure, sentence, iterations, suites and signs of a run
    <!-- study: baselines -->     ... <!-- end -->    figure, cells and differences of a study
    <!-- diagnose: ten naive -->  ... <!-- end -->    the warning signs of runs and studies against their collapses
    <!-- compare: b-0 b-1 : a-0 a-1 --> ... <!-- end -->    before and after, NAME.results.jsonl of a seed each, which
                                                            `internalize evaluate --out NAME.jsonl` writes

Names are relative to `--root`; a study that is not there may lie packed in `records/NAME` beside the page, as
`internalize study --records` writes it. A table whose files are not there stays as it is, and is named. Figures go to
`figures/` beside the page. Left out: any number that is not in those files.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from internalize.evaluation.metrics import by_task
from internalize.evaluation.stats import Scores, mean_runs, paired_difference_runs
from internalize.records import EvalResult
from internalize.report.comparison import compare
from internalize.report.figures import save
from internalize.report.headline import summary
from internalize.report.markdown import render_part
from internalize.report.page import Item, Items, Page, Part, Picture, Table, Text
from internalize.report.publish import diagnoses
from internalize.report.run_page import iterations_table, run_page, suites_table
from internalize.report.run_report import load
from internalize.report.signs import diagnose, leads_table, verdict
from internalize.report.slim import unpack_study
from internalize.report.study_page import cells_table, effects_table, finals_table, study_page, versus_table
from internalize.report.text import count, percent, points, share
from internalize.runs.store import read_jsonl, write_atomic

BLOCK = re.compile(r"(<!-- (run|study|diagnose|compare): ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


@click.command(help=__doc__)
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("runs"))
def main(page: Path, root: Path) -> None:
    def fill(found: re.Match[str]) -> str:
        opening, kind, names, closing = found.groups()
        packed = page.parent / "records" / names
        with tempfile.TemporaryDirectory() as place:
            of = root
            if kind == "study" and not (root / names).exists() and packed.is_dir():
                unpack_study(packed, (of := Path(place)) / names)
            missing = [path for path in needed(kind, names, of) if not path.exists()]
            if missing:
                click.echo(f"left as it is: {kind} {names} (there is no {missing[0]})", err=True)
                return found.group()
            return f"{opening}\n{WRITERS[kind](of, names, page.parent / 'figures')}\n\n{closing}"

    write_atomic(page, BLOCK.sub(fill, page.read_text(encoding="utf-8")))


def needed(kind: str, names: str, root: Path) -> list[Path]:
    """What a block is made from."""
    if kind == "compare":
        return [results_file(root, name) for name in names.replace(":", " ").split()]
    if kind == "diagnose":  # runs and studies
        return [
            path if (path := root / name / "study.json").exists() else root / name / "run.json"
            for name in names.split()
        ]
    return [root / name / ("study.json" if kind == "study" else "run.json") for name in names.split()]


def results_file(root: Path, name: str) -> Path:
    """Where `internalize evaluate --out NAME.jsonl` puts its results."""
    return root / f"{name}.results.jsonl"


def of_run(root: Path, name: str, figures: Path) -> str:
    """Figure, sentence, tables and verdict of one run."""
    report = load(root / name)
    return rendered(
        Text(summary(report)),
        iterations_table(report),
        suites_table(report),
        Text(verdict(diagnose(report, name))),
        figure=drawn(run_page(report), figures / f"{name}.png", f"Success of the run {name} over its iterations"),
    )


def of_study(root: Path, name: str, figures: Path) -> str:
    """Figure, cells and differences of one study."""
    found = compare(root / name)
    page = study_page(found)
    figure = drawn(page, figures / f"{name}.png", "Success of every cell over the iterations")
    return rendered(cells_table(found), versus_table(found), effects_table(found), finals_table(found), figure=figure)


def drawn(page: Page, path: Path, words: str) -> str:
    """The figure of a page, drawn at `path`; "" if it has none."""
    pictures = (part for section in page.sections for part in section.parts if isinstance(part, Picture) and part.file)
    path.parent.mkdir(exist_ok=True)
    is_drawn = any(save(path, picture.plot, picture.size) for picture in pictures)
    return f"![{words}](figures/{path.name})" if is_drawn else ""


def rendered(*parts: Part, figure: str = "") -> str:
    """Parts of pages without their notes, as Markdown."""
    bare = (replace(part, note="") if isinstance(part, Table) else part for part in parts)
    return "\n\n".join(text for text in (figure, *map(render_part, bare)) if text)


def of_signs(root: Path, names: str, _: Path) -> str:
    """Verdicts and leads of several runs."""
    found = diagnoses([root / name for name in names.split()])
    return rendered(Items(tuple(Item(verdict(one)) for one in found)), leads_table(found))


def of_results(root: Path, names: str, _: Path) -> str:
    """Before and after, over seeds and by family."""
    sides = [[read_jsonl(results_file(root, n), EvalResult) for n in side.split()] for side in names.split(":")]
    families = sorted({r.family for run in sides[0] for r in run if r.family})
    rows = [_row("all", sides, lambda _: True)]
    rows += [_row(family, sides, lambda r, f=family: r.family == f) for family in families]
    habits = " ".join(_habits(when, runs) for when, runs in zip(("Before:", "After:"), sides, strict=True))
    return f"{render_part(Table(rows, text=('tasks',)))}\n\n{habits}"


def _row(
    name: str, sides: Sequence[Sequence[Sequence[EvalResult]]], of: Callable[[EvalResult], bool]
) -> dict[str, str]:
    before, after = ([_scores(run, of) for run in side] for side in sides)
    change = paired_difference_runs(before, after)
    return {
        "tasks": name,
        "before %": percent(mean_runs(before)),
        "after %": percent(mean_runs(after)),
        "difference, points": points(change),
        "n": count(change.n if change else None),
    }


def _scores(run: Sequence[EvalResult], of: Callable[[EvalResult], bool]) -> Scores:
    return by_task(result for result in run if of(result))


def _habits(when: str, runs: Sequence[Sequence[EvalResult]]) -> str:
    every = [result for run in runs for result in run if result.success is not None]
    premature, turns = (
        sum(values) / max(1, len(every)) for values in ([r.premature for r in every], [r.turns for r in every])
    )
    return f"{when} {share(premature)} premature, {turns:.1f} turns."


WRITERS: dict[str, Callable[[Path, str, Path], str]] = {
    "run": of_run,
    "study": of_study,
    "diagnose": of_signs,
    "compare": of_results,
}

if __name__ == "__main__":
    main()

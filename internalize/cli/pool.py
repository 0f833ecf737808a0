"""`internalize pool`: shows, compares and lints pools, and converts them from and to the format of the paper's code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from internalize.errors import UserError

from .output import echo, echo_data

if TYPE_CHECKING:
    from internalize.experience.pool import ExperiencePool
    from internalize.experience.utility import Utility
    from internalize.interfaces import CueExtractor
    from internalize.records import Experience, PoolEdit, Trajectory

_FILE = click.Path(path_type=Path, dir_okay=False)
_trajectories = click.option(
    "--trajectories", "files", type=_FILE, multiple=True, metavar="FILE", help="Episodes, JSON Lines (repeatable)."
)


@click.group("pool")
def pool_group() -> None:
    """Inspect, compare and convert pools of experience."""


@pool_group.command("show")
@click.argument("file", type=_FILE)
@_trajectories
@click.argument("more", type=_FILE, nargs=-1)
def show(file: Path, files: tuple[Path, ...], more: tuple[Path, ...]) -> None:
    """Show the items and where they come from.

    With --trajectories FILE..., also the success with and without each item.
    """
    from internalize.experience.extract.provenance import said
    from internalize.experience.pool import load_pool

    if more and not files:
        raise UserError(f"{more[0]}: only one pool can be shown; files of episodes follow --trajectories")
    pool, trajectories = load_pool(file), _episodes([*files, *more])
    echo(f"version {pool.version}, {len(pool.items)} of at most {pool.cap} items")
    for item in pool.items:
        echo(f"\n{item.id}  {item.text}")
        echo(f"    {_origin(item)}")
        if alone := said(item.origins):
            echo(f"    {alone}")
    if files:
        echo("\n" + "\n".join(_utility_table(pool, trajectories)))


@pool_group.command("diff")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
def diff(old: Path, new: Path) -> None:
    """Show what changed between two pools.

    With reasons if the edits lie next to NEW.
    """
    from internalize.experience.pool import diff as difference
    from internalize.experience.pool import load_pool

    before, after = load_pool(old), load_pool(new)
    change = difference(before, after)
    edits = _edits_beside(new)
    for item in change.removed:
        echo(f"- {item.id}  {item.text}")
        for line in _removal(item.id, edits, after):
            echo(f"    {line}")
    for item in change.added:
        echo(f"+ {item.id}  {item.text}")
        for line in _addition(item, edits):
            echo(f"    {line}")
    old_items = {item.id: item for item in before.items}
    for item in change.changed:
        echo(f"~ {item.id}  {_numbers(old_items[item.id])} -> {_numbers(item)}")


@pool_group.command("lint")
@click.argument("file", type=_FILE)
@_trajectories
@click.argument("more", type=_FILE, nargs=-1)
@click.option("--words", default=32, show_default=True, type=click.IntRange(1), help="Most words of a principle.")
@click.option("--strict", is_flag=True, help="Exit with code 2 if any item is flagged.")
def lint(file: Path, files: tuple[Path, ...], more: tuple[Path, ...], words: int, *, strict: bool) -> None:
    """Flag items that are no principles.

    Items without a strategy, with details of single tasks, near duplicates, long items and instructions.

    With --trajectories FILE..., also flag names from the tasks of these episodes and instructions from their pages.
    """
    from internalize.evaluation.pool_health import pool_health
    from internalize.experience.lint import lint as flags_of
    from internalize.experience.lint import task_entities
    from internalize.experience.pool import load_pool

    if more and not files:
        raise UserError(f"{more[0]}: only one pool can be checked; files of episodes follow --trajectories")
    items, trajectories = load_pool(file).items, _episodes([*files, *more])
    health = pool_health(items, task_entities(trajectories))
    flags = flags_of(items, trajectories, words, _cues(trajectories))
    echo(f"{file}: {len(items)} items, strategy {health.strategy_share:.0%}, leaks {health.leak_share:.0%}")
    texts = {item.id: item.text for item in items}
    for item_id, item_flags in groupby(flags, key=lambda flag: flag.item_id):
        echo(f"{item_id}  {texts[item_id]}")
        for flag in item_flags:
            echo(f"    {flag.sign.replace('_', ' ')}: {flag.detail}")
    if strict and flags:
        raise UserError(f"{file}: {len({flag.item_id for flag in flags})} of {len(items)} items are flagged")


@pool_group.command("import")
@click.argument("file", type=_FILE)
@click.option(
    "--out", type=_FILE, required=True, help="pool.json to write; a file with its edits is written next to it."
)
@click.option("--pool", "pool_file", type=_FILE, help="Pool to add to (default: an empty one).")
@click.option(
    "--granularity", type=click.Choice(["principle", "instance"]), default="principle", show_default=True,
    help="Granularity of the items.",
)  # fmt: skip
@click.option("--source", default="external", show_default=True, help="Source recorded for the items.")
@click.option(
    "--cap", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Most items that a new pool may hold."
)
def import_(
    file: Path, out: Path, pool_file: Path | None, granularity: Literal["principle", "instance"], source: str, cap: int
) -> None:
    """Convert a pool of the paper's released code.

    Both of its formats are read: {"G0": text} and [{"id", "full_text"}].
    """
    from internalize.experience.pool import empty, load_official, load_pool, save_pool
    from internalize.runs import names
    from internalize.runs.store import require_folder, write_jsonl

    require_folder(out)
    if out.resolve() == file.resolve():
        raise UserError(f"{out}: is the file to import; choose another --out")
    before = load_pool(pool_file) if pool_file else empty(cap)
    edits = load_official(file, granularity, source)
    after = before.apply(edits)
    write_jsonl(out.with_suffix(f".{names.EDITS}"), edits)
    save_pool(after, out)
    echo(f"{out}: {len(after.items)} items (before: {len(before.items)})")


@pool_group.command("export")
@click.argument("file", type=_FILE)
@click.option(
    "--style", type=click.Choice(["dict", "list", "text"]), default="dict", show_default=True,
    help="For the paper's extraction, for its agent, or plain text with one item a line.",
)  # fmt: skip
@click.option("--out", type=_FILE, help="File to write (default: standard output).")
def export(file: Path, style: Literal["dict", "list", "text"], out: Path | None) -> None:
    """Write a pool in the paper's format or as text."""
    from internalize.experience.pool import export_official, load_pool
    from internalize.runs.store import require_folder, write_atomic

    pool = load_pool(file)
    if style == "text":
        text = "".join(f"{' '.join(item.text.split())}\n" for item in pool.items)
    else:
        text = json.dumps(export_official(pool, style), ensure_ascii=False, indent=2) + "\n"
    if out is None:
        echo_data(text)
        return
    require_folder(out)
    if out.resolve() == file.resolve():
        raise UserError(f"{out}: is the pool itself; choose another --out")
    write_atomic(out, text)
    echo(f"{out}: {len(pool.items)} items")


def _origin(item: Experience) -> str:
    parents = f", from {' '.join(item.parents)}" if item.parents else ""
    return f"{item.granularity}, {item.source}, iteration {item.iteration}, {_numbers(item)}{parents}"


def _numbers(item: Experience) -> str:
    return f"support {item.support}, lift {item.lift:+.2f}, evidence {len(item.evidence)}"


def _episodes(files: Sequence[Path]) -> list[Trajectory]:
    from internalize.records import Trajectory
    from internalize.runs.store import read_jsonl

    return [trajectory for file in files for trajectory in read_jsonl(file, Trajectory)]


def _cues(trajectories: Sequence[Trajectory]) -> tuple[CueExtractor, ...]:
    """What the rules of a pool that belongs to these episodes can name."""
    from internalize.environments import registry

    return registry.vocabulary(trajectories[0].env if trajectories else "")


def _utility_table(pool: ExperiencePool, trajectories: Sequence[Trajectory]) -> Iterator[str]:
    """One line for each item, between a header and a legend."""
    from internalize.experience.utility import utilities

    yield f"{'item':12}  {'shown at':>8}  {'episodes':>8}  {'with it':>15}  {'without':>15}  difference, points"
    for use in utilities(pool.items, trajectories, cues=_cues(trajectories)):
        shown, without = _rate(use.success, use.tasks), _rate(use.success_without, use.tasks_without)
        yield f"{use.item_id}  {use.selected:8}  {use.episodes:8}  {shown:>15}  {without:>15}  {_points(use)}"
    yield "shown at: steps. with it, without: mean success over tasks (number of tasks). difference: 95 % interval;"
    yield "an association, not an effect: where an item is shown depends on earlier steps and on the other items."


def _rate(success: float | None, tasks: int) -> str:
    return "-" if success is None else f"{success:.1%} ({tasks})"


def _points(use: Utility) -> str:
    change = use.difference
    if change is None:
        return "-"
    interval = f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]" if use.sure else "(too few tasks)"
    return f"{100 * change.mean:+.1f} {interval}"


def _edits_beside(pool_file: Path) -> list[PoolEdit]:
    """The edits that a run or a command stored next to a pool; empty if there is no such file."""
    from internalize.experience.pool import read_edits
    from internalize.runs import names

    files = [pool_file.with_suffix(f".{names.EDITS}")]
    if pool_file.name == names.POOL:  # the pool of a run's iteration
        files.append(pool_file.with_name(names.EDITS))
    return next((read_edits(file) for file in files if file.is_file()), [])


def _removal(name: str, edits: Sequence[PoolEdit], after: ExperiencePool) -> Iterator[str]:
    """Why an item was removed: the last edit that names it, else the item that lists it as a parent."""
    edit = next((edit for edit in reversed(edits) if name in edit.targets), None)
    if edit is not None:
        into = f" into {edit.item.id}" if edit.item else ""
        yield f"{edit.op}{into}: {edit.reason}" if edit.reason else f"{edit.op}{into}"
    elif child := next((item for item in after.items if name in item.parents), None):
        yield f"replaced by {child.id}"


def _addition(item: Experience, edits: Sequence[PoolEdit]) -> Iterator[str]:
    yield _origin(item)
    edit = next((edit for edit in reversed(edits) if edit.item is not None and edit.item.id == item.id), None)
    if edit is not None and edit.reason:
        yield f"{edit.op}: {edit.reason}"

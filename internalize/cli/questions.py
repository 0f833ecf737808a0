"""`internalize questions`: proposes questions about a folder of documents, and accepts reviewed ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from internalize.config.schema import load_config
from internalize.errors import DataError, UserError
from internalize.runs.progress import going_on_by, progress

from .options import set_option
from .output import echo

if TYPE_CHECKING:
    from internalize.environments.docs.proposals import Proposal

_FILE = click.Path(path_type=Path, dir_okay=False)
_SAMPLES = 3


@click.group("questions")
def questions_group() -> None:
    """Propose and accept questions about documents."""


@questions_group.command("propose")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", type=_FILE, required=True, help="Proposals, JSON Lines.")
@click.option("--per-page", type=click.IntRange(1, 50), default=6, show_default=True, help="Most questions a page.")
@click.option("--endpoint", default="", help="Endpoint of the recipe whose model writes (default: rules write).")
@click.option("--recipe", type=_FILE, help="Recipe with the [endpoints].")
@set_option
def propose(
    folder: Path, out: Path, per_page: int, endpoint: str, recipe: Path | None, overrides: tuple[str, ...]
) -> None:
    """Propose questions about documents.

    By rules from tables, labels, definitions and headings, or by a model. Each has a verbatim span of a page as its
    evidence. Look at them before use; environments refuse proposals that were not accepted.
    """
    from internalize.environments.docs import proposals
    from internalize.runs.store import require_folder, write_jsonl

    require_folder(out)
    if endpoint:
        found, dropped = _written(folder, out, per_page, endpoint, recipe, overrides)
    else:
        found, dropped = proposals.by_rules(folder, per_page)
    if not found:
        raise UserError(f"{folder}: nothing could be asked about these documents{_listed(dropped, ' (', ')')}")
    write_jsonl(out, found)
    echo(f"{out}: {len(found)} proposals ({_listed(proposals.families(found))}); look at them, then accept them")
    if dropped:
        echo(f"  dropped: {_listed(dropped)}")
    for proposal in found[:: max(1, len(found) // _SAMPLES)][:_SAMPLES]:
        echo(f"  {proposal.question} -> {proposal.answer}")


@questions_group.command("accept")
@click.argument("proposals", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="Questions, JSON Lines, as the environment `docs` reads them.")
@click.option("--drop", "dropped", type=click.IntRange(min=1), multiple=True, help="Number of a line to leave out.")
def accept(proposals: Path, out: Path, dropped: tuple[int, ...]) -> None:
    """Turn reviewed proposals into a file of questions.

    Delete the lines of bad ones before, or name their numbers with --drop.
    """
    from internalize.environments.docs.proposals import Proposal, Question
    from internalize.runs.store import require_folder, stream_numbered, write_jsonl

    require_folder(out)
    if out.resolve() == proposals.resolve():
        raise UserError(f"{out}: is the file that is read; choose another --out")
    found = dict(stream_numbered(proposals, Proposal))
    if unknown := sorted(set(dropped) - found.keys()):
        raise DataError(f"{proposals}: has no line {unknown[0]} to drop")
    kept = [Question.of(proposal) for number, proposal in found.items() if number not in dropped]
    write_jsonl(out, kept)
    echo(f"{out}: {len(kept)} questions, {len(found) - len(kept)} dropped")


def _written(
    folder: Path, out: Path, per_page: int, endpoint: str, recipe: Path | None, overrides: tuple[str, ...]
) -> tuple[list[Proposal], Counter[str]]:
    """Questions by the model behind an endpoint; replies are kept beside `out`, so that the command can resume."""
    from internalize.environments.docs.question_writer import by_model
    from internalize.experience.redact import Redactor
    from internalize.inference.cached import CachedChat
    from internalize.inference.endpoints import endpoint_chat
    from internalize.inference.structured import CleanedChat

    config = load_config(recipe, overrides)
    chat = CachedChat(endpoint_chat(config, endpoint), out.with_suffix(".replies.jsonl"))
    cleaned = CleanedChat(chat, Redactor.of(config.redact).clean)
    with going_on_by("run the same command again"), progress() as show:
        return asyncio.run(by_model(folder, cleaned, per_page, lambda done, of: show("propose: pages", done, of)))


def _listed(counts: Counter[str], before: str = "", after: str = "") -> str:
    text = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{before}{text}{after}" if text else ""

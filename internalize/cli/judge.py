"""`internalize judge`: grade answers of any origin. Unscored answers are counted apart and make it incomplete."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from internalize.config.schema import load_config
from internalize.errors import Incomplete
from internalize.runs.progress import going_on_by, progress

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("judge")
@click.argument("claims", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="Verdicts, JSON Lines; those already there are kept.")
@click.option("--recipe", type=_FILE, help="Recipe whose [judge] section is used.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value.")
def judge_command(claims: Path, out: Path, recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Grade answers. A line of CLAIMS is {"question": ..., "reference": ..., "answer": ...} and maybe an "id"."""
    from internalize.evaluation.stats import wilson
    from internalize.experience.redact import Redactor
    from internalize.inference.cached import CachedChat
    from internalize.inference.endpoints import endpoint_chat
    from internalize.judge import build
    from internalize.judge.claims import judge_file

    config = load_config(recipe, overrides)
    with going_on_by("run the same command again"), progress() as show:
        clean = Redactor.of(config.redact).clean
        replies = out.with_suffix(".replies.jsonl")
        judge = build(config.judge, lambda name: CachedChat(endpoint_chat(config, name), replies), clean)
        found = asyncio.run(judge_file(claims, out, judge, config, show))
    scored = [verdict.score for verdict in found if verdict.score is not None]
    share = wilson(sum(score == 1.0 for score in scored), len(scored))
    shown = f"{share.mean:.1%} accepted [{share.low:.1%}, {share.high:.1%}]" if share else "nothing scored"
    click.echo(f"{out}: {len(found)} answers, {shown}, {len(found) - len(scored)} unscored")
    if len(scored) < len(found):
        reason = next(verdict.reason for verdict in found if verdict.score is None)
        raise Incomplete(f"{len(found) - len(scored)} answers are unscored ({reason}); they are judged again next time")

"""`internalize judge`: grades answers of any origin. The command ends as incomplete if any answer is unscored."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import click

from internalize.config.schema import load_config
from internalize.errors import Incomplete
from internalize.runs.progress import going_on_by, progress

from .output import echo

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("judge")
@click.argument("claims", type=_FILE)
@click.option(
    "--out", type=_FILE, required=True, help="Verdicts, JSON Lines; scored verdicts already in the file are kept."
)
@click.option("--recipe", type=_FILE, help="Recipe whose [judge] section is used.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value.")
def judge_command(claims: Path, out: Path, recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Grade answers. Each line of CLAIMS is {"question": ..., "reference": ..., "answer": ...}; an "id" is optional."""
    from internalize.evaluation.metrics import by_kind, kind_of
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
        verdicts = asyncio.run(judge_file(claims, out, judge, config, show))
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    share = wilson(sum(score == 1.0 for score in scores), len(scores))
    accepted = f"{share.mean:.1%} accepted [{share.low:.1%}, {share.high:.1%}]" if share else "nothing scored"
    reasons = [verdict.reason for verdict in verdicts if verdict.score is None]
    kinds = by_kind(Counter(map(kind_of, reasons)))
    echo(f"{out}: {len(verdicts)} answers, {accepted}, {len(reasons)} unscored{kinds and f' ({kinds})'}")
    if reasons:
        raise Incomplete(f"{len(reasons)} answers are unscored ({reasons[0]}); run the command again to judge them")

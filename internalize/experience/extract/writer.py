"""Who writes experience: contrast (no language model), the policy itself, or an endpoint. Secrets are taken out first.

Left out: pools on disk and stage marks (stages.py, single.py). What must not change: no text reaches a writer before
it is redacted. Contrast looks at earlier iterations' episodes too; a language model has seen those already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from internalize.config.schema import Config, ExtractConfig
from internalize.experience.pool import ExperiencePool
from internalize.experience.redact import RedactionCount, Redactor, note
from internalize.interfaces import ChatModel
from internalize.records import PoolEdit, Trajectory
from internalize.runs import names

from .contrast import contrast
from .llm import write

Progress = Callable[[int, int], None]  # tasks done, tasks in all


class Seen(NamedTuple):
    """What there is to learn from: this iteration's episodes, those of recent ones, and the pool before."""

    trajectories: Sequence[Trajectory]
    earlier: Sequence[Trajectory]
    pool: ExperiencePool
    iteration: int
    barred: frozenset[str] = frozenset()  # items that may not come back


def extract(
    config: Config, seen: Seen, folder: Path, chat: Callable[[], ChatModel], progress: Progress | None = None
) -> tuple[PoolEdit, ...]:
    """The edits by whom `extract.source` names. `chat` is called only if a language model writes.

    `folder` gets redactions.json if there were secrets and, from a language model, extraction.jsonl and
    extraction.json. Raises Incomplete as `write` does.
    """
    settings, redactor = config.extract, Redactor.of(config.redact)
    now, counts = redactor.trajectories(seen.trajectories)
    note(folder / names.REDACTIONS, "extract", RedactionCount(removed=dict(counts)))
    if settings.source == "contrast":
        earlier, _ = redactor.trajectories(seen.earlier)
        return contrast([*earlier, *now], seen.pool, settings, seen.iteration)
    folder.mkdir(exist_ok=True)
    return asyncio.run(
        write(
            now,
            seen.pool,
            fitted(config),
            chat(),
            seen.iteration,
            ledger=folder / names.EXTRACTION,
            barred=seen.barred,
            progress=progress,
        )
    )


def fitted(config: Config) -> ExtractConfig:
    """The settings, with requests that the policy can read when it writes itself."""
    settings = config.extract
    if settings.source != "self":
        return settings
    return settings.model_copy(update={"context": min(settings.context, config.model.max_context)})


def writer_of(config: Config) -> str:
    """The name of the chat model that writes, as `endpoints.chat_model` takes it."""
    return config.extract.endpoint if config.extract.source == "external" else "self"

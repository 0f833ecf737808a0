"""Runs the writer of experience: contrast (no language model), the policy, or an endpoint. Secrets are removed first.

Contrast reads episodes of earlier iterations too; a language model has read those already.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import Config
from internalize.experience.redact import RedactionCount, Redactor, note
from internalize.interfaces import ChatModel
from internalize.records import PoolEdit
from internalize.runs import names

from .contrast import contrast
from .llm import Progress, write
from .session import ExtractionInput


async def extract(
    config: Config,
    seen: ExtractionInput,
    folder: Path,
    chat: Callable[[], ChatModel],
    progress: Progress | None = None,
) -> tuple[PoolEdit, ...]:
    """The edits of the writer that `extract.source` names. `chat` is called only if a language model writes.

    `folder` gets redactions.json if there were secrets and, from a language model, extraction.jsonl and
    extraction.json. Raises Incomplete as `write` does.
    """
    settings, redactor = config.extract, Redactor.of(config.redact)
    trajectories, counts = redactor.trajectories(seen.trajectories)
    note(folder / names.REDACTIONS, "extract", RedactionCount(removed=dict(counts)))
    if settings.source == "contrast":
        earlier, _ = redactor.trajectories(seen.earlier)
        return contrast([*earlier, *trajectories], seen.pool, settings, seen.iteration, seen.cues)
    seen = seen._replace(trajectories=trajectories)
    if settings.source == "self":  # the policy reads no more than its context
        settings = settings.model_copy(update={"context": min(settings.context, config.model.max_context)})
    else:
        seen = seen._replace(checkpoint="")
    folder.mkdir(exist_ok=True)
    return await write(seen, settings, chat(), folder / names.EXTRACTION, progress)


def writer_of(config: Config) -> str:
    """The name of the chat model that writes, as `interfaces.Policy.chat` takes it."""
    return config.extract.endpoint if config.extract.source == "external" else "self"

"""After every measurement: diagnostics, written beside the results, and the warning signs in them.

A line of diagnostics depends on nothing that later iterations measure, so only the lines of a new measurement are
computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from internalize.config.schema import Config
from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.diagnostics import Diagnostics, measured
from internalize.evaluation.metrics import Group, group_of, own_line
from internalize.evaluation.signs import Caution, Observed, cautions
from internalize.records import EvalResult, Mode
from internalize.runs import names
from internalize.runs.store import read_jsonl, write_jsonl

_LOG = logging.getLogger(__name__)


class Diagnosis:
    """Diagnostics of the run at `path`. `suites` are all suites that it measures."""

    def __init__(self, path: Path, config: Config, suites: Iterable[str]) -> None:
        self.path, self.config, self.suites = path, config, tuple(suites)
        self._warned: set[tuple[object, ...]] = set()

    def update(
        self,
        results: Sequence[EvalResult],
        new: Group | None = None,
        behaviour: Behaviour | None = None,
        write: Callable[[Path, Iterable[BaseModel]], None] = write_jsonl,
    ) -> tuple[Diagnostics, ...]:
        """Write the diagnostics of all `results` and return them. `new` is the group just measured."""
        folders = names.iterations(self.path, self.config.iterations)
        files = {k: folder / names.DIAGNOSTICS for k, folder in folders.items()}
        known = {k: read_jsonl(file, Diagnostics) if file.exists() else [] for k, file in files.items()}
        found = measured(
            results,
            (one for lines in known.values() for one in lines),
            self.config.evaluate.resamples,
            self.config.seed,
            lambda group: new is not None and group[1] == new[1] and group[0] >= new[0],
        )
        changed = {"behaviour": behaviour}
        found = tuple(o.model_copy(update=changed) if group_of(o.metrics) == new else o for o in found)
        for k, file in files.items():
            lines = [one for one in found if one.metrics.iteration == k]
            if lines != known[k]:
                write(file, lines)
        return found

    def warn(self, found: Sequence[Diagnostics], k: int) -> None:
        """Log the signs of iteration `k` that the one before did not show, while the user can still stop the run."""
        history = [self._observe(found, number) for number in range(k + 1)]
        before = {_sign(c) for c in cautions(history[: k - 1], history[k - 1])}
        for caution in cautions(history[:k], history[k]):
            if _sign(caution) not in before and (k, *_sign(caution)) not in self._warned:
                self._warned.add((k, *_sign(caution)))
                _LOG.warning("iteration %d: %s (%s)", k, caution.message, caution.sign)

    def _observe(self, found: Sequence[Diagnostics], k: int) -> Observed:
        settings = self.config.evaluate
        lines = {group_of(one.metrics): one for one in found}
        metrics = [one.metrics for one in found]
        own: dict[Mode, Diagnostics] = {
            mode: lines[group_of(line)] for mode in names.MODES if (line := own_line(metrics, settings.split, mode, k))
        }
        further = (own_line(metrics, suite, "internalized", k) for suite in settings.further)
        return Observed(
            number=k,
            internalized=own["internalized"].metrics if "internalized" in own else None,
            in_context=own["in_context"].metrics if "in_context" in own else None,
            further=tuple(line for line in further if line),
            behaviour={mode: one.behaviour for mode, one in own.items() if one.behaviour},
        )


def _sign(caution: Caution) -> tuple[str, Mode, str]:
    return caution.sign, caution.mode, caution.suite

"""The model card (README.md) of exported weights: how to load them, lineage, data, settings, what was measured.

Left out: judgements about use. What must not change: every number is of the run that made the weights; without a
run the card says nothing of data, and that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from internalize.config.schema import Config
from internalize.records import Checkpoint, TrainSummary

from .headline import summary
from .markdown import named, section, table
from .run_report import IterationReport, RunReport
from .tables import SUITE_HEAD, iteration_table, suite_rows
from .text import NOTHING, code_span, count, markdown_text

Kind = Literal["model", "adapter"]
_LOAD = {
    "model": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
    'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    "adapter": "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
    'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")\n'
    'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
}


def card(
    config: Config,
    checkpoint: str,
    kind: str,
    report: RunReport | None = None,
    lineage: Sequence[Checkpoint] = (),
    *,
    alone: TrainSummary | None = None,
) -> str:
    """The Markdown text, with the front matter that model hubs read. `alone`: of a training outside a run."""
    parts = (
        _front(config, kind),
        f"# Checkpoint {code_span(checkpoint)}",
        _origin(config, kind, report),
        f"```python\n{_LOAD[kind]}\n```",
        _lineage(lineage),
        _data(config, report, alone),
        _settings(config, ("extract", "inject", "distill") if report else ("distill",)),
        _results(report, lineage, alone),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(config: Config, kind: str) -> str:
    lines = ["---", f"library_name: {'transformers' if kind == 'model' else 'peft'}", "tags: [internalize]"]
    source = config.model.source
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        lines.append(f"base_model: {source}")
    return "\n".join([*lines, "---"])


def _origin(config: Config, kind: str, report: RunReport | None) -> str:
    weights = "All weights, in one folder." if kind == "model" else "A LoRA adapter; the base model is loaded with it."
    shown = config.inject.pattern != "none" and (config.distill.asks_teacher or not config.distill.on_policy)
    effect = ": the effect of experience that stood in the prompt is in the weights" if report and shown else ""
    protocol = f"Actions are written in the {code_span(config.model.protocol)} protocol."
    return f"Trained with internalize from {_base(config)}{effect}. {weights} {protocol}"


def _base(config: Config) -> str:
    builtin = config.model.source == "builtin"
    source = "SmolLM2-135M-Instruct (Apache-2.0)" if builtin else code_span(config.model.source)
    adapter = config.model.adapter
    if adapter == "none" or (not adapter and not builtin):
        return source
    which = f"the adapter {code_span(adapter)}" if adapter else "the starter adapter of internalize"
    return f"{source} with {which} merged"


def _lineage(lineage: Sequence[Checkpoint]) -> str:
    if not lineage:
        return ""
    rows = [
        (str(r.iteration), code_span(r.id), code_span(r.parent or NOTHING), code_span(r.pool_version or NOTHING))
        for r in lineage
    ]
    listed = table(("iteration", "checkpoint", "parent", "pool"), rows, text_columns=(1, 2, 3))
    return section("Lineage", listed, f"Config digest {code_span(lineage[-1].config_digest)}.")


def _data(config: Config, report: RunReport | None, alone: TrainSummary | None) -> str:
    if report is None and alone is not None:
        return section("Data", _file(alone))
    if report is None:
        return section("Data", "The checkpoint lay in no run, so its data is not known here.")
    drawn = (
        f"Environment {code_span(config.env.name)}, split {code_span(config.rollout.split)}: {config.rollout.tasks} "
        f"tasks an iteration to learn experience from, {config.distill.tasks} to train on."
    )
    rows = [row for i in report.iterations if (row := _data_row(i))]
    head = ("iteration", "accepted", "rejected", "action tokens", "items in the pool", "held-out loss")
    return section("Data", drawn, table(head, rows))


def _file(alone: TrainSummary) -> str:
    """One sentence about a training on a file."""
    shown = f", a teacher shown the pool {code_span(alone.pool)}" if alone.pool else ""
    return (
        f"Trajectories of {code_span(alone.trajectories)}: {count(alone.accepted)} trained on, {count(alone.rejected)} "
        f"left out, {count(alone.action_tokens)} action tokens{shown}."
    )


def _data_row(iteration: IterationReport) -> tuple[str, ...] | None:
    training = iteration.training
    if training is None:
        return None
    items = None if iteration.pool is None else len(iteration.pool)
    numbers = (training.accepted, training.rejected, training.action_tokens, items)
    before, after = training.held_out_before, training.held_out_after
    held = NOTHING if before is None or after is None else f"{before:.3f} to {after:.3f}"
    return (str(iteration.number), *(NOTHING if n is None else count(n) for n in numbers), held)


def _settings(config: Config, sections: Sequence[str]) -> str:
    values = _leaves({name: getattr(config, name).model_dump(mode="json") for name in sections})
    rows = [(code_span(key), markdown_text(str(value), 200)) for key, value in values if value not in ("", 0, [], {})]
    return section("Settings", table(("key", "value"), [*rows, ("`seed`", str(config.seed))], text_columns=(0, 1)))


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of nested tables with their values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _results(report: RunReport | None, lineage: Sequence[Checkpoint], alone: TrainSummary | None) -> str:
    if report is None and alone is not None and alone.held_out_before is not None and alone.held_out_after is not None:
        held = f"{alone.held_out_before:.3f} to {alone.held_out_after:.3f} nats an action token"
        return section("Results", f"Loss on held-out trajectories of the same file: {held}. No task was played.")
    if report is None or not report.iterations:
        return section("Results", "Nothing was measured.")
    head, rows = iteration_table(report)
    note = ""
    if report.final and lineage and lineage[-1].iteration != report.final.number:
        note = f"This is the checkpoint of iteration {lineage[-1].iteration}; the run kept {report.final.number}."
    suites = table(SUITE_HEAD, named(suite_rows(report)))
    return section("Results", markdown_text(summary(report), 2000), note, table(head, rows), suites)

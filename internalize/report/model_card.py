"""The model card (README.md) of exported weights: how to load them, lineage, data, settings, results.

Every number comes from the run that made the weights; without a run the card says that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from internalize.config.schema import Config
from internalize.records import Checkpoint, TrainSummary

from .headline import summary
from .markdown import render_section
from .page import Section, Table, Text
from .run_page import iterations_table, suites_table
from .run_report import RunReport
from .text import NOTHING, code_span, count

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
    """The Markdown text, with the front matter that model hubs read. `alone`: the training, if it had no run."""
    sections = (
        Section("Lineage", *_lineage(lineage)),
        Section("Data", *(_data(config, report) if report else [_file(alone)])),
        Section("Settings", _settings(config, ("extract", "inject", "distill") if report else ("distill",))),
        Section("Results", *(_results(report, lineage) if report else [_held_out(alone)])),
    )
    head = (_front(config, kind), f"# Checkpoint {code_span(checkpoint)}", _origin(config, kind, report))
    shown = (*head, f"```python\n{_LOAD[kind]}\n```", *map(render_section, sections))
    return "\n\n".join(part for part in shown if part) + "\n"


def _front(config: Config, kind: str) -> str:
    source = config.model.source
    is_hub_name = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    base = [f"base_model: {source}"] if is_hub_name else []
    library = "transformers" if kind == "model" else "peft"
    return "\n".join(["---", f"library_name: {library}", "tags: [internalize]", *base, "---"])


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


def _lineage(lineage: Sequence[Checkpoint]) -> Iterator[Table]:
    rows = [
        {
            "iteration": str(record.iteration),
            "checkpoint": record.id,
            "parent": record.parent or NOTHING,
            "pool": record.pool_version or NOTHING,
        }
        for record in lineage
    ]
    if rows:
        note = f"Config digest {lineage[-1].config_digest}."
        yield Table(rows, code=("checkpoint", "parent", "pool"), note=note)


def _data(config: Config, report: RunReport) -> Iterator[Text | Table]:
    yield Text(
        f"Environment {config.env.name}, split {config.rollout.split}: {config.rollout.tasks} tasks an iteration to "
        f"learn experience from, {config.distill.tasks} to train on."
    )
    rows = [
        {
            "iteration": str(i.number),
            "accepted": count(i.training.accepted),
            "rejected": count(i.training.rejected),
            "action tokens": count(i.training.action_tokens),
            "items in the pool": count(None if i.pool is None else len(i.pool)),
            "tensors trained": _tensors(i.training),
            "held-out loss": _change(i.training) or NOTHING,
        }
        for i in report.iterations
        if i.training
    ]
    yield Table(rows)


def _tensors(training: TrainSummary) -> str:
    """How many tensors were trained, and how many of them got no gradient."""
    without = f" ({count(training.without_gradient)} without a gradient)" if training.without_gradient else ""
    return f"{count(training.tensors)}{without}" if training.tensors else NOTHING


def _change(training: TrainSummary) -> str:
    """The loss on held-out trajectories before and after; "" if it was not measured."""
    before, after = training.held_out_before, training.held_out_after
    return "" if before is None or after is None else f"{before:.3f} to {after:.3f}"


def _file(alone: TrainSummary | None) -> Text:
    """One sentence about a training on a file."""
    if alone is None:
        return Text("The checkpoint lay in no run, so its data is not known here.")
    shown = f", a teacher shown the pool {alone.pool}" if alone.pool else ""
    counts = f"{count(alone.accepted)} trained on, {count(alone.rejected)} left out"
    tokens = f"{count(alone.action_tokens)} action tokens, tensors trained: {_tensors(alone)}"
    return Text(f"Trajectories of {alone.trajectories}: {counts}, {tokens}{shown}.")


def _settings(config: Config, sections: Sequence[str]) -> Table:
    values = _leaves({name: getattr(config, name).model_dump(mode="json") for name in sections})
    rows = [{"key": key, "value": str(value)} for key, value in values if value not in ("", 0, [], {})]
    return Table([*rows, {"key": "seed", "value": str(config.seed)}], text=("value",), code=("key",))


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of nested tables with their values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _held_out(alone: TrainSummary | None) -> Text:
    if alone is None or not _change(alone):
        return Text("Nothing was measured.")
    loss = f"Loss on held-out trajectories of the same file: {_change(alone)} nats per action token."
    return Text(f"{loss} No task was played.")


def _results(report: RunReport, lineage: Sequence[Checkpoint]) -> Iterator[Text | Table]:
    if not report.iterations:
        yield Text("Nothing was measured.")
        return
    yield Text(summary(report))
    if report.final and lineage and lineage[-1].iteration != report.final.number:
        yield Text(f"This is the checkpoint of iteration {lineage[-1].iteration}; the run kept {report.final.number}.")
    yield iterations_table(report)
    yield suites_table(report)

"""The gate at work: the new checkpoint is kept, or a milder one is tried, or the run goes back to the parent.

Left out: the statistics of the decision (gate.py). What must not change: the decision and its numbers are in
iter-K/gate.json, the first candidate's too; a second candidate's results take the place of the first one's, which
stay in evaluations-first.jsonl; killed anywhere, the same decision is found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from internalize.evaluation.gate import Decision, decide
from internalize.records import Checkpoint, DistillExample, EvalResult, Stage
from internalize.runs import names
from internalize.runs.store import read_jsonl, write_json, write_jsonl

from .run import Run


def gate(this: Run, k: int) -> Decision:
    """Keep the new checkpoint, or a milder one, or restore the one before."""
    folder, stage = this.store.iteration(k), Stage(iteration=k, kind="gate")
    if not this.store.done(stage):
        held = folder / names.FIRST_GATE
        first = Decision.model_validate_json(held.read_bytes()) if held.exists() else _decided(this, k)
        if not first.promote and this.config.gate.rule in {"retry", "average"}:
            write_json(held, first)
            write_json(folder / names.GATE, _second(this, k, first))
        else:
            write_json(folder / names.GATE, first)
        this.store.mark(stage)
    decision = Decision.model_validate_json((folder / names.GATE).read_bytes())
    if not decision.promote:
        this.restore(this.kept(k - 1))
    return decision


def _decided(this: Run, k: int) -> Decision:
    """What the results of iteration `k` say against those of its parent, or of the best kept so far."""
    settings, rule = this.config.evaluate, this.config.gate
    results = [r for r in this.results() if r.suite == settings.split and r.mode == "internalized"]
    held = {number: [r for r in results if r.iteration == number] for number in range(k + 1)}
    rival = this.kept(k - 1)
    means = {number: mean for number in {this.kept(n) for n in range(k)} if (mean := _mean(held[number])) is not None}
    if rule.against == "best" and means:
        rival = max(means, key=lambda number: (means[number], number))  # of equals the latest
    found = decide(held[rival], held[k], rule.rule, settings.resamples, this.config.seed)
    return found.model_copy(update={"rival": rival})


def _mean(results: Sequence[EvalResult]) -> float | None:
    """None where nothing is scored."""
    scored = [result.success for result in results if result.success is not None]
    return fmean(scored) if scored else None


def _second(this: Run, k: int, first: Decision) -> Decision:
    """A milder candidate: trained with a smaller step, or averaged with the parent; measured like the first."""
    folder, stage = this.store.iteration(k), Stage(iteration=k, kind="second")
    weights, record_file = folder / names.SECOND_WEIGHTS, folder / names.CHECKPOINT
    if not this.store.done(stage):
        kept = folder / names.FIRST_EVALUATIONS
        if not kept.exists():
            write_jsonl(kept, read_jsonl(folder / names.EVALUATIONS, EvalResult))
        this.restore(this.kept(k - 1))
        if this.config.gate.rule == "average":
            this.policy.average(folder / names.WEIGHTS, weights)
        else:
            examples = read_jsonl(folder / names.EXAMPLES, DistillExample)
            summary = this.train(k, examples, weights, shrink=this.config.gate.shrink)
            write_json(folder / names.SECOND_TRAINING, summary)
        record = Checkpoint.model_validate_json(record_file.read_bytes())
        changed = {"id": this.policy.checkpoint, "path": f"{names.iteration(k)}/{names.SECOND_WEIGHTS}"}
        write_json(record_file, record.model_copy(update=changed))
        this.store.mark(stage)
    this.restore(k)
    suite = (this.config.evaluate.split,)
    this.evaluate(k, suite, ("internalized", "in_context"), this.pool(k), folder=k, candidate=2)
    return _decided(this, k).model_copy(update={"first": first})

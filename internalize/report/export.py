"""Exports a checkpoint as a folder that transformers or PEFT can load, with a model card of its origin.

The folder is complete or absent. The card says only what the run directory holds, and texts from the run are escaped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internalize.config.distill import DistillConfig
from internalize.config.schema import Config, load_config
from internalize.errors import DataError, UserError
from internalize.inference.loading import load_policy
from internalize.records import Checkpoint
from internalize.runs import names
from internalize.runs.readers import record
from internalize.runs.store import RUN, read_run, write_atomic
from internalize.training.policy import LocalPolicy

from .model_card import card
from .run_report import RunReport, load, training_of

_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Source:
    """Weights to export, their training settings, and their run if they belong to one."""

    weights: Path
    config: Config
    report: RunReport | None = None
    lineage: tuple[Checkpoint, ...] = ()  # of a run, first iteration first, these weights last


def find(path: Path, recipe: Path | None = None, overrides: Sequence[str] = ()) -> Source:
    """The kept checkpoint of a run directory, or the checkpoint folder `path` and the run it lies in.

    A checkpoint outside a run needs the recipe and the overrides it was made with; a run knows its own. Raises
    UserError if there is nothing to export.
    """
    if (path / RUN).is_file():
        return _of_run(path)
    if not any((path / name).is_file() for name in _WEIGHTS):
        raise UserError(f"{path}: is neither a run directory (no {RUN}) nor a checkpoint (no {' or '.join(_WEIGHTS)})")
    run = path.resolve().parent.parent
    if (run / RUN).is_file():
        report = load(run)
        return Source(path, _config(report), report, _lineage(run, path))
    if recipe is None:
        raise UserError(f"{path}: lies in no run, so its model is not known; name its recipe with --recipe")
    beside = record(path / names.CHECKPOINT, Checkpoint)
    return Source(path, load_config(recipe, overrides), lineage=(beside,) if beside else ())


def export(source: Source, out: Path, *, merged: bool) -> str:
    """Write the folder `out`: the whole model if `merged` or trained whole, else the adapter. Returns which it is.

    Raises UserError if `out` is in use, or if no other program can get the adapter's base model.
    """
    config = source.config
    whole = merged or not config.distill.lora_r
    if not whole and (base := _no_model_by_itself(config)):
        raise UserError(f"{source.weights}: its adapter stands on {base}, which is no model by itself; add --merged")
    _require_free(out)
    policy = LocalPolicy.of(_for_loading(config), check=False)
    recorded = source.lineage[-1].id if source.lineage else ""
    return _write(policy, policy.restore(source.weights, recorded), source, out, whole=whole)


def export_starter(path: Path, out: Path, overrides: Sequence[str] = ()) -> None:
    """Write the model that a run directory or a recipe starts from, its adapter merged, with its tokenizer, to `out`.

    A server that is given this folder serves what the checkpoint "starter" of such a run is.
    """
    config = Config.model_validate(read_run(path).config) if path.is_dir() else load_config(path, overrides)
    _require_free(out)
    named = config.model
    model, tokenizer = load_policy(named.source, named.adapter, dtype=named.dtype)
    with _folder(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds files; choose another --out")


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes `out` at the end."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    if out.exists():
        out.rmdir()
    part.rename(out)


def _for_loading(config: Config) -> Config:
    """The config for loading the weights: without servers, on any device, not quantized."""
    model = config.model.model_copy(update={"endpoint": "", "quantize": "none"})
    return Config(seed=config.seed, model=model, distill=DistillConfig(lora_r=config.distill.lora_r))


def _no_model_by_itself(config: Config) -> str:
    """The base of an adapter if PEFT could not load that base by name; '' if it could."""
    named = config.model
    merged = named.adapter or ("of the starter" if named.source == "builtin" else "none")
    if merged != "none":
        return f"{named.source} with the adapter {merged} merged"
    return named.source if named.source == "builtin" or named.source.endswith(".gguf") else ""


def _write(policy: LocalPolicy, checkpoint_id: str, source: Source, out: Path, *, whole: bool) -> str:
    model: Any = policy.model
    if whole and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    kind = "model" if whole else "adapter"
    with _folder(out) as part:
        model.save_pretrained(part)
        policy.renderer.tokenizer.save_pretrained(part)
        write_atomic(
            part / "README.md",
            card(source.config, checkpoint_id, kind, source.report, source.lineage, alone=training_of(source.weights)),
        )
    return kind


def _of_run(run: Path) -> Source:
    report = load(run)
    if report.final is None:
        raise UserError(f"{run}: no iteration is finished and kept, so there is nothing to export but the starter")
    kept = record(run / names.iteration(report.final.number) / names.CHECKPOINT, Checkpoint)
    if kept is None:
        raise DataError(f"{run}: iteration {report.final.number} has no {names.CHECKPOINT}")
    return Source(run / kept.path, _config(report), report, _lineage(run, run / kept.path))


def _config(report: RunReport) -> Config:
    return Config.model_validate(report.info.config)


def _lineage(run: Path, weights: Path) -> tuple[Checkpoint, ...]:
    """The records from the first iteration to these weights, parent by parent."""
    records = [one for file in run.glob(f"*/{names.CHECKPOINT}") if (one := record(file, Checkpoint))]
    found = [r for r in records if (run / r.path).resolve() == weights.resolve()]
    while parent := [r for r in records if found and r.id == found[0].parent and r.iteration < found[0].iteration]:
        found.insert(0, max(parent, key=lambda r: r.iteration))
    return tuple(found)

"""A study: a grid of recipe values times seeds, each cell and seed one run, and one comparison of them all.

    question = "Does step-wise injection keep what global injection loses?"
    recipe = "demo.toml"          # beside this file
    seeds = [0, 1, 2]
    reference = "stepwise"        # the cell the others are compared with; default: the first
    [axes]
    "inject.pattern" = ["stepwise", "global"]                     # values of one key, or
    [axes.regime.off-policy]                                      # named bundles of keys
    "distill.generator" = "teacher"
    [cells."SFT"]                                                 # further single cells
    "distill.divergence" = "sft"

Any number of processes, on any machines that share the folder, may work on one study: a run that another process
holds is skipped, and a run that fails does not stop the others. Stages that do not depend on the cell (the starter's
evaluation, the first rollouts) are played once for each seed and copied to the runs with the same starter, tasks and
sampling; their files are copied before their marks.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, JsonValue, ValidationError

from internalize.config.overrides import parse_toml
from internalize.config.regime import Section
from internalize.config.schema import Config, load_config
from internalize.errors import (
    Busy,
    ConfigError,
    Incomplete,
    InfrastructureError,
    InternalizeError,
    UserError,
    first_line,
)
from internalize.evaluation.diagnostics import Diagnostics
from internalize.records import EvalResult, Record, Stage, content_hash
from internalize.runs import names
from internalize.runs.files import copied
from internalize.runs.marks import read_marks, require_sound
from internalize.runs.readers import record
from internalize.runs.store import RUN, RunStore, first_problem, read_jsonl, read_run, write_json, write_jsonl

Override = dict[str, JsonValue]
Play = Callable[[Config, Path], None]  # runs one recipe in one folder, or resumes it
Note = Callable[[str], None]  # takes one sentence for the user
_SHARED = frozenset({"seed", "model", "env", "rollout", "evaluate", "judge", "endpoints"})
FIRST_ROLLOUTS = Stage(iteration=1, kind="rollout")
STUDY = "study.json"


class Member(Record):
    """One run of a study."""

    cell: str
    seed: int
    folder: str
    values: dict[str, str] = Field({}, description="Of each axis; none for a cell outside of the product.")


class Manifest(Record):
    """study.json. `compare_at`: the iterations after which cells and the values of axes are compared."""

    question: str
    reference: str
    members: tuple[Member, ...] = Field(min_length=1)
    compare_at: tuple[int, ...] = ()

    def is_same_study(self, other: Manifest) -> bool:
        """Whether both have the same question, reference and runs, whatever an older version left out of the file."""
        mine, theirs = ([(m.cell, m.seed, m.folder) for m in one.members] for one in (self, other))
        return (self.question, self.reference, mine) == (other.question, other.reference, theirs)


class Grid(Section):
    """A study file."""

    question: str = Field(description="What the study is to answer, for its pages.")
    recipe: str = Field(description="Recipe that every cell starts from; relative to the study file.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Every cell is run with each of them.")
    reference: str = Field("", description="Cell that the others are compared with; '' = the first.")
    base: Override = Field(default_factory=dict, description="Values set in every cell.")
    axes: dict[str, list[JsonValue] | dict[str, Override]] = Field(
        default_factory=dict, description="Values of a key, or named bundles of values; their product makes the cells."
    )
    cells: dict[str, Override] = Field(default_factory=dict, description="Further cells by name.")
    compare_at: tuple[int, ...] = Field(
        (), description="Iterations after which cells and the values of axes are compared; () = the last."
    )

    def all_cells(self) -> dict[str, Override]:
        """Overrides of every cell by its name, the product of the axes first."""
        product = {
            _name(chosen): {k: v for _, values in chosen for k, v in values.items()} for chosen in self._product()
        }
        return {**product, **self.cells} or {"recipe": {}}

    def values(self, cell: str) -> dict[str, str]:
        """The value of each axis in a cell of the product; {} for another cell."""
        found = {} if cell in self.cells else {_name(chosen): chosen for chosen in self._product()}
        return {axis: label for axis, (label, _) in zip(self.axes, found.get(cell, ()), strict=False)}

    def _product(self) -> list[tuple[tuple[str, Override], ...]]:
        choices = [_choices(key, values) for key, values in self.axes.items()]
        return [chosen for chosen in itertools.product(*choices) if chosen]


def _name(chosen: Sequence[tuple[str, Override]]) -> str:
    return ", ".join(label for label, _ in chosen)


def _choices(key: str, values: Sequence[JsonValue] | Mapping[str, Override]) -> list[tuple[str, Override]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [(str(value), {key: value}) for value in values]


def load_grid(path: Path) -> Grid:
    """Read a study file. Raises ConfigError naming file and key."""
    try:
        grid = Grid.model_validate(parse_toml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the study ({error.strerror})") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    cells = grid.all_cells()
    if grid.reference and grid.reference not in cells:
        raise ConfigError(f"{path}: reference = {grid.reference!r} is not a cell (there are {'; '.join(cells)})")
    return grid


def configs(grid: Grid, path: Path, overrides: Sequence[str] = ()) -> dict[tuple[str, int], Config]:
    """The resolved config of every cell and seed. `overrides` replace values of the base; cells replace `overrides`.

    Raises ConfigError naming the cell, before anything is run.
    """
    recipe = path.parent / grid.recipe
    found = {}
    for name, values in grid.all_cells().items():
        for seed in grid.seeds:
            base, own = _as_overrides(grid.base), _as_overrides({**values, "seed": seed})
            try:
                found[name, seed] = load_config(recipe, [*base, *overrides, *own])
            except ConfigError as error:
                raise ConfigError(f"{path}, cell {name!r}: {error}") from error
    return found


def _as_overrides(values: Override) -> list[str]:
    """The values in the form of `--set`. A table is written key by key, because a JSON object is not valid TOML."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _as_overrides({f"{key}.{name}": own for name, own in value.items()})
        else:
            found.append(f"{key}={json.dumps(value)}")
    return found


class FailedRun(NamedTuple):
    """A run that did not finish. Only the error's text is kept: its traceback would keep the run's model in memory."""

    folder: str
    kind: type[Exception]
    reason: str


class StudyPart(NamedTuple):
    """The cells and seeds to run now; empty = all."""

    cells: Sequence[str] = ()
    seeds: Sequence[int] = ()

    def of(self, members: Sequence[Member]) -> list[Member]:
        """The selected runs ordered by seed. Raises ConfigError for a cell or a seed that the study does not have."""
        for name, wanted, known in (
            ("cell", self.cells, dict.fromkeys(m.cell for m in members)),
            ("seed", self.seeds, dict.fromkeys(m.seed for m in members)),
        ):
            if unknown := [value for value in wanted if value not in known]:
                raise ConfigError(
                    f"{name} {unknown[0]!r}: the study has no such {name} (there are {'; '.join(map(str, known))})"
                )
        found = [m for m in members if m.cell in (self.cells or (m.cell,)) and m.seed in (self.seeds or (m.seed,))]
        return sorted(found, key=lambda m: m.seed)


def study(
    path: Path,
    out: Path,
    play: Play,
    overrides: Sequence[str] = (),
    note: Note = lambda _: None,
    part: StudyPart = StudyPart(),  # noqa: B008 - frozen
    at_once: int = 1,
) -> Manifest:
    """Run or continue every cell and seed of the study file `path`, or the selected `part`, in the folder `out`.

    `at_once`: how many runs at a time, for a `play` that runs elsewhere. All cells of one seed run before the next
    seed, so that an interrupted study has every cell with fewer seeds. A run that stops is reported to `note` and the
    others continue. Raises ConfigError for a bad study file, or one that differs from the one `out` was begun with;
    after the last run UserError if runs failed that would fail again, else Incomplete if a server broke, work is left,
    or other processes hold runs.
    """
    grid = load_grid(path)
    wanted = configs(grid, path, overrides)
    members = tuple(
        Member(cell=cell, seed=seed, folder=_folder(cell, seed), values=grid.values(cell)) for cell, seed in wanted
    )
    reference = grid.reference or members[0].cell
    manifest = Manifest(question=grid.question, reference=reference, members=members, compare_at=grid.compare_at)
    wanted_now = part.of(members)
    _begin(out, manifest)
    stops: list[FailedRun] = []

    def play_one(member: Member) -> None:
        config, folder = wanted[member.cell, member.seed], out / member.folder
        others = [(wanted[m.cell, m.seed], out / m.folder) for m in members if m != member]
        try:
            copy_shared_stages(config, folder, others)
            play(config, folder)
        except (InternalizeError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise  # a bug; but torch raises RuntimeError for lack of memory
            stops.append(FailedRun(member.folder, type(error), first_line(error)))
            note(f"{member.folder}: {first_line(error)}; the other runs go on")

    if at_once == 1:  # in the main thread, which receives signals
        for member in wanted_now:
            play_one(member)
    else:
        pool = ThreadPoolExecutor(at_once)
        try:
            for _ in pool.map(play_one, wanted_now):
                pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if stops:
        raise _ending(out, len(wanted_now), stops)
    return manifest


def _ending(out: Path, total: int, stops: Sequence[FailedRun]) -> InternalizeError:
    """One sentence about the runs that stopped. Failures that the user must fix come first and set the exit code."""
    busy = [stop for stop in stops if issubclass(stop.kind, Busy)]
    owed = [stop for stop in stops if issubclass(stop.kind, Incomplete)]
    failed = [stop for stop in stops if stop not in (*busy, *owed)]
    failed.sort(key=lambda stop: issubclass(stop.kind, InfrastructureError))
    groups = (("failed", failed), ("stopped with work left", owed), ("left to other processes", busy))
    parts = [f"{len(found)} {what} (first {found[0].folder}: {found[0].reason})" for what, found in groups if found]
    again = not failed or issubclass(failed[0].kind, InfrastructureError)  # any other failure would occur again
    kind = Incomplete if again else UserError
    return kind(f"{out}: of {total} runs, {', '.join(parts)}")


def _begin(out: Path, manifest: Manifest) -> None:
    file = out / STUDY
    if (held := record(file, Manifest)) and not held.is_same_study(manifest):
        raise ConfigError(f"{out}: this folder was begun with another study file; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    if held != manifest:
        write_json(file, manifest)


def _folder(cell: str, seed: int) -> str:
    words = re.sub(r"[^A-Za-z0-9.=-]+", "_", cell).strip("_")[:60] or "cell"
    return f"{words}-{content_hash(cell)[:4]}/seed-{seed}"


def shared_key(config: Config) -> str:
    """Hash of everything on which the starter's evaluation and the first rollouts depend.

    The rank of the adapter is in it, because a checkpoint's id covers the untrained adapter too.
    """
    sections = {key: value for key, value in config.shaping.items() if key in _SHARED}
    return content_hash([sections, config.distill.lora_r])


def copy_shared_stages(config: Config, folder: Path, others: Sequence[tuple[Config, Path]]) -> None:
    """Copy the shared stages that another run with the same starter has finished into a new run."""
    if (folder / RUN).exists():
        return
    key = shared_key(config)
    donor = next((path for other, path in others if shared_key(other) == key and _has_rollouts(path)), None)
    if donor is None:
        return
    read_run(donor)
    require_sound(donor)  # else damaged files would be copied and marked as sound
    with RunStore.create(folder, config) as store:
        for mark in read_marks(donor):
            if _is_shared(mark.stage):
                k = mark.stage.iteration
                store.mark(mark.stage, *_copy(donor / names.iteration(k), store.iteration(k), mark.stage))


def _has_rollouts(path: Path) -> bool:
    return any(mark.stage == FIRST_ROLLOUTS for mark in read_marks(path))


def _is_shared(stage: Stage) -> bool:
    """Whether a stage does not depend on the cell: the starter without experience, and its first rollouts."""
    measures = stage.kind in {"episodes", "evaluate"} and stage.mode == "internalized"
    return (stage.iteration == 0 and measures) or stage == FIRST_ROLLOUTS


def _copy(source: Path, target: Path, stage: Stage) -> list[Path]:
    """Copy the files that a shared stage wrote. Returns the copies."""
    if stage.kind != "evaluate":
        return [copied(source / names.episodes(stage), target / names.episodes(stage))]
    results = read_jsonl(source / names.EVALUATIONS, EvalResult)
    write_jsonl(target / names.EVALUATIONS, [r for r in results if (r.mode, r.iteration) == ("internalized", 0)])
    of_starter = read_jsonl(source / names.DIAGNOSTICS, Diagnostics)
    write_jsonl(target / names.DIAGNOSTICS, [one for one in of_starter if one.metrics.mode == "internalized"])
    if (source / names.DRIFT).is_file():  # later drifts are compared with the starter's
        copied(source / names.DRIFT, target / names.DRIFT)
    return [target / name for name in names.OF_EVALUATION]

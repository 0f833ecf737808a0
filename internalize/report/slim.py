"""A finished run without its episodes, examples and weights: the part that reports and studies read, some 50 KB.

Such archives can be kept in a repository, so that a study can continue elsewhere and its tables can be made again. They
hold every evaluated task, the pool, the gate and the costs of each iteration; the marks of the stages are rewritten
with digests of the remaining files. A run that was unpacked cannot be resumed.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from internalize.errors import DataError
from internalize.records import EvalResult, StageMark
from internalize.runs import names
from internalize.runs.files import read_jsonl, write_atomic, write_json, write_jsonl
from internalize.runs.marks import PROGRESS, digests, line_of, read_marks
from internalize.runs.readers import record
from internalize.runs.store import RUN
from internalize.stages.study import STUDY, Manifest

from .run_report import load

MOST_BYTES = 500_000_000  # most bytes of an unpacked run, because a small archive may expand to any size
DIGITS = 3  # digits of each task's mean -log p, which make up most of an archive; the means are stored separately
KEPT = frozenset({
    RUN, names.METRICS, names.POOL, names.EDITS, names.TRAINING, names.SECOND_TRAINING, names.CHECKPOINT,
    names.EVALUATIONS, names.DIAGNOSTICS, names.DRIFT, names.GATE, names.REDACTIONS, names.COSTS,
})  # fmt: skip


def pack(run: Path, archive: Path) -> None:
    """Write the records of the run into `archive`. Raises DataError if the run is damaged."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".") as place:
        target, made = Path(place) / "run", Path(place) / archive.name
        slim(run, target)
        with tarfile.open(made, "w:xz") as packed:
            for file in sorted(target.rglob("*")):
                packed.add(file, file.relative_to(target).as_posix(), recursive=False, filter=_without_owner)
        made.replace(archive)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The archive entry without owner and time, so that the same records make the same archive."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def unpack(archive: Path, run: Path) -> None:
    """Put the records of `archive` into the folder `run`, which must not exist. Raises DataError for a bad archive."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".") as place:
        target = Path(place) / "run"
        try:
            with tarfile.open(archive) as packed:
                size = 0
                for member in packed:
                    if (size := size + member.size) > MOST_BYTES:  # checked before anything is written
                        raise DataError(f"{archive}: holds more than {MOST_BYTES:,} bytes")
                    packed.extract(member, target, filter="data")
        except (OSError, tarfile.TarError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{archive}: no archive of a run's records ({error})") from error
        load(target)  # names a file that differs from the packed one
        target.rename(run)


def unpack_study(archives: Path, out: Path) -> None:
    """Put a study's runs that lie packed in the folder `archives` into its folder `out`, those that are not there."""
    manifest = record(archives / STUDY, Manifest)
    if manifest is None:  # no archive yet
        return
    out.mkdir(parents=True, exist_ok=True)
    if not (out / STUDY).exists():
        shutil.copyfile(archives / STUDY, out / STUDY)
    for member in manifest.members:
        archive = _archive(archives, member.folder)
        if archive.exists() and not (out / member.folder / RUN).exists():
            unpack(archive, out / member.folder)


def pack_member(out: Path, run: Path, archives: Path) -> None:
    """Pack one finished run of the study in `out` into the folder `archives`, with the list of the study's runs."""
    archives.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / STUDY, archives / STUDY)
    pack(run, _archive(archives, run.relative_to(out).as_posix()))


def _archive(archives: Path, folder: str) -> Path:
    return archives / f"{folder.replace('/', '--')}.tar.xz"


def slim(run: Path, target: Path) -> None:
    """Copy the files of `run` that reports read to the new folder `target`."""
    report = load(run)
    target.mkdir(parents=True)
    for file in (path for path in run.rglob("*") if path.name in KEPT and path.is_file()):
        copy = target / file.relative_to(run)
        copy.parent.mkdir(exist_ok=True)
        if file.name == names.EVALUATIONS:
            results = read_jsonl(file, EvalResult)
            write_jsonl(copy, [one.model_copy(update={"nll": round(one.nll, DIGITS)}) for one in results])
        else:
            shutil.copyfile(file, copy)
    for iteration in report.iterations:
        write_json(target / names.iteration(iteration.number) / names.COSTS, iteration.costs)
    _mark(read_marks(run), target)


def _mark(marks: Iterable[StageMark], target: Path) -> None:
    """Write the mark of each stage that was the last to write a kept file, with the digests of the copies."""
    last = {name: mark.stage for mark in marks for name in mark.files if (target / name).is_file()}
    chain, lines = "", b""
    for stage in dict.fromkeys(last.values()):
        own = digests(target, [target / name for name, of in last.items() if of == stage])
        line, chain = line_of(StageMark(stage=stage, files=own), chain)
        lines += line
    write_atomic(target / PROGRESS, lines)


def is_slim(run: Path) -> bool:
    """Whether the folder holds only a run's records."""
    return (run / names.iteration(0) / names.COSTS).is_file()

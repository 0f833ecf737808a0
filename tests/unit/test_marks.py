"""Marks with digests: damage to any file of a finished stage is named, and a kill at any point is no damage."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from internalize.cli.main import main
from internalize.config.schema import Config
from internalize.errors import DataError, UserError
from internalize.records import PoolEdit, Record, Stage
from internalize.runs import marks, store
from internalize.runs.marks import read_marks, require_sound, verify
from internalize.runs.store import RunStore, read_run, write_jsonl
from tests.command import without_digests

ROLLOUT = Stage(iteration=1, kind="rollout")
EVALUATE = Stage(iteration=1, kind="evaluate", suite="dev", mode="internalized")
SECOND = EVALUATE.model_copy(update={"suite": "test"})


class Line(Record):
    """Any record."""

    text: str


def lines(*texts: str) -> list[Line]:
    return [Line(text=text) for text in texts]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages, one file of which the second has changed, and a folder of weights."""
    path = tmp_path / "run"
    with RunStore.create(path, Config()) as opened:
        folder = opened.iteration(1)
        write_jsonl(folder / "rollouts.jsonl", lines("a", "b"))
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "model.safetensors").write_bytes(bytes(1000))
        opened.mark(ROLLOUT, folder / "rollouts.jsonl", folder / "checkpoint")
        opened.replace(EVALUATE, folder / "evaluations.jsonl", lines("x"))
        opened.mark(EVALUATE, folder / "evaluations.jsonl")
        opened.replace(SECOND, folder / "evaluations.jsonl", lines("x", "y"))
        opened.mark(SECOND, folder / "evaluations.jsonl")
    return path


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda data: None,
    "cut": lambda data: data[: len(data) // 2],
    "doubled": lambda data: data + data,
    "flipped": flipped,
    "empty": lambda data: b"",
}


def test_an_undamaged_run_is_sound(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(run)
    assert set(found.checked) == {
        "run.json", "iter-1/rollouts.jsonl", "iter-1/checkpoint/model.safetensors", "iter-1/evaluations.jsonl",
    }  # fmt: skip
    assert (found.faults, found.unmarked, found.old) == ((), (), ())
    main(["verify", str(run)])
    assert capsys.readouterr().out == f"{run}: 4 files are as their stages wrote them\n"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(
    "name", ["iter-1/rollouts.jsonl", "iter-1/evaluations.jsonl", "iter-1/checkpoint/model.safetensors", "run.json"]
)
def test_a_damaged_file_is_named_by_resume_and_verify(
    name: str, damage: Callable[[bytes], bytes | None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = damage((run / name).read_bytes())
    if changed is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(changed)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run\.json|run: not a run" if name == "run.json" else name):
        RunStore.open(run, None)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run)])
    assert ended.value.code == 2
    assert name in "".join(capsys.readouterr()) or changed is None
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "nothing was written"


def test_what_no_report_reads_does_not_stop_one(run: Path) -> None:
    (run / "iter-1/checkpoint/model.safetensors").write_bytes(b"other")
    require_sound(run, weights=False)
    with pytest.raises(DataError, match=r"model\.safetensors: is not as the stage rollout of iteration 1 wrote it"):
        require_sound(run)


def test_a_mark_that_is_changed_dropped_doubled_or_moved_is_named(run: Path) -> None:
    file = run / "progress.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    for damaged in (
        whole[1:], [*whole[:1], *whole[2:]], [whole[0], *whole], [whole[1], whole[0], *whole[2:]],
        [whole[0].replace(b'"iteration": 1', b'"iteration": 2'), *whole[1:]], [*whole[:-1], flipped(whole[-1])],
    ):  # fmt: skip
        file.write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match=r"progress\.jsonl, line \d"):
            verify(run)
    file.write_bytes(b"".join(whole[:-1]) + whole[-1][:30])  # torn by a kill: the stage runs again
    assert [mark.stage for mark in read_marks(run)] == [ROLLOUT, EVALUATE]
    assert verify(run).faults == (), "the file is what the line before the torn one said it would become"


def test_a_file_that_several_stages_write_may_be_the_old_or_the_new_one_after_a_kill(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, third = run / "iter-1/evaluations.jsonl", SECOND.model_copy(update={"suite": "third"})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with RunStore.open(run, None) as opened:
        monkeypatch.setattr(store, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            opened.replace(third, path, lines("x", "y", "z"))
        monkeypatch.undo()
    assert verify(run).faults == ()
    with RunStore.open(run, None) as opened:
        opened.replace(third, path, lines("x", "y", "z"))
    assert verify(run).faults == ()  # the mark of the third is owed
    with RunStore.open(run, None) as opened:
        opened.replace(third, path, lines("x", "y", "z"))  # the same again: nothing is noted
        opened.mark(third, path)
    assert len(read_marks(run)) == 4
    write_jsonl(path, lines("x", "y"))  # as it was before: that is over
    assert [fault.split(":")[0] for fault in verify(run).faults] == ["iter-1/evaluations.jsonl"]


def test_a_file_of_an_earlier_iteration_that_a_stage_adds_to_may_not_be_the_old_one(run: Path) -> None:
    """Its mark names other files."""
    path, third = run / "iter-0/diagnostics.jsonl", SECOND.model_copy(update={"suite": "third"})
    starter = EVALUATE.model_copy(update={"iteration": 0})
    with RunStore.open(run, None) as opened:
        opened.iteration(0)
        opened.replace(starter, path, lines("x"))
        opened.mark(starter, path)
        opened.replace(third, path, lines("x", "y"))
        opened.mark(third, run / "iter-1/evaluations.jsonl")
    assert verify(run).faults == ()
    write_jsonl(path, lines("x"))
    assert [fault.split(":")[0] for fault in verify(run).faults] == ["iter-0/diagnostics.jsonl"]


def test_what_is_needed_no_more_may_be_gone_or_half_gone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore.open(run, None) as opened:
        monkeypatch.setattr(store.shutil, "rmtree", lambda path: None)
        opened.drop(SECOND, run / "iter-1" / "checkpoint", run / "iter-1" / "never-was")
    assert verify(run).faults == ()
    monkeypatch.undo()
    with RunStore.open(run, None) as opened:
        opened.drop(SECOND, run / "iter-1" / "checkpoint")
    assert verify(run).faults == ()
    assert not (run / "iter-1" / "checkpoint").exists()


def test_stages_of_an_earlier_version_are_believed_and_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_digests(run)
    (run / "iter-1/rollouts.jsonl").write_bytes(b"{}\n")
    with RunStore.open(run, None) as opened:
        opened.mark(Stage(iteration=2, kind="rollout"))
    main(["verify", str(run)])
    out = capsys.readouterr().out
    assert "1 files are as their stages wrote them" in out
    assert "not checked: what 3 stages wrote" in out
    assert "not checked: 2 files that no finished stage names (iter-1/evaluations.jsonl, iter-1/rollouts.jsonl)" in out


def test_a_run_that_goes_on_while_it_is_verified_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, compare = run / "iter-1/evaluations.jsonl", marks._allowed
    with RunStore.open(run, None) as opened:

        def meanwhile(found: object) -> object:
            monkeypatch.undo()
            allowed = compare(found)  # type: ignore[arg-type]
            opened.replace(SECOND, path, lines("new"))
            return allowed

        monkeypatch.setattr(marks, "_allowed", meanwhile)
        assert verify(run).faults == ()


@pytest.mark.parametrize("name", ["iter-1", "iter-1/rollouts.jsonl", "progress.jsonl", "iter-1/.x.tmp"])
def test_a_link_in_a_run_is_refused_and_what_it_points_to_stays(name: str, run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == "iter-1":
        (run / name).rename(elsewhere)
        (elsewhere / "notes.jsonl").write_text("without a newline")
    else:
        (run / name).unlink(missing_ok=True)
        elsewhere.write_text('{"a line": 1}\nwithout a newline')
    before = elsewhere.stat()
    (run / name).symlink_to(elsewhere)
    for use in (lambda: RunStore.open(run, Config()), lambda: read_run(run)):
        with pytest.raises(UserError, match=rf"{name}: is a symbolic link"):
            use()
    assert elsewhere.stat() == before
    assert elsewhere.is_file() or (elsewhere / "notes.jsonl").read_text() == "without a newline"


def test_a_pipe_in_a_run_is_refused_and_the_run_directory_itself_may_be_linked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    RunStore.open(tmp_path / "link", None).close()
    (run / "tracking").mkdir()
    (run / "tracking" / "latest").symlink_to(run)  # dashboards' packages link as they like
    RunStore.open(run, None).close()
    os.mkfifo(run / "iter-1" / "edits.jsonl")
    with pytest.raises(UserError, match=r"edits\.jsonl: is no file and no folder"):
        RunStore.open(run, None)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:

    path = tmp_path / "edits.jsonl"
    store.append_jsonl(path, [PoolEdit(op="NONE", reason="first")])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        with pytest.raises(OSError, match="File too large"):
            store.append_jsonl(path, [PoolEdit(op="NONE", reason="x" * 10_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, held)
    assert path.read_bytes() == before

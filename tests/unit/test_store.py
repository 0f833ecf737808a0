import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from internalize.config.schema import Config, load_config
from internalize.errors import Busy, ConfigError, DataError, UserError
from internalize.evaluation.gate import Decision
from internalize.records import Checkpoint, EvalResult, Record, Stage, Trajectory
from internalize.runs import names, readers
from internalize.runs.files import read_numbered, write_json
from internalize.runs.store import (
    RunStore,
    append_jsonl,
    exclusive,
    read_jsonl,
    read_marks,
    read_run,
    recover,
    write_atomic,
    write_jsonl,
)

ROLLOUT = Stage(iteration=0, kind="rollout")


class Note(Record):
    """Any record with some text."""

    iteration: int
    stage: str


def marks(*stages: str) -> list[Note]:
    return [Note(iteration=0, stage=stage) for stage in stages]


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records = marks("plain", "é\u2028 \x85", 'new\nline "quoted"')
    append_jsonl(path, records[:1])
    append_jsonl(path, [])
    append_jsonl(path, records[1:])
    assert read_jsonl(path, Note) == records
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"iteration": 0, "sta', r"line 2: not a whole JSON record \(EOF"),
        (b"\xff", "line 2: "),
        (b'{"iteration": 0}', "line 2: stage: field required"),
        (b'{"iteration": 0, "stage": "a", "x": 1}', "line 2: unknown field x"),
        (b'{"iteration": 0, "sta{"iteration": 0, "stage": "b"}', "line 2: not a whole"),
    ],
)
def test_a_bad_line_is_named_in_one_sentence(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    whole = b'{"iteration": 0, "stage": "a"}\n'
    path.write_bytes(whole + line + b"\n" + whole)
    assert recover(path) == 0, "only a torn tail is cut off; a bad line in the middle is corruption"
    with pytest.raises(DataError, match=rf"x\.jsonl, {message}") as caught:
        read_jsonl(path, Note)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"iteration": 0, "stage": "a"}\r\n\r\n  \n{"iteration": 0, "stage": "b"}')
    assert read_numbered(path, Note) == list(zip((1, 4), marks("a", "b"), strict=True))
    path.write_bytes(path.read_bytes() + b"\n\n{")
    with pytest.raises(DataError, match=r"x\.jsonl, line 6: "):
        read_jsonl(path, Note)


def test_a_torn_tail_is_an_error_until_recovered(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_jsonl(path, marks("a"))
    with path.open("ab") as file:
        file.write(b'{"iteration": 0, "st')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2"):
        read_jsonl(path, Note)
    with pytest.raises(DataError, match="torn"):
        append_jsonl(path, marks("b"))
    assert recover(path) == 20
    append_jsonl(path, marks("b"))
    assert read_jsonl(path, Note) == marks("a", "b")


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 200_000])
def test_recover_finds_the_last_newline_however_far_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.jsonl"
    for kept in (b"", b"whole\n"):
        path.write_bytes(kept + b"x" * size)
        assert recover(path) == size
        assert path.read_bytes() == kept
    assert recover(tmp_path / "missing") == 0


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    result = {"suite": "dev", "mode": "internalized", "iteration": 0, "checkpoint": "c", "pool_version": None}
    right = EvalResult.model_validate({**result, "task_id": "t", "success": 1.0})
    broken = right.model_copy(update={"nll": math.nan})
    path = tmp_path / "x.jsonl"
    for record in (broken, Note(iteration=0, stage="x").model_copy(update={"stage": "\ud800"})):
        with pytest.raises(DataError, match=r"x\.jsonl: a \w+ cannot be written as JSON"):
            append_jsonl(path, [*marks("a"), record])
    assert not path.exists()


RESULT = EvalResult(
    suite="dev", mode="internalized", iteration=1, checkpoint="c", pool_version=None, task_id="t", success=0.5
)
EPISODE = Trajectory(
    id="i", task_id="t", env="e", split="dev", iteration=1, seed=0, checkpoint="c", prompt=(), steps=(),
    termination="answered", score=0.5,
)  # fmt: skip


@pytest.mark.parametrize("value", ["NaN", "Infinity", "7.0", "-3.0", '"much"'])
@pytest.mark.parametrize(("right", "field"), [(RESULT, "success"), (EPISODE, "score")], ids=["success", "score"])
def test_a_figure_that_cannot_be_is_named_by_file_line_and_field(
    tmp_path: Path, right: Record, field: str, value: str
) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [right])
    assert read_jsonl(path, type(right)) == [right]
    line = path.read_text()
    assert f'"{field}": 0.5' in line
    path.write_text(line + line.replace(f'"{field}": 0.5', f'"{field}": {value}'))
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: {field}: input should be "):
        read_jsonl(path, type(right))


SINGLE = {
    "gate.json": Decision(promote=True, reason="rule 'always'", interval=None),
    "checkpoint.json": Checkpoint(
        id="c", parent=None, iteration=1, pool_version=None, config_digest="d", path="iter-1/checkpoint"
    ),
}


@pytest.mark.parametrize("read", [readers.record, readers.required])
@pytest.mark.parametrize(("name", "written"), SINGLE.items(), ids=SINGLE)
def test_a_torn_record_of_its_own_file_is_one_sentence(
    tmp_path: Path, name: str, written: Record, read: Callable[[Path, type[Record]], Record | None]
) -> None:
    write_json(tmp_path / name, written)
    assert read(tmp_path / name, type(written)) == written
    whole = (tmp_path / name).read_bytes()
    for torn in (b"", whole[: len(whole) // 2], whole[:-3] + b"\xff", b"[" * 100_000):
        (tmp_path / name).write_bytes(torn)
        with pytest.raises(DataError, match=rf"^[^\n]*{name}: [^\n]+$"):
            read(tmp_path / name, type(written))


def test_write_atomic_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", "x")
    assert path.read_text() == "old"
    write_jsonl(path, marks("a"))
    assert read_jsonl(path, Note) == marks("a")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "report.md"], "no temporary is left"


def test_a_run_remembers_config_versions_and_marks(tmp_path: Path) -> None:
    config = load_config(None, ["seed=7"])
    with RunStore.create(tmp_path / "new" / "run", config) as store:
        store.mark(ROLLOUT)
        store.mark(ROLLOUT)
        assert store.iteration(2).is_dir()
    with RunStore.open(tmp_path / "new" / "run", None) as store:
        assert Config.model_validate(store.info.config) == config
        assert (store.info.seed, store.info.digest) == (7, config.digest)
        assert {"python", "pydantic"} & set(store.info.versions) == {"python"}
        others = (Stage(iteration=0, kind="extract"), Stage(iteration=1, kind="rollout"))
        assert [store.done(stage) for stage in (ROLLOUT, *others)] == [True, False, False]
        (mark,) = read_marks(store.path)
        assert mark.stage == ROLLOUT


def test_the_marks_of_version_1_are_read_as_stages(tmp_path: Path) -> None:
    texts = [
        "rollouts.jsonl", "extract", "teacher.jsonl", "teacher-2.jsonl", "round 1", "distill",
        "episodes-a-in-context-b-in-context-3.jsonl", "evaluate a b in_context 3 second", "second", "gate", "warned",
    ]  # fmt: skip
    shown = {"suite": "a-in-context-b", "mode": "in_context", "policy": 3}
    RunStore.create(tmp_path, Config()).close()
    append_jsonl(tmp_path / "progress.jsonl", [Note(iteration=4, stage=text) for text in texts])
    with RunStore.open(tmp_path, None) as store:
        store.mark(ROLLOUT)
    expected = [
        {"kind": "rollout"}, {"kind": "extract"}, {"kind": "collect"}, {"kind": "collect", "round": 2},
        {"kind": "round", "round": 1}, {"kind": "distill"}, {"kind": "episodes", **shown},
        {"kind": "evaluate", **shown, "suite": "a b", "candidate": 2}, {"kind": "second"}, {"kind": "gate"},
    ]  # fmt: skip
    read = [mark.stage for mark in read_marks(tmp_path)]
    assert read == [*(Stage.model_validate({"iteration": 4, **fields}) for fields in expected), ROLLOUT]
    with RunStore.open(tmp_path, None) as store:
        assert store.done(Stage(iteration=4, kind="round", round=1))


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    RunStore.create(tmp_path, Config()).close()
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["version"] == 2
    (tmp_path / "run.json").write_text(json.dumps(stored | {"version": 3}))
    with pytest.raises(UserError, match="version 3"):
        RunStore.open(tmp_path, None)
    del stored["version"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert read_run(tmp_path).version == 1


def test_a_stage_has_one_file_name_and_no_two_share_one(tmp_path: Path) -> None:
    shown = Stage(iteration=2, kind="episodes", suite="dev", mode="in_context", policy=1, candidate=2)
    assert names.episodes(shown) == "episodes-dev-in-context-1-second.jsonl"
    plain = shown.model_copy(update={"mode": "internalized"})
    for stage in (shown, plain, Stage(iteration=2, kind="collect"), Stage(iteration=2, kind="collect", round=1)):
        (tmp_path / names.episodes(stage)).touch()
    assert names.measuring(tmp_path, 2, ("dev", "test")) == [shown, plain]
    assert [stage.round for stage in names.learning(tmp_path, 2)] == [0, 1]


def test_an_existing_run_needs_resume(tmp_path: Path) -> None:
    RunStore.open(tmp_path, Config(), resume=False).close()
    for start in (lambda: RunStore.create(tmp_path, Config()), lambda: RunStore.open(tmp_path, Config(), resume=False)):
        with pytest.raises(UserError, match="--resume"):
            start()
    RunStore.open(tmp_path, Config()).close()


def test_another_config_is_refused_by_name(tmp_path: Path) -> None:
    RunStore.create(tmp_path, Config()).close()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"changed: distill\.lr, seed$"):
        RunStore.open(tmp_path, load_config(None, ["seed=1", "distill.lr=0.5"]))
    assert sorted(tmp_path.iterdir()) == before


def test_folders_that_are_no_run_stay_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for config, resume in ((Config(), True), (Config(), False), (None, True)):
        with pytest.raises(UserError, match=r"no run|not a run directory"):
            RunStore.open(tmp_path, config, resume=resume)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UserError, match="is a file or lies in one"):
            RunStore.create(path, Config())
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path / "nowhere")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_run_json_is_named(tmp_path: Path) -> None:
    RunStore.create(tmp_path, Config()).close()
    stored = json.loads((tmp_path / "run.json").read_text())
    del stored["seed"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match=r"run\.json: seed: field required"):
        RunStore.open(tmp_path, Config())


def test_what_a_kill_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.123.tmp").write_text("{")  # killed before run.json was there
    with RunStore.open(tmp_path, Config()) as store:
        rollouts = store.iteration(0) / "rollouts.jsonl"
    append_jsonl(rollouts, marks("a"))
    with rollouts.open("ab") as file:
        file.write(b'{"iter')
    (rollouts.parent / ".pool.json.9.tmp").write_text("{")
    for name in (names.REHEARSAL, names.LAUNCHED):
        (tmp_path / f"{name}ab12" / "x").mkdir(parents=True)
    RunStore.open(tmp_path, None).close()
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == ["iter-0"]
    assert read_jsonl(rollouts, Note) == marks("a")
    assert [entry.name for entry in rollouts.parent.iterdir()] == ["rollouts.jsonl"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from internalize.runs.store import RunStore; from internalize.errors import UserError\n"
        "try: RunStore.open(pathlib.Path(sys.argv[1]), None)\n"
        "except UserError as error: print(error)\n"
        "else: print('opened')"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    with RunStore.create(tmp_path, Config()) as store:
        assert "another process is working" in elsewhere()
        with pytest.raises(UserError, match="another process"):
            RunStore.open(tmp_path, None)
        store.close()
        assert elsewhere() == "opened\n"


def test_a_lock_goes_with_its_holder_however_it_dies(tmp_path: Path) -> None:
    RunStore.create(tmp_path, Config()).close()
    code = (
        "import sys, pathlib, time; from internalize.runs.store import RunStore\n"
        "store = RunStore.open(pathlib.Path(sys.argv[1]), None); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=re.escape(str(tmp_path))):
            RunStore.open(tmp_path, None)
        holder.kill()
    RunStore.open(tmp_path, None).close()


def test_of_several_threads_one_has_the_directory_and_another_may_close_it(tmp_path: Path) -> None:
    RunStore.create(tmp_path, Config()).close()

    def opened(_: int) -> RunStore | None:
        try:
            return RunStore.open(tmp_path, None)
        except Busy:
            return None

    with ThreadPoolExecutor(8) as pool:
        (store,) = [found for found in pool.map(opened, range(32)) if found]
        pool.submit(store.close).result()
    RunStore.open(tmp_path, None).close()


def test_writers_with_the_same_pid_do_not_take_each_others_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    path = tmp_path / "pool.json"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: write_atomic(path, f"{n}" * 10_000), range(100, 200)))
    assert path.read_text() in {f"{n}" * 10_000 for n in range(100, 200)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["pool.json"]


def test_an_exclusive_file_is_one_threads_at_a_time(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "replies.jsonl", [0], [0]

    def add(number: int) -> None:
        with exclusive(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            append_jsonl(path, marks(str(number)))
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    assert most == [1]
    assert len(read_jsonl(path, Note)) == 12


def test_a_folder_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(UserError, match="cannot be locked"):
        RunStore.create(tmp_path, Config())

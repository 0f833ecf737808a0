"""A study: its cells, what they share, what is refused, and what the comparison says."""

import re
import shutil
from pathlib import Path

import pytest

from internalize import loop
from internalize.config.schema import Config
from internalize.environments import registry
from internalize.errors import Busy, ConfigError, Incomplete, InfrastructureError, InternalizeError, UserError
from internalize.evaluation.gate import Decision
from internalize.evaluation.stats import Interval
from internalize.records import EvalResult, Stage
from internalize.report import html, markdown
from internalize.report.comparison import Comparison, Versus, compare
from internalize.report.publish import publish_study, write_run
from internalize.report.slim import pack_member
from internalize.report.study_page import study_page
from internalize.runs.store import RunStore, read_jsonl, read_marks, write_json
from internalize.stages.backends import in_process
from internalize.stages.study import (
    Manifest,
    Member,
    StudyPart,
    configs,
    copy_shared_stages,
    load_grid,
    shared_key,
    study,
)
from internalize.training.policy import LocalPolicy
from tests.command import Call
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.report_run import make_run

RECIPE = """
iterations = 1
env.name = "toy"
rollout = {tasks = 3, attempts = 1, max_steps = 2, max_action_tokens = 6}
distill = {tasks = 2, epochs = 1, lora_r = 2, filter = "none", divergence = "sft"}
evaluate = {tasks = 3, final_splits = []}
compute.batch = 2
"""
GRID = """
question = "Which | pattern?"
recipe = "recipe.toml"
seeds = [0, 1]
reference = "stepwise"
[axes]
"inject.pattern" = ["stepwise", "none"]
[cells.bolder]
"distill.lr" = 0.01
"""


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


def play(config: Config, folder: Path) -> None:
    loop.run(
        config,
        folder,
        resume=True,
        backends=lambda c, made: in_process(LocalPolicy(c, tiny_model(), tiny_tokenizer()), made),
    )


def test_cells_are_the_product_of_the_axes_and_the_named_ones(grid: Path) -> None:
    found = configs(load_grid(grid), grid)
    assert [key for key in found if key[1] == 0] == [("stepwise", 0), ("none", 0), ("bolder", 0)]
    assert found["none", 1].inject.pattern == "none"
    assert found["none", 1].seed == 1
    assert found["bolder", 0].distill.lr == 0.01


def test_a_value_set_for_the_study_outranks_the_recipe_and_yields_to_cells(grid: Path) -> None:
    found = configs(load_grid(grid), grid, ["distill.lr=0.02", "model.dtype=bfloat16"])
    tables = load_grid(grid).model_copy(
        update={"base": {"env.options": {"size": 5}, "distill.trainer": {"bf16": True}}}
    )
    assert configs(tables, grid)["none", 0].env.options == {"size": 5}
    assert {config.model.dtype for config in found.values()} == {"bfloat16"}
    assert (found["none", 0].distill.lr, found["bolder", 0].distill.lr) == (0.02, 0.01)


def test_a_study_runs_shares_what_is_the_same_and_is_compared(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    played: list[str] = []

    def watched(config: Config, folder: Path) -> None:
        done = {mark.stage for mark in read_marks(folder)}
        played.append("shared" if Stage(iteration=1, kind="rollout") in done else "own")
        play(config, folder)

    manifest = study(grid, out, watched)
    assert played == ["own", "shared", "shared"] * 2
    comparison = compare(out)
    assert comparison.unfinished == ()
    assert [(c.cell, c.seeds, c.last) for c in comparison.curves] == [
        ("stepwise", 2, 1), ("none", 2, 1), ("bolder", 2, 1),
    ]  # fmt: skip
    assert len({c.internalized[0].mean for c in comparison.curves if c.internalized[0]}) == 1
    assert {v.cell for v in comparison.versus} == {"none", "bolder"}
    for folder in out.glob("*/seed-*"):
        write_run(folder)
    publish_study(out)
    text = (out / "study.md").read_text()
    assert "Which \\| pattern?" in text
    assert "bolder" in text
    page = (out / "study.html").read_text()
    assert "Which | pattern?" in page
    assert page.count('/report.html">') == 6
    assert not re.search(r"(src|href)=\"(?!#|(none|stepwise|bolder)-)", page)  # nothing is loaded, runs are linked to
    before = {p: p.stat().st_mtime_ns for p in out.rglob("evaluations.jsonl")}
    assert study(grid, out, play) == manifest  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in out.rglob("evaluations.jsonl")} == before


def test_a_study_goes_on_from_packed_records(grid: Path, tmp_path: Path, call: Call) -> None:
    out, records = tmp_path / "study", tmp_path / "records"
    study(grid, out, play)
    found = compare(out)
    for run in out.glob("*/seed-*"):
        pack_member(out, run, records)
    assert sum(file.stat().st_size for file in records.iterdir()) < 40_000
    shutil.rmtree(out)
    again = call("study", grid, "--out", "study", "--records", "records")
    assert (again.code, list(out.rglob("rollouts.jsonl"))) == (0, [])  # nothing is played again
    assert compare(out) == found
    refused = call("run", tmp_path / "recipe.toml", "--out", next(out.glob("stepwise-*/seed-0")), "--resume")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "nothing can go on from it" in refused.err
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("attempts = 1", "attempts = 2"))
    other = call("study", grid, "--out", "study", "--records", "records")
    assert other.code == 2
    assert "rollout.attempts" in other.err
    shutil.rmtree(out)
    archive = next(records.glob("bolder-*"))
    archive.write_bytes(archive.read_bytes()[:-200])
    damaged = call("study", grid, "--out", "study", "--records", "records", "--report-only")
    assert (damaged.code, damaged.err.count("\n")) == (2, 1)
    assert archive.name in damaged.err


def test_a_shared_start_gives_the_records_of_a_run_of_its_own(grid: Path, tmp_path: Path) -> None:
    study(grid, tmp_path / "study", play)
    alone = tmp_path / "alone"
    play(configs(load_grid(grid), grid)["none", 0], alone)
    (shared,) = (tmp_path / "study").glob("none-*/seed-0")
    for k in (0, 1):
        name = f"iter-{k}/evaluations.jsonl"
        assert read_jsonl(shared / name, EvalResult) == read_jsonl(alone / name, EvalResult)
    drifts = [(folder / "iter-0" / "drift.json").read_text() for folder in (shared, alone)]
    assert drifts[0] == drifts[1]


def test_the_drift_of_the_starter_is_shared_and_that_of_another_cell_is_not(grid: Path, tmp_path: Path) -> None:
    found = configs(load_grid(grid), grid)
    played, fresh = tmp_path / "played", tmp_path / "fresh"
    play(found["none", 0], played)
    assert (played / "iter-1" / "drift.json").exists()
    copy_shared_stages(found["bolder", 0], fresh, [(found["none", 0], played)])
    assert [(fresh / f"iter-{k}" / "drift.json").exists() for k in (0, 1)] == [True, False]


def test_only_runs_with_the_same_start_share_it(grid: Path) -> None:
    found = configs(load_grid(grid), grid)
    assert shared_key(found["none", 0]) == shared_key(found["bolder", 0])
    assert shared_key(found["none", 0]) != shared_key(found["none", 1])
    full = found["none", 0].model_copy(update={"distill": found["none", 0].distill.model_copy(update={"lora_r": 0})})
    assert shared_key(found["none", 0]) != shared_key(full)


def test_a_run_that_another_process_holds_is_passed_over(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    wanted = configs(load_grid(grid), grid)
    with pytest.raises(RuntimeError):
        study(grid, out, stop)  # leaves the manifest
    (folder,) = [m.folder for m in members_of(out) if (m.cell, m.seed) == ("none", 1)]
    (out / folder).parent.mkdir(parents=True, exist_ok=True)
    with RunStore.create(out / folder, wanted["none", 1]), pytest.raises(Incomplete, match="other processes"):
        study(grid, out, play)
    assert len(compare(out).unfinished) == 1
    study(grid, out, play)
    assert compare(out).unfinished == ()


def stop(config: Config, folder: Path) -> None:
    raise RuntimeError


def ending(grid: Path, out: Path, errors: dict[str, Exception]) -> tuple[InternalizeError, list[str]]:
    """What a study ends with whose cells stop by `errors` in the order of their names, and the folders it played."""
    played: list[str] = []

    def fake(config: Config, folder: Path) -> None:
        played.append(f"{folder.parent.name.split('-')[0]} {folder.name}")
        if played[-1] in errors:
            raise errors[played[-1]]
        (make_run(folder) / "progress.jsonl").unlink()  # its stages are no study's to share

    with pytest.raises(InternalizeError) as stopped:
        study(grid, out, fake)
    return stopped.value, played


ALL = [f"{cell} seed-{seed}" for seed in (0, 1) for cell in ("stepwise", "none", "bolder")]


def test_a_run_that_fails_is_named_at_the_end_and_the_others_go_on(grid: Path, tmp_path: Path) -> None:
    errors = {"none seed-0": UserError("the loss is nan"), "bolder seed-1": UserError("no endpoint")}
    error, played = ending(grid, tmp_path / "study", errors)
    assert played == ALL
    assert type(error) is UserError
    assert re.search(r"of 6 runs, 2 failed \(first none-\w{4}/seed-0: the loss is nan\)$", str(error))
    comparison = compare(tmp_path / "study")
    assert comparison.unfinished == (("none", 0, "not begun"), ("bolder", 1, "not begun"))
    assert [(curve.cell, curve.seeds) for curve in comparison.curves] == [("stepwise", 2), ("none", 1), ("bolder", 1)]
    for page in (markdown.render(study_page(comparison)), html.render(study_page(comparison))):
        assert page is not None
        assert "Not finished (2): none, seed 0 (not begun); bolder, seed 1 (not begun)." in page


@pytest.mark.parametrize(
    ("errors", "kind", "said"),
    [
        ((Incomplete("spent"), Incomplete("spent")), Incomplete, "2 stopped with work left"),
        ((InfrastructureError("gone"), Incomplete("spent")), Incomplete, "1 failed.*gone.*1 stopped with work left"),
        ((InfrastructureError("gone"), UserError("nan")), UserError, r"2 failed \(first none-\w{4}/seed-1: nan"),
        ((Busy("held"), UserError("nan")), UserError, "1 failed.*1 left to other processes"),
        ((Busy("held"), Incomplete("spent")), Incomplete, "1 stopped with work left.*1 left to other processes"),
    ],
)
def test_work_left_and_failures_are_told_apart(
    grid: Path, tmp_path: Path, errors: tuple[Exception, Exception], kind: type[Exception], said: str
) -> None:
    error, played = ending(grid, tmp_path / "study", dict(zip(("stepwise seed-0", "none seed-1"), errors, strict=True)))
    assert played == ALL
    assert type(error) is kind
    assert re.search(said, str(error))


def test_too_little_memory_is_a_failure_of_one_run_and_a_fault_of_ours_is_not(grid: Path, tmp_path: Path) -> None:
    full = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    error, played = ending(grid, tmp_path / "study", {"none seed-0": full, "bolder seed-0": MemoryError()})
    assert played == ALL
    assert type(error) is UserError
    assert "2 failed (first none-" in str(error)
    assert str(error).endswith("Tried to allocate 2 GiB)")
    with pytest.raises(RuntimeError, match="a bug"):
        study(grid, tmp_path / "other", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_a_study_shows_the_policy_in_force_after_a_roll_back(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    ending(grid, out, {"none seed-0": UserError("nan")})
    for folder in out.glob("stepwise-*/seed-*"):
        write_json(folder / "iter-2" / "gate.json", Decision(promote=False, reason="worse", interval=None, rival=1))
    stepwise, *_ = compare(out).curves
    assert [interval and interval.mean for interval in stepwise.internalized] == [0.4, 0.5, 0.5]
    assert stepwise.gain is not None
    assert stepwise.gain.mean == pytest.approx(0.1)
    assert stepwise.retained is not None
    assert stepwise.retained.value == pytest.approx(4 / 14)


def test_a_part_of_a_study_is_played_and_the_rest_is_named(grid: Path, tmp_path: Path) -> None:
    played: list[str] = []

    def fake(config: Config, folder: Path) -> None:
        played.append(f"{folder.parent.name.split('-')[0]} {folder.name}")

    study(grid, tmp_path / "study", fake, part=StudyPart(cells=("bolder", "stepwise")))
    study(grid, tmp_path / "study", fake, part=StudyPart(seeds=(1,)))
    assert played == [
        "stepwise seed-0", "bolder seed-0", "stepwise seed-1", "bolder seed-1",
        "stepwise seed-1", "none seed-1", "bolder seed-1",
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match="cell 'bold': the study has no such cell \\(there are stepwise; none; bolder"
    ):
        study(grid, tmp_path / "other", fake, part=StudyPart(cells=("bold",)))
    with pytest.raises(ConfigError, match="seed 7: the study has no such seed \\(there are 0; 1\\)"):
        study(grid, tmp_path / "other", fake, part=StudyPart(seeds=(7,)))
    assert not (tmp_path / "other").exists()


def test_an_interruption_stops_a_study(grid: Path, tmp_path: Path) -> None:
    played: list[Path] = []

    def interrupted(config: Config, folder: Path) -> None:
        played.append(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(grid, tmp_path / "study", interrupted)
    assert len(played) == 1


def test_the_command_ends_with_one_sentence_and_what_there_is_is_published(
    grid: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("compute.batch", "model.source = '/nowhere'\ncompute.batch"))
    ended = call("study", grid, "--out", "study")
    *noted, text, page, last = ended.err.splitlines()
    assert ended.code == 2
    assert len([line for line in noted if line.endswith("the other runs go on")]) == 6
    assert (text, page) == ("Written: study/study.md", "Written: study/study.html")
    assert re.match(r"internalize: study: of 6 runs, 6 failed \(first stepwise-\w{4}/seed-0: .*/nowhere", last)
    assert "none, seeds 0, 1 (not begun)" in (tmp_path / "study" / "study.html").read_text()


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_compared(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    ending(grid, out, {"none seed-0": UserError("nan")})
    (broken,) = out.glob("stepwise-*/seed-1")
    (broken / "metrics.jsonl").write_text("{}\n")
    unread, missing = compare(out).unfinished
    assert missing == ("none", 0, "not begun")
    assert unread[:2] == ("stepwise", 1)
    assert "metrics.jsonl" in unread[2]


def members_of(out: Path) -> list[Member]:
    return list(Manifest.model_validate_json((out / "study.json").read_bytes()).members)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("recipe.toml", "nowhere.toml"), "nowhere.toml"),
        (('reference = "stepwise"', 'reference = "global"'), "reference"),
        (('"distill.lr" = 0.01', '"distill.rate" = 0.01'), "cell 'bolder'.*distill.rate"),
        (("seeds = [0, 1]", "seed = 0"), "seed"),
    ],
)
def test_a_bad_study_is_refused_before_anything_is_run(
    grid: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    grid.write_text(GRID.replace(*change))
    with pytest.raises(ConfigError, match=said):
        study(grid, tmp_path / "study", play)
    assert not (tmp_path / "study").exists()


def test_another_study_in_the_same_folder_is_refused(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        study(grid, tmp_path / "study", stop)
    grid.write_text(GRID.replace("seeds = [0, 1]", "seeds = [0, 2]"))
    with pytest.raises(ConfigError, match="another study"):
        study(grid, tmp_path / "study", play)


def test_a_folder_that_is_no_study_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a study"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "verdict"),
    [
        (0.2, 0.1, 0.3, 0.01, "better"),
        (-0.2, -0.3, -0.1, 0.01, "worse"),
        (0.2, 0.1, 0.3, 0.2, "not told apart"),
        (0.2, -0.1, 0.3, 0.01, "not told apart"),
    ],
)
def test_a_verdict_needs_interval_and_test(mean: float, low: float, high: float, p: float, verdict: str) -> None:
    change = Interval(mean=mean, low=low, high=high, n=50)
    assert Versus(cell="a", change=change, won=9, lost=1, p=p, detectable=0.2).verdict == verdict


def test_an_unfinished_study_says_so() -> None:
    comparison = Comparison(question="Q?", reference="a", curves=(), versus=(), unfinished=(("none", 1, "not begun"),))
    assert "Not finished (1)" in markdown.render(study_page(comparison))

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from internalize.errors import DataError, UserError
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics
from internalize.evaluation.stats import Interval
from internalize.experience.redact import RedactionCount, note
from internalize.records import Stage, StageMark
from internalize.report import figures, html, markdown, terminal
from internalize.report.costs import Costs
from internalize.report.episodes import LEARNED, SAME, UNLEARNED
from internalize.report.headline import summary
from internalize.report.run_page import run_page
from internalize.report.run_report import RunReport, changes, load
from internalize.runs.names import REDACTIONS
from internalize.runs.store import RunInfo, append_jsonl, read_jsonl, write_json, write_jsonl
from tests.steps import act, step
from tests.unit.report_run import NASTY, PoolFile, TrainFile, item, make_run, remeasure, result, trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def printed(report: RunReport) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    terminal.print_page(run_page(report), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def written(report: RunReport) -> str:
    """The Markdown text; the figure is drawn beside the run."""
    return markdown.render(run_page(report), report.path)


def test_known_answers(run):
    report = load(run)
    assert (report.suite, report.finished, report.planned) == ("dev", 2, 2)
    starter, first, final = report.iterations
    assert report.starter == starter
    assert report.final == final
    assert [i.internalized.success.mean for i in report.iterations] == [0.4, 0.5, 0.7]
    assert starter.in_context.success.mean == 0.75  # with the first pool
    assert final.internalized.retained.value == pytest.approx(8 / 14)
    assert first.in_context.success.mean == 0.75
    assert first.internalized.retained.value == pytest.approx(4 / 14)
    assert final.in_context.in_context_gain.mean == pytest.approx(0.1)
    assert [i.internalized.premature_rate for i in report.iterations] == [0.4, 0.2, 0.0]
    assert (len(final.pool), final.training.accepted, final.training.rejected) == (2, 30, 10)
    assert (final.costs.episodes, final.costs.unscored, final.costs.sampled) == (3 + 1, 1, 15 + 5)


def test_the_sentence_states_change_interval_n_and_limits(run):
    text = summary(load(run))
    assert text.startswith("On dev, success without experience in the prompt rose from 40.0 % (starter) to 70.0 %")
    assert "+30.0 points (95 % interval +" in text
    assert "n = 40 tasks, exact sign test p < 0.001; the interval excludes zero." in text  # 12 won, none lost
    assert "With the pool in the prompt the final policy reaches 80.0 %: +10.0 points" in text
    assert "One seed" in text
    assert "40 tasks, changes below about" in text
    assert "not finished" not in text


def test_a_change_within_the_noise_is_not_called_one(tmp_path):
    report = load(make_run(tmp_path / "run", iterations=0))
    noise = [result(1, "internalized", task, 17) for task in range(40)]
    folder = tmp_path / "run" / "iter-1"
    folder.mkdir()
    write_jsonl(folder / "evaluations.jsonl", noise)
    (tmp_path / "run" / "metrics.jsonl").unlink()  # as of version 1, without diagnostics
    report = load(tmp_path / "run")
    text = summary(report)
    assert "went from 40.0 % (starter) to 42.5 %" in text
    assert "includes zero, so no change is shown" in text
    assert "rose" not in text
    assert "Whether the pool in the prompt still helps was not measured." in text
    assert "not finished: 1 of 2 iterations" in text


def test_two_lucky_tasks_are_no_proof(run):
    """Both of two tasks won: the bootstrap interval has no width, the exact test says p = 0.5."""
    report = load(run)
    two = tuple(r for r in report.results if r.suite == "dev" and r.task_id in {"dev20", "dev21"})
    text = summary(report.model_copy(update={"results": two}))
    assert "went from 0.0 % (starter) to 100.0 %" in text
    assert "excludes zero but the exact test does not agree, so no change is shown" in text


def test_several_seeds(run, tmp_path):
    other = load(make_run(tmp_path / "other"))
    text = summary(load(run), other)
    assert "rose from 40.0 %" in text
    assert "One seed" not in text
    assert "sign test" not in text


def test_zero_finished_iterations(tmp_path):
    report = load(make_run(tmp_path / "run", iterations=0))
    assert report.finished == 0
    said = "No iteration has finished yet: nothing can be said about learning. The starter solves 40.0 % of 40 tasks"
    assert said in printed(report).replace("\n", " ")
    assert said in written(report)
    assert (tmp_path / "run" / "figure.png").exists()


def test_a_run_that_only_just_started(tmp_path):
    run = make_run(tmp_path / "run", iterations=0)
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "iter-0")
    report = load(run)
    assert report.iterations == ()
    assert "No iteration has finished yet" in printed(report)
    text = written(report)
    assert "No iteration has finished yet" in text
    assert "How to reproduce" in text
    assert not (run / "figure.png").exists()


def test_no_run_at_all(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [("evaluations.jsonl", "diagnostics.jsonl"), ("evaluations.jsonl",)])
def test_every_optional_file_may_be_missing(run, kept):
    for path in [*run.glob("iter-*/*")]:
        if path.name not in kept:
            path.unlink()
    report = load(run)
    assert report.final is not None
    assert report.final.pool is None
    assert "70.0 [55, 85]" in written(report)
    assert "70.0 [55, 85]" in printed(report)


def test_metrics_alone_make_a_report(run):
    for path in run.glob("iter-*/evaluations.jsonl"):
        path.unlink()
    report = load(run)
    assert report.final is not None
    assert report.final.internalized is not None
    assert "70.0 [55, 85]" in printed(report)
    assert "no task has a score from both" in summary(report)


def test_half_an_iteration_does_not_count(run):
    """Results of iteration 2 are there, its metrics line isn't: it is still being measured."""
    lines = [line for line in read_jsonl(run / "metrics.jsonl", SuiteMetrics) if line.iteration < 2]
    write_jsonl(run / "metrics.jsonl", lines)
    report = load(run)
    assert report.finished == 1
    assert "to 50.0 % (iteration 1 of 2)" in summary(report)


def test_a_torn_last_line_is_ignored_and_a_broken_one_is_named(run):
    evaluations = run / "iter-2" / "evaluations.jsonl"
    whole = load(run)
    evaluations.write_bytes(evaluations.read_bytes() + b'{"suite": "de')
    assert load(run) == whole
    evaluations.write_bytes(b'{"suite": "dev"}\n' + evaluations.read_bytes())
    with pytest.raises(DataError, match=r"evaluations\.jsonl, line 1: mode"):
        load(run)


def test_a_rolled_back_iteration_is_not_the_final_policy(run):
    write_json(run / "iter-2" / "gate.json", Decision(promote=False, reason="worse", interval=None))
    report = load(run)
    assert report.final is not None
    assert report.final.number == 1
    text = summary(report)
    assert "to 50.0 % (iteration 1 of 2)" in text
    assert "Rolled back by the gate: iteration 2." in text
    assert "2 undone" in printed(report)
    write_json(run / "iter-1" / "gate.json", Decision(promote=False, reason="worse", interval=None))
    assert summary(load(run)).startswith("None of the 2 finished iterations was kept")
    assert "None of the 2" in written(load(run))


def test_unscored_tasks_are_left_out_of_both_sides_and_said(run):
    rows = [r.model_copy(update={"success": None}) if r.task_id == "dev0" else r for r in load(run).results]
    for k in range(3):
        write_jsonl(run / f"iter-{k}" / "evaluations.jsonl", [r for r in rows if r.iteration == k])
    remeasure(run)
    text = summary(load(run))
    assert "from 38.5 % (starter) to 69.2 %" in text  # 15 and 27 of 39
    assert "n = 39 tasks" in text
    assert "1 tasks were left out" in text
    assert "unscored" in printed(load(run))


def test_tables_fit_a_terminal_of_80_columns(run):
    console = Console(file=io.StringIO(), width=80)
    terminal.print_page(run_page(load(run)), console)
    assert isinstance(console.file, io.StringIO)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["2", "70.0", "[55,", "85]", "80.0", "[68,", "92]", "57", "[30,", "83]", "0.0", "%", "2", "30/40"] in rows


def test_cautions_reach_both_reports(run):
    rows = [r.model_copy(update={"success": 0.0}) if r.mode == "internalized" else r for r in load(run).results]
    write_jsonl(run / "iter-2" / "evaluations.jsonl", [r for r in rows if r.iteration == 2])
    remeasure(run)
    said = "success is 40.0 points below the starter's"
    report = load(run)
    assert said in printed(report)
    assert said in written(report)


def test_samples_show_what_was_learned_and_what_was_lost(run):
    learned, unlearned, taught = load(run).samples
    assert (learned.title, unlearned.title) == (LEARNED, UNLEARNED)
    assert [shown.trajectory.score for shown in learned.episodes] == [0, 1]
    assert [shown.iteration for shown in learned.episodes] == [0, 1]
    assert [shown.trajectory.score for shown in unlearned.episodes] == [1, 0]
    assert [shown.trajectory.steps[0].injection is not None for shown in taught.episodes] == [True]
    assert "[experience i1, chosen by lexical]" in written(load(run))


def test_evaluation_episodes_are_samples_too_and_unscored_ones_never(run):
    for k in (1, 2):
        write_jsonl(run / f"iter-{k}" / "rollouts.jsonl", [trajectory(5, f"c{k - 1}", None)])
    append_jsonl(
        run / "iter-1" / "episodes-dev-internalized-1.jsonl", [trajectory(7, "c0", 1.0), trajectory(7, "c2", 1.0)]
    )
    titles = [sample.title for sample in load(run).samples]
    assert titles[0] == SAME
    assert len(titles) == 2
    first = load(run).iterations[1]
    assert first.costs.episodes == 2  # of rollouts and teacher: measuring is no cost of learning
    assert first.costs.measured == 10


def test_report_has_its_parts(run):
    text = written(load(run))
    for part in (
        "# run\n", "Did it learn", "![Success", "## Iterations", "## Families", "## Starter and final policy",
        "| test |", "## Pool of iteration 2 (2 items)", "visit its target", "## Cost",
                 "1,234 | 15 s | 1 s | 3.3 min | 30 s | 1.5 GiB |", "8.1 min of work: rollouts 30 s",
                 "## Growth of the pool", "| 1 | 2 | 2 | 0 |", "## Diagnostics",
                 "## How to reproduce", "Config digest", "seed 0"):  # fmt: skip
        assert part in text, part
    row = next(line for line in text.splitlines() if line.startswith("| 2 |"))
    assert row == "| 2 | 70.0 [55, 85] | 80.0 [68, 92] | 57 [30, 83] | 0.0 % | 2 | 30/40 |"
    assert written(load(run)) == written(load(run))


@pytest.mark.slow
def test_what_was_redacted_is_counted_in_both_reports(run):
    assert "Secrets taken out" not in str(written(load(run))) + str(html.render(run_page(load(run))))
    count = RedactionCount(removed={"api key": 2, "email": 1})
    note(run / "iter-1" / REDACTIONS, "extract", count)
    note(run / "iter-2" / REDACTIONS, "round 0", RedactionCount(dropped=3))
    assert "| 1 | extract | 2 api key, 1 email | 0 |\n| 2 | round 0 |  | 3 |" in written(load(run))
    assert '<td class="text">2 api key, 1 email</td>' in str(html.render(run_page(load(run))))


def test_untrusted_text_stays_text_everywhere(tmp_path):
    run = make_run(tmp_path / "run", items=(item(NASTY),), text=NASTY)
    renamed = [r.model_copy(update={"family": NASTY}) for r in load(run).results]
    for k in range(3):
        write_jsonl(run / f"iter-{k}" / "evaluations.jsonl", [r for r in renamed if r.iteration == k])
    remeasure(run)
    report = load(run)
    terminal_text = printed(report)
    assert "\x1b" not in terminal_text
    assert "[bold red]" in terminal_text
    text = written(report)
    outside = "".join(text.split("```")[::2])  # every second part is a fenced block
    for active in ("<script", "http://", "www.", "@all", "\x1b", "\u202e", "\n# head"):
        assert active not in outside, active
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_figure_is_drawn_and_its_absence_is_said(run, monkeypatch):
    report, drawn = load(run), run / "figure.png"
    assert "figure.png" in written(report)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = written(report)
    assert not drawn.exists()
    assert figures.NOTE in text
    assert "figure.png" not in text


def test_figure_of_a_suite_with_formula_marks_and_nothing_scored(run):
    report = load(run)
    unscored = {"success": None, "results": 0}
    lines = tuple(
        i.model_copy(update={"internalized": i.internalized.model_copy(update=unscored), "in_context": None})
        for i in report.iterations
    )
    assert "figure.png" in written(report.model_copy(update={"suite": "$\\frac", "iterations": lines}))


def test_reports_do_not_write_into_a_run_they_only_read(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    printed(load(run))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_numbers_of_the_gate_are_told_for_both_candidates(run):
    fell = Interval(mean=-0.2, low=-0.35, high=-0.05, n=40)
    first = Decision(promote=False, reason="worse: -0.200", interval=fell, rival=1)
    write_json(run / "iter-2" / "gate.json", Decision(promote=True, reason="no worse", interval=None, first=first))
    assert "## Gate" not in written(load(run))  # the rule is to keep every one
    info = RunInfo.model_validate_json((run / "run.json").read_bytes())
    config = {**info.config, "gate": {"rule": "retry"}}
    write_json(run / "run.json", info.model_copy(update={"config": config}))
    text = written(load(run))
    assert "| 2 | iteration 1 | -20.0 [-35.0, -5.0] | not kept | worse: -0.200 |" in text
    assert "| 2, milder | - | - | kept | no worse |" in text


def test_the_training_of_a_milder_candidate_is_a_cost_too(run):
    write_json(run / "iter-2" / "train-second.json", TrainFile(action_tokens=1000))
    text = written(load(run))
    assert "| 2 | 4 (1 unscored) | 20 | 2,234 |" in text


def test_names_of_single_tasks_count_as_leaks(run):
    """The questions of the run are "question 0" to "question 3"; a rule that holds one's answer leaks it."""
    solved = trajectory(7, "c0", 1.0, "answer[Mount_Sabu.html]")
    answer = step("answer[Mount_Sabu.html]", act("answer", "Mount_Sabu.html"))
    leaky = item("Never ask for Mount_Sabu.html twice.")
    write_jsonl(run / "iter-1" / "rollouts.jsonl", [solved.model_copy(update={"steps": (answer,)})])
    write_json(run / "iter-2" / "pool.json", PoolFile(cap=50, items=(leaky,)))
    report = load(run)
    assert changes(report.iterations, report.entities)[-1].health.leak_share == 1.0


def test_time_is_counted_by_kind_of_stage():
    kinds = ("rollout", "collect", "extract", "round", "distill", "episodes", "evaluate", "gate")
    took = [(kind, float(1 << place)) for place, kind in enumerate(kinds)]
    marks = [StageMark(stage=Stage(iteration=1, kind=kind), seconds=s, memory=int(s)) for kind, s in took]
    found = Costs.total(map(Costs.noted, marks))
    assert found.seconds == {"rollouts": 3.0, "extraction": 4.0, "training": 24.0, "evaluation": 224.0}
    assert found.memory == 128
    assert Costs.total([Costs(sampled=5)]).seconds == {}  # of which nothing was noted


def test_failed_episodes_are_counted_by_kind(run):
    assert "1.5 GiB | 1 lost |" in written(load(run))
    failures = ("refused: it is a refusal (No.)", "refused: flagged", "empty: it is empty", "", "mcp: look: gone")
    broken = [
        trajectory(n, "c0", None).model_copy(update={"failure": words, "termination": "failed"})
        for n, words in enumerate(failures)
    ]
    write_jsonl(run / "iter-1" / "rollouts.jsonl", broken)
    assert "| 2 refused, 1 empty, 1 no reason given, 1 mcp |" in written(load(run))

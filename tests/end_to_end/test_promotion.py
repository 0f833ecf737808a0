"""A candidate that lost: rolled back, trained again with a smaller step, or averaged with its parent."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.evaluation.gate import Decision
from internalize.records import Checkpoint, EvalResult
from internalize.report.run_report import load as load_report
from internalize.runs.store import read_jsonl
from internalize.stages import promote as promotion
from internalize.stages.backends import in_process
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_model, tiny_tokenizer

SET = [
    "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=1", "rollout.max_steps=2",
    "rollout.max_action_tokens=6", "distill.tasks=2", "distill.epochs=1", "distill.lora_r=2", "distill.filter=none",
    "distill.divergence=sft", "evaluate.tasks=3", "evaluate.final_splits=[]", "compute.batch=3",
]  # fmt: skip
LOST = Decision(promote=False, reason="worse", interval=None)
WON = Decision(promote=True, reason="no worse", interval=None)


def policy(config: Config) -> LocalPolicy:
    return LocalPolicy(config, tiny_model(), tiny_tokenizer())


class Verdicts:
    """Says of each candidate what the script says; `asked` counts them."""

    def __init__(self, *script: Decision) -> None:
        self.script, self.asked = list(script), 0

    def __call__(self, *_: object) -> Decision:
        self.asked += 1
        return self.script.pop(0)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


def run(out: Path, monkeypatch: pytest.MonkeyPatch, rule: str, *script: Decision, more: Sequence[str] = ()) -> Verdicts:
    verdicts = Verdicts(*script)
    monkeypatch.setattr(promotion, "decide", verdicts)
    loop.run(
        load_config(None, [*SET, f"gate.rule={rule}", *more]),
        out,
        resume=True,
        backends=lambda config, made: in_process(policy(config), made),
    )
    return verdicts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def decision(out: Path, k: int) -> Decision:
    return Decision.model_validate_json((out / f"iter-{k}" / "gate.json").read_bytes())


@pytest.mark.parametrize("rule", ["retry", "average"])
def test_a_milder_candidate_that_holds_takes_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    run(tmp_path, monkeypatch, rule, LOST, WON, WON)
    said = {"rival": 0}  # the starter: nothing else was kept yet
    assert decision(tmp_path, 1) == WON.model_copy(update={"first": LOST.model_copy(update=said), **said})
    record = Checkpoint.model_validate_json((tmp_path / "iter-1" / "checkpoint.json").read_bytes())
    assert record.path == "iter-1/second"
    results = read_jsonl(tmp_path / "iter-1" / "evaluations.jsonl", EvalResult)
    assert {r.checkpoint for r in results if r.iteration == 1} == {record.id}
    first = read_jsonl(tmp_path / "iter-1" / "evaluations-first.jsonl", EvalResult)
    assert record.id not in {r.checkpoint for r in first}
    second = Checkpoint.model_validate_json((tmp_path / "iter-2" / "checkpoint.json").read_bytes())
    assert second.parent == record.id  # the next iteration starts from it
    final = load_report(tmp_path).final
    assert final is not None
    assert final.number == 2


def test_the_average_lies_half_way_to_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, "average", LOST, WON, WON)
    first, second = (weights(tmp_path / "iter-1" / name) for name in ("checkpoint", "second"))
    for name, weight in first.items():
        if "lora_B" in name:  # zero in the starter
            torch.testing.assert_close(second[name], weight / 2)


def test_a_smaller_step_moves_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, "retry", LOST, WON, WON)
    sizes = [
        sum(float(weight.norm()) for name, weight in weights(tmp_path / "iter-1" / folder).items() if "lora_B" in name)
        for folder in ("checkpoint", "second")
    ]
    assert 0 < sizes[1] < 0.5 * sizes[0]


def test_two_candidates_that_lost_leave_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = run(tmp_path, monkeypatch, "retry", LOST, LOST, LOST, LOST)
    assert verdicts.asked == 4
    assert not decision(tmp_path, 2).promote
    report = load_report(tmp_path)
    assert report.final is None


def test_killed_within_the_second_candidate_the_run_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    run(alone, monkeypatch, "retry", LOST, WON, WON)
    with pytest.raises(IndexError):  # the script ends where the second candidate is to be judged
        run(killed, monkeypatch, "retry", LOST)
    run(killed, monkeypatch, "retry", WON, WON)
    for k in (1, 2):
        assert decision(killed, k) == decision(alone, k)
        names = ["evaluations.jsonl", "teacher.jsonl"]
        assert all(
            [timeless(r) for r in (alone / f"iter-{k}" / name).read_text().splitlines()]
            == [timeless(r) for r in (killed / f"iter-{k}" / name).read_text().splitlines()]
            for name in names
        )


CONFIRM = ("gate.most=5", "evaluate.tasks=3")  # a suite of three further tasks, and one of two


def test_a_suspected_loss_is_played_on_further_tasks_until_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool | None] = [None, True, False]  # at iteration 1 after both suites; at iteration 2 after one
    monkeypatch.setattr(promotion, "worse", lambda *_: answers.pop(0))
    run(tmp_path, monkeypatch, "confirm", LOST, LOST, more=CONFIRM)
    assert [decision(tmp_path, k).promote for k in (1, 2)] == [False, True]
    assert "on 5 further tasks worse" in decision(tmp_path, 1).reason
    assert "on 3 further tasks no worse" in decision(tmp_path, 2).reason
    first, second = (read_jsonl(tmp_path / f"iter-{k}" / "evaluations.jsonl", EvalResult) for k in (1, 2))
    assert played(first) == {("dev-again-1", 0), ("dev-again-2", 0), ("dev-again-1", 1), ("dev-again-2", 1)}
    assert played(second) == {("dev-again-1", 2)}  # its rival is the starter, which has been played on it
    suites = {name: {r.task_id for r in first if r.suite == name} for name in ("dev", "dev-again-1", "dev-again-2")}
    assert [len(tasks) for tasks in suites.values()] == [3, 3, 2]
    assert len(set.union(*suites.values())) == 8
    final = load_report(tmp_path).final
    assert final is not None
    assert final.number == 2


def test_what_was_not_suspected_or_not_shown_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "worse", lambda *_: None)
    run(tmp_path, monkeypatch, "confirm", WON, LOST, more=CONFIRM)
    assert decision(tmp_path, 1) == WON.model_copy(update={"rival": 0})
    assert not played(read_jsonl(tmp_path / "iter-1" / "evaluations.jsonl", EvalResult))
    assert decision(tmp_path, 2).promote
    assert "on 5 further tasks not known to be worse" in decision(tmp_path, 2).reason


def test_killed_while_it_confirms_the_run_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    monkeypatch.setattr(promotion, "worse", lambda *_: None)
    run(alone, monkeypatch, "confirm", LOST, LOST, more=CONFIRM)
    answers: list[None] = [None]
    monkeypatch.setattr(promotion, "worse", lambda *_: answers.pop(0))
    with pytest.raises(IndexError):  # killed after the second suite of iteration 1
        run(killed, monkeypatch, "confirm", LOST, more=CONFIRM)
    monkeypatch.setattr(promotion, "worse", lambda *_: None)
    run(killed, monkeypatch, "confirm", LOST, LOST, more=CONFIRM)
    assert [decision(killed, k) for k in (1, 2)] == [decision(alone, k) for k in (1, 2)]


def played(results: list[EvalResult]) -> set[tuple[str, int]]:
    """The further suites, and the policies that played them."""
    return {(r.suite, r.iteration) for r in results if "again" in r.suite}


def timeless(line: str) -> str:
    return re.sub(r'"seconds": ?[0-9.e-]+', "", line)

"""Training by two launched processes gives what one process gives; killed, it goes on; what would differ is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="needs the learning half")

from safetensors.torch import load_file

from internalize.config.schema import Config, load_config
from internalize.config.specs import Round, TrainSpec
from internalize.errors import Incomplete, UserError
from internalize.interfaces import TrainBackend
from internalize.records import Checkpoint, DistillExample, TrainSummary
from internalize.runs.store import write_jsonl
from internalize.stages.backends import local
from internalize.training.examples import build_example
from internalize.training.launched import LaunchedTraining
from internalize.training.policy import LocalPolicy, LocalTraining
from internalize.training.together import require_shares
from tests.fluent import odd_pool, save_fluent, solved
from tests.toy import Toy

pytestmark = pytest.mark.slow
BASE = ["distill.epochs=2", "distill.batch=4", "distill.lr=1e-3", "distill.lora_r=4", "distill.held_out=0.2",
        "compute.train=accelerate", "compute.devices=2", "evaluate.drift=0"]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fluent(tmp_path_factory.mktemp("model"))


class Case:
    """Examples of 23 tasks, so that neither rows nor steps come out even, and a recipe."""

    def __init__(self, source: Path, folder: Path, *changes: str) -> None:
        self.config = load_config(None, [*BASE, f"model.source={source}", *changes])
        self.policy = LocalPolicy.of(self.config, check=False)
        hint = odd_pool().items[0].text
        found = [build_example(t, self.policy.renderer) for t in solved(Toy(size=23), self.policy.renderer)]
        self.examples = [e for e in found if e]
        branch = self.policy.renderer.encode_text(hint)
        self.examples = [_hinted(example, branch) for example in self.examples]
        self.folder = folder
        folder.mkdir()
        write_jsonl(folder / "examples.jsonl", self.examples)

    def spec(self, out: str, **more: Any) -> TrainSpec:
        given = {"parent": self.policy.starter, "out": out, **more}
        return TrainSpec(
            config=self.config, root=self.folder, examples=self.folder / "examples.jsonl", iteration=1, seed=5, **given
        )

    def in_two_rounds(self, train: TrainBackend, name: str) -> None:
        """Twice the same examples, as rounds of one training; the second ends in the folder `name`."""
        found, carried = self.policy.starter, None
        for number, out in enumerate((f"{name}-1", name)):
            after = self.folder / f"{out}.optimizer"
            part = Round(number=number, first_step=number * 10, of_steps=20, carried_in=carried, carried_out=after)
            found, _ = asyncio.run(train.train(self.spec(out, parent=found, part=part)))
            carried = after

    def alone(self) -> tuple[Checkpoint, TrainSummary]:
        return asyncio.run(LocalTraining(self.policy).train(self.spec("alone")))

    def launched(self, module: str = "internalize.training.launched") -> tuple[Checkpoint, TrainSummary]:
        self.told: list[tuple[int, int, float]] = []
        training = LaunchedTraining(self.policy, module)
        return asyncio.run(training.train(self.spec("together"), lambda *step: self.told.append(step)))

    def largest_difference(self, file: str = "adapter_model.safetensors") -> float:
        one, two = load_file(self.folder / "alone" / file), load_file(self.folder / "together" / file)
        assert one.keys() == two.keys()
        return max(float((one[name] - two[name]).abs().max()) for name in one)


def _hinted(example: DistillExample, branch: tuple[int, ...]) -> DistillExample:
    """The teacher sees a hint before each action."""
    spans = [span.model_copy(update={"fork": span.start, "branch": branch}) for span in example.spans]
    return example.model_copy(update={"spans": tuple(spans)})


def same(one: TrainSummary, two: TrainSummary) -> None:
    for name in ("steps", "accepted", "action_tokens", "held_out", "stopped_early"):
        assert getattr(one, name) == getattr(two, name), name
    names = ("first_loss", "last_loss", "divergence_before", "divergence_after", "held_out_before", "held_out_after")
    for name in (*names, "teacher_nll"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["distill.lora_r=0", "distill.divergence=reverse", "distill.lr=1e-4", "distill.kl_anchor=0.1"],
        ["distill.teacher=ema", "distill.per=trajectory", "distill.divergence=js", "distill.in_context=keep"],
    ],
    ids=["lora", "full", "average"],
)
def test_two_processes_train_as_one(source: Path, tmp_path: Path, changes: list[str]) -> None:
    case = Case(source, tmp_path / "run", *changes)
    (one, summary), (two, summary_of_two) = case.alone(), case.launched()
    same(summary, summary_of_two)
    assert (
        case.largest_difference("model.safetensors" if "distill.lora_r=0" in changes else "adapter_model.safetensors")
        < 1e-5
    )
    assert one.model_copy(update={"id": "", "path": ""}) == two.model_copy(update={"id": "", "path": ""})
    assert [step for step, *_ in case.told] == [*range(1, summary.steps + 1)]
    assert sorted(path.name for path in case.folder.iterdir()) == ["alone", "examples.jsonl", "together"]


SHARDED = 'distill.trainer={fsdp="full_shard auto_wrap"}'


@pytest.mark.parametrize(
    "changes",
    [
        ["distill.lora_r=4", "distill.lr=1e-4"],
        ["distill.lora_r=0", "distill.lr=1e-4"],
        ["distill.lora_r=4", "distill.teacher=ema", "distill.divergence=js", "distill.per=trajectory"],
        ["distill.lora_r=4", "distill.teacher=live", "distill.divergence=reverse", "distill.kl_anchor=0.1"],
    ],
    ids=["lora", "full", "average", "live"],
)
def test_sharded_weights_train_as_whole_ones(source: Path, tmp_path: Path, changes: list[str]) -> None:
    case, plain = Case(source, tmp_path / "run", SHARDED, *changes), Case(source, tmp_path / "plain", *changes)
    (_, summary), (_, sharded) = plain.alone(), case.launched("tests.sharded_on_cpu")
    same(summary, sharded)
    (plain.folder / "alone").rename(case.folder / "alone")
    assert (
        case.largest_difference("model.safetensors" if "distill.lora_r=0" in changes else "adapter_model.safetensors")
        < 1e-5
    )


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("internalize.training.launched", ["distill.teacher=ema"]),
        ("tests.sharded_on_cpu", [SHARDED]),
        ("tests.sharded_on_cpu", [SHARDED, "distill.lora_r=0", "distill.lr=1e-4"]),
        ("tests.sharded_on_cpu", [SHARDED, "distill.teacher=ema"]),
    ],
    ids=["whole", "sharded", "sharded full", "sharded average"],
)
def test_the_rounds_of_a_training_carry_on(source: Path, tmp_path: Path, module: str, changes: list[str]) -> None:
    changes = ['distill.generator={kind="student",refresh=2}', *changes]
    case = Case(source, tmp_path / "run", *changes)
    plain = Case(source, tmp_path / "plain", *[change for change in changes if change != SHARDED])
    plain.in_two_rounds(LocalTraining(plain.policy), "alone")
    case.in_two_rounds(LaunchedTraining(case.policy, module), "together")
    (plain.folder / "alone").rename(case.folder / "alone")
    file = "model.safetensors" if "distill.lora_r=0" in changes else "adapter_model.safetensors"
    assert case.largest_difference(file) < 1e-5


def test_what_accelerate_would_ignore_is_refused(source: Path, tmp_path: Path) -> None:
    case = Case(source, tmp_path / "run", 'distill.trainer={fsdp="full_shard auto_wrap"}')
    with pytest.raises(UserError, match=r"distill\.trainer\.fsdp would be ignored here"):
        case.launched()


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("internalize.training.launched", []),
        ("tests.sharded_on_cpu", [SHARDED]),
        ("tests.sharded_on_cpu", [SHARDED, "distill.lora_r=0", "distill.lr=1e-4"]),
        ("tests.sharded_on_cpu", [SHARDED, "distill.teacher=ema"]),
    ],
    ids=["whole", "sharded", "sharded full", "sharded average"],
)
def test_a_killed_training_goes_on(source: Path, tmp_path: Path, module: str, changes: list[str]) -> None:
    changes = ["distill.save_steps=2", "distill.epochs=3", *changes]
    case = Case(source, tmp_path / "run", *changes)
    plain = Case(source, tmp_path / "plain", *[change for change in changes if change != SHARDED])
    plain.alone()
    (plain.folder / "alone").rename(case.folder / "alone")
    training, steps = LaunchedTraining(case.policy, module), []

    def kill(step: int, of: int, loss: float) -> None:
        steps.append(step)
        if step == 5:
            launcher = children(os.getpid())[-1]
            os.kill(children(launcher)[-1], signal.SIGKILL)

    with pytest.raises(Incomplete, match="the training on several processes was ended"):
        asyncio.run(training.train(case.spec("together"), kill))
    _, summary = case.launched(module)
    assert case.told[0][0] > 2, "it went on from a state"
    assert summary.steps == 15
    assert (
        case.largest_difference("model.safetensors" if "distill.lora_r=0" in changes else "adapter_model.safetensors")
        < 1e-5
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("distill.batch=5", r"distill\.batch = 5 is no multiple of compute\.devices = 2"),
        ("distill.batch_tokens=100", "set distill.batch instead"),
        ('distill.trainer={deepspeed="d"}', r"distill\.trainer\.deepspeed: what its shards .* never been compared"),
        ('distill.trainer={fsdp="full_shard"},distill.teacher=ema,distill.lora_r=0', "averages the output layer"),
    ],
)
def test_what_would_differ_is_refused_before_anything_is_played(change: str, reason: str, source: Path) -> None:
    changes = change.split(",")
    config: Config = load_config(None, [*BASE, f"model.source={source}", "env.name=docs", *changes])
    with pytest.raises(UserError, match=reason):
        require_shares(config.distill, 2)
    with pytest.raises(UserError, match=reason):
        local(config, lambda _: Toy())

"""The command line: what is wrong is said in one sentence with exit code 2, and nothing is written."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from internalize.environments import registry
from internalize.records import Injection, Message, Task, ToolCall, Trajectory
from internalize.runs.store import write_jsonl
from tests.command import Call, Ended, files, refused
from tests.steps import act, step
from tests.toy import Toy, ToyEpisode

NEEDS_TORCH = pytest.mark.skipif(find_spec("peft") is None, reason="the loop imports the learning half")
HEAVY = ("torch", "transformers", "peft", "numpy", "bm25s", "rich")
TINY = """
iterations = 1
env.name = "toy"
model = { source = "SOURCE", adapter = "none", batch = 2 }
rollout = { tasks = 2, attempts = 1, max_steps = 2, max_action_tokens = 4 }
distill = { tasks = 2, epochs = 1, lora_r = 2, filter = "none" }
evaluate = { tasks = 2, final_tasks = 2 }
"""


def episode(number: int, score: float = 1.0) -> Trajectory:
    played = step(text="answer[1]", call=act("answer", "1"), token_ids=(5, 6), logprobs=(-1, -1))
    return Trajectory(
        id=f"episode-{number}", task_id=f"task-{number}", env="toy", split="train", iteration=1, seed=0, checkpoint="c",
        prompt=(), steps=(played,), termination="answered", score=score,
    )  # fmt: skip


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_answers_without_the_learning_half() -> None:
    code = f"""
import sys
from internalize.cli.main import cli
for arguments in ([], ["run"], ["rollout"], ["extract"], ["distill"], ["evaluate"], ["pool", "diff"], ["env"]):
    cli.main([*arguments, "--help"], standalone_mode=False)
print("HEAVY", *sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *_, last = done.stdout.splitlines()
    assert last == "HEAVY"
    assert done.stdout.count("Usage:") == 8


@pytest.mark.parametrize("group", [(), ("pool",), ("logs",), ("env",), ("recipe",)])
def test_the_help_of_a_group_cuts_no_line(group: tuple[str, ...], call: Call) -> None:
    assert [
        line for line in call(*group, "--help").out.splitlines() if line.endswith("...") and "Usage" not in line
    ] == []


def test_files_are_checked_and_pools_extracted_without_the_learning_half() -> None:
    code = 'import sys, internalize.stages.standalone; print(*{"torch", "transformers", "peft"} & set(sys.modules))'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"


def test_every_command_of_the_reference_is_there(call: Call) -> None:
    ended = call("--help")
    assert ended.code == 0
    for name in ("run", "report", "rollout", "extract", "distill", "evaluate", "env", "pool", "logs"):
        assert f"\n  {name} " in ended.out


def test_a_wrong_call_points_to_the_right_help(call: Call) -> None:
    assert refused(call("run"), "Missing argument 'RECIPE'", "run --help")
    assert refused(call("fly"), "No such command 'fly'")
    assert refused(call("run", "r.toml"), "--out")
    assert refused(call("run", "r.toml", "--out", "o", "--now"), "--now")


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("run",), ("rollout",), ("distill", "t.jsonl"), ("evaluate",)])
def test_a_bad_recipe_is_refused_by_every_command(command: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    name, *files_in = command

    def refuse(text: str, *parts: str) -> bool:
        recipe.write_text(text)
        return refused(call(name, recipe, *files_in, "--out", tmp_path / "new"), "recipe.toml", *parts)

    assert refuse("[distil]\nlr = 1.0", "unknown key distil")
    assert refuse("[distill]\nlearning_rate = 1.0", "unknown key distill.learning_rate")
    assert refuse("[inject]\nk = 9", "inject.k = 9", "less than or equal to 8")
    assert refuse("[distill]\nlr = 'fast'", "distill.lr = 'fast'")
    assert refuse("iterations = ", "not valid TOML")
    assert refused(call(name, "gone.toml", *files_in, "--out", "new"), "gone.toml: cannot read the recipe")
    assert list(files(tmp_path)) == ["recipe.toml"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.lr=0", "distill.lr = 0"), ("distill.lrr=1", "unknown key distill.lrr"), ("seed", "section.key=value"),
        ("seed.x=1", "seed"), ("evaluate.tasks=0", "evaluate.tasks = 0"),
    ],
)  # fmt: skip
def test_a_bad_override_is_refused(override: str, said: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    assert refused(call("run", "recipe.toml", "--out", "new", "--set", override), said)
    assert list(files(tmp_path)) == ["recipe.toml"]


@pytest.mark.parametrize(
    ("source", "said"),
    [("/no/such/folder", "folder /no/such/folder does not"), ("m/gone.gguf", "file m/gone.gguf does not")],
)
@pytest.mark.parametrize("command", [("run",), ("rollout",), ("distill", "t.jsonl"), ("evaluate",)])
def test_a_model_that_is_not_there(
    command: tuple[str, ...], source: str, said: str, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(f'[model]\nsource = "{source}"')
    name, *files_in = command
    assert refused(call(name, "recipe.toml", *files_in, "--out", "new"), "model.source", said)
    assert list(files(tmp_path)) == ["recipe.toml"]


def test_a_model_file_of_another_kind(call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('model.source = "junk.gguf"')
    (tmp_path / "junk.gguf").write_text("not a model")
    assert refused(call("run", "recipe.toml", "--out", "new"), "model.source: junk.gguf is not a GGUF file")
    assert not (tmp_path / "new").exists()


# -- files -------------------------------------------------------------------------------------------------------------


def test_extract_names_the_line_that_is_corrupt(call: Call, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [episode(0), episode(1), episode(2)])
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    (tmp_path / "t.jsonl").write_text("\n".join([lines[0], lines[1][:50], lines[2], ""]))
    before = files(tmp_path)
    assert refused(call("extract", "t.jsonl", "--out", "pool.json"), "t.jsonl, line 2: ")
    (tmp_path / "other.jsonl").write_text('{"question": "x"}\n')
    assert refused(call("extract", "other.jsonl", "--out", "pool.json"), "other.jsonl, line 1: ")
    assert refused(call("extract", "gone.jsonl", "--out", "pool.json"), "gone.jsonl: cannot be read")
    (tmp_path / "other.jsonl").unlink()
    assert files(tmp_path) == before


def test_extract_never_writes_over_its_input_or_beside_a_missing_folder(call: Call, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [episode(0)])
    before = files(tmp_path)
    assert refused(call("extract", "t.jsonl", "--out", tmp_path / "t.jsonl"), "is the file of trajectories")
    assert refused(call("extract", "t.jsonl", "--out", "no/pool.json"), "no/pool.json: the folder no does not exist")
    assert files(tmp_path) == before


def test_extract_writes_a_pool_and_its_edits(call: Call, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [episode(0), episode(1, 0.0)])
    ended = call("extract", "t.jsonl", "--out", "pool.json")
    assert ended.code == 0
    assert ended.out.startswith("pool.json: 0 items (before: 0); nothing was learnt: 1 of 2 episodes succeeded")
    assert "0 of 2 tasks have a success and a failure; no rule was followed often enough" in ended.out
    assert files(tmp_path).keys() == {"t.jsonl", "pool.json", "pool.edits.jsonl"}


def test_distill_refuses_what_teaches_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    write_jsonl(tmp_path / "plain.jsonl", [episode(0), episode(1)])
    write_jsonl(tmp_path / "failed.jsonl", [episode(0, 0.0)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    before = files(tmp_path)
    for divergence in ("forward", "reverse"):
        ended = call(
            "distill", "recipe.toml", "plain.jsonl", "--out", "new", "--set", f"distill.divergence={divergence}"
        )
        assert refused(ended, "plain.jsonl", "nothing to internalize", divergence)
    assert refused(call("distill", "recipe.toml", "failed.jsonl", "--out", "new"), "failed.jsonl", "'success'")
    assert refused(call("distill", "recipe.toml", "plain.jsonl", "--out", "full"), "already holds files")
    assert refused(call("distill", "recipe.toml", "plain.jsonl", "--out", "no/new"), "does not exist")
    assert files(tmp_path) == before


def test_report_wants_a_run(call: Call, tmp_path: Path) -> None:
    assert refused(call("report", tmp_path), "not a run directory")
    assert refused(call("report", "gone"), "gone")
    assert not files(tmp_path)


# -- environments ------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
    monkeypatch.setitem(registry.BUILTIN, "stopping", registry.Builtin(__name__, "Stopping", "stops"))


@pytest.mark.usefixtures("toy")
def test_environments_are_listed_and_proved(call: Call) -> None:
    listed = {line.split()[0] for line in call("env", "list").out.splitlines()}
    assert {"docs", "stopping", "toy"} <= listed
    ended = call("env", "validate", "toy", "--split", "dev", "--set", "env.options.size=3")
    assert ended.code == 0
    assert ended.out.startswith("dev: reference 3/3")
    assert refused(call("env", "validate", "nowhere"), "no such environment", "docs")
    assert refused(call("env", "validate", "toy", "--set", "env.options.colour=1"), "env.options of toy")
    unproved = call("env", "validate", "toy", "--set", "env.options.size=0")
    assert (unproved.code, unproved.err) == (2, "internalize: toy: validation found 3 problems\n")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("command", [pytest.param("run", marks=NEEDS_TORCH), "rollout", "evaluate"])
def test_an_empty_or_unknown_task_set(command: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('env = { name = "toy", options = { size = 0 } }')
    assert refused(call(command, "recipe.toml", "--out", "new"), "toy: the split", "holds no tasks")
    (tmp_path / "recipe.toml").write_text('env.name = "nowhere"')
    assert refused(call(command, "recipe.toml", "--out", "new"), "no such environment")
    (tmp_path / "recipe.toml").write_text('env.name = "toy"\nrollout.split = "x"\nevaluate.split = "x"')
    suite = ("--suite", "x") if command == "evaluate" else ()
    assert refused(call(command, "recipe.toml", "--out", "new", *suite), "no split 'x'")
    assert list(files(tmp_path)) == ["recipe.toml"]


# -- with a model (tiny and random) ------------------------------------------------------------------------------------


class Stopped(ToyEpisode):
    """Somebody presses Ctrl-C while it runs."""

    def step(self, action: ToolCall | None) -> str | None:
        signal.raise_signal(signal.SIGINT)
        return super().step(action)


class Stopping(Toy):
    def episode(self, task: Task) -> ToyEpisode:
        return Stopped(task, breaks=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with a random model of its own, whose episodes take milliseconds."""
    pytest.importorskip("peft")
    from tests.tiny import tiny_model, tiny_tokenizer  # noqa: PLC0415 - needs torch

    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.toml").write_text(TINY.replace("SOURCE", str(tmp_path / "model")))
    return tmp_path / "recipe.toml"


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_single_stages_go_on_but_never_mix_episodes(recipe: Path, call: Call, tmp_path: Path) -> None:
    played = call("rollout", recipe, "--out", "r.jsonl")
    assert played.code == 0, played.err
    assert played.out.startswith("r.jsonl: 2 trajectories, 0 unscored, success ")
    assert "2 of 2 done" in played.err
    assert call("--quiet", "rollout", recipe, "--out", "again.jsonl").err == ""
    whole = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "r.jsonl").write_bytes(whole[: whole.index(b"\n") + 80])  # killed in the second line
    assert call("rollout", recipe, "--out", "r.jsonl").code == 0
    first, again = (read(text) for text in (whole, (tmp_path / "r.jsonl").read_bytes()))
    assert first == again
    assert call("rollout", recipe, "--out", "r.jsonl", "--set", "rollout.tasks=3").code == 0

    trained = call("distill", recipe, "r.jsonl", "--out", "weights", "--set", "distill.divergence=sft")
    assert trained.code == 0, trained.err
    before = files(tmp_path)
    for change in (
        ("--checkpoint", "weights"), ("--set", "seed=1"), ("--set", "rollout.tasks=2"),
        ("--set", "rollout.max_steps=1"),
        ("--set", "model.max_context=500"), ("--set", "env.options={size=4}"),
    ):  # fmt: skip
        ended = call("rollout", recipe, "--out", "r.jsonl", "--set", "rollout.tasks=3", *change)
        assert refused(ended, "r.jsonl: holds episodes of another checkpoint or setting; choose another --out")
    assert refused(call("evaluate", recipe, "--out", recipe), "recipe.toml: this is not a file of episodes")
    assert refused(call("rollout", recipe, "--out", "new", "--checkpoint", "gone"), "gone: no such checkpoint folder")
    assert refused(call("rollout", recipe, "--out", "no/r.jsonl"), "the folder no does not exist")
    assert refused(call("run", recipe, "--out", "new", "--set", "model.source=./gone"), "'./gone' does not exist")
    assert files(tmp_path) == before
    measured = call("evaluate", recipe, "--out", "dev.jsonl", "--checkpoint", "weights")
    assert measured.out.startswith("dev internalized: "), measured.err


def read(text: bytes) -> list[object]:
    return [
        [{k: v for k, v in step.items() if k != "seconds"} for step in json.loads(line)["steps"]]
        for line in text.splitlines()
    ]


@pytest.fixture
def listening() -> Iterator[None]:
    """A suite that a shell started in the background inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("toy", "listening")
def test_who_stops_a_command_is_told_how_to_go_on(recipe: Path, call: Call, tmp_path: Path) -> None:
    stopping = ("--set", "env.name=stopping")
    ended = call("run", recipe, "--out", "run", *stopping)
    assert ended.code == 3
    assert ended.err == "internalize: interrupted; to go on, run the same command with --resume\n"
    assert (tmp_path / "run" / "run.json").is_file()
    ended = call("rollout", recipe, "--out", "r.jsonl", *stopping)
    assert ended == Ended(3, "", "internalize: interrupted; to go on, run the same command again\n")


@pytest.mark.usefixtures("toy")
def test_training_that_cannot_work_is_no_matter_of_going_on(recipe: Path, call: Call, tmp_path: Path) -> None:
    """Actions that the model itself would hardly ever take: they were not sampled from these weights."""
    prompt = (Message(role="user", content="Which number is in box 1?"),)
    hint = Injection(item_ids=("a",), text="Look first.", served_by="lexical")
    steps = [
        episode(number).steps[0].model_copy(update={"injection": hint, "token_ids": tuple(range(9 + number, 300, 17))})
        for number in range(6)
    ]
    foreign = [
        episode(number).model_copy(update={"prompt": prompt, "steps": (step,)}) for number, step in enumerate(steps)
    ]
    write_jsonl(tmp_path / "t.jsonl", foreign)
    ended = call("distill", recipe, "t.jsonl", "--out", "weights")
    assert (ended.code, ended.out) == (3, "")
    last = ended.err.splitlines()[-1]
    assert "weights are missing or belong to another model" in last
    assert "go on" not in last
    assert not (tmp_path / "weights").exists()


def test_who_interrupts_while_modules_are_imported_gets_a_sentence() -> None:
    code = """
import sys
class Interrupt:
    def find_spec(name, *_):
        if name == "pydantic":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)
from internalize.cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "internalize: interrupted\n")

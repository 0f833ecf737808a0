"""Environments behind servers of OpenEnv: by a server written here, and by published ones where they are installed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("websockets", reason="needs the extra 'openenv'")
pytest.importorskip("starlette", reason="needs the extra 'serve'")

from internalize.environments import registry
from internalize.environments.adapters.openenv import OpenEnv, shown
from internalize.environments.validate import validate
from internalize.errors import InfrastructureError, TaskError
from internalize.interfaces import Episode
from internalize.records import Task, ToolCall
from tests.open_env import Guessing
from tests.policies import played

pytestmark = pytest.mark.server
PYTHON = Path(__file__).parents[2] / ".venv-openenv/bin/python"
SOURCE = Path(os.environ.get("OPENENV", "nowhere")) / "envs"  # of the repository meta-pytorch/OpenEnv


def made(url: str, **options: Any) -> OpenEnv:
    env = registry.make(f"openenv:{url}", options)
    assert isinstance(env, OpenEnv)
    return env


def every(env: OpenEnv) -> list[Task]:
    return [task for split in env.splits() for task in env.tasks(split)]


@contextmanager
def episode_of(env: OpenEnv, task: Task) -> Iterator[Episode]:
    episode = env.episode(task)
    try:
        yield episode
    finally:
        episode.close()


def test_a_server_is_played_by_the_fields_of_its_action() -> None:
    with Guessing() as server:
        env = made(server.url, seeds=12, reset={"level": 2})
        assert len(every(env)) == 5  # there are five numbers
        (tool,) = env.tools
        assert tool.name == "act"
        assert list(tool.parameters["properties"]) == ["number"]  # type: ignore[index, arg-type]
        for task in every(env):
            with episode_of(env, task) as episode:
                system, question = episode.prompt()
                assert "A number is to be guessed." in system.text
                assert question.text == task.question
                number = 10 + int(re.findall(r"\d+", question.text)[0])
                assert episode.step(ToolCall.of("act", number=99)) == '{"hint": "No.", "left": 3}'
                assert episode.step(None) == "Unknown action."
                assert episode.step(ToolCall.of("act", number="x")) == "No such action: number: a whole number"
                assert episode.score() == 0.0
                assert episode.step(ToolCall.of("act", number=number)) is None
                assert episode.score() == 1.0
        assert server.asked[0] == {"level": 2, "seed": 0}
        assert server.sessions == 0
        assert server.most == 1


def test_the_tools_of_a_server_are_its_own() -> None:
    with Guessing(tools=True) as server:
        env = made(server.url, seeds=3)
        assert [tool.name for tool in env.tools] == ["guess", "spy"]
        assert env.tools[1].description == ""  # it spoke to the model
        with episode_of(env, every(env)[0]) as episode:
            assert episode.step(ToolCall.of("guess", number=0)) == "No."
            assert episode.step(ToolCall.of("act", number=0)) == "Unknown action."
        assert {"type": "call_tool", "tool_name": "guess", "arguments": {"number": 0}} in server.asked


def test_an_end_without_a_reward_is_unscored_and_one_beyond_the_best_is_a_fault() -> None:
    for reward, best in ((None, 1.0), (3.0, 1.0), (3.0, 3.0)):
        with Guessing(reward=reward) as server:
            env = made(server.url, seeds=1, best=best)
            (task,) = every(env)
            with episode_of(env, task) as episode:
                assert episode.step(ToolCall.of("act", number=10)) is None
                if reward is None:
                    assert episode.score() is None
                elif best == reward:
                    assert episode.score() == 1.0
                else:
                    with pytest.raises(InfrastructureError, match="the reward 3 is above"):
                        episode.score()


def test_what_breaks_is_no_score() -> None:
    with Guessing(most=1) as server:
        env = made(server.url, seeds=2)
        assert env.at_once == 1
        with episode_of(env, every(env)[0]) as episode:
            with pytest.raises(InfrastructureError, match="CAPACITY_REACHED full"):
                env.episode(every(env)[1])
            with pytest.raises(InfrastructureError, match="EXECUTION_ERROR it broke"):
                episode.step(ToolCall.of("act", number=-1))
        left = env.episode(every(env)[0])
    with pytest.raises(InfrastructureError, match="openenv:http"):
        left.step(ToolCall.of("act", number=0))


def test_a_rollout_opens_no_more_sessions_than_the_server_has_room_for() -> None:
    """The agent would play four at once."""

    def guess(text: str) -> str:
        number = 10 + int(re.findall(r"It is (\d+) more", text)[-1])
        return f'act[{{"number": {number}}}]' if "No." in text else 'act[{"number": 0}]'

    for room in (1, 2):
        with Guessing(most=room) as server:
            env = made(server.url, seeds=9, at_once=room)
            episodes = played(env, every(env), guess)
            assert [(e.score, e.failure, len(e.steps)) for e in episodes] == [(1.0, None, 2)] * 5
            assert server.most <= room
            assert server.sessions == 0


def test_what_cannot_be_carried_over_is_refused() -> None:
    with pytest.raises(TaskError, match="the address of the server is needed"):
        made("echo_env")
    with pytest.raises(TaskError, match="does not answer"):
        made("http://127.0.0.1:9", seconds=5)
    with Guessing(seeded=False) as server, pytest.raises(TaskError, match="starts differently under one seed"):
        made(server.url)


def test_what_an_observation_looks_like() -> None:
    assert shown({"text": "Hello", "other": None}, 100) == "Hello"
    assert shown({"a": 1, "b": [2]}, 100) == '{"a": 1, "b": [2]}'
    assert shown({"tool_name": "t", "result": {"data": {"x": 1}}, "error": None}, 100) == '{"x": 1}'
    assert shown({"tool_name": "t", "result": None, "error": {"message": "no tool t"}}, 100) == "Error: no tool t"
    assert shown({"text": "x" * 30}, 10) == "x" * 10 + " (cut: 30 characters)"


def test_the_checks_of_every_environment_find_nothing() -> None:
    with Guessing() as server:
        env = made(server.url, seeds=5)
        rows = list(validate(env, env.splits()))
        assert rows
        assert not any(row.failed for row in rows), rows


# -- published servers: `make test-openenv OPENENV=FOLDER` -------------------------------------------------------------


@contextmanager
def published(name: str, module: str) -> Iterator[str]:
    """A server of the repository, run by the Python that has openenv-core."""
    if not PYTHON.exists() or not (SOURCE / name).exists():
        pytest.skip("needs `make test-openenv OPENENV=FOLDER`, a folder with the repository meta-pytorch/OpenEnv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "uvicorn", module, "--host", "127.0.0.1", "--port", str(port)]
    paths = {"PYTHONPATH": f"{SOURCE}:{SOURCE / name}"}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, cwd=SOURCE, env=os.environ | paths, stdout=said, stderr=said) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                with suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health", timeout=5).is_success:
                        break
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
            yield url
        finally:
            process.kill()


@pytest.mark.openenv
def test_the_published_puzzles_are_scored_by_their_server() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    with published("reasoning_gym_env", "reasoning_gym_env.server.app:app") as url:
        env = made(url, seeds=6, reset={"dataset_name": "leg_counting", "size": 1})
        assert len(every(env)) == 6
        for task in every(env):
            (row,) = reasoning_gym.create_dataset("leg_counting", seed=task.state["seed"], size=1)
            assert row["question"].strip() in task.question.replace("\\n", "\n")
            for answer, score in ((row["answer"], 1.0), ("many", 0.0)):
                with episode_of(env, task) as episode:
                    assert episode.step(ToolCall.of("act", answer=answer)) is None
                    assert episode.score() == pytest.approx(score, abs=0.02)


@pytest.mark.openenv
def test_the_published_echo_offers_its_own_tools() -> None:
    with published("echo_env", "echo_env.server.app:app") as url:
        env = made(url, seeds=3)
        assert {tool.name for tool in env.tools} == {"echo_message", "echo_with_length"}
        with episode_of(env, every(env)[0]) as episode:
            assert "Hello" in str(episode.step(ToolCall.of("echo_message", message="Hello")))
            assert '"length": 5' in str(episode.step(ToolCall.of("echo_with_length", message="Hello")))


@pytest.mark.openenv
def test_the_published_maze_is_left_by_the_way_out() -> None:
    with published("maze_env", "maze_env.server.app:app") as url:
        env = made(url, seeds=2, score="last", best=10)
        (task,) = every(env)
        right, down = 3, 1
        way = [*[right] * 4, *[down] * 2, *[right] * 2, down, right, *[down] * 4]
        with episode_of(env, task) as episode:
            assert "legal_actions" in episode.prompt()[1].text
            assert [episode.step(ToolCall.of("act", action=move)) is None for move in way] == [False] * 13 + [True]
            assert episode.score() == 1.0
        with episode_of(env, task) as episode:
            assert episode.step(ToolCall.of("act", action=down)) is not None  # into a wall
            assert episode.score() == 0.0

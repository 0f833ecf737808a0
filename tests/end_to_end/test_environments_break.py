"""Worlds that break in mid-episode, through the real agent loop: unscored, owed, played again, never a zero."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from internalize.config.schema import RolloutConfig
from internalize.environments.python_tool.sandbox import SANDBOXES, Limits
from internalize.environments.python_tool.tool import PythonTool
from internalize.environments.web import sources as web_sources
from internalize.errors import Incomplete
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.retries import Retries
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Environment
from internalize.judge import ExactJudge
from internalize.records import Trajectory
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.runs.store import read_jsonl
from tests import mcp_server
from tests.site import Site
from tests.tiny import tiny_tokenizer

LABEL = Label("rollout", 1, 0, "c")


def play(env: Environment, script: Sequence[str], path: Path) -> list[Trajectory]:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine(script, renderer)
    agent = TokenAgent(engine, renderer, RolloutConfig(max_steps=4), 8000, 4, judge=ExactJudge())
    return asyncio.run(rollout(env.tasks("train"), env, agent, Injector(), LABEL, path=path))


def assert_owed(path: Path, steps: int, said: str) -> None:
    """Every try is kept unscored, with what came before the break."""
    for trajectory in read_jsonl(path, Trajectory):
        assert trajectory.score is None
        assert trajectory.termination == "failed"
        assert len(trajectory.steps) == steps
        assert said in str(trajectory.failure)


def questions(folder: Path, *rows: dict[str, str]) -> str:
    path = folder / "q.jsonl"
    path.write_text("".join(f"{json.dumps({'split': 'train', **row})}\n" for row in rows))
    return str(path)


def test_maths_without_an_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("sympy", reason="needs the extra 'maths'")
    from internalize.environments.maths.env import Maths  # noqa: PLC0415

    env = Maths(file=questions(tmp_path, {"question": "One?", "answer": "1"}, {"question": "Two?", "answer": "2"}))
    stub, path = tmp_path / "python", tmp_path / "a.jsonl"
    env._tool = PythonTool(SANDBOXES["landlock"], Limits(seconds=30), interpreter=str(stub))
    script = ["python[print(1)]", "answer[1]"]
    with pytest.raises(Incomplete, match=r"2 of 2 episodes failed \(python: the tool does not start"):
        play(env, script, path)
    assert_owed(path, 0, "does not start")
    stub.symlink_to(sys.executable)
    found = play(env, script, path)
    assert [(t.score, t.steps[0].observation) for t in found] == [(1.0, "1"), (0.0, "1")]
    env.close()


def test_a_web_whose_search_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx", reason="needs the extra 'web'")
    from internalize.environments.web.env import Web  # noqa: PLC0415

    monkeypatch.setattr(web_sources, "RETRIES", Retries(first=0.0))
    monkeypatch.setenv("SERPER_API_KEY", "right")
    site, path = Site(), tmp_path / "a.jsonl"
    rows = ({"question": "Pressure?", "answer": "4 bar"}, {"question": "Colour?", "answer": "red"})
    env = Web(questions=questions(tmp_path, *rows), search=site.address, allow_hosts=[site.host])
    script = [f'visit[{{"url": "{site.address}/pumps/p7.html"}}]', "search[pump]", "answer[4 bar]"]
    site.refusals[:] = [503] * 1000
    with pytest.raises(Incomplete, match="2 of 2 episodes failed"):
        play(env, script, path)
    assert_owed(path, 1, "fails (HTTP 503)")
    site.refusals.clear()
    found = play(env, script, path)
    assert [t.score for t in found] == [1.0, 0.0]  # the second by the judge, whom the environment leaves it to
    assert "4 bar" in str(found[0].steps[0].observation)
    env.close()
    site.stop()


def test_a_tool_server_that_dies(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs the extra 'mcp'")
    from internalize.environments.mcp.env import Mcp  # noqa: PLC0415

    row = {"question": "What is in box abc?", "answer": "21"}
    env = Mcp(tasks=questions(tmp_path, row), command=[sys.executable, mcp_server.__file__], seconds=30.0)
    path = tmp_path / "a.jsonl"
    with pytest.raises(Incomplete, match=r"1 of 1 episodes failed \(mcp: die: "):
        play(env, ["look[abc]", "die[]", "answer[21]"], path)
    assert_owed(path, 1, "mcp: die: ")
    (found,) = play(env, ["look[abc]", "answer[21]"], path)
    assert (found.score, found.steps[0].observation) == (1.0, "Inside abc: 21. Opened: 1.")
    env.close()

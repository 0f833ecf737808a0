"""The example agents, unchanged, over real HTTP with streaming: the record is what each of them saw."""
# ruff: noqa: PLC0415 - the agents are optional

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from internalize.records import Trajectory
from internalize.serve.history import trajectories_of
from tests.served import Served

pytest.importorskip("openai", reason="needs the extra 'serve'")
pytestmark = pytest.mark.server
FOLDER = Path(__file__).parents[2] / "examples" / "agents"
QUESTION = "What is the default value of parameter `mode` of `io.open`?"


class Books:
    """A library that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def search(self, words: str) -> str:
        self.asked.append(("search", words))
        return "Found:\n1. io.open"

    def visit(self, page: str) -> str:
        self.asked.append(("visit", page))
        return "mode: 'r'"


def openai_loop(url: str, books: Books) -> str:
    from openai import OpenAI
    from openai_loop import solve

    return str(solve(OpenAI(base_url=url, api_key="none"), QUESTION, books))


def agents_sdk(url: str, books: Books) -> str:
    pytest.importorskip("agents", reason="needs the extra 'agents'")
    from agents_sdk import solve
    from openai import AsyncOpenAI

    async def run() -> str:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            return str(await solve(client, QUESTION, books))

    return asyncio.run(run())


def smol(url: str, books: Books) -> str:
    pytest.importorskip("smolagents", reason="needs the extra 'agents'")
    from smol import solve

    return str(solve(url, "none", QUESTION, books))


def lang_graph(url: str, books: Books) -> str:
    pytest.importorskip("langgraph", reason="needs the extra 'agents'")
    from lang_graph import solve

    return str(solve(url, "none", QUESTION, books))


AGENTS: dict[str, tuple[Callable[[str, Books], str], str]] = {
    "openai loop": (openai_loop, "answer[r]"),
    "Agents SDK": (agents_sdk, "answer[r]"),
    "smolagents": (smol, "final_answer[r]"),
    "LangGraph": (lang_graph, "answer[r]"),
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("openai_loop", "agents_sdk", "smol", "lang_graph"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("path", ["/v1", "/episodes/mine/v1"])
def test_an_agent_is_recorded_as_it_saw_itself(name: str, path: str) -> None:
    run, last = AGENTS[name]
    script = ["search[io open]", "visit[io.open]", last]
    books = Books()
    with Served(script, protocol="bracket") as served:
        answered = run(served.url + path, books)
        shown = [ids for _, ids in served.engine.prompts]
    assert answered == "r"
    (episode,) = trajectories_of(served.calls)
    assert books.asked == [("search", "io open"), ("visit", "io.open")]
    assert [step.text for step in episode.steps] == script
    assert [step.token_ids for step in episode.steps] == [served.renderer.encode_text(text) for text in script]
    assert not any(step.left_out for step in episode.steps)
    assert episode.question.endswith(QUESTION)
    assert "Found:\n1. io.open" in (episode.steps[0].observation or "")
    assert "mode: 'r'" in (episode.steps[1].observation or "")
    assert episode.steps[-1].ended
    # What the policy read at each call is what a training on the record renders, to the token.
    assert shown == contexts(served, episode)


def contexts(served: Served, episode: Trajectory) -> list[Any]:
    return [served.renderer.context(episode.prompt, episode.steps[:n]).ids for n in range(len(episode.steps))]

"""An agent of the OpenAI Agents SDK with the same two tools. It speaks the Responses API, with streaming.

python examples/agents/agents_sdk.py "What is ...?"     (with OPENAI_BASE_URL and OPENAI_API_KEY)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

MOST_TURNS = 20


def agent_over(client: AsyncOpenAI, library: Any, model: str = "policy") -> Agent[None]:
    @function_tool
    def search(words: str) -> str:
        """Find pages by name."""
        return str(library.search(words))

    @function_tool
    def visit(page: str) -> str:
        """Read one page."""
        return str(library.visit(page))

    @function_tool
    def answer(value: str) -> str:
        """Give the answer; ends the episode."""
        return value

    return Agent(
        name="reader",
        instructions="You answer questions from documentation.",
        model=OpenAIResponsesModel(model=model, openai_client=client),
        tools=[search, visit, answer],
        tool_use_behavior={"stop_at_tool_names": ["answer"]},
    )


async def solve(client: AsyncOpenAI, question: str, library: Any) -> str:
    """The answer."""
    result = Runner.run_streamed(
        agent_over(client, library), question, max_turns=MOST_TURNS, run_config=RunConfig(tracing_disabled=True)
    )
    async for _event in result.stream_events():
        pass
    return str(result.final_output)


async def play(task: dict[str, Any], base_url: str, api_key: str) -> str:
    """One task, as `env.options.call` wants it."""
    from library import library  # noqa: PLC0415 - beside this file

    async with AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        return await solve(client, task["question"], library(task["split"]))


if __name__ == "__main__":
    given = {"question": " ".join(sys.argv[1:]), "split": "dev"} if sys.argv[1:] else json.load(sys.stdin)
    asyncio.run(play(given, os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]))

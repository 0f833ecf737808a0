"""A tool-calling agent of smolagents with the same two tools. It writes its own history in other words than the model's.

python examples/agents/smol.py "What is ...?"     (with OPENAI_BASE_URL and OPENAI_API_KEY)
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from smolagents import LogLevel, OpenAIModel, ToolCallingAgent, tool

MOST_TURNS = 20


def solve(base_url: str, api_key: str, question: str, library: Any, model: str = "policy") -> str:
    """The answer."""

    @tool
    def search(words: str) -> str:
        """Find pages by name.

        Args:
            words: What to look for.
        """
        return str(library.search(words))

    @tool
    def visit(page: str) -> str:
        """Read one page.

        Args:
            page: The name of the page.
        """
        return str(library.visit(page))

    agent = ToolCallingAgent(
        tools=[search, visit],
        model=OpenAIModel(model, api_base=base_url, api_key=api_key),
        max_steps=MOST_TURNS,
        stream_outputs=True,
        verbosity_level=LogLevel.OFF,
    )
    return str(agent.run(question))


def play(task: dict[str, Any], base_url: str, api_key: str) -> str:
    """One task, as `env.options.call` wants it."""
    from library import library  # noqa: PLC0415 - beside this file

    return solve(base_url, api_key, task["question"], library(task["split"]))


if __name__ == "__main__":
    given = {"question": " ".join(sys.argv[1:]), "split": "dev"} if sys.argv[1:] else json.load(sys.stdin)
    play(given, os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])

"""A plain loop over OpenAI chat completions with two tools over documentation. It knows nothing of internalize.

    OPENAI_BASE_URL=... OPENAI_API_KEY=... python examples/agents/openai_loop.py "What is ...?"

`play` is the same for `env.options.call = "examples/agents/openai_loop.py:play"`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from openai import OpenAI

SYSTEM = "You answer questions from documentation."
MOST_TURNS = 20


def tool(name: str, argument: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: list[Any] = [
    tool("search", "words", "Find pages by name."),
    tool("visit", "page", "Read one page."),
    tool("answer", "value", "Give the answer; ends the episode."),
]


def solve(client: OpenAI, question: str, library: Any, model: str = "policy") -> str:
    """The answer; `library` has `search` and `visit`."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    for _ in range(MOST_TURNS):
        stream = client.chat.completions.stream(model=model, messages=messages, tools=TOOLS)
        with stream as events:
            for _event in events:
                pass
            turn = events.get_final_completion().choices[0].message
        messages.append(turn.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if not turn.tool_calls:
            messages.append({"role": "user", "content": "Unknown action."})
        for call in turn.tool_calls or ():
            value = next(iter(json.loads(call.function.arguments).values()))
            if call.function.name == "answer":
                return str(value)
            found = library.search(value) if call.function.name == "search" else library.visit(value)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
    return ""


def play(task: dict[str, Any], base_url: str, api_key: str) -> None:
    """One task. The score is the judge's, by the last call of the trajectory."""
    from library import library  # noqa: PLC0415 - beside this file

    solve(OpenAI(base_url=base_url, api_key=api_key), task["question"], library(task["split"]))


if __name__ == "__main__":
    given = {"question": " ".join(sys.argv[1:]), "split": "dev"} if sys.argv[1:] else json.load(sys.stdin)
    play(given, os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])

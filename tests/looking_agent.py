"""An agent of somebody else's for the questions of tests.lookers: a plain loop over chat completions.

`play` is what `env.options.call` names; as a program it takes its task and its endpoint as every command does. Whoever
looks before answering 42 is right. What its question says makes it misbehave: "raise", "hang", "silent".
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from openai import OpenAI

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {
        "type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}}}
    for name, argument in (("search", "place"), ("answer", "number"))
]  # fmt: skip


def play(task: dict[str, Any], base_url: str, api_key: str) -> bool | None:
    if "silent" in task["question"]:
        return None
    client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    looked = False
    while True:
        turn = client.chat.completions.create(model="m", messages=messages, tools=TOOLS).choices[0].message
        if "raise" in task["question"]:
            raise ValueError("a fault of the agent")
        if "hang" in task["question"]:
            time.sleep(60)
        messages.append(turn.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if not turn.tool_calls:
            messages.append({"role": "user", "content": "Unknown action."})
        for call in turn.tool_calls or ():
            if call.function.name == "answer":
                return looked and json.loads(call.function.arguments)["number"] == "42"
            looked = True
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "Found: 42."})


if __name__ == "__main__":
    given = json.load(sys.stdin)
    right = play(given, os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])
    if right is not None:
        import httpx

        score = {"success": right, "note": "of the command"}
        headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
        httpx.post(f"{os.environ['INTERNALIZE_EPISODE_URL']}/score", json=score, headers=headers).raise_for_status()

import json
import threading

import internalize as it
from openai import OpenAI

LOCK = threading.Lock()  # agents play in threads
DOCS = it.make_environment("docs")  # this example's tools; yours are your own
NAMES = {"search": "words", "visit": "page", "answer": "value"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} {argument}",
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, argument in NAMES.items()
]


def play(task: dict, base_url: str, api_key: str) -> str:
    client = OpenAI(base_url=base_url, api_key=api_key)
    with LOCK:
        pages = DOCS.episode(it.Task.new("docs", task["split"], task["question"]))
    messages = [
        {"role": "system", "content": "You answer questions from documentation."},
        {"role": "user", "content": task["question"]},
    ]
    while True:
        turn = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS).choices[0].message
        messages.append(turn.model_dump(exclude_none=True))
        if not turn.tool_calls:
            messages.append({"role": "user", "content": "Unknown action."})
        for call in turn.tool_calls or ():
            value = next(iter(json.loads(call.function.arguments).values()))
            if call.function.name == "answer":
                return value
            seen = pages.step(it.ToolCall.of(call.function.name, argument=value))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": seen})

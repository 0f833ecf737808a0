"""Logs of any size: an import holds one episode at a time. Memory is measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = 40_000  # characters of an episode


def messages(number: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"Read page {number}."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "k", "name": "read", "arguments": {"page": number}}],
        },
        {"role": "tool", "tool_call_id": "k", "id": "k", "content": "word " * (SIZE // 5)},
        {"role": "assistant", "content": "Done."},
    ]


def chat(count: int) -> Iterator[str]:
    return (json.dumps({"messages": messages(number), "score": 1}) + "\n" for number in range(count))


def tau2(count: int) -> Iterator[str]:
    """One document, on one line."""
    yield '{"timestamp": "", "info": {}, "tasks": [], "simulations": ['
    for number in range(count):
        yield "," * bool(number) + json.dumps({"task_id": number, "messages": messages(number)})
    yield "]}"


def calls(count: int) -> Iterator[str]:
    for number in range(count):
        *request, answer = messages(number)
        yield json.dumps({"request": {"messages": request}, "response": {"choices": [{"message": answer}]}}) + "\n"


def peak_of_an_import(log: Path, count: int) -> int:
    """Bytes of memory at most."""
    command = [sys.executable, "-m", "internalize.cli", "logs", "import", str(log), "--out", f"{log}.out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert (status, f"{count} trajectories" in said) == (0, True), said
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
@pytest.mark.parametrize("write", [chat, tau2, calls])
def test_a_large_log_takes_the_memory_of_a_small_one(write: Callable[[int], Iterator[str]], tmp_path: Path) -> None:
    peaks = {}
    for count in (20, 1500):
        log = tmp_path / f"{count}.json"
        with log.open("w") as file:
            file.writelines(write(count))
        peaks[count] = peak_of_an_import(log, count)
    assert (tmp_path / "1500.json").stat().st_size > 60e6
    assert peaks[1500] - peaks[20] < 20e6

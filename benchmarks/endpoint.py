"""The endpoint under load: are steps lost, doubled or misplaced, and what does it add to a call?

    python -m benchmarks.endpoint [--episodes 100] [--turns 10] [--at-once 50]

Client, endpoint and upstream are three processes on loopback. First every episode makes its calls, half of them
streamed, through an upstream that breaks one call in ten (an error status, a closed connection, a stream that ends
early) while one client in ten leaves in the middle; what failed is called again. Each message is unique, so the record
can be compared with what the clients got. Then the same upstream, unbroken, is called alone and through the endpoint by
turns, and the difference of the two at each percentile is what the endpoint adds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import openai

from internalize.config.schema import EndpointConfig
from internalize.inference.client import EndpointClient
from internalize.runs.store import read_jsonl
from internalize.serve.history import trajectories_of
from internalize.serve.records import RecordedCall
from tests.served import Served
from tests.upstream import Upstream

FORK = multiprocessing.get_context("fork")
Process = Any


def say(body: dict[str, Any]) -> str:
    """An answer that names what it answers."""
    return f"answer to {body['messages'][-1]['content']}"


def upstream(told: Connection, share: float) -> None:
    with Upstream(say, share=share, delay=0.002) as server:
        told.send(server.url)
        threading.Event().wait()


def endpoint(told: Connection, url: str, folder: Path) -> None:
    relay = EndpointClient("up", EndpointConfig(base_url=url, model="real", concurrency=256, timeout=30))
    with Served(relay=relay, folder=folder) as server:
        told.send(server.url)
        threading.Event().wait()


def started(work: Callable[..., None], *arguments: Any) -> tuple[Process, str]:
    mine, its = FORK.Pipe()
    process = FORK.Process(target=work, args=(its, *arguments), daemon=True)
    process.start()
    return process, str(mine.recv())


async def one_call(client: openai.AsyncOpenAI, messages: list[Any], *, stream: bool, leave: bool) -> str | None:
    """The answer; None if it did not come. A client that leaves does so in mid-stream, or before an answer came."""
    try:
        async with asyncio.timeout(0.003 if leave and not stream else 60):
            if not stream:
                got = await client.chat.completions.create(model="m", messages=messages)
                return got.choices[0].message.content
            text, finish = "", None
            async with await client.chat.completions.create(model="m", messages=messages, stream=True) as events:
                async for chunk in events:
                    text += chunk.choices[0].delta.content or ""
                    finish = chunk.choices[0].finish_reason or finish
                    if leave:
                        return None
            return text if finish else None
    except (openai.OpenAIError, TimeoutError):
        return None


async def episode(url: str, number: int, turns: int, counts: Counter[str], answered: dict[str, int]) -> None:
    """A growing conversation whose every message is unique."""
    draw = random.Random(number)
    messages: list[Any] = [{"role": "system", "content": f"episode {number}"}]
    base = f"{url}/episodes/e{number}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
        for turn in range(turns):
            asked = f"question {number}.{turn}"
            messages.append({"role": "user", "content": asked})
            answer = None
            while answer is None:
                leave = draw.random() < 0.1
                counts["calls"] += 1
                counts["left"] += leave
                answer = await one_call(client, messages, stream=draw.random() < 0.5, leave=leave)
                counts["failed or left"] += answer is None
            assert answer == f"answer to {asked}", (asked, answer)
            answered[asked] = number
            messages.append({"role": "assistant", "content": answer})


async def under_faults(url: str, episodes: int, turns: int, at_once: int) -> tuple[Counter[str], dict[str, int]]:
    counts, answered, slots = Counter[str](), dict[str, int](), asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with slots:
            await episode(url, number, turns, counts, answered)

    await asyncio.gather(*(one(number) for number in range(episodes)))
    return counts, answered


def judged(folder: Path, answered: dict[str, int]) -> dict[str, int]:
    """The record against what the clients got."""
    calls = read_jsonl(folder / "calls.jsonl", RecordedCall)
    by_episode: dict[str, list[RecordedCall]] = {}
    for call in calls:
        by_episode.setdefault(call.episode, []).append(call)
    learnt = Counter[tuple[str, str]]()
    for name, made in by_episode.items():
        for trajectory in trajectories_of(made):
            learnt.update((name, step.text) for step in trajectory.steps if not step.left_out)
    wanted = {(f"e{number}", f"answer to {asked}") for asked, number in answered.items()}
    return {
        "answered": len(answered),
        "recorded": len(calls),
        "lost": len(wanted - learnt.keys()),
        "doubled": sum(count > 1 for count in learnt.values()),
        "misplaced": len(learnt.keys() - wanted),
    }


def processor_seconds(process: Process) -> float:
    """What a process has used so far, which does not depend on what else the machine does."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def latencies(urls: dict[str, str], calls: int, at_once: int) -> dict[str, list[float]]:
    """Milliseconds of single calls, each address in turn, `at_once` at a time."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    clients = {name: openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) for name, url in urls.items()}

    async def one(name: str, number: int) -> None:
        asked = [{"role": "user", "content": f"latency {at_once} {number}"}]
        began = time.perf_counter()
        assert await one_call(clients[name], asked, stream=False, leave=False)
        found[name].append(1000 * (time.perf_counter() - began))

    for start in range(-at_once, calls, at_once):  # the first batch opens the connections and is not counted
        for name in urls:
            await asyncio.gather(*(one(name, start + n) for n in range(at_once)))
            if start < 0:
                found[name].clear()
    for client in clients.values():
        await client.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--latency-calls", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broken, url = started(upstream, 0.1)
        server, address = started(endpoint, url, Path(folder) / "a")
        began = time.perf_counter()
        counts, answered = asyncio.run(under_faults(address, args.episodes, args.turns, args.at_once))
        seconds = time.perf_counter() - began
        for process in (server, broken):
            process.kill()
            process.join()
        print(f"under faults: {dict(counts)} in {seconds:.1f} s")
        print(f"record: {judged(Path(folder) / 'a', answered)}")
        whole, url = started(upstream, 0.0)
        server, address = started(endpoint, url, Path(folder) / "b")
        for at_once in (1, 16):
            spent = processor_seconds(server)
            found = asyncio.run(latencies({"alone": url, "through": f"{address}/v1"}, args.latency_calls, at_once))
            for share in (50, 99):
                alone, through = (float(np.percentile(found[name], share)) for name in ("alone", "through"))
                print(f"{at_once:2} at once, p{share}: alone {alone:.1f} ms, through {through:.1f} ms, "
                      f"added {through - alone:+.1f} ms (n = {len(found['alone'])})")  # fmt: skip
            spent = 1000 * (processor_seconds(server) - spent) / (len(found["through"]) + at_once)
            print(f"{at_once:2} at once: {spent:.1f} ms of processor time a call in the endpoint")
        for process in (server, whole):
            process.kill()
            process.join()


if __name__ == "__main__":
    main()

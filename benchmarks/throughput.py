"""How fast the same conversations are sampled by each engine that a recipe can name, and which of them are exact.

    INTERNALIZE_VLLM=FOLDER python -m benchmarks.throughput       needs `make test-vllm` and the extra `serving`

`slots` and `plain` in this process, a real vLLM (float32) and llama.cpp's server (the GGUF file as it is), each with
one thread and the built-in model without its starter. A conversation is a prompt, then turns of an observation, a hint
that no later turn sees, and sampled tokens. Seconds are of the processor, of servers too; exact is what differs from
a plain pass of the model here by at most 1e-3 in any log-probability.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import psutil
import torch

from benchmarks.rollout_engine import Work
from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config, load_config
from internalize.inference.client import EndpointClient
from internalize.inference.loading import servable
from internalize.inference.server import ServerEngine, TokenApi
from internalize.interfaces import Engine
from internalize.records import Generation, Sampling
from internalize.training.policy import LocalPolicy
from internalize.training.selection import ENGINES
from tests.real_servers import free_port, llama_cpp_server, vllm_server

EXACT = 1e-3
CONTEXT = 4096


class Done(NamedTuple):
    """What one way took, and every context with what was sampled after it."""

    wall: float
    cpu: float
    sampled: list[tuple[list[int], Generation]]


def stopless(policy: LocalPolicy) -> Any:
    """A renderer for which no token ends a turn, so that all ways sample as much."""
    return SimpleNamespace(stop_ids=frozenset(), decode=lambda _: "", tokenizer=policy.renderer.tokenizer)


def in_process(name: str) -> Callable[[LocalPolicy, Config], Any]:
    @contextmanager
    def made(policy: LocalPolicy, config: Config) -> Iterator[Engine]:
        yield ENGINES[name](policy.model, stopless(policy), config)

    return made


def over(url: str, model: str, api: TokenApi, policy: LocalPolicy, config: Config) -> Engine:
    there = EndpointConfig(base_url=url, model=model, concurrency=64, timeout=3000, tries=1)
    sampling = Sampling(max_tokens=config.rollout.max_action_tokens, temperature=1.0)
    client = EndpointClient(api, there)
    return ServerEngine(client, stopless(policy), api, sampling=sampling, max_context=CONTEXT)


@contextmanager
def vllm(policy: LocalPolicy, config: Config) -> Iterator[Engine]:
    folder, port = servable("builtin", "none", "float32", Path()), free_port()
    with vllm_server(Path(folder), port, context=CONTEXT) as url:
        yield over(url, folder, "vllm", policy, config)


@contextmanager
def llama_cpp(policy: LocalPolicy, config: Config) -> Iterator[Engine]:
    with llama_cpp_server(config.compute.batch, CONTEXT * config.compute.batch) as server:
        yield over(server.base_url, server.model, "llama.cpp", policy, config)


WAYS = {"slots": in_process("slots"), "plain": in_process("plain"), "vLLM": vllm, "llama.cpp": llama_cpp}


def processor() -> float:
    """Seconds of the processor that this process and those below it have had."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in tree)


async def play(engine: Engine, work: Work) -> list[tuple[list[int], Generation]]:
    found = []

    async def converse(number: int) -> None:
        ids = list(work.prompts[number])
        for turn in range(work.turns):
            seen = ids + work.hints[turn][number]
            got = await engine.generate(seen, conversation=str(number), seed=number)
            found.append((seen, got))
            ids += [*got.token_ids, *work.observations[turn][number]]
        engine.release(str(number))

    await asyncio.gather(*(converse(number) for number in range(len(work.prompts))))
    return found


def timed(engine: Engine, work: Work) -> Done:
    wall, cpu = time.perf_counter(), processor()
    found = asyncio.run(play(engine, work))
    return Done(time.perf_counter() - wall, processor() - cpu, found)


@click.command(help=__doc__)
@click.option("--conversations", default=8, show_default=True, help="All at once.")
@click.option("--turns", default=4, show_default=True)
@click.option("--sizes", type=(int, int, int), default=(150, 60, 12), show_default=True, help="Prompt, result, action.")
@click.option("--hint", default=25, show_default=True, help="Tokens of a hint.")
@click.option("--way", "chosen", multiple=True, type=click.Choice([*WAYS]), default=[*WAYS])
def main(conversations: int, turns: int, sizes: tuple[int, int, int], hint: int, chosen: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    given = [f"compute.batch={conversations}", f"model.max_context={CONTEXT}", "model.adapter=none"]
    config = load_config(None, [*given, f"rollout.max_action_tokens={sizes[2]}", "rollout.temperature=1.0"])
    policy = LocalPolicy.of(config)
    assert policy.self_check
    click.echo(f"`auto` takes {policy.self_check.engine}")
    click.echo("way | wall s | processor s | tokens/processor s | largest difference of a log-probability | exact")
    work, warm = Work(conversations, turns, sizes, hint), Work(1, 1, sizes)
    for name in chosen:
        with WAYS[name](policy, config) as engine:
            timed(engine, warm)
            done = timed(engine, work)
        tokens = sum(len(got.token_ids) for _, got in done.sampled)
        most = 0.0
        for seen, got in done.sampled[-conversations:]:
            here = policy.logprobs([*seen, *got.token_ids], len(seen))
            most = max([most, *(abs(a - b) for a, b in zip(got.logprobs, here, strict=bool(got.logprobs)))])
        rate = tokens / done.cpu
        click.echo(
            f"{name} | {done.wall:.1f} | {done.cpu:.1f} | {rate:.1f} ({tokens}) | {most:.1e} | {most <= EXACT}",
        )


if __name__ == "__main__":
    main()

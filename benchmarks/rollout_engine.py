"""How fast conversations of several turns are sampled: our engine against two ways transformers offers.

    python benchmarks/rollout_engine.py --conversations 8 --conversations 48 --turns 3

Every way gets the same work: a prompt, then turns of new observation tokens, a fixed number of
sampled tokens a turn (stops are off), all conversations ready at the same time. `generate` re-reads
the whole conversation every turn, left-padded in batches of 16; continuous batching keeps at most 8
in flight, beyond which it slows down on CPU. Times depend on the machine: read the ratios, which
are of processor seconds, because wall time also measures whatever else the machine was doing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from internalize.engines.local import LocalEngine
from internalize.engines.models import load_policy

Lines = list[list[int]]


class Work:
    """Random ids of prompts and observations; the same for every way."""

    def __init__(self, conversations: int, turns: int, sizes: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(0)
        prompt, observation, self.action = sizes
        shared = rng.integers(100, 40_000, 25).tolist()
        self.prompts = [shared + rng.integers(100, 40_000, prompt - 25).tolist() for _ in range(conversations)]
        self.observations = rng.integers(100, 40_000, (turns, conversations, observation)).tolist()
        self.turns = turns


async def _ours(model: Any, work: Work) -> None:
    renderer: Any = SimpleNamespace(stop_ids=frozenset(), decode=lambda _: "")
    engine = LocalEngine(model, renderer, max_action_tokens=work.action, batch=len(work.prompts), max_context=8192)

    async def converse(number: int) -> None:
        ids = list(work.prompts[number])
        for turn in range(work.turns):
            got = await engine.generate(ids, conversation=str(number), seed=number)
            ids += [*got.token_ids, *work.observations[turn][number]]
        engine.release(str(number))

    await asyncio.gather(*(converse(number) for number in range(len(work.prompts))))


def ours(model: Any, work: Work) -> None:
    asyncio.run(_ours(model, work))


def by_turns(work: Work, answer: Callable[[Lines], Lines]) -> None:
    """All conversations take a turn, then all get their observation."""
    lines = [list(prompt) for prompt in work.prompts]
    for observed in work.observations:
        for line, action, observation in zip(lines, answer(lines), observed, strict=True):
            line.extend(action + observation)


def padded_generate(model: Any, work: Work) -> None:
    def answer(lines: Lines) -> Lines:
        out: Lines = []
        for start in range(0, len(lines), 16):
            some = lines[start : start + 16]
            width = max(map(len, some))
            ids = torch.tensor([[0] * (width - len(line)) + line for line in some])
            mask = torch.tensor([[0] * (width - len(line)) + [1] * len(line) for line in some])
            got = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, **_exactly(work.action))
            out += got[:, width:].tolist()
        return out

    with torch.no_grad():
        by_turns(work, answer)


def continuous_batching(model: Any, work: Work) -> None:
    settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=work.action, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=32, return_logprobs=True, use_cuda_graph=False, use_async_batching=False
    )
    with model.continuous_batching_context_manager(
        generation_config=settings, continuous_batching_config=batching
    ) as server:

        def answer(lines: Lines) -> Lines:
            out: dict[str, list[int]] = {}
            names: list[str] = []
            while len(out) < len(lines):
                while len(names) < len(lines) and len(names) - len(out) < 8:
                    names.append(server.add_request(lines[len(names)], max_new_tokens=work.action))
                got = server.get_result(timeout=1)
                if got is not None and got.is_finished():
                    out[got.request_id] = list(got.generated_tokens)
            return [out[name] for name in names]

        by_turns(work, answer)


def _exactly(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}


WAYS: dict[str, Callable[[Any, Work], None]] = {
    "ours": ours,
    "padded generate": padded_generate,
    "continuous batching": continuous_batching,
}


@click.command()
@click.option("--model", "source", default="builtin", show_default=True, help="'builtin', a folder or a name.")
@click.option("--conversations", multiple=True, type=int, default=(8,), show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option(
    "--sizes",
    type=(int, int, int),
    default=(150, 60, 12),
    show_default=True,
    help="Tokens: prompt, observation, action.",
)
@click.option("--way", "chosen", multiple=True, type=click.Choice(list(WAYS)), default=list(WAYS))
@click.option("--threads", default=1, show_default=True)
def main(
    source: str,
    conversations: tuple[int, ...],
    turns: int,
    sizes: tuple[int, int, int],
    chosen: tuple[str, ...],
    threads: int,
) -> None:
    """Print seconds and ratios of each way, measured in this run."""
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    model, _ = load_policy(source, "none")
    ours(model, Work(2, 1, sizes))  # first-call costs are nobody's
    print(f"{'conversations':>13}  {'way':<20} {'wall s':>7} {'cpu s':>7} {'x first':>8} {'tokens/cpu s':>13}")
    for number in conversations:
        base = 0.0
        for way in chosen:
            wall, cpu = time.perf_counter(), time.process_time()
            WAYS[way](model, Work(number, turns, sizes))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            base = base or cpu
            rate = number * turns * sizes[2] / cpu
            print(f"{number:>13}  {way:<20} {wall:>7.1f} {cpu:>7.1f} {cpu / base:>8.2f} {rate:>13.1f}", flush=True)


if __name__ == "__main__":
    main()

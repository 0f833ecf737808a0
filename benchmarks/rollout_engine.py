"""How fast conversations of several turns are sampled: our engine against two ways transformers offers.

    python -m benchmarks.rollout_engine --turns 8 --turns 16 --hint 0 --hint 25

Every way gets the same work: a prompt, then turns of new observation tokens, a fixed number of
sampled tokens a turn (stops are off), all conversations ready at the same time. A hint stands at the end of
what a turn is decided on and in no later context, as step-wise experience does. `generate` re-reads
the whole conversation every turn, left-padded in batches of 16; continuous batching keeps at most 8
in flight, beyond which it slows down on CPU. Times depend on the machine: read the ratios, which
are of processor seconds, because wall time also measures whatever else the machine was doing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from internalize.inference.loading import load_policy
from internalize.inference.local import LocalEngine

Lines = list[list[int]]


class Work:
    """Random ids of prompts, observations and hints; the same for every way."""

    def __init__(self, conversations: int, turns: int, sizes: tuple[int, int, int], hint: int = 0) -> None:
        rng = np.random.default_rng(0)
        prompt, observation, self.action = sizes
        shared = rng.integers(100, 40_000, 25).tolist()
        self.prompts = [shared + rng.integers(100, 40_000, prompt - 25).tolist() for _ in range(conversations)]
        self.observations = rng.integers(100, 40_000, (turns, conversations, observation)).tolist()
        self.hints = rng.integers(100, 40_000, (turns, conversations, hint)).tolist()
        self.turns = turns


async def _ours(model: Any, work: Work) -> None:
    renderer: Any = SimpleNamespace(stop_ids=frozenset(), decode=lambda _: "")
    engine = LocalEngine(model, renderer, max_action_tokens=work.action, batch=len(work.prompts), max_context=8192)

    async def converse(number: int) -> None:
        ids = list(work.prompts[number])
        for turn in range(work.turns):
            seen = ids + work.hints[turn][number]
            got = await engine.generate(seen, conversation=str(number), seed=number)
            ids += [*got.token_ids, *work.observations[turn][number]]
        engine.release(str(number))

    await asyncio.gather(*(converse(number) for number in range(len(work.prompts))))


def ours(model: Any, work: Work) -> None:
    asyncio.run(_ours(model, work))


def by_turns(work: Work, answer: Callable[[Lines], Lines]) -> None:
    """All conversations take a turn, then all get their observation."""
    lines = [list(prompt) for prompt in work.prompts]
    for observed, hints in zip(work.observations, work.hints, strict=True):
        actions = answer([line + hint for line, hint in zip(lines, hints, strict=True)])
        for line, action, observation in zip(lines, actions, observed, strict=True):
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
@click.option("--turns", multiple=True, type=int, default=(3,), show_default=True)
@click.option("--hint", "hints", multiple=True, type=int, default=(0,), show_default=True, help="Tokens of a hint.")
@click.option("--repeats", default=1, show_default=True, help="Medians of repeats that take turns.")
@click.option(
    "--sizes",
    type=(int, int, int),
    default=(150, 60, 12),
    show_default=True,
    help="Tokens: prompt, observation, action.",
)
@click.option("--way", "chosen", multiple=True, type=click.Choice(list(WAYS)), default=list(WAYS))
@click.option("--threads", default=1, show_default=True)
def main(  # noqa: PLR0913, PLR0917 - one option each
    source: str,
    conversations: tuple[int, ...],
    turns: tuple[int, ...],
    hints: tuple[int, ...],
    repeats: int,
    sizes: tuple[int, int, int],
    chosen: tuple[str, ...],
    threads: int,
) -> None:
    """Print seconds and ratios of each way, measured in this run."""
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    model, _ = load_policy(source, "none")
    ours(model, Work(2, 1, sizes))  # first-call costs are nobody's
    print(
        f"{'together':>8} {'turns':>5} {'hint':>5}  {'way':<20} {'wall s':>7} {'cpu s':>7} {'x first':>8} tokens/cpu s"
    )
    for number, count, hint in itertools.product(conversations, turns, hints):
        work = Work(number, count, sizes, hint)
        walls: dict[str, list[float]] = {way: [] for way in chosen}
        cpus: dict[str, list[float]] = {way: [] for way in chosen}
        for way in [*chosen] * repeats:
            wall, cpu = time.perf_counter(), time.process_time()
            WAYS[way](model, work)
            walls[way].append(time.perf_counter() - wall)
            cpus[way].append(time.process_time() - cpu)
        for way in chosen:
            share = median(own / first for own, first in zip(cpus[way], cpus[chosen[0]], strict=True))
            cpu = median(cpus[way])
            print(
                f"{number:>8} {count:>5} {hint:>5}  {way:<20} {median(walls[way]):>7.1f} {cpu:>7.1f} {share:>8.2f}"
                f" {number * count * sizes[2] / cpu:>12.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

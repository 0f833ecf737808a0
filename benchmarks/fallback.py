"""The forked scorer beside one pass a step, the plain engine beside `generate` that reads every turn's prompt again.

`python -m benchmarks.fallback` prints processor seconds on one thread, and ratios: what stands on top costs so many
times as much. Small random models: one with full attention, one with a window, one with recurrent layers, and a larger
one of these, since the overhead of every pass hides the tokens it saves on the smallest.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.families import tiny
from benchmarks.models import Draw
from internalize.inference.plain import PlainEngine
from internalize.records import ActionSpan, DistillExample, Sampling
from internalize.training.forked import ForkedScorer
from internalize.training.scoring import pack, teacher_hidden
from tests.seams.step_scorer import StepScorer
from tests.tiny import tiny_tokenizer

WORDS = len(tiny_tokenizer())
SIZE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 4}
MODELS = {
    "full": ("llama", SIZE),
    "window": ("gemma3_text", SIZE | {"sliding_window": 128}),
    "hybrid": ("qwen3_5_text", SIZE | {"linear_key_head_dim": 32, "linear_value_head_dim": 32}),
}
WIDE = {"hidden_size": 768, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 12} | {
    "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
PROMPT, OBSERVATION, HINT, ACTION, CONVERSATIONS = 120, 50, 25, 12, 8


class Stops:
    """A renderer that never ends a turn, so that every action has `ACTION` tokens."""

    stop_ids: frozenset[int] = frozenset()

    def decode(self, ids: object) -> str:
        return str(ids)


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def trajectory(steps: int) -> DistillExample:
    draw = Draw(0)
    ids, spans = draw(PROMPT, PROMPT), []
    for _ in range(steps):
        start, branch = len(ids), draw(HINT, HINT) + ids[-3:]
        ids += draw(ACTION, ACTION)
        spans.append(ActionSpan(start=start, end=len(ids), fork=start - 3, branch=branch))
        ids += draw(OBSERVATION, OBSERVATION)
    return DistillExample(trajectory_id="", token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def scorers(name: str, model: torch.nn.Module) -> None:
    teacher_hidden(model, pack(trajectory(2)), ForkedScorer())  # first-call costs are nobody's
    for steps in (4, 8, 16, 32):
        packed = pack(trajectory(steps))
        forked = seconds(lambda packed=packed: teacher_hidden(model, packed, ForkedScorer()))
        stepped = seconds(lambda packed=packed: teacher_hidden(model, packed, StepScorer()))
        print(
            f"{name:7} {steps:3} steps: forked {forked:6.2f} s, step by step {stepped:6.2f} s, x{stepped / forked:.1f}"
        )


def contexts(number: int, turns: int, answers: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The clean context of a conversation's next turn, after its actions so far."""
    draw = Draw(number)
    ids = draw(PROMPT, PROMPT)
    for action in answers[:turns]:
        ids += action + draw(OBSERVATION, OBSERVATION)
    return ids


def with_engine(model: torch.nn.Module, turns: int) -> None:
    engine = PlainEngine(model, Stops(), batch=CONVERSATIONS, max_context=4096)
    sampling = Sampling(max_tokens=ACTION, temperature=1.0)

    async def converse(number: int) -> None:
        answers: list[tuple[int, ...]] = []
        for turn in range(turns):
            prompt = contexts(number, turn, answers) + Draw(turn)(HINT, HINT)
            made = await engine.generate(prompt, conversation=str(number), seed=turn, sampling=sampling)
            answers.append(made.token_ids)

    async def all_of_them() -> None:
        await asyncio.gather(*map(converse, range(CONVERSATIONS)))

    asyncio.run(all_of_them())


@torch.no_grad()
def with_generate(model: torch.nn.Module, turns: int) -> None:
    """One padded batch a turn (all prompts are equally long), read from the start."""
    answers: dict[int, list[tuple[int, ...]]] = {number: [] for number in range(CONVERSATIONS)}
    for turn in range(turns):
        prompts = [contexts(n, turn, answers[n]) + Draw(turn)(HINT, HINT) for n in answers]
        ids = torch.tensor(prompts)
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ACTION, min_new_tokens=ACTION,
            do_sample=True, pad_token_id=0,
        )  # fmt: skip
        for number, row in enumerate(made[:, ids.shape[1] :].tolist()):
            answers[number].append(tuple(row))


def engines(name: str, model: torch.nn.Module) -> None:
    with_engine(model, 1)
    for turns in (8, 16):
        plain, again = seconds(lambda t=turns: with_engine(model, t)), seconds(lambda t=turns: with_generate(model, t))
        print(
            f"{name:7} {turns:3} turns: plain {plain:6.2f} s, generate {again:6.2f} s, x{again / plain:.1f}", flush=True
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for kind, (family, sizes) in MODELS.items():
        made = tiny(family, WORDS, **sizes)
        scorers(kind, made)
        engines(kind, made)
    scorers("hybrid, 19M weights", tiny("qwen3_5_text", WORDS, **WIDE))

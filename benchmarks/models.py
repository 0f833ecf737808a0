"""The matrix of model families: `python -m benchmarks.models --write docs/models.md`; a quarter of an hour on one core.

Every family of the installed transformers that can be made small is loaded as a policy, with LoRA and with all weights.
What `LocalPolicy.check` chooses is then measured again on longer work that it has not seen: three interleaved
conversations with hints, and trajectories with hints at every step, values and gradients, against plain passes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import random
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.families import LEFT_OUT, TEMPLATES, kinds, tiny
from internalize.config.distill import DistillConfig
from internalize.config.schema import ComputeConfig, Config, ModelConfig
from internalize.errors import UserError, first_line
from internalize.records import ActionSpan, DistillExample, Generation, Sampling
from internalize.training.policy import LocalPolicy
from internalize.training.scoring import example_logits
from internalize.training.selection import ENGINES, SCORERS
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
EXACT_LOGPROBS, EXACT_SCORES = 1e-3, 1e-4
CONTEXT = 512
_LAYERS = {
    "DynamicLayer": "full", "DynamicSlidingWindowLayer": "window", "LinearAttentionLayer": "recurrent",
    "LinearAttentionAndFullAttentionLayer": "recurrent beside full", "DynamicIndexedLayer": "indexed",
    "LinearAttentionAndSlidingWindowAttentionLayer": "recurrent beside window",
}  # fmt: skip


class Found(NamedTuple):
    """What became of one family with one kind of training."""

    outcome: str  # "exact", "wrong", "refused" or "traceback"
    said: str = ""
    engine: str = ""
    scorer: str = ""
    logprobs: float = 0.0
    scores: float = 0.0
    gradients: float = 0.0
    engine_cost: float | None = None  # times the fast path, where that runs at all, right or wrong
    scorer_cost: float | None = None


def measured(kind: str, lora_r: int, *, costs: bool = False) -> Found:
    """Load a family as a policy, and compare what it was given with plain passes."""
    try:
        policy = loaded(kind, lora_r)
        check = policy.check()
    except UserError as error:
        return Found("refused", str(error))
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        traceback.print_exc()
        return Found("traceback", f"{type(error).__name__}: {first_line(error)}")
    logprobs, (scores, gradients) = engine_difference(policy), scorer_difference(policy)
    exact = logprobs < EXACT_LOGPROBS and max(scores, gradients) < EXACT_SCORES
    times = cost(policy, check.engine, check.scorer) if costs else (None, None)
    return Found("exact" if exact else "wrong", "", check.engine, check.scorer, logprobs, scores, gradients, *times)


def loaded(kind: str, lora_r: int) -> LocalPolicy:
    tokenizer = tiny_tokenizer()
    config = Config(
        model=ModelConfig(max_context=CONTEXT), compute=ComputeConfig(batch=4), distill=DistillConfig(lora_r=lora_r)
    )
    return LocalPolicy(config, tiny(kind, len(tokenizer)), tokenizer)


def plain_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] of one sequence by itself."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


class Draw:
    """Seeded random ids."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(5, 380) for _ in range(self._rng.randint(low, high)))


async def conversations(
    engine: Any, seed: int, count: int = 3, turns: int = 3
) -> list[tuple[tuple[int, ...], Generation]]:
    """Conversations that start alike and run together, with a hint at every turn that is gone at the next."""
    shared, found = Draw(seed)(10, 14), []

    async def converse(number: int) -> None:
        draw = Draw(100 * seed + number)
        context = shared + draw(2, 6)
        for turn in range(turns):
            prompt = context + draw(0, 5) + (7, 9)
            sampling = Sampling(max_tokens=draw(1, 1)[0] % 6 + 1, temperature=1.0)
            sampled = await engine.generate(prompt, conversation=f"{seed}-{number}", seed=turn, sampling=sampling)
            found.append((prompt, sampled))
            context += (7, 9, *sampled.token_ids, *draw(3, 12))

    await asyncio.gather(*map(converse, range(count)))
    return found


def engine_difference(policy: LocalPolicy) -> float:
    """Largest difference of a sampled token's log-probability from that of a plain pass, in nats."""
    worst = 0.0
    for prompt, sampled in asyncio.run(conversations(policy.engine, seed=1)):
        with torch.no_grad():
            rows = plain_logits(policy.model, prompt + sampled.token_ids)[len(prompt) - 1 : -1].log_softmax(-1)
        plain = rows.gather(-1, torch.tensor(sampled.token_ids)[:, None])[:, 0]
        worst = max(worst, float((plain - torch.tensor(sampled.logprobs)).abs().max()))
    policy.engine.reset()
    return worst


def trajectory(seed: int, steps: int = 4) -> DistillExample:
    """A trajectory with a hint at every step but the first."""
    draw = Draw(seed)
    ids, spans = draw(9, 13), []
    for step in range(steps):
        start, action = len(ids), draw(1, 5)
        branch = draw(2, 5) + ids[-2:] if step else ()
        spans.append(ActionSpan(start=start, end=start + len(action), fork=start - 2 if step else 0, branch=branch))
        ids += action + draw(4, 9)
    return DistillExample(trajectory_id=str(seed), token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def slow_logits(model: Any, example: DistillExample) -> torch.Tensor:
    """What `example_logits` gives, by one plain pass a step and side."""
    clean, shown, ids = [], [], example.token_ids
    for span in example.spans:
        action = ids[span.start : span.end]
        contexts = ids[: span.start], (*ids[: span.fork], *span.branch) if span.branch else ids[: span.start]
        for context, rows in zip(contexts, (clean, shown), strict=True):
            rows.append(plain_logits(model, (*context, *action))[len(context) - 1 : -1])
    return torch.cat(clean + shown)


def scorer_difference(policy: LocalPolicy) -> tuple[float, float]:
    """Largest relative differences of logits (with and without gradients) and of a weight's gradient."""
    model, scores, gradients = policy.model, 0.0, 0.0
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for seed in (1, 2):
        example = trajectory(seed)
        slow = slow_logits(model, example)
        mix = torch.randn(slow.shape, generator=torch.Generator().manual_seed(0)) / slow.numel() ** 0.5
        wanted = torch.autograd.grad((slow.log_softmax(-1) * mix).sum(), weights, allow_unused=True)
        fast = example_logits(model, example, policy.scorer)
        got = torch.autograd.grad((fast.log_softmax(-1) * mix).sum(), weights, allow_unused=True)
        with torch.no_grad():
            taught = example_logits(model, example, policy.scorer)
        scores = max(scores, *(float(((one - slow).norm(dim=-1) / slow.norm(dim=-1)).max()) for one in (fast, taught)))
        total = torch.stack([gradient.norm() for gradient in wanted if gradient is not None]).norm()
        for one, other in zip(got, wanted, strict=True):
            zero = torch.zeros(())
            norm = (zero if other is None else other).norm() + 0.01 * total
            gradients = max(
                gradients, float(((zero if one is None else one) - (zero if other is None else other)).norm() / norm)
            )
    return scores, gradients


def cost(policy: LocalPolicy, engine: str, scorer: str) -> tuple[float | None, float | None]:
    """How many times the processor time of the fast ones the chosen engine and scorer take, on one thread."""

    def play(name: str) -> None:
        made = ENGINES[name](policy.model, policy.renderer, policy.config)
        asyncio.run(conversations(made, seed=3, count=4))

    @torch.no_grad()
    def score(name: str) -> None:
        example_logits(policy.model, trajectory(3, steps=8), SCORERS[name])

    return _ratio(play, engine, "slots"), _ratio(score, scorer, "packed")


def _ratio(run: Any, chosen: str, fast: str) -> float | None:
    if chosen == fast:
        return 1.0
    seconds = []
    for name in (chosen, fast):
        try:
            run(name)
            started = time.process_time()
            run(name)
            seconds.append(time.process_time() - started)
        except Exception:  # noqa: BLE001 - the fast path need not run
            return None
    return seconds[0] / seconds[1]


def attention(model: PreTrainedModel) -> str:
    """The kinds of layers that the model's own cache has."""
    with torch.no_grad():
        output = model(torch.arange(5, 25)[None], use_cache=True)
    cache: Any = next(
        (c for name in ("past_key_values", "cache_params", "state") if (c := output.get(name)) is not None), None
    )
    layers = getattr(cache, "layers", None)
    if layers is None:
        return "no cache" if cache is None else "its own cache"
    return ", ".join(sorted({_LAYERS.get(type(layer).__name__, "other") for layer in layers}))


def row(kind: str) -> tuple[str, list[Found]]:
    """One line of the page, and what was found with LoRA and with all weights."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = [measured(kind, 4, costs=True), measured(kind, 0)]
    try:
        layers = attention(tiny(kind))
    except Exception as error:  # noqa: BLE001 - the model's own code
        layers = f"? ({type(error).__name__})"
    best, full = found
    if best.outcome == full.outcome == "exact":
        worst = [max(getattr(f, name) for f in found) for name in ("logprobs", "scores", "gradients")]
        exactness = " / ".join(f"{value:.0e}" for value in worst)
        paths = f"{full.engine} | {full.scorer}"
        costs = " / ".join("-" if value is None else f"{value:.1f}" for value in (best.engine_cost, best.scorer_cost))
    else:
        paths, costs = "- | -", "-"
        exactness = "; ".join(sorted({f"{f.outcome}: {f.said}" if f.said else f.outcome for f in found}))
    exactness = exactness.replace("|", "/")[:240]
    return f"| {kind} | {layers} | {paths} | {calls_of(kind)} | {exactness} | {costs} |", found


def calls_of(kind: str) -> str:
    """How calls are written with the template of a family, as docs/templates.md found it; "-" without one."""
    if kind not in TEMPLATES:
        return "-"
    lines = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8").splitlines()
    ways = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("|")) > 3}
    return ways[TEMPLATES[kind]] or "refused"


HEAD = """# Models

Written by `python -m benchmarks.models --write docs/models.md` with transformers {version}. {cases} cases ({families}
families, each with LoRA and with all weights): {exact} exact, {refused} refused in one sentence when they are loaded,
{wrong} silently wrong, {broken} tracebacks. Tiny random models in float32 with windows and chunks of 8 tokens, so that
every context outgrows them; exact means log-probabilities within {logprobs:g} nats, scores and gradients within
{scores:g} of their size, against plain passes over every action's context.

No list of names decides which path a model takes: it is measured when the model is loaded ([reference](reference.md)).
`slots` and `packed` replace the model's attention; `plain` and `forked` use its own forward and its own cache.
*Calls*: how tool calls are written with the family's own template, as [Templates](templates.md) found it (`bracket`: as
text; `refused`: in a sentence, when the model is loaded); `-` = no package carries a template of it, and it is found
out when the model is loaded. *Differences*:
log-probabilities / scores / gradients, the largest found; of a refused case its sentence. *Cost*: processor time of the
chosen engine / scorer as a multiple of the fast one's on the tiny model, where overheads count most; `-` = the fast one
does not run there.

| family | layers | engine | scorer | calls | differences | cost |
|---|---|---|---|---|---|---|
"""


def page(lines: Sequence[str], found: Sequence[Found]) -> str:
    """The page as Markdown."""
    counts = {name: sum(f.outcome == name for f in found) for name in ("exact", "refused", "wrong", "traceback")}
    head = HEAD.format(
        version=transformers.__version__, cases=len(found), families=len(lines), exact=counts["exact"],
        refused=counts["refused"], wrong=counts["wrong"], broken=counts["traceback"], logprobs=EXACT_LOGPROBS,
        scores=EXACT_SCORES,
    )  # fmt: skip
    left = "\n".join(f"- `{kind}`: {why}" for kind, why in sorted(LEFT_OUT.items()))
    untried = "Not tried, of the types that transformers calls causal language models:"
    return "\n".join([head.rstrip(), *lines, "", untried, "", left, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    lines, found = [], []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for line, those in pool.map(row, arguments.kinds or kinds()):
            print(line, flush=True)
            lines.append(line)
            found += those
    print({name: sum(f.outcome == name for f in found) for name in ("exact", "refused", "wrong", "traceback")})
    if arguments.write:
        arguments.write.write_text(page(lines, found), encoding="utf-8")
    sys.exit(any(f.outcome in {"wrong", "traceback"} for f in found))


if __name__ == "__main__":
    main()

"""The check at load that sampling and scoring a model give what plain forward passes of the same model give.

Random ids run through the engine (two conversations of three turns, each with a hint that is gone in the next turn)
and through the scorer (one trajectory with a hint at every step: values, and one gradient of the trained weights).
Engine and scorer exchange a model's attention and know nothing of its other layers, and no name tells for which models
that is right: only a comparison does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from internalize.errors import UserError, first_line
from internalize.interfaces import Engine
from internalize.records import ActionSpan, DistillExample, Generation, Sampling, SelfCheck

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Logits at the action tokens: [A, V] of the clean trajectory, then [A, V] of what the teacher is shown.
Scores = Callable[[nn.Module, DistillExample], Tensor]
Turn = tuple[tuple[int, ...], Generation]  # prompt, answer
Gradient = Sequence[Tensor | None]

_TURNS = 3
_START, _OWN, _HINT, _ACTION, _OBSERVATION = 8, 2, 2, 2, 2  # every token costs a large model a second on a CPU
# Beyond so many tokens a model attends to fewer, which no short context shows.
_WINDOWS = ("sliding_window", "attention_window_size", "local_attention", "attention_chunk_size", "index_topk")
_LAYER_TYPES = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_SMALL_SHARE = 0.01  # a tensor's gradient below this share of the whole is compared with that: it may be rounding alone


class Tolerance(NamedTuple):
    """Largest differences taken for rounding: log-probabilities in nats, scores and gradients relative."""

    logprobs: float
    scores: float
    gradients: float
    share: float  # of the tokens that are so close


# Measured on 75 exact families: below 2e-4 in float32, where others are above 0.03. In bfloat16 a router may send a few
# tokens to another expert; three of four tokens stay below 0.09 nats and 4 %, and wrong families are above 0.2 nats.
TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-4, 1e-4, share=1.0),
    torch.bfloat16: Tolerance(0.2, 0.06, 0.25, share=0.75),
}
_WHAT = {"logprobs": "sampled log-probabilities", "scores": "scores", "gradients": "gradients"}


def check_policy(model: nn.Module, engine: Engine, scores: Scores, ids: Sequence[int], max_context: int) -> SelfCheck:
    """Compare `engine` and `scores` with plain passes of `model`, which is in evaluation mode, on random ones of `ids`.

    Raises UserError with the model's class, what differs and by how much, also where its code raises anything else.
    The model is left as it was.
    """
    started = time.monotonic()
    with _own_attention(model), in_one_sentence(model, "sampling"):
        differences_A = _engine_differences(model, engine, ids)
    logprobs = _required(model, "logprobs", differences_A)
    values, gradients = check_scores(model, scores, ids)
    require_reach(model, max_context)
    seconds = round(time.monotonic() - started, 3)
    return SelfCheck(logprobs=logprobs, scores=values, gradients=gradients, seconds=seconds)


def check_scores(model: nn.Module, scores: Scores, ids: Sequence[int]) -> tuple[float, float]:
    """The scorer's part of `check_policy`: differences of values and gradients (0 where no weight is trained)."""
    example = _example(_drawing(ids))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with _own_attention(model), torch.enable_grad():
        with in_one_sentence(model, "a plain forward pass"):
            plain, slow = _with_gradient(_plain_scores(model, example), example, weights)
        with in_one_sentence(model, "scoring"):
            packed, fast = _with_gradient(scores(model, example), example, weights)
    values = _required(model, "scores", _relative(packed, plain))
    return values, _required(model, "gradients", _gradient_difference(fast, slow)) if weights else 0.0


def require_reach(model: Any, max_context: int) -> None:
    """Raises UserError if contexts of `max_context` tokens are read in a way that short ones do not show."""
    for key, tokens in _limits(model.config.get_text_config()):
        if tokens < max_context:
            raise UserError(
                f"{_class(model)} cannot be used with contexts of {max_context} tokens: beyond {tokens} it reads in "
                f"another way ({key}); set model.max_context to {tokens} or less"
            )


def ordinary_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of both model and tokenizer that are no special tokens: some models do more at one than embed it."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return sorted(token for token in tokenizer.get_vocab().values() if token < rows and token not in special)


def _limits(config: Any) -> Iterator[tuple[str, int]]:
    """Config keys and the lengths, in tokens, beyond which they change how a model reads."""
    kinds = getattr(config, "layer_types", None)
    unused = {key for kind, key in _LAYER_TYPES.items() if kinds is not None and kind not in kinds}
    for key in _WINDOWS:
        tokens = getattr(config, key, None)
        if isinstance(tokens, int) and tokens > 0 and key not in unused:
            yield key, tokens
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]:
        if "dynamic" in rope.get("rope_type", ""):  # its angles change with the longest context in the batch
            yield "rope_type = dynamic", int(config.max_position_embeddings)
        elif rope.get("rope_type") == "longrope":
            yield "rope_type = longrope", int(rope["original_max_position_embeddings"])


@contextmanager
def _own_attention(model: nn.Module) -> Iterator[None]:
    """Give every part of the model its own attention back afterwards."""
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]  # noqa: SLF001
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name  # noqa: SLF001 - the public setter changes its parts too


def _configs(model: nn.Module) -> list[Any]:
    """Every config that names an attention: those of the model's parts and those inside them."""
    found: dict[int, Any] = {}
    left: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    while left:
        config = left.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            left += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def in_one_sentence(model: nn.Module, what: str) -> Iterator[None]:
    """Whatever a model's code raises inside becomes a UserError of one sentence that names the class."""
    name = _class(model)
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if name in str(error) else f"{name} cannot be used: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{name} cannot be used: {what} fails on it ({reason})") from error


def _required(model: nn.Module, what: str, differences: Tensor) -> float:
    """The difference that counts, if it may be rounding. Raises UserError with the figure if it may not."""
    allowed = TOLERANCES.get(next(model.parameters()).dtype, TOLERANCES[torch.bfloat16])
    difference, largest = float(differences.quantile(allowed.share)), getattr(allowed, what)
    if difference <= largest:  # written so that NaN fails
        return difference
    raise UserError(
        f"{_class(model)} cannot be used: its {_WHAT[what]} differ from those of plain forward passes by "
        f"{difference:.2g} (rounding explains {largest:g})"
    )


def _class(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def _drawing(ids: Sequence[int]) -> Callable[[int], tuple[int, ...]]:
    rng = random.Random(0)
    return lambda count: tuple(rng.choices(ids, k=count))


def _engine_differences(model: nn.Module, engine: Engine, ids: Sequence[int]) -> Tensor:
    """Differences of the sampled tokens' log-probabilities, in nats: [A].

    Weights that say next to nothing would agree with any others: below 1 the spread of their logits is the unit.
    """
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may have an event loop that runs
        turns = thread.submit(asyncio.run, _played(engine, _drawing(ids))).result()
    with torch.no_grad():
        passes = _plain(model, [prompt + answer.token_ids for prompt, answer in turns])
    logits_AV = torch.cat([row[len(prompt) - 1 : -1] for row, (prompt, _) in zip(passes, turns, strict=True)])
    sampled_A = torch.tensor([token for _, answer in turns for token in answer.token_ids], device=logits_AV.device)
    said_A = torch.tensor([logprob for _, answer in turns for logprob in answer.logprobs], device=logits_AV.device)
    plain_A = logits_AV.log_softmax(-1).gather(-1, sampled_A[:, None])[:, 0]
    return (plain_A - said_A).abs() / logits_AV.std(-1).clamp(max=1.0)


async def _played(engine: Engine, draw: Callable[[int], tuple[int, ...]]) -> list[Turn]:
    """Two conversations side by side; the second joins after a turn of the first and takes over its start."""
    start, sampling, joined = draw(_START), Sampling(max_tokens=_ACTION, temperature=1.0), asyncio.Event()
    turns: list[Turn] = []

    async def play(name: str) -> None:
        prompt = start + draw(_OWN)
        for number in range(_TURNS):
            hinted = prompt + draw(_HINT)
            answer = await engine.generate(hinted, conversation=name, seed=number, sampling=sampling)
            turns.append((hinted, answer))
            prompt += answer.token_ids + draw(_OBSERVATION)
            joined.set()
        engine.release(name)

    async def join() -> None:
        await joined.wait()
        await play("self-check 1")

    try:
        await asyncio.gather(play("self-check 0"), join())
    finally:
        engine.reset()
    return turns


def _example(draw: Callable[[int], tuple[int, ...]]) -> DistillExample:
    """A trajectory whose hints stand two ids before the end of each step's context, as in a chat template."""
    ids = draw(_START)
    spans = []
    for _ in range(_TURNS):
        ids += draw(_OBSERVATION)
        fork, start = len(ids) - 2, len(ids)
        branch = draw(_HINT) + ids[fork:]
        ids += draw(_ACTION)
        spans.append(ActionSpan(start=start, end=len(ids), fork=fork, branch=branch))
    return DistillExample(trajectory_id="self-check", token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def _plain(model: nn.Module, sequences: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Logits [T, V] of every sequence in one plain forward pass: what follows a sequence cannot change its logits."""
    longest = max(len(ids) for ids in sequences)
    padded = [[*ids, *ids[-1:] * (longest - len(ids))] for ids in sequences]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor(padded, device=device), use_cache=False).logits.float()
    return [row[: len(ids)] for row, ids in zip(logits, sequences, strict=True)]


def _plain_scores(model: nn.Module, example: DistillExample) -> Tensor:
    """`Scores` by plain passes over the clean trajectory and over each step as the teacher is shown it."""
    ids, spans = example.token_ids, example.spans
    shown = [ids[: span.fork] + span.branch + ids[span.start : span.end] for span in spans]
    clean, *hinted = _plain(model, [ids, *shown])
    rows = [clean[span.start - 1 : span.end - 1] for span in spans]
    return torch.cat(rows + [row[-1 - _ACTION : -1] for row in hinted])


def _with_gradient(logits_RV: Tensor, example: DistillExample, weights: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
    """The logits, and the gradient of the mean log-probability of the actions."""
    if not weights:
        return logits_RV, ()
    actions = [token for span in example.spans for token in example.token_ids[span.start : span.end]]
    targets_R = torch.tensor(actions * 2, device=logits_RV.device)
    loss = torch.nn.functional.cross_entropy(logits_RV, targets_R)
    return logits_RV.detach(), torch.autograd.grad(loss, weights, allow_unused=True)


def _relative(packed_RV: Tensor, plain_RV: Tensor) -> Tensor:
    """Relative difference of each row's logits, whose mean says nothing: [R]."""
    centred_RV = plain_RV - plain_RV.mean(-1, keepdim=True)
    difference_RV = packed_RV - packed_RV.mean(-1, keepdim=True) - centred_RV
    relative_R: Tensor = difference_RV.norm(dim=-1) / centred_RV.norm(dim=-1)
    return relative_R


def _gradient_difference(fast: Gradient, slow: Gradient) -> Tensor:
    """Largest relative difference of a weight's gradient: []."""
    pairs = [(f, s) for f, s in zip(fast, slow, strict=True) if f is not None or s is not None]
    norms = torch.stack([_norm(s) for _, s in pairs])
    differences = torch.stack([_norm(f if s is None else s if f is None else f - s) for f, s in pairs])
    largest: Tensor = (differences / (norms + _SMALL_SHARE * norms.norm())).max()
    return largest


def _norm(gradient: Tensor | None) -> Tensor:
    norm: Tensor = torch.zeros(()) if gradient is None else gradient.float().norm().cpu()
    return norm

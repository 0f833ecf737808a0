"""Checks at load that sampling and scoring agree with plain forward passes of the same model.

Random ids run through an engine (a conversation of two turns whose hint is dropped in between, and a second one that
joins it and reuses its prefix) and through a scorer (one trajectory with a hint at each step: logits, and one gradient
of the trained weights). The fast engine and scorer replace a model's attention and keep its other layers; the plain
ones copy and pad its cache. An architecture's name does not tell whether that is right, so it is measured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from internalize.errors import UserError, first_line
from internalize.interfaces import Engine
from internalize.records import ActionSpan, DistillExample, Generation, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Logits at the action tokens: [A, V] of the clean trajectory, then [A, V] of the contexts with hints.
Scores = Callable[[nn.Module, DistillExample], Tensor]
Draw = Callable[[int], tuple[int, ...]]  # number of random ids
Turn = tuple[tuple[int, ...], Generation]  # prompt and sampled continuation
Gradient = Sequence[Tensor | None]

# As few as possible: a large model on a CPU takes a second a token. Of two sampled tokens one is fed back; with two
# turns a prefix is kept.
_START, _TASK, _HINT, _ACTION, _OBSERVATION = 4, 2, 2, 2, 2
# Start and turns of the scorer's trajectory. It is longer if rounding is coarse: among few tokens, one that a router
# sends to another expert may change a gradient by a third.
_TRAJECTORY, _LONGER_TRAJECTORY = (4, 2), (8, 3)
# Config keys with the longest reach of attention in tokens, which a short context cannot reveal.
_WINDOWS = ("sliding_window", "attention_window_size", "local_attention", "attention_chunk_size", "index_topk")
_LAYER_TYPES = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_SMALL_SHARE = 0.01  # gradients below this share of the total norm are compared with that share: they may be rounding


class Tolerance(NamedTuple):
    """Largest differences that count as rounding: log-probabilities in nats, scores and gradients relative."""

    logprobs: float
    scores: float
    gradients: float
    share: float  # of tokens that must be within these limits


# Measured on 75 families that are right: below 2e-4 in float32, where wrong ones are above 0.03. In bfloat16 a router
# may send a few tokens to another expert; three of four tokens stay below 0.09 nats and 4 %, wrong families above 0.2.
TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-4, 1e-4, share=1.0),
    torch.bfloat16: Tolerance(0.2, 0.06, 0.25, share=0.75),
}
_NOUNS = {"logprobs": "sampled log-probabilities", "scores": "scores", "gradients": "gradients"}


class Reference(NamedTuple):
    """The results of plain passes over one trajectory: logits at its actions, and the gradient of the weights."""

    example: DistillExample
    logits_RV: Tensor
    weights: Sequence[Tensor]  # the trained weights
    gradient: Gradient


def check_engine(model: nn.Module, engine: Engine, ids: Sequence[int]) -> float:
    """Compare `engine` with plain passes of `model` on random `ids`: the difference in log-probability, in nats.

    Raises UserError with the model's class and the difference if it is more than rounding; any other error of the
    model's code becomes a UserError too. The model is left unchanged.
    """
    with restored_attention(model), in_one_sentence(model, "sampling"):
        differences_A = _engine_differences(model, engine, ids)
    return require_rounding(model, "logprobs", differences_A)


def plain_reference(model: nn.Module, ids: Sequence[int]) -> Reference:
    """Plain passes over a random trajectory of `ids`, in evaluation mode, for `check_scores`."""
    exact = next(model.parameters()).dtype == torch.float32
    example = _example(_random_ids(ids), *(_TRAJECTORY if exact else _LONGER_TRAJECTORY))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with restored_attention(model), torch.enable_grad(), in_one_sentence(model, "a plain forward pass"):
        plain, gradient = _with_gradient(_plain_scores(model, example), example, weights)
    return Reference(example, plain, weights, gradient)


def check_scores(model: nn.Module, scores: Scores, plain: Reference) -> tuple[float, float]:
    """Relative differences of the logits and of the gradients (0 where no weight is trained), as in `check_engine`."""
    with restored_attention(model), torch.enable_grad(), in_one_sentence(model, "scoring"):
        # Without gradients first, as teachers score: a scorer may then take another path.
        with torch.no_grad():
            taught = scores(model, plain.example)
        packed, fast = _with_gradient(scores(model, plain.example), plain.example, plain.weights)
    differences = torch.cat([_relative(taught, plain.logits_RV), _relative(packed, plain.logits_RV)])
    values = require_rounding(model, "scores", differences)
    slow = plain.gradient
    return values, require_rounding(model, "gradients", _gradient_difference(fast, slow)) if plain.weights else 0.0


def require_finite(model: nn.Module, engine: Engine, scores: Scores, ids: Sequence[int]) -> None:
    """Raises UserError if `engine` or `scores` fail, or give NaN, with the model in the type of its weights."""
    with restored_attention(model), in_one_sentence(model, "sampling"):
        values = [_engine_differences(model, engine, ids)]
    with restored_attention(model), torch.no_grad(), in_one_sentence(model, "scoring"):
        values.append(scores(model, _example(_random_ids(ids), *_TRAJECTORY)).flatten())
    if not all(bool(tensor.isfinite().all()) for tensor in values):
        raise UserError(
            f"{_class(model)} cannot be used: its weights in {next(model.parameters()).dtype} give no numbers"
        )


def require_reach(model: Any, max_context: int, *, windows: bool = True) -> None:
    """Raises UserError if contexts of `max_context` tokens are read differently from the short ones checked.

    `windows` False: the model's own code handles windows, so only settings that depend on the whole length count.
    """
    for key, tokens in _limits(model.config.get_text_config()):
        if tokens < max_context and (windows or key not in _WINDOWS):
            raise UserError(
                f"{_class(model)} cannot be used with contexts of {max_context} tokens: beyond {tokens} it reads in "
                f"another way ({key}); set model.max_context to {tokens} or less"
            )


def ordinary_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids known to model and tokenizer that are no special tokens, which some models treat differently."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return sorted(token for token in tokenizer.get_vocab().values() if token < rows and token not in special)


def _limits(config: Any) -> Iterator[tuple[str, int]]:
    """Config keys with a number of tokens beyond which a model reads differently, and that number."""
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
def in_float32(model: nn.Module) -> Iterator[bool]:
    """Hold weights of a shorter type in float32 within the block, where errors are far larger than rounding.

    Yields whether that was done; without enough memory nothing changes. No value changes: float32 holds every value of
    a shorter type.
    """
    short = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.element_size() < 4]
    kept = [tensor.dtype for tensor in short]
    # Quantized layers compute in a type of their own.
    layers: list[Any] = [
        part for part in model.modules() if isinstance(getattr(part, "compute_dtype", None), torch.dtype)
    ]
    computed = [layer.compute_dtype for layer in layers]
    done = False
    try:
        try:
            for tensor in short:
                tensor.data = tensor.data.float()
            for layer in layers:
                layer.compute_dtype = torch.float32
            done = bool(short)
        except (torch.OutOfMemoryError, MemoryError):
            _back(short, kept)
        yield done
    finally:
        _back(short, kept)
        for layer, kind in zip(layers, computed, strict=True):
            layer.compute_dtype = kind


def _back(tensors: Sequence[Tensor], kinds: Sequence[torch.dtype]) -> None:
    for tensor, kind in zip(tensors, kinds, strict=True):
        tensor.data = tensor.data.to(kind)


@contextmanager
def restored_attention(model: nn.Module) -> Iterator[None]:
    """Restore the attention of every part of the model afterwards."""
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]  # noqa: SLF001
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name  # noqa: SLF001 - the public setter changes its parts too


def _configs(model: nn.Module) -> list[Any]:
    """Every config that names an attention implementation: those of the model's parts and those nested in them."""
    found: dict[int, Any] = {}
    pending: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    while pending:
        config = pending.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def in_one_sentence(model: nn.Module, what: str) -> Iterator[None]:
    """Turn any error of a model's code into a UserError of one sentence that names the class and `what` failed."""
    name = _class(model)
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if name in str(error) else f"{name} cannot be used: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{name} cannot be used: {what} fails on it ({reason})") from error


def require_rounding(model: nn.Module, quantity: str, differences: Tensor) -> float:
    """The quantile of `differences` that the tolerance is for. Raises UserError if it is more than rounding."""
    allowed = TOLERANCES.get(next(model.parameters()).dtype, TOLERANCES[torch.bfloat16])
    difference, largest = float(differences.quantile(allowed.share)), getattr(allowed, quantity)
    if difference <= largest:  # not `>` and raise: NaN must fail
        return difference
    raise UserError(
        f"{_class(model)} cannot be used: its {_NOUNS[quantity]} differ from those of plain forward passes by "
        f"{difference:.2g} (rounding explains {largest:g})"
    )


def _class(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def _random_ids(ids: Sequence[int]) -> Draw:
    rng = random.Random(0)
    return lambda count: tuple(rng.choices(ids, k=count))


def _engine_differences(model: nn.Module, engine: Engine, ids: Sequence[int]) -> Tensor:
    """Differences of the sampled tokens' log-probabilities, in nats: [A].

    They are divided by the spread of the logits if that is below 1, because almost uniform models agree with any other.
    """
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may be running an event loop
        turns = thread.submit(asyncio.run, _play_conversations(engine, _random_ids(ids))).result()
    with torch.no_grad():
        logits = _plain(model, [prompt + sampled.token_ids for prompt, sampled in turns])
    logits_AV = torch.cat([row[len(prompt) - 1 : -1] for row, (prompt, _) in zip(logits, turns, strict=True)])
    tokens_A = torch.tensor([token for _, sampled in turns for token in sampled.token_ids], device=logits_AV.device)
    engine_A = torch.tensor([logprob for _, sampled in turns for logprob in sampled.logprobs], device=logits_AV.device)
    plain_A = logits_AV.log_softmax(-1).gather(-1, tokens_A[:, None])[:, 0]
    return (plain_A - engine_A).abs() / logits_AV.std(-1).clamp(max=1.0)


async def _play_conversations(engine: Engine, draw: Draw) -> list[Turn]:
    """A conversation, and the first turn of another with the same start, which runs beside its second turn."""
    start, sampling = draw(_START), Sampling(max_tokens=_ACTION, temperature=1.0)
    turns: list[Turn] = []

    async def turn(conversation: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
        hinted = prompt + draw(_HINT)
        sampled = await engine.generate(hinted, conversation=conversation, seed=len(turns), sampling=sampling)
        turns.append((hinted, sampled))
        return prompt + sampled.token_ids + draw(_OBSERVATION)

    try:
        prompt = await turn("self-check 0", start + draw(_TASK))
        await asyncio.gather(turn("self-check 0", prompt), turn("self-check 1", start + draw(_TASK)))
    finally:
        engine.release("self-check 0")
        engine.release("self-check 1")
        engine.reset()
    return turns


def _example(draw: Draw, start: int, turns: int) -> DistillExample:
    """A trajectory whose hints stand two ids before the end of each step's context, as in a chat template."""
    ids = draw(start)
    spans = []
    for _ in range(turns):
        ids += draw(_OBSERVATION)
        fork, action = len(ids) - 2, len(ids)
        branch = draw(_HINT) + ids[fork:]
        ids += draw(_ACTION)
        spans.append(ActionSpan(start=action, end=len(ids), fork=fork, branch=branch))
    return DistillExample(trajectory_id="self-check", token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def _plain(model: nn.Module, sequences: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Logits [T, V] of every sequence in one plain forward pass; padding at the end cannot change causal logits."""
    longest = max(len(ids) for ids in sequences)
    padded = [[*ids, *ids[-1:] * (longest - len(ids))] for ids in sequences]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor(padded, device=device), use_cache=False).logits.float()
    return [row[: len(ids)] for row, ids in zip(logits, sequences, strict=True)]


def _plain_scores(model: nn.Module, example: DistillExample) -> Tensor:
    """`Scores` by plain passes over the clean trajectory and over each step's context with its hint."""
    ids, spans = example.token_ids, example.spans
    clean, *hinted = _plain(
        model, [ids, *(ids[: span.fork] + span.branch + ids[span.start : span.end] for span in spans)]
    )
    rows = [clean[span.start - 1 : span.end - 1] for span in spans]
    return torch.cat(rows + [row[-1 - _ACTION : -1] for row in hinted])


def _with_gradient(logits_RV: Tensor, example: DistillExample, weights: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
    """The logits, and the gradient of the actions' mean cross-entropy."""
    if not weights:
        return logits_RV, ()
    actions = [token for span in example.spans for token in example.token_ids[span.start : span.end]]
    targets_R = torch.tensor(actions * 2, device=logits_RV.device)
    loss = torch.nn.functional.cross_entropy(logits_RV, targets_R)
    return logits_RV.detach(), torch.autograd.grad(loss, weights, allow_unused=True)


def _relative(packed_RV: Tensor, plain_RV: Tensor) -> Tensor:
    """Relative difference of each row's logits (minus their mean, which softmax ignores): [R]."""
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

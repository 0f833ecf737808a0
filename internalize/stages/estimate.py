"""Estimates what a recipe will take: episodes, requests, tokens, cost, memory, disk. No weight is loaded.

The estimate assumes that no stage is skipped; tokens are at most those that the limits of the recipe allow,
or those of an earlier run's episodes. The estimated memory does not include the activations of a training pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config
from internalize.errors import UserError
from internalize.inference.architecture import Architecture
from internalize.inference.endpoints import Endpoints
from internalize.records import Record, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl, read_run
from internalize.runs.tracking import require_packages

from .plan import TaskPlan
from .refresh import rounds

_FLOAT, _ADAM = 4, 8  # bytes of a float32, and of Adam's two
_SELECTOR_READS = 3_500  # tokens of the longest conversation that a selector is shown, beside the pool
_JUDGE_READS, _ANSWER = 800, 200  # tokens of a judge's request; of a selector's or a judge's answer


class EpisodeSize(Record):
    """The size of one episode: decisions, sampled tokens, longest context, and bytes as a record."""

    turns: float
    sampled: float
    context: float
    size: float

    @staticmethod
    def most(config: Config) -> EpisodeSize:
        """The size that the limits of a recipe allow: 4 bytes a token as text, and an id and a logprob if sampled."""
        limits, context = config.rollout, config.model.max_context
        sampled = limits.max_steps * limits.max_action_tokens
        return EpisodeSize(
            turns=limits.max_steps, sampled=sampled, context=context, size=4 * context + 30 * sampled + 500
        )

    @staticmethod
    def of_run(run: Path) -> EpisodeSize:
        """The mean size of a run's episodes. Raises UserError if it has none."""
        last = int(str(read_run(run).config.get("iterations", 1)))
        found: list[Trajectory] = []
        for k, folder in names.iterations(run, last).items():
            for stage in names.learning(folder, k):
                found += read_jsonl(folder / names.episodes(stage), Trajectory)
        if not found:
            raise UserError(f"{run}: has no training episodes yet to take sizes from")
        sampled = sum(len(step.token_ids) for t in found for step in t.steps)
        text = sum(len(message.text) for t in found for message in t.context(len(t.steps)))
        return EpisodeSize(
            turns=sum(len(t.steps) for t in found) / len(found),
            sampled=sampled / len(found),
            context=text / 4 / len(found),
            size=sum(len(t.model_dump_json()) for t in found) / len(found),
        )


class Requests(Record):
    """The requests to one model besides actions. `cost` by the prices of its endpoint."""

    use: str
    name: str
    number: float
    prompt_tokens: float
    completion_tokens: float
    cost: float = 0.0


class Estimate(Record):
    """What a run takes at most. Memory and disk are bytes by the part that needs them; None = not known."""

    episodes: dict[str, int]
    steps: int
    sampled: float
    read: float
    trained: float
    requests: tuple[Requests, ...]
    memory: dict[str, int | None]
    disk: dict[str, int | None]

    @property
    def cost(self) -> float:
        """The cost of all requests to endpoints."""
        return sum(one.cost for one in self.requests)


def estimate(config: Config, plan: TaskPlan, model: Architecture | None, size: EpisodeSize | None = None) -> Estimate:
    """The estimate for a recipe and its tasks. `model` None = unknown sizes; `size` None = the limits of the recipe."""
    each = size or EpisodeSize.most(config)
    played = list(_played(config, plan))
    episodes: dict[str, int] = {}
    for one in played:
        episodes[one.stage] = episodes.get(one.stage, 0) + one.episodes
    total, drawn, distill = sum(episodes.values()), episodes.get("training", 0), config.distill
    examples = drawn * (1 + distill.replay)
    passes = 1 if distill.refresh else distill.epochs
    return Estimate(
        episodes=episodes,
        steps=_steps(config, plan) * config.iterations,
        sampled=total * each.sampled,
        read=total * each.context,
        trained=examples * passes * each.context,
        requests=tuple(_requests(config, played, each)),
        memory=_memory(config, model),
        disk=_disk(config, model, total * each.size),
    )


class _Played(NamedTuple):
    stage: str
    episodes: int
    shown: bool  # with experience in the prompt


def _played(config: Config, plan: TaskPlan) -> Iterator[_Played]:
    """The episodes of every stage in the order of the loop, with those of a second candidate and of a new pool."""
    settings, shows = config.evaluate, config.inject.pattern != "none"
    count = {suite: len(tasks) * settings.attempts for suite, tasks in plan.suites.items()}
    suite, further = count[settings.split], sum(count[name] for name in settings.further)
    again = sum(count[name] for name in plan.again)
    finals = sum(count[name] for name in settings.final_splits)
    yield _Played("evaluation", suite + further + finals, shown=False)
    gated = 2 if config.gate.rule in {"retry", "average"} else 1
    for k in range(1, config.iterations + 1):
        drawn = plan.draw(config, k, 0, config.rollout.tasks)
        yield _Played("rollouts", len(drawn) * config.rollout.attempts, shown=False)
        if config.measures(k):
            yield _Played("evaluation", suite * (gated + shows), shown=True)
            yield _Played("evaluation", suite * gated + further + 2 * again, shown=False)
        if config.distill.epochs:
            tasks = sum(
                map(len, rounds(config.distill, plan.draw(config, k, config.rollout.tasks, config.distill.tasks)))
            )
            yield _Played("training", tasks * config.distill.attempts, shown=shows and not config.distill.on_policy)
    yield _Played("evaluation", finals, shown=False)
    yield _Played("evaluation", finals, shown=True)


def _steps(config: Config, plan: TaskPlan) -> int:
    """Optimizer steps of one iteration if nothing is filtered out and a trajectory is a row."""
    distill = config.distill
    tasks = rounds(distill, plan.draw(config, 1, config.rollout.tasks, distill.tasks))
    episodes = [len(part) * distill.attempts for part in tasks]
    if distill.own:
        episodes[0] += len(plan.draw(config, 1, 0, config.rollout.tasks)) * config.rollout.attempts
    an_epoch = sum(-(-round(count * (1 + distill.replay)) // distill.batch) for count in episodes)
    return an_epoch * (1 if distill.refresh else distill.epochs)


def _requests(config: Config, played: Iterable[_Played], each: EpisodeSize) -> Iterator[Requests]:
    """The most requests to each model, if every answer can be used."""
    played = list(played)
    total = sum(one.episodes for one in played)
    if acts := config.acting_endpoint:
        turns = total * each.turns
        yield _asked(config, "acting", acts, turns, each.context, each.sampled / each.turns)
    if config.extract.source != "contrast":
        writes = config.extract.endpoint if config.extract.source == "external" else "self"
        tasks = sum(one.episodes for one in played if one.stage == "rollouts") / config.rollout.attempts
        number = tasks * (2 + config.rollout.attempts)  # summaries, a comparison, a share of the reconciliation
        yield _asked(config, "writing", writes, number, config.extract.context * 3 / 4, config.extract.context / 4)
    if config.inject.selector == "llm" and config.inject.pattern == "stepwise":
        scored = [
            *(["training"] if config.distill.on_policy and config.distill.asks_teacher else []),
            *(["rollouts"] if config.distill.own and config.distill.asks_teacher else []),
        ]
        shown = sum(one.episodes for one in played if one.shown or one.stage in scored)
        pool = config.extract.cap * config.extract.words * 2
        yield _asked(config, "selecting", config.inject.endpoint, shown * each.turns, pool + _SELECTOR_READS, _ANSWER)
    if config.judge.asks_model:
        yield _asked(config, "judging", config.judge.endpoint or "nobody", 2 * total, _JUDGE_READS, _ANSWER)


def _asked(config: Config, use: str, name: str, number: float, reads: float, writes: float) -> Requests:
    prices = config.endpoints.get(name) or EndpointConfig(base_url="", model="")
    prompt, completion = number * reads, number * writes
    cost = (prompt * prices.price_in + completion * prices.price_out) / 1e6
    return Requests(use=use, name=name, number=number, prompt_tokens=prompt, completion_tokens=completion, cost=cost)


def _trained(config: Config, model: Architecture | None) -> int | None:
    """How many parameters are trained."""
    if model is None:
        return None
    rank = config.distill.lora_r
    return model.parameters if not rank else None if model.lora is None else rank * model.lora


def _memory(config: Config, model: Architecture | None) -> dict[str, int | None]:
    if model is None:
        return dict.fromkeys(("weights", "training", "caches", "logits"))
    byte = _FLOAT if config.model.dtype == "float32" else _FLOAT // 2
    own = byte if not config.distill.lora_r else _FLOAT  # an adapter is float32 on weights of any type
    trained, settings = _trained(config, model), config.distill
    # Copies: the starter's, the anchor's, the average's.
    copies = 1 + bool(settings.kl_anchor or config.evaluate.drift) + (settings.teacher.kind == "ema")
    adam = _ADAM if own == _FLOAT else _ADAM // 2
    each = own * (1 + copies) + adam + (own if settings.lora_r else 0)
    rows = 0 if config.acting_endpoint or config.compute.engine == "vllm" else config.compute.batch
    return {
        "weights": None if model.parameters is None else byte * model.parameters,
        "training": None if trained is None else trained * each,
        "caches": rows * config.model.max_context * model.key_values * byte,
        "logits": 3 * rows * model.vocabulary * _FLOAT,
    }


def _disk(config: Config, model: Architecture | None, records: float) -> dict[str, int | None]:
    trained = _trained(config, model)
    byte = _FLOAT if config.distill.lora_r or config.model.dtype == "float32" else _FLOAT // 2
    candidates = config.iterations * (2 if config.gate.rule in {"retry", "average"} else 1)
    kept = None if trained is None else trained * byte * candidates
    return {
        "weights": kept,
        "records": round(records * 1.3),
    }  # examples, selections and measures are small beside episodes


def problems(config: Config, found: Estimate, memory: int | None, out: Path | None) -> Iterator[str]:
    """A sentence for each reason why the recipe cannot work here; `memory` is that of the device, in bytes."""
    if find_spec("torch") is None:
        yield "the learning half is not installed: pip install 'internalize[train]'"
    for check in (Endpoints(config).check, lambda: require_packages(config.track)):
        try:
            check()
        except UserError as error:
            yield str(error)
    if config.rollout.max_action_tokens >= config.model.max_context:
        yield (
            f"rollout.max_action_tokens = {config.rollout.max_action_tokens} leaves no room for a prompt in "
            f"model.max_context = {config.model.max_context}"
        )
    needed = sum(size or 0 for size in found.memory.values())
    if memory is not None and needed > memory:
        yield f"needs {needed / 2**30:.1f} GiB of memory before activations, and the device has {memory / 2**30:.1f}"
    if out is not None:
        there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
        free, wanted = shutil.disk_usage(there).free, sum(size or 0 for size in found.disk.values())
        if wanted > free:
            yield f"needs {wanted / 2**30:.1f} GiB of disk, and {there} has {free / 2**30:.1f} left"

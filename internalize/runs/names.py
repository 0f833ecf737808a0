"""The names of all files and folders of a run. Nothing reads a name to find out what a file is: names are made here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, product
from pathlib import Path

from internalize.records import Candidate, Mode, Stage

METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts.jsonl"  # episodes on training tasks without experience
POOL, EDITS = "pool.json", "edits.jsonl"
EXTRACTION, REDACTIONS, SELECTIONS = "extraction.jsonl", "redactions.json", "selections.jsonl"
EXAMPLES, TRAINING, CHECKPOINT = "train.jsonl", "train.json", "checkpoint.json"
TRAINER_INPUT = "train-input.jsonl"  # while a training runs: its examples and those of earlier iterations
EVALUATIONS, DIAGNOSTICS, DRIFT, GATE = "evaluations.jsonl", "diagnostics.jsonl", "drift.json", "gate.json"
FIRST_EVALUATIONS, FIRST_GATE = "evaluations-first.jsonl", "gate-first.json"  # of a candidate that lost
SECOND_TRAINING = "train-second.json"  # of the milder one that was trained in its place
WEIGHTS, SECOND_WEIGHTS = "checkpoint", "second"
MODES: tuple[Mode, ...] = ("internalized", "in_context")
CANDIDATES: tuple[Candidate, ...] = (1, 2)


def iteration(k: int) -> str:
    """The folder of iteration `k`."""
    return f"iter-{k}"


def iterations(run: Path, last: int) -> dict[int, Path]:
    """The folders of a run's iterations up to `last` that are there."""
    return {k: path for k in range(last + 1) if (path := run / iteration(k)).is_dir()}


def episodes(stage: Stage) -> str:
    """The file of the episodes that a stage of kind `rollout`, `collect` or `episodes` plays."""
    if stage.kind == "rollout":
        return ROLLOUTS
    if stage.kind == "collect":
        return f"teacher-{stage.round}.jsonl" if stage.round else "teacher.jsonl"
    mode = "in-context" if stage.mode == "in_context" else "internalized"
    return f"episodes-{stage.suite}-{mode}-{stage.policy}{'-second' if stage.candidate == 2 else ''}.jsonl"


def learning(folder: Path, k: int) -> Iterator[Stage]:
    """The stages of iteration `k` whose episodes are in `folder` and are learnt from."""
    plain = Stage(iteration=k, kind="rollout")
    if (folder / episodes(plain)).exists():
        yield plain
    for number in count():
        stage = Stage(iteration=k, kind="collect", round=number)
        if not (folder / episodes(stage)).exists():
            return
        yield stage


def measuring(folder: Path, k: int, suites: Iterable[str]) -> list[Stage]:
    """The stages of iteration `k` whose episodes are in `folder` and measure a policy, ordered by name."""
    every = product(suites, MODES, range(k + 1), CANDIDATES)
    stages = [
        Stage(iteration=k, kind="episodes", suite=suite, mode=mode, policy=policy, candidate=candidate)
        for suite, mode, policy, candidate in every
    ]
    return sorted((stage for stage in stages if (folder / episodes(stage)).exists()), key=episodes)


def round_weights(number: int) -> str:
    """The weights after a round of training that is not the last."""
    return f"round-{number}"


def round_summary(number: int) -> str:
    """What a round of training did."""
    return f"round-{number}.json"


def round_examples(number: int) -> str:
    """What a round of training is given, without examples of earlier iterations."""
    return f"round-{number}.jsonl"


def round_checkpoint(number: int) -> str:
    """The record of the weights after a round of training."""
    return f"round-{number}-checkpoint.json"


def round_optimizer(number: int) -> str:
    """The state with which the next round goes on."""
    return f"optimizer-{number}.pt"

"""The names of all files and folders of a run. They are made here only, and no code parses one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, product
from pathlib import Path

from internalize.records import Candidate, Mode, Stage

METRICS = "metrics.jsonl"
REHEARSAL, LAUNCHED = ".rehearsal-", ".training-"  # what folders begin with that a killed process may leave behind
VLLM = "vllm"  # folder of the servers that a run starts: their logs, adapters and model
ROLLOUTS = "rollouts.jsonl"  # episodes on training tasks without experience
POOL, EDITS = "pool.json", "edits.jsonl"
EXTRACTION, REDACTIONS, SELECTIONS = "extraction.jsonl", "redactions.json", "selections.jsonl"
EXAMPLES, TRAINING, CHECKPOINT = "train.jsonl", "train.json", "checkpoint.json"
TRAINER_INPUT = "train-input.jsonl"  # during a training: its examples and those of earlier iterations
EVALUATIONS, DIAGNOSTICS, DRIFT, GATE = "evaluations.jsonl", "diagnostics.jsonl", "drift.json", "gate.json"
COSTS = "costs.json"  # in place of the episodes, where a run was packed without them (report/slim.py)
FIRST_EVALUATIONS, FIRST_GATE = "evaluations-first.jsonl", "gate-first.json"  # of the first candidate if it lost
SECOND_TRAINING = "train-second.json"  # of the milder candidate trained after that
WEIGHTS, SECOND_WEIGHTS = "checkpoint", "second"
OF_EXTRACT = (EDITS, POOL, EXTRACTION, "extraction.json", REDACTIONS)  # what the stages `extract` and `evaluate` write
OF_EVALUATION = (EVALUATIONS, DIAGNOSTICS, DRIFT)
MODES: tuple[Mode, ...] = ("internalized", "in_context")
CANDIDATES: tuple[Candidate, ...] = (1, 2)


def iteration(k: int) -> str:
    """The folder of iteration `k`."""
    return f"iter-{k}"


def iterations(run: Path, last: int) -> dict[int, Path]:
    """The existing folders of a run's iterations up to `last`."""
    return {k: path for k in range(last + 1) if (path := run / iteration(k)).is_dir()}


def episodes(stage: Stage) -> str:
    """The file for the episodes of a stage of kind `rollout`, `collect` or `episodes`."""
    if stage.kind == "rollout":
        return ROLLOUTS
    if stage.kind == "collect":
        return f"teacher-{stage.round}.jsonl" if stage.round else "teacher.jsonl"
    mode = "in-context" if stage.mode == "in_context" else "internalized"
    return f"episodes-{stage.suite}-{mode}-{stage.policy}{'-second' if stage.candidate == 2 else ''}.jsonl"


def again(split: str, tasks: int, most: int) -> list[str]:
    """The suites of up to `tasks` further tasks of a split, `most` in all, on which a gate confirms a loss."""
    return [f"{split}-again-{number + 1}" for number in range(-(-most // tasks))]


def learning(folder: Path, k: int) -> Iterator[Stage]:
    """The stages of iteration `k` with episodes in `folder` that experience or weights are learned from."""
    plain = Stage(iteration=k, kind="rollout")
    if (folder / episodes(plain)).exists():
        yield plain
    for number in count():
        stage = Stage(iteration=k, kind="collect", round=number)
        if not (folder / episodes(stage)).exists():
            return
        yield stage


def measuring(folder: Path, k: int, suites: Iterable[str]) -> list[Stage]:
    """The stages of iteration `k` with episodes in `folder` that measure a policy, ordered by file name."""
    combinations = product(suites, MODES, range(k + 1), CANDIDATES)
    stages = [
        Stage(iteration=k, kind="episodes", suite=suite, mode=mode, policy=policy, candidate=candidate)
        for suite, mode, policy, candidate in combinations
    ]
    return sorted((stage for stage in stages if (folder / episodes(stage)).exists()), key=episodes)


def round_weights(number: int) -> str:
    """The folder of the weights after a round of training that is not the last."""
    return f"round-{number}"


def round_summary(number: int) -> str:
    """The summary of a round of training."""
    return f"round-{number}.json"


def round_examples(number: int) -> str:
    """The examples of a round of training, without those of earlier iterations."""
    return f"round-{number}.jsonl"


def round_checkpoint(number: int) -> str:
    """The record of the checkpoint after a round of training."""
    return f"round-{number}-checkpoint.json"


def round_state(folder: Path, rounds: int) -> list[Path]:
    """The weights and optimizers of the first `rounds` rounds; a later round replaces them."""
    return [folder / name(number) for number in range(rounds) for name in (round_weights, round_optimizer)]


def round_optimizer(number: int) -> str:
    """The state of the optimizer that the next round continues with."""
    return f"optimizer-{number}.pt"

"""On-policy distillation in rounds: `distill.refresh` lets the student roll out anew while it is trained.

A round rolls out as many tasks as fill `refresh` optimizer steps and trains on them once; the next round rolls out
with the new weights. An epoch is one pass over the tasks. Without `refresh` there is one round with every task.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from internalize.config.distill import DistillConfig
from internalize.config.regime import Thoughts
from internalize.config.specs import Round
from internalize.experience.inject import Injector
from internalize.interfaces import Renderer
from internalize.records import Checkpoint, DistillExample, Task, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl
from internalize.training.examples import FEWEST_HELD, FEWEST_TO_SPLIT, build_example, draw_held_out


def rounds(config: DistillConfig, tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The tasks of every round."""
    if not (config.refresh and config.epochs):
        return [tasks]
    size = max(1, config.refresh * config.batch // config.attempts)
    an_epoch = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return an_epoch * config.epochs


def split_held_out(
    config: DistillConfig, plan: Sequence[Sequence[Task]], first: Sequence[DistillExample], seed: int
) -> tuple[list[DistillExample], tuple[DistillExample, ...]]:
    """The first round's examples for training, and those held out in every round (none if rounds are too small)."""
    enough = sum(len(tasks) for tasks in plan) * config.attempts >= FEWEST_TO_SPLIT and len(first) > FEWEST_HELD
    places = draw_held_out(len(first), config.held_out, seed) if enough else frozenset()
    return [e for i, e in enumerate(first) if i not in places], tuple(e for i, e in enumerate(first) if i in places)


def training_rounds(
    config: DistillConfig,
    plan: Sequence[Sequence[Task]],
    folder: Path,
    teacher: Checkpoint,
    held: tuple[DistillExample, ...],
    earlier: int = 0,
) -> Iterator[Round]:
    """The rounds of one training: the optimizer steps each is planned to take, and the optimizer it continues.

    A round takes one step for every `batch` attempts and replayed examples (`earlier` says how many there are to draw
    from), and fewer if attempts are filtered out. A round without examples writes no optimizer, so the next one
    continues an earlier one: ask for a round only when the one before it is finished.
    """
    fresh = [len(tasks) * config.attempts for tasks in plan]
    steps = [-(-(count + min(round(config.replay * count), earlier)) // config.batch) for count in fresh]
    for number in range(len(plan)):
        carried = next(
            (file for n in range(number - 1, -1, -1) if (file := folder / names.round_optimizer(n)).exists()), None
        )
        yield Round(
            number=number,
            first_step=sum(steps[:number]),
            of_steps=sum(steps),
            teacher=teacher,
            carried_in=carried,
            carried_out=folder / names.round_optimizer(number),
            held=held,
        )


def replayed(earlier: Sequence[Path], share: float, count: int, seed: int) -> list[DistillExample]:
    """`share * count` examples of earlier iterations, drawn without replacement; all of them if there are fewer."""
    wanted = round(share * count)
    held = read_examples(earlier) if wanted else []
    return random.Random(seed).sample(held, min(wanted, len(held)))


def read_examples(earlier: Sequence[Path]) -> list[DistillExample]:
    """The examples in these files; a missing file counts as empty."""
    return [e for file in earlier if file.exists() for e in read_jsonl(file, DistillExample)]


def in_turn(*kept: Sequence[tuple[Trajectory, float]]) -> list[tuple[Trajectory, float]]:
    """One of each in turn, so that the first few are half and half; the rest of the longer one at the end."""
    return [one for row in itertools.zip_longest(*kept) for one in row if one is not None]


async def build_examples(
    kept: Sequence[tuple[Trajectory, float]],
    renderer: Renderer,
    injector: Injector | None,
    thoughts: Thoughts = "train",
) -> list[DistillExample]:
    """Weighted trajectories as examples.

    The teacher's context holds what `injector` injects, or without one what was injected when the episode was played.
    """
    found = []
    for trajectory, weight in kept:
        if injector is None:
            found.append(build_example(trajectory, renderer, weight=weight, thoughts=thoughts))
            continue
        shown = [await injector.step_injection(trajectory.context(number)) for number in range(len(trajectory.steps))]
        found.append(
            build_example(
                trajectory,
                renderer,
                injections=shown,
                global_injection=injector.global_injection(),
                weight=weight,
                thoughts=thoughts,
            )
        )
    return [example for example in found if example is not None]


def merge_summaries(summaries: Sequence[TrainSummary]) -> TrainSummary:
    """One summary of several rounds: sums, "before" of the first round, "after" of the last."""
    trained = [summary for summary in summaries if summary.steps]
    if not trained:
        return summaries[0]
    last = trained[-1]
    return trained[0].model_copy(
        update={
            "last_loss": last.last_loss,
            "divergence_after": last.divergence_after,
            "held_out_after": last.held_out_after,
            **{
                name: sum(getattr(summary, name) for summary in trained)
                for name in ("steps", "accepted", "action_tokens", "seconds")
            },
        }
    )

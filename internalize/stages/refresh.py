"""On-policy distillation in rounds: which tasks are rolled out when, and what the rounds did together.

With `distill.refresh` the student's rollouts are not all made before training: a round plays as many tasks as fill
`refresh` optimizer steps, trains on them once, and the next round plays with the new weights; an epoch is a pass
over the tasks. Left out: playing and training themselves (stages.py). What must not change: without `refresh` there
is one round with every task, and no round holds a task twice.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.experience.inject import Injector
from internalize.inference.renderer import Renderer
from internalize.records import Checkpoint, DistillExample, Task, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl
from internalize.training.examples import build_example
from internalize.training.teachers import FEWEST_HELD, FEWEST_TO_SPLIT, draw_held_out


def rounds(config: DistillConfig, tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The tasks of every round."""
    if not (config.refresh and config.epochs):
        return [tasks]
    size = max(1, config.refresh * config.batch // config.attempts)
    an_epoch = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return an_epoch * config.epochs


def without_held_out(
    config: DistillConfig, plan: Sequence[Sequence[Task]], first: Sequence[DistillExample], seed: int
) -> tuple[list[DistillExample], tuple[DistillExample, ...]]:
    """The first round's examples without those held out for all rounds: its share, if the rounds have enough in all."""
    enough = sum(len(tasks) for tasks in plan) * config.attempts >= FEWEST_TO_SPLIT and len(first) > FEWEST_HELD
    places = draw_held_out(len(first), config.held_out, seed) if enough else frozenset()
    return [e for i, e in enumerate(first) if i not in places], tuple(e for i, e in enumerate(first) if i in places)


def parts(
    config: DistillConfig,
    plan: Sequence[Sequence[Task]],
    folder: Path,
    teacher: Checkpoint,
    held: tuple[DistillExample, ...],
    earlier: int = 0,
) -> Iterator[Round]:
    """Each round as part of one training: which steps it is planned to be, whose optimizer it goes on with.

    A round has a step for every `batch` attempts and replayed examples, of which there are `earlier` to draw from,
    and fewer if some attempts are filtered out; one without any examples leaves no
    optimizer, and the next goes on with the one before. Ask for a part only when the round before it is finished.
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


def clear(folder: Path, rounds: int) -> None:
    """Remove the weights and optimizers of the first `rounds` rounds, which a later one has replaced."""
    for number in range(rounds):
        (folder / names.round_optimizer(number)).unlink(missing_ok=True)
        if (weights := folder / names.round_weights(number)).exists():
            shutil.rmtree(weights)


def replayed(earlier: Sequence[Path], share: float, count: int, seed: int) -> list[DistillExample]:
    """`share * count` examples of earlier iterations, drawn without repetition; fewer if there are not so many."""
    wanted = round(share * count)
    held = learnt(earlier) if wanted else []
    return random.Random(seed).sample(held, min(wanted, len(held)))


def learnt(earlier: Sequence[Path]) -> list[DistillExample]:
    """What earlier iterations were trained on."""
    return [e for file in earlier if file.exists() for e in read_jsonl(file, DistillExample)]


async def examples_of(
    kept: Sequence[tuple[Trajectory, float]], renderer: Renderer, injector: Injector | None
) -> list[DistillExample]:
    """Weighted trajectories as examples whose teacher saw what it was shown, or is shown it now by `injector`."""
    found = []
    for trajectory, weight in kept:
        if injector is None:
            found.append(build_example(trajectory, renderer, weight=weight))
            continue
        shown = [await injector.step_injection(trajectory.context(number)) for number in range(len(trajectory.steps))]
        found.append(
            build_example(
                trajectory, renderer, injections=shown, global_injection=injector.global_injection(), weight=weight
            )
        )
    return [example for example in found if example is not None]


def together(summaries: Sequence[TrainSummary]) -> TrainSummary:
    """One summary of several rounds: sums, and the first round's before with the last round's after."""
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

"""Rounds of one training: how many steps each is planned to be."""

from __future__ import annotations

from pathlib import Path

from internalize.config.distill import DistillConfig
from internalize.records import Task
from internalize.stages.refresh import rounds, training_rounds
from internalize.stages.scripted import STARTER


def test_replayed_examples_are_planned_for_as_far_as_there_are_any(tmp_path: Path) -> None:
    tasks = [Task.new("e", "train", str(n), "a") for n in range(4)]
    config = DistillConfig(generator="student", refresh=2, batch=1, epochs=1, replay=1.0)
    plan = rounds(config, tasks)
    assert [len(part) for part in plan] == [2, 2]
    for earlier, steps in ((0, 2), (1, 3), (50, 4)):  # a round has two tasks, and draws as many again if it can
        found = list(training_rounds(config, plan, tmp_path, STARTER, (), earlier))
        assert [(part.first_step, part.of_steps) for part in found] == [(0, 2 * steps), (steps, 2 * steps)]

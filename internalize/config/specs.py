"""The input of a backend: everything needed to play the same episodes, or train the same weights, on any machine."""

from __future__ import annotations

from pathlib import Path

from internalize.records import Checkpoint, DistillExample, Experience

from .regime import Section
from .schema import Config, EnvConfig


class RolloutSpec(Section):
    """How the episodes of one stage are played. Paths of checkpoints are relative to `root`, the run directory.

    Ids and seeds of the episodes depend on `stage`, `iteration` and the config's seed. The items of `pool` are injected
    as the recipe says; without items `pool_version` is only recorded. A language model that selects keeps its replies
    in `replies`.
    """

    config: Config
    root: Path
    checkpoint: Checkpoint
    env: EnvConfig
    stage: str
    iteration: int
    attempts: int = 1
    pool: tuple[Experience, ...] | None = None
    pool_version: str | None = None
    replies: Path | None = None


class Round(Section):
    """One part of a training with fresh rollouts between parts; the optimizer continues from part to part."""

    number: int
    first_step: int
    of_steps: int
    teacher: Checkpoint | None = None  # the frozen teacher of every round
    carried_in: Path | None = None  # file of the optimizer and average of the part before
    carried_out: Path | None = None
    held: tuple[DistillExample, ...] = ()  # held-out examples: measured in every part, never trained on


class TrainSpec(Section):
    """One training of `parent` on the file `examples`; the new weights are written to the folder `out`.

    Paths of checkpoints and `out` are relative to `root`. `shrink` is a factor on the learning rate.
    """

    config: Config
    root: Path
    parent: Checkpoint
    examples: Path
    out: str
    iteration: int
    seed: int
    pool_version: str | None = None
    part: Round | None = None
    shrink: float = 1.0

    def result(self, checkpoint_id: str) -> Checkpoint:
        """The record of the new weights."""
        return Checkpoint(
            id=checkpoint_id,
            parent=self.parent.id,
            iteration=self.iteration,
            pool_version=self.pool_version,
            config_digest=self.config.digest,
            path=self.out,
        )

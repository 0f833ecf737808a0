"""What each choice of a grid does, on two axes of two values and made-up scores that are worked out by hand."""

from dataclasses import dataclass
from typing import Any

import pytest

from internalize.report.effects import Effect, effects
from internalize.stages.study import Manifest, Member

TASKS = 8


@dataclass
class Info:
    """The seed of a run."""

    seed: int


@dataclass
class Report:
    """What `effects` reads of a run: so many tasks solved after each iteration."""

    solved: tuple[int, ...]
    info: Info

    @property
    def finished(self) -> int:
        """Iterations after the starter."""
        return len(self.solved) - 1

    def kept_at(self, iteration: int) -> int:
        """No gate."""
        return iteration

    def scores(self, iteration: int) -> dict[str, float]:
        """The first tasks are the solved ones."""
        return {str(task): float(task < self.solved[iteration]) for task in range(TASKS)}


def found(
    solved: dict[tuple[str, str], tuple[tuple[int, ...], ...]], at: tuple[int, ...] = ()
) -> dict[tuple[Any, ...], Effect]:
    """The effects by axis, iteration and what the other axis is; `solved` by cell and seed, the first the reference."""
    members = [
        Member(cell=", ".join(cell), seed=seed, folder=f"{cell}{seed}", values=dict(zip("xy", cell, strict=True)))
        for cell, seeds in solved.items()
        for seed in range(len(seeds))
    ]
    runs: Any = {
        ", ".join(cell): [Report(run, Info(seed)) for seed, run in enumerate(seeds) if run]
        for cell, seeds in solved.items()
    }
    manifest = Manifest(question="?", reference=members[0].cell, members=tuple(members), compare_at=at)
    return {(e.axis, e.iteration, e.others): e for e in effects(manifest, runs, 2)}


GRID = {
    ("a", "c"): ((0, 4, 8), (0, 4, 8)),
    ("a", "d"): ((0, 4, 6), (0, 4, 6)),
    ("b", "c"): ((0, 4, 0), (0, 4, 0)),
    ("b", "d"): ((0, 2, 4), (0, 2, 4)),
}


def test_an_effect_is_averaged_over_the_other_axis_or_taken_beside_the_reference() -> None:
    effect = found(GRID)
    assert effect["x", 2, "average"].change.mean == pytest.approx(((0 - 8) + (4 - 6)) / 2 / TASKS)
    assert effect["x", 2, "reference"].change.mean == pytest.approx((0 - 8) / TASKS)
    assert effect["y", 2, "average"].change.mean == pytest.approx(((6 - 8) + (4 - 0)) / 2 / TASKS)
    assert effect["y", 2, "reference"].change.mean == pytest.approx((6 - 8) / TASKS)
    assert effect["x", 2, "reference"].value == "b"
    assert effect["x", 2, "reference"].against == "a"


def test_p_is_the_sign_test_over_tasks_and_holms() -> None:
    effect = found(GRID)
    assert effect["x", 2, "reference"].p == pytest.approx(2 * 2 / 2**TASKS)  # 8 lost; the smaller of two comparisons
    assert effect["y", 2, "reference"].p == pytest.approx(2 / 2**2)  # 2 lost; the larger one is not adjusted
    assert (effect["x", 2, "reference"].verdict, effect["y", 2, "reference"].verdict) == ("worse", "not told apart")


def test_effects_are_taken_at_the_iterations_that_the_study_names() -> None:
    effect = found(GRID, at=(1, 2))
    assert effect["x", 1, "average"].change.mean == pytest.approx(((4 - 4) + (2 - 4)) / 2 / TASKS)
    assert effect["x", 2, "average"].change.mean == pytest.approx(-5 / TASKS)


def test_only_seeds_with_every_cell_so_far_count() -> None:
    behind = {**GRID, ("b", "d"): ((0, 2, 4), (0, 2))}
    effect = found(behind, at=(1, 2))
    assert (effect["x", 1, "average"].seeds, effect["x", 2, "average"].seeds) == (2, 1)
    assert effect["x", 2, "reference"].seeds == 2  # its two cells have both seeds
    missing = {**GRID, ("b", "d"): ((), ())}
    assert ("x", 2, "average") not in found(missing)


def test_a_study_without_axes_has_none() -> None:
    manifest = Manifest(question="?", reference="one", members=(Member(cell="one", seed=0, folder="one"),))
    assert effects(manifest, {}, 2) == ()

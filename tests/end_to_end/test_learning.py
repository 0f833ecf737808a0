"""The default recipe on a tiny policy that lacks a habit: it learns the habit, and resumes from any kill."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from internalize.config.schema import Config
from internalize.evaluation.metrics import SuiteMetrics
from internalize.experience.pool import load_pool
from internalize.runs.store import read_jsonl
from tests.command import contents
from tests.lookers import run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(out, "iterations=2")
    return out


def test_the_default_recipe_distils_a_teacher_that_plays() -> None:
    config = Config().distill
    assert (config.generator.kind, config.divergence.kind, config.filter) == ("teacher", "forward", "success")


def test_what_is_learnt_from_experience_stays_without_it(undisturbed: Path) -> None:
    found = read_jsonl(undisturbed / "metrics.jsonl", SuiteMetrics)
    success = {(m.iteration, m.suite, m.mode): m.success.mean for m in found if m.success}
    assert load_pool(undisturbed / "iter-1" / "pool.json").items
    assert success[0, "dev", "in_context"] >= success[0, "dev", "internalized"] + 0.3
    assert success[1, "dev", "internalized"] >= success[0, "dev", "internalized"] + 0.3
    assert success[2, "test", "internalized"] >= success[0, "test", "internalized"] + 0.3


def _die_at(call: int, out: Path) -> None:
    """Run, and kill this process with SIGKILL at its n-th wait for the disk."""
    calls, fsync = 0, os.fsync

    def counted(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = counted
    run(out, "iterations=2", resume=True)


def test_invariant_10_killed_anywhere_and_resumed_it_is_the_same_run(undisturbed: Path, tmp_path: Path) -> None:
    """One run, killed again and again until it gets through: each life ends a few disk writes after the last."""
    out, context, kills = tmp_path / "run", multiprocessing.get_context("fork"), 0
    for life in range(100):
        child = context.Process(target=_die_at, args=(10 + 3 * (life % 5), out))
        child.start()
        child.join(300)
        child.kill()  # does nothing to one that has ended
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    else:
        pytest.fail("every life ended before the run did")
    assert kills >= 10, kills  # episodes that end together are written together, so how many depends on time
    assert contents(out) == contents(undisturbed)

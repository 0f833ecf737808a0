"""Episodes are on disk when their stage ends, however it ends."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from internalize.errors import Incomplete
from internalize.records import Trajectory
from internalize.rollout.record import record
from internalize.runs import lines
from internalize.runs.store import read_jsonl

FIVE = [
    Trajectory(
        id=f"e{n}",
        task_id=f"t{n}",
        env="toy",
        split="train",
        iteration=0,
        seed=n,
        checkpoint="c",
        prompt=(),
        termination="answered",
    )
    for n in range(5)
]
Source = Callable[[Collection[str]], AsyncIterator[Trajectory]]


def source(end: BaseException | None = None, pause: float = 0.0) -> Source:
    async def episodes(done: Collection[str]) -> AsyncIterator[Trajectory]:
        for one in FIVE:
            if one.id not in done:
                yield one
                await asyncio.sleep(pause)
        if end:
            raise end

    return episodes


def kept(path: Path) -> list[str]:
    return [one.id for one in read_jsonl(path, Trajectory)]


IDS = [one.id for one in FIVE]


def test_a_stage_whose_budget_is_spent_keeps_what_ended(tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="spent"):
        asyncio.run(record(source(Incomplete("spent")), [*IDS, "another"], tmp_path / "e.jsonl"))
    assert kept(tmp_path / "e.jsonl") == IDS


def test_a_stage_that_is_cancelled_keeps_what_ended(tmp_path: Path) -> None:
    stage: asyncio.Task[list[Trajectory]]

    def stop(done: int, _: int) -> None:
        if done == 3:
            stage.cancel()

    async def cancelled() -> None:
        nonlocal stage
        stage = asyncio.create_task(record(source(), IDS, tmp_path / "e.jsonl", stop))
        with pytest.raises(asyncio.CancelledError):
            await stage

    asyncio.run(cancelled())
    assert kept(tmp_path / "e.jsonl") == IDS[:3]


def test_a_disk_that_is_full_for_a_while_ends_the_stage_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writes = lines.append_jsonl, iter(range(100))

    def append(path: Path, records: Any) -> None:
        if next(writes) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, records)

    monkeypatch.setattr(lines, "append_jsonl", append)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(record(source(pause=0.01), IDS, tmp_path / "e.jsonl"))
    before = kept(tmp_path / "e.jsonl")
    assert IDS[0] in before
    assert IDS[1] not in before
    assert len(asyncio.run(record(source(), IDS, tmp_path / "e.jsonl"))) == len(IDS)
    assert kept(tmp_path / "e.jsonl") == IDS


def test_what_ends_while_the_disk_is_waited_for_is_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = lines.append_jsonl, []

    def append(path: Path, records: Any) -> None:
        sizes.append(len(records))
        real(path, records)

    monkeypatch.setattr(lines, "append_jsonl", append)
    asyncio.run(record(source(), IDS, tmp_path / "e.jsonl"))
    assert sum(sizes) == len(IDS)
    assert len(sizes) < len(IDS)


class Signal(KeyboardInterrupt):
    """What a signal's handler raises between two steps of the loop."""


def test_a_signal_while_a_record_is_written_ends_the_loop_and_keeps_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal ends the loop from outside of every task; the loop then cancels all of them, the writer too."""
    path, append = tmp_path / "t.jsonl", lines.append_jsonl
    began = threading.Event()

    def slowly(*given: Any) -> None:
        began.set()
        time.sleep(0.3)
        append(*given)

    monkeypatch.setattr(lines, "append_jsonl", slowly)

    async def stage() -> None:
        def handler() -> None:
            if not began.is_set():
                asyncio.get_running_loop().call_later(0.01, handler)
                return
            raise Signal

        asyncio.get_running_loop().call_soon(handler)
        await record(source(pause=5.0), [one.id for one in FIVE], path)

    ended: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(stage())
        except BaseException as error:  # noqa: BLE001 - what ended it is looked at below
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)  # lest a loop that waits for ever holds the tests up
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [type(error) for error in ended] == [Signal]
    assert [one.id for one in read_jsonl(path, Trajectory)] == ["e0"]

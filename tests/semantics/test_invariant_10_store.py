"""Invariant 10, on the level of files: killed at any point and resumed, a stage leaves the same records."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

from internalize.records import PoolEdit
from internalize.runs.store import append_jsonl, read_jsonl, recover

KILLS = 25
BATCH = 3


def planned(number: int) -> PoolEdit:
    """Record `number` of the stage; some are far longer than a disk block, so that writes can tear."""
    generator = random.Random(number)
    return PoolEdit(op="NONE", reason=f"{number} " + "é" * generator.choice([0, 10, 5_000, 200_000]))


def resume(path: Path, until: int) -> None:
    """The writer: takes up where the file ends."""
    recover(path)
    start = len(read_jsonl(path, PoolEdit)) if path.exists() else 0
    for first in range(start, until, BATCH):
        append_jsonl(path, [planned(number) for number in range(first, min(first + BATCH, until))])


def numbers(path: Path) -> list[int]:
    return [int(record.reason.split()[0]) for record in read_jsonl(path, PoolEdit)] if path.exists() else []


def test_invariant_10_a_killed_writer_leaves_a_prefix_and_resumes(tmp_path: Path) -> None:
    path, generator = tmp_path / "records.jsonl", random.Random(0)
    context = multiprocessing.get_context("fork")
    for _ in range(KILLS):
        writer = context.Process(target=resume, args=(path, 1_000_000))  # never finishes by itself
        writer.start()
        time.sleep(generator.uniform(0.005, 0.1))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        recover(path)
        written = numbers(path)
        assert written == list(range(len(written))), "nothing twice, nothing lost, no torn record"
    assert written, "the writer was never given time to write"
    resume(path, len(written) + 7)
    resume(tmp_path / "uninterrupted.jsonl", len(written) + 7)
    assert path.read_bytes() == (tmp_path / "uninterrupted.jsonl").read_bytes()


def test_invariant_10_a_file_cut_at_any_byte_is_recovered(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    append_jsonl(whole, [PoolEdit(op="NONE", reason=f"{number} é") for number in range(4)])
    data = whole.read_bytes()
    for length in range(len(data) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(data[:length])
        recover(path)
        assert numbers(path) == list(range(data[:length].count(b"\n")))

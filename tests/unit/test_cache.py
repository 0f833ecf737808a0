"""What is built once is whole or absent, is built by one of many, and leaves no rubbish."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from internalize.runs.cache import built, cache_folder
from tests.command import Call


def folders(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


def test_an_interrupted_build_leaves_nothing_and_is_done_again(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("h")
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("w")

    target = tmp_path / "cache" / "model"
    with pytest.raises(KeyboardInterrupt):
        built(target, interrupted)
    assert folders(tmp_path / "cache") == []
    assert built(target, whole) == target
    assert [f.name for f in target.iterdir()] == ["weights"]


def test_what_a_killed_process_left_goes_at_the_next_build(tmp_path: Path) -> None:
    (tmp_path / "unfinished-abc" / "built").mkdir(parents=True)
    (tmp_path / "unfinished-abc" / "built" / "half").write_text("h")
    (tmp_path / "other-model").mkdir()
    built(tmp_path / "model", Path.mkdir)
    assert folders(tmp_path) == ["model", "other-model"]


def test_of_several_one_builds(tmp_path: Path) -> None:
    started, both, calls = threading.Event(), threading.Event(), []

    def slow(folder: Path) -> None:
        calls.append(folder)
        started.set()
        assert both.wait(timeout=10)
        folder.mkdir()

    threads = [threading.Thread(target=built, args=(tmp_path / "model", slow)) for _ in range(2)]
    threads[0].start()
    assert started.wait(timeout=10)
    threads[1].start()
    both.set()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert len(calls) == 1
    assert folders(tmp_path) == ["model"]


def test_the_folder_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.setenv("INTERNALIZE_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "internalize"


def test_the_cache_is_listed_and_cleaned(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path / "cache"))
    assert call("cache", "show").out.endswith(": 0 MB (INTERNALIZE_CACHE moves it)\n"), "there need not be a cache"

    def build(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(b"w" * 2_000_000)

    model = built(cache_folder() / "model", build)
    (cache_folder() / "pages.jsonl").write_text("p")
    os.utime(cache_folder() / "pages.jsonl", (0, 0))
    assert "2.0 MB  unused for    0 days  model" in call("cache", "show").out
    assert "deleted 1 entries, 0 MB" in call("cache", "clean", "--days", "30").out
    assert model.exists()
    os.utime(model, (0, 0))
    built(model, build)
    assert "deleted 0 entries" in call("cache", "clean", "--days", "30").out, "using it counts"
    assert "deleted 1 entries, 2 MB" in call("cache", "clean").out
    assert not model.exists()

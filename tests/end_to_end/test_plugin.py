"""The environment of docs/how-to-own-environment.md, as it stands there, found by entry point and proved."""

from __future__ import annotations

import importlib
import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from internalize.config.schema import ExtractConfig
from internalize.experience.extract.contrast import contrast
from internalize.experience.pool import empty
from internalize.experience.rules import parse
from internalize.records import ToolCall, Trajectory
from tests.steps import step

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "how-to-own-environment.md").read_text(encoding="utf-8")
SOURCE = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)


def indented(heading: str) -> str:
    """The first indented block after a heading, up to the next line of text."""
    lines = DOC[DOC.index(heading) :].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("    "))
    end = next(n for n, line in enumerate(lines) if n > start and line and not line.startswith("    "))
    return "\n".join(line.removeprefix("    ") for line in lines[start:end])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What `pip install` leaves: the module and a dist-info folder with the entry points of the doc's pyproject."""
    assert SOURCE
    (tmp_path / "boxes.py").write_text(SOURCE[1])
    project = tomllib.loads(indented("## Announce it"))["project"]
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path


def internalize(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "internalize.cli", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_example_is_short() -> None:
    assert SOURCE
    assert len(SOURCE[1].splitlines()) < 60


def test_the_example_is_found_and_proved(installed: Path) -> None:
    assert re.search(r"^boxes +plug-in boxes:Boxes$", internalize(installed, "env", "list").stdout, re.MULTILINE)
    proved = internalize(installed, "env", "validate", "boxes", "--set", "env.options.size=50")
    assert (proved.returncode, proved.stderr) == (0, "")
    assert "test: reference 50/50, 2-3 steps, closed-book guesser" in proved.stdout
    assert "tasks in more than one split: 0" in proved.stdout


def test_the_example_is_learnt_from_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that often answers too early; the rules of the doc are found and known again by their sentences."""
    for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL):
        with (tmp_path / "boxes_doc.py").open("a") as module:
            module.write(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    boxes = importlib.import_module("boxes_doc").Boxes
    env, rng = boxes(), random.Random(0)
    episodes = []
    for task in env.tasks("train"):
        calls = list(env.solve(task))
        early = rng.randrange(2 * len(calls))
        calls = [*calls[:early], ToolCall.of("answer", colour="grey")] if early < len(calls) else calls
        episode = env.episode(task)
        steps = [step("", call, episode.step(call)) for call in calls]
        episodes.append(
            Trajectory(
                id=task.id, task_id=task.id, env="boxes", split="train", iteration=1, seed=0, checkpoint="c",
                prompt=episode.prompt(), steps=tuple(steps), termination="answered", score=episode.score(),
            )
        )  # fmt: skip
    pool = empty(10).apply(contrast(episodes, empty(10), ExtractConfig(), 1, boxes.cues))
    texts = {item.text for item in pool.items}
    doc = " ".join(DOC.split())
    assert len(texts) == 3
    assert all(f"`{text}`" in doc and parse(text, boxes.cues) for text in texts)


def test_a_plugin_that_cannot_be_loaded_is_one_sentence(installed: Path) -> None:
    (installed / "boxes.py").write_text("import no_such_package_at_all\n")
    broken = internalize(installed, "env", "validate", "boxes")
    assert broken.returncode == 2
    assert "the plug-in boxes:Boxes cannot be loaded (No module named 'no_such_package_at_all')" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert "docs" in internalize(installed, "env", "list").stdout


def test_an_option_that_it_does_not_have_is_one_sentence(installed: Path) -> None:
    wrong = internalize(installed, "env", "validate", "boxes", "--set", "env.options.colour=red")
    assert wrong.returncode == 2
    assert "env.options of boxes: " in wrong.stderr
    assert "colour" in wrong.stderr

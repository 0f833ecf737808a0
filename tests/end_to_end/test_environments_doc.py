"""The web and MCP examples of docs/how-to-environments.md, as they stand there, proved by the command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from internalize.config.schema import load_config
from internalize.environments import registry

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "how-to-environments.md").read_text(encoding="utf-8")


def rows(heading: str) -> str:
    """The JSON lines of a section."""
    section = DOC[DOC.index(heading) :].split("\n## ", 1)[0]
    return "".join(f"{line.strip()}\n" for line in section.splitlines() if line.startswith('    {"'))


def validate(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "internalize.cli", "env", "validate", *arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the example says `python`
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_the_tool_server(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs the extra 'mcp'")
    pytest.importorskip("sympy", reason="needs the extra 'maths'")
    source = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)
    assert source
    (tmp_path / "server.py").write_text(source[1])
    (tmp_path / "tasks.jsonl").write_text(rows("## Tools of"))
    options = '{ tasks = "tasks.jsonl", command = ["python", "server.py"], verify = "maths" }'
    assert options in DOC
    proved = validate(tmp_path, "mcp", "--set", f"env.options={options}")
    assert re.findall(r"^(\w+): reference 1/1, 2-2 steps", proved, re.MULTILINE) == ["train", "dev", "test"]


def test_the_folder_of_pages(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra 'web'")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "p7.html").write_text("<title>Pump p7</title><p>It bears 4 bar.</p>")
    (tmp_path / "questions.jsonl").write_text(rows("## The web"))
    options = '{ questions = "questions.jsonl", folder = "pages" }'
    assert options in DOC
    assert "train: reference 1/1, 2-2 steps" in validate(tmp_path, "web", "--set", f"env.options={options}")


@pytest.mark.parametrize("name", ["tau2", "textgame"])
def test_recipes_name_environments_that_have_enough_tasks(name: str) -> None:
    config = load_config(ROOT / "recipes" / f"{name}.toml")
    if registry.BUILTIN[config.env.name].missing:
        pytest.skip(f"needs the extra {registry.BUILTIN[config.env.name].extra!r}")
    env = registry.make(config.env.name, config.env.options)
    assert len(env.tasks(config.rollout.split)) >= config.rollout.tasks
    assert len(env.tasks(config.evaluate.split)) >= config.evaluate.tasks


def test_the_lines_of_the_examples_are_json() -> None:
    for heading in ("## The web", "## Tools of"):
        assert next(json.loads(line)["split"] for line in rows(heading).splitlines()) == "train"

"""Recipes of the package by name, and the examples that `init` writes: each is read, its tasks are proved."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from internalize.cli.recipes import KINDS, recipe_file
from internalize.config.schema import load_config
from internalize.environments import registry
from internalize.environments.validate import validate
from tests.command import Call

ROOT = Path(__file__).parents[2]


def test_every_recipe_is_listed_and_shown(call: Call) -> None:
    listed = call("recipe", "list").out.splitlines()
    files = {*ROOT.glob("recipes/*.toml"), *ROOT.glob("recipes/*/*.toml")}
    assert {line.split()[0] for line in listed} == {str(f.relative_to(ROOT / "recipes").with_suffix("")) for f in files}
    assert all(len(line.split()) > 4 for line in listed), "a recipe begins with a comment that says what it is"
    assert call("recipe", "show", "demo").out == (ROOT / "recipes" / "demo.toml").read_text()
    assert "did you mean 'demo'?" in call("recipe", "show", "dmo").err


def test_a_recipe_of_the_package_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(recipe_file(Path("naive"))) == load_config(ROOT / "recipes" / "naive.toml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("seed = 7")
    assert load_config(recipe_file(Path("demo"))).seed == 7, "a file of that name comes first"
    assert recipe_file(Path("none")) == Path("none")


@pytest.mark.parametrize("kind", KINDS)
def test_init_writes_a_recipe_that_is_read_and_never_replaces_a_file(kind: str, call: Call, tmp_path: Path) -> None:
    done = call("init", "new", "--from", kind)
    assert done.code == 0
    written = {str(f.relative_to(tmp_path)) for f in (tmp_path / "new").rglob("*") if f.is_file()}
    assert set(done.out.splitlines()[0].removeprefix("Written: ").split(", ")) == written
    load_config(tmp_path / "new" / "recipe.toml")
    again = call("init", "new", "--from", kind)
    assert again.code == 2
    assert "exists already" in again.err


def test_the_tasks_of_the_examples_are_proved(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("docs", "mcp"):
        if kind == "mcp":
            pytest.importorskip("mcp", reason="needs the extra 'mcp'")
        call("init", kind, "--from", kind)
        monkeypatch.chdir(tmp_path / kind)
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")  # the recipe says `python`
        config = load_config(Path("recipe.toml"))
        rows = list(validate(registry.make(config.env.name, config.env.options), ()))
        assert rows
        assert not [row.text for row in rows if row.failed]
        monkeypatch.chdir(tmp_path)


def test_the_examples_are_those_of_the_docs(call: Call, tmp_path: Path) -> None:
    for kind, file, page in (
        ("agent", "agent.py", "own-agent"),
        ("environment", "boxes.py", "own-environment"),
        ("mcp", "server.py", "environments"),
    ):
        code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / f"how-to-{page}.md").read_text(), re.DOTALL)
        assert code
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        call("init", "new", "--from", kind)
        assert (tmp_path / "new" / file).read_text() == code[1]


def test_the_log_of_the_example_is_imported(call: Call) -> None:
    call("init", "new", "--from", "logs")
    assert call("logs", "import", "new/chat.jsonl", "--out", "episodes.jsonl").code == 0
    assert "1 of 1 tasks have a success and a failure" in call("extract", "episodes.jsonl", "--out", "pool.json").out

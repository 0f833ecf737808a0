"""The light half imports without the learning half, so that the command answers at once."""

import subprocess
import sys

import pytest

LIGHT = (
    "", ".records", ".interfaces", ".errors", ".config.schema", ".runs.store", ".experience.pool", ".experience.lint",
    ".experience.utility", ".evaluation.stats", ".evaluation.metrics", ".evaluation.diagnostics",
    ".evaluation.signs", ".evaluation.gate",
    ".formats.chat", ".formats.official", ".stages.scripted", ".loop", ".cli.main", ".cli.pool", ".cli.logs",
)  # fmt: skip
HEAVY = "torch", "transformers", "peft", "accelerate", "matplotlib", "datasets", "scipy"


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_pull_in_nothing_heavy(name: str) -> None:
    module = f"internalize{name}"
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == []

"""Every warning sign has advice, in keys that recipes have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from internalize.config.schema import load_config
from internalize.evaluation import signs
from internalize.report.signs import ADVICE


def test_every_sign_has_advice() -> None:
    tree = ast.parse(Path(signs.__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = {call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "_caution"}
    named = {arg.value for arg in made if isinstance(arg, ast.Constant)}
    assert ADVICE.keys() == named | {"below_starter", "suite_forgotten"}  # those two come by an argument


def test_the_keys_of_the_advice_are_there() -> None:
    dump = load_config(None).dump()
    for text in ADVICE.values():
        for section, key in re.findall(r"\b(\w+)\.(\w+)", text):
            assert key in dump[section], f"{section}.{key}"

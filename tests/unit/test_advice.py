"""Every warning sign has advice, in keys that recipes have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from internalize.config.schema import load_config
from internalize.evaluation import signs
from internalize.evaluation.signs import Thresholds
from internalize.report.signs import ADVICE


def test_every_sign_has_advice() -> None:
    tree = ast.parse(Path(signs.__file__).read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    compared = {
        text for text in texts if text in {"suite_forgotten", "below_starter", "pool_hurts", "pool_hurts_twice"}
    }
    assert len(compared) == 4
    assert ADVICE.keys() == Thresholds.model_fields.keys() | compared


def test_the_keys_of_the_advice_are_there() -> None:
    dump = load_config(None).dump()
    for text in ADVICE.values():
        for section, key in re.findall(r"\b(\w+)\.(\w+)", text):
            assert key in dump[section], f"{section}.{key}"

"""The packaged starter on unseen questions: it has the habits it should have, and follows a right pool."""

from pathlib import Path

import pytest

from internalize.config.schema import load_config
from internalize.stages.run import silent
from internalize.stages.standalone import Inputs, evaluate_file

CONFIG = ["evaluate.tasks=20", "rollout.max_steps=7"]


@pytest.mark.builtin
def test_a_right_pool_keeps_the_starter_from_answering_without_evidence(tmp_path: Path) -> None:
    config = load_config(None, CONFIG)
    pool = Path(__file__).parents[2] / "recipes" / "correct_pool.json"
    without = evaluate_file(config, "dev", tmp_path / "a.jsonl", Inputs(), silent)
    with_pool = evaluate_file(config, "dev", tmp_path / "b.jsonl", Inputs(pool), silent)
    assert without.unscored == with_pool.unscored == 0
    assert without.premature_rate >= 0.15
    assert with_pool.premature_rate < without.premature_rate / 2
    assert without.success
    assert with_pool.success
    assert with_pool.success.mean > without.success.mean

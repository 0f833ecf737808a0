"""Exported weights load without this package and act as the policy did; the card says where they come from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from internalize import loop
from internalize.cli.main import cli, main
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.report.gguf import convert, converter
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(3, 40)[None]
SET = [
    "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=1", "rollout.max_steps=2",
    "rollout.max_action_tokens=6", "distill.tasks=3", "distill.epochs=1", "distill.filter=none", "distill.lr=1e-2",
    "distill.divergence=sft", "model.adapter=none", "evaluate.tasks=3", "evaluate.final_tasks=2", "compute.batch=4",
]  # fmt: skip


def _made(folder: Path, *changes: str) -> tuple[Path, Config]:
    """A run over a tiny model that lies in a folder of its own."""
    base = folder / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    config = load_config(None, [*SET, f"model.source={base}", *changes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        loop.run(config, folder / "run")
    return folder / "run", config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    return _made(tmp_path_factory.mktemp("made"), "distill.lora_r=4")


def _logits_of(config: Config, weights: Path) -> torch.Tensor:
    policy = LocalPolicy.of(config)
    policy.restore(weights)
    with torch.no_grad():
        return policy.model(IDS).logits


def _export(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_adapter_loads_with_peft(made: tuple[Path, Config], tmp_path: Path) -> None:
    run, config = made
    said = _export(run, "--out", tmp_path / "out")
    assert "the adapter of" in said
    assert "iter-2/checkpoint" in said
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, _logits_of(config, run / "iter-2" / "checkpoint"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tiny_tokenizer().get_vocab()
    assert not (tmp_path / "out.part").exists()


def test_merged_weights_load_with_transformers_alone(made: tuple[Path, Config], tmp_path: Path) -> None:
    run, config = made
    _export(run / "iter-1" / "checkpoint", "--out", tmp_path / "out", "--merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(IDS).logits, _logits_of(config, run / "iter-1" / "checkpoint"), atol=1e-4, rtol=1e-3
        )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "This is the checkpoint of iteration 1; the run kept 2." in card


CONVERTER = """import pathlib, sys
model, _, out = sys.argv[1:]
if not pathlib.Path(model, "tokenizer.json").is_file():
    sys.exit("no tokenizer")
pathlib.Path(out).write_bytes(pathlib.Path(model, "model.safetensors").read_bytes())
"""


def test_a_gguf_file_is_made_by_the_converter_of_the_user(
    made: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The converter here copies the weights that it is given; without one nothing is loaded or written."""
    run, out = made[0], tmp_path / "with spaces" / "mine.gguf"
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    for problem in ("does not hold it", "could not convert the model (too old)"):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(run), "--out", str(out)])
        assert (ended.value.code, problem in capsys.readouterr().err) == (2, True)
        assert not any(out.parent.glob("*"))
        (tmp_path / "llama.cpp").mkdir(exist_ok=True)
        (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("import sys\nsys.exit('too old')")
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    assert "llama-server -m" in _export(run, "--out", out)
    _export(run, "--out", tmp_path / "whole", "--merged")
    assert out.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.builtin
@pytest.mark.skipif(not (os.environ.get("LLAMA_CPP") or shutil.which("convert_hf_to_gguf.py")), reason="no llama.cpp")
def test_the_converter_of_llama_cpp_keeps_the_probabilities(tmp_path: Path) -> None:
    """Read back by transformers' own reader of GGUF files; half precision moves log-probabilities a little."""
    (tmp_path / "recipe.toml").write_text("")
    _export(tmp_path / "recipe.toml", "--out", tmp_path / "whole", "--starter")
    convert(converter(), tmp_path / "whole", tmp_path / "mine.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
    found = []
    for folder, more in ((tmp_path / "whole", {}), (tmp_path, {"gguf_file": "mine.gguf"})):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
        with torch.no_grad():
            found.append(model(ids).logits.log_softmax(-1))
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0)


def test_the_starter_of_a_run_is_exported_to_be_served(made: tuple[Path, Config], tmp_path: Path) -> None:
    run, config = made
    assert "starts from" in _export(run, "--out", tmp_path / "out", "--starter")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, LocalPolicy.of(config, check=False).model(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tiny_tokenizer().get_vocab()


def test_whole_training_is_exported_whole(tmp_path: Path) -> None:
    run, config = _made(tmp_path, "distill.lora_r=0", "iterations=1", "distill.lr=1e-4")
    assert "the model of" in _export(run, "--out", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, _logits_of(config, run / "iter-1" / "checkpoint"))


def test_the_card_has_lineage_data_settings_and_results(made: tuple[Path, Config], tmp_path: Path) -> None:
    run, config = made
    _export(run, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front, _, body = card.partition("---\n")[2].partition("---\n")
    assert front == "library_name: peft\ntags: [internalize]\n"
    records = [json.loads((run / f"iter-{k}" / "checkpoint.json").read_text()) for k in (1, 2)]
    for record in records:
        assert f"| {record['iteration']} | `{record['id']}` | `{record['parent']}` |" in body
    for text in (config.digest, "## Lineage", "## Data", "## Settings", "`distill.lr` | 0.01", "## Results", "starter"):
        assert text in body
    accepted = json.loads((run / "iter-2" / "train.json").read_text())["accepted"]
    assert f"| 2 | {accepted} |" in body


def test_a_checkpoint_without_a_run_needs_its_recipe(
    made: tuple[Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = made
    alone = tmp_path / "a" / "b" / "alone"
    alone.parent.mkdir(parents=True)
    (run / "iter-1" / "checkpoint").rename(alone)
    try:
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(alone), "--out", str(tmp_path / "out")])
        assert "lies in no run" in capsys.readouterr().err
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f"[model]\nsource = '{config.model.source}'\ndevice = 'cuda'\n[extract]\nsource = 'external'\n"
            "endpoint = 'far'\n[endpoints.far]\nbase_url = 'http://127.0.0.1:9/v1'\nmodel = 'm'\nkey_env = 'NOT_SET'\n"
        )
        _export(alone, "--out", tmp_path / "out", "--recipe", recipe, "--set", "distill.lora_r=4")  # no server is asked
    finally:
        alone.rename(run / "iter-1" / "checkpoint")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing was measured." in card
    assert "its data is not known here" in card  # nothing is said that only a run would know
    assert not any(word in card for word in ("extract.", "tasks an iteration", "experience that stood", "starter"))


def test_what_cannot_be_exported_is_said_in_a_sentence(
    made: tuple[Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = made
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("seed = 0\n")
    empty = tmp_path / "weights" / "of" / "mine"
    empty.mkdir(parents=True)
    (empty / "adapter_model.safetensors").touch()
    for arguments, sentence in [
        ([tmp_path / "nowhere", "--out", tmp_path / "o"], "is neither a run directory (no run.json) nor a checkpoint"),
        ([run, "--out", tmp_path / "full"], "already holds files"),
        ([empty, "--out", tmp_path / "o", "--recipe", recipe], "which is no model by itself; add --merged"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main(["export", *map(str, arguments)])
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
        assert not (tmp_path / "o").exists()

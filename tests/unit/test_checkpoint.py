"""Weights on disk: same weights, same id; complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from internalize.errors import DataError
from internalize.training.adapter import new_adapter
from internalize.training.checkpoint import checkpoint_id, load_checkpoint, save_checkpoint, trained_state
from tests.tiny import tiny_model

IDS = torch.arange(3, 30)[None]


def _policy(r: int, seed: int) -> torch.nn.Module:
    """A policy whose trained weights are all random, so that an adapter has an effect."""
    policy = new_adapter(tiny_model(), r, seed) if r else tiny_model(seed)
    torch.manual_seed(seed)
    for weight in policy.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return policy.eval()


@pytest.mark.parametrize("r", [4, 0])
def test_a_round_trip_keeps_outputs_and_id(tmp_path: Path, r: int) -> None:
    saved, other = _policy(r, 1), _policy(r, 2)
    ident = save_checkpoint(saved, tmp_path / "c")
    assert (
        checkpoint_id(tmp_path / "c")
        == ident
        == checkpoint_id(trained_state(saved))
        != checkpoint_id(trained_state(other))
    )
    assert load_checkpoint(other, tmp_path / "c") == ident == checkpoint_id(trained_state(other))
    assert torch.equal(saved(IDS).logits, other(IDS).logits)


def test_peft_and_transformers_load_it(tmp_path: Path) -> None:
    adapter, whole = _policy(4, 1), _policy(0, 1)
    save_checkpoint(adapter, tmp_path / "a")
    save_checkpoint(whole, tmp_path / "w")
    assert torch.equal(PeftModel.from_pretrained(tiny_model(), tmp_path / "a")(IDS).logits, adapter(IDS).logits)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "w")(IDS).logits, whole(IDS).logits)


def test_an_adapter_folder_holds_the_adapter_alone(tmp_path: Path) -> None:
    save_checkpoint(_policy(4, 1), tmp_path / "c")
    assert sorted(file.name for file in tmp_path.glob("c/*")) == ["adapter_config.json", "adapter_model.safetensors"]


def test_tied_heads_survive(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    saved, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    ident = save_checkpoint(saved, tmp_path / "c")
    assert "lm_head.weight" not in trained_state(saved)
    assert load_checkpoint(other, tmp_path / "c") == ident
    assert torch.equal(saved(IDS).logits, other(IDS).logits)


def test_saving_again_replaces_and_a_leftover_of_a_killed_save_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c.part").mkdir()
    (tmp_path / "c.part" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot read"):
        checkpoint_id(tmp_path / "c")
    save_checkpoint(_policy(4, 1), tmp_path / "c")
    second = save_checkpoint(_policy(4, 2), tmp_path / "c")
    assert checkpoint_id(tmp_path / "c") == second
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("r", [4, 0])
def test_weights_are_on_disk_before_their_folder_has_its_name(
    tmp_path: Path, r: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a stage could else be finished without its weights."""
    synced: dict[int, bool] = {}  # by inode: whether the folder had its name already

    def fsync(handle: int) -> None:
        synced[os.fstat(handle).st_ino] = (tmp_path / "c").exists()

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(_policy(r, 1), tmp_path / "c")
    monkeypatch.undo()
    files = [*(tmp_path / "c").iterdir(), tmp_path / "c"]
    assert [synced.get(file.stat().st_ino) for file in files] == [False] * len(files)
    assert synced.get(tmp_path.stat().st_ino) is True, "and so is the name"


def test_weights_of_another_iteration_are_refused(tmp_path: Path) -> None:
    first, second = (save_checkpoint(_policy(4, seed), tmp_path / str(seed)) for seed in (1, 2))
    assert load_checkpoint(_policy(4, 3), tmp_path / "2", second) == second
    shutil.rmtree(tmp_path / "2")
    (tmp_path / "1").rename(tmp_path / "2")
    with pytest.raises(DataError, match=rf"2: holds the weights {first}, but its record names {second}"):
        load_checkpoint(_policy(4, 3), tmp_path / "2", second)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_checkpoint(_policy(4, 1), tmp_path / "c")
    with pytest.raises(DataError, match="not weights of this model"):
        load_checkpoint(_policy(8, 1), tmp_path / "c")

"""Whose weights teach: the start's, the student's of now, their average, another model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from internalize.config.distill import DistillConfig
from internalize.errors import UserError
from internalize.records import DistillExample
from internalize.training.adapter import new_adapter
from internalize.training.checkpoint import checkpoint_id, trained_state
from internalize.training.distill import distill
from internalize.training.head import backbone, head
from internalize.training.scoring import PackedScorer, pack, pack_clean, teacher_hidden
from internalize.training.student import PolicyWithLoss
from internalize.training.teachers import References, build_training_set, held_out, require_same_tokens
from internalize.training.weights import Average, head_with, snapshot, swapped, trained
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trajectories import likely_example

CONFIG = DistillConfig(epochs=3, lr=5e-3, batch=2, lora_r=4)


def changed(update: dict[str, object]) -> DistillConfig:
    return DistillConfig.model_validate(CONFIG.model_dump() | update)


@pytest.fixture
def examples(model: LlamaForCausalLM) -> list[DistillExample]:
    return [likely_example(model, seed) for seed in range(5)]


def _policy(lora_r: int) -> torch.nn.Module:
    return new_adapter(tiny_model(), lora_r, 0) if lora_r else tiny_model()


def _shake(model: torch.nn.Module, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trained(model).values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))


@pytest.mark.parametrize("lora_r", [4, 0])
def test_swapped_weights_are_those_of_the_other_model_and_go_back_whatever_happens(lora_r: int) -> None:
    policy = _policy(lora_r)
    first = snapshot(policy)
    _shake(policy)
    own = checkpoint_id(trained_state(policy))
    ids = torch.arange(3, 20)[None]
    with pytest.raises(KeyError), swapped(policy, first):  # noqa: PT012 - the error is raised inside on purpose
        torch.testing.assert_close(policy(ids).logits, _policy(lora_r)(ids).logits)
        raise KeyError
    assert checkpoint_id(trained_state(policy)) == own
    with pytest.raises(KeyError), swapped(policy, {}):
        pass
    assert checkpoint_id(trained_state(policy)) == own


@pytest.mark.parametrize("lora_r", [4, 0])
def test_an_average_keeps_its_share_every_step(lora_r: int) -> None:
    policy = _policy(lora_r)
    average, first = Average(policy, 0.75), snapshot(policy)
    _shake(policy)
    average.update(policy)
    _shake(policy, 2)
    second = snapshot(policy)
    for name, tensor in average.state.items():
        assert torch.allclose(tensor, 0.75 * first[name] + 0.25 * (second[name] - _noise(policy, name, 2)), atol=1e-6)


def _noise(model: torch.nn.Module, wanted: str, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    noise = {name: 0.1 * torch.randn(weight.shape, generator=draw) for name, weight in trained(model).items()}
    return noise[wanted]


@pytest.mark.parametrize("lora_r", [4, 0])
@pytest.mark.parametrize("teacher", ["frozen", "live", "ema"])
def test_each_teacher_answers_with_its_own_weights(examples: list[DistillExample], teacher: str, lora_r: int) -> None:
    """The loss of a moved student against a slow computation with a second model that has the teacher's weights."""
    policy, example = _policy(lora_r), examples[0]
    config = changed({"teacher": teacher, "lora_r": lora_r, "ema": 0.5})
    student = PolicyWithLoss(policy, build_training_set(policy, [example], config, References(), 0), config)
    first = snapshot(policy)
    _shake(policy)
    if student.average is not None:
        student.average.update(policy)
    now = snapshot(policy)
    weights = {"frozen": first, "live": now, "ema": {n: 0.5 * first[n] + 0.5 * now[n] for n in first}}[teacher]
    other = _policy(lora_r)
    with torch.no_grad():
        for name, weight in trained(other).items():
            weight.copy_(weights[name])
        log_p = head(other)(teacher_hidden(other, pack(example))).log_softmax(-1)
        clean = teacher_hidden(policy, pack_clean(example.token_ids, example.spans))
        log_q = head(policy)(clean).log_softmax(-1)
        got = student.token_losses(student.data.items[0])
    torch.testing.assert_close(got, (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"divergence": "sft"}, {"kl_anchor": 0.3}, {"per": "trajectory"}])
def test_items_that_share_a_pass_have_the_losses_and_gradients_of_separate_passes(
    examples: list[DistillExample], changes: dict[str, object]
) -> None:
    config = changed(changes)
    gradients, losses = [], []
    for room in (0, 10_000):
        policy = _policy(4)
        references = References(anchor_weights=snapshot(policy), scorer=PackedScorer(room))
        student = PolicyWithLoss(policy, build_training_set(policy, examples, config, references, 0), config)
        _shake(policy)
        row = tuple((place, item) for place, item in enumerate(student.data.items))
        parts = student.passes(row)
        assert [len(part) for part in parts] == ([1] * len(row) if room == 0 else [len(row)])
        labels = torch.zeros(1)
        found = [student(part, labels, torch.tensor(7.0))["loss"] for part in parts]
        torch.stack(found).sum().backward()
        losses.append(float(sum(found)))
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained(policy).values()]))
        assert set(student.first_losses) == set(range(len(row)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_moving_teacher_and_long_items_have_passes_of_their_own(examples: list[DistillExample]) -> None:
    policy = _policy(4)
    for teacher, room, expected in (("live", 10_000, 1), ("frozen", len(examples[0].token_ids), 1)):
        config = changed({"teacher": teacher})
        references = References(scorer=PackedScorer(room))
        student = PolicyWithLoss(policy, build_training_set(policy, examples, config, references, 0), config)
        row = tuple((place, item) for place, item in enumerate(student.data.items))
        assert max(len(part) for part in student.passes(row)) == expected
        assert [one for part in student.passes(row) for one in part] == [*row]


@pytest.mark.slow
@pytest.mark.parametrize("lora_r", [4, 0])
@pytest.mark.parametrize("teacher", ["live", "ema"])
@pytest.mark.parametrize("divergence", ["forward", "js"])
def test_a_moving_teacher_gets_no_gradient_and_the_loss_falls(
    examples: list[DistillExample], tmp_path: Path, teacher: str, divergence: str, lora_r: int
) -> None:
    change = {"teacher": teacher, "lora_r": lora_r, "divergence": divergence, "epochs": 6, "ema": 0.9, "lr": 3e-3}
    config = changed(change)
    policy = _policy(lora_r)
    summary = distill(policy, examples, config, seed=0, output_dir=tmp_path)
    assert summary.divergence_after < 0.9 * summary.divergence_before
    assert not policy.training


def test_a_frozen_teacher_may_be_of_weights_before_now(examples: list[DistillExample]) -> None:
    policy = _policy(4)
    start = snapshot(policy)
    expected = build_training_set(policy, examples, CONFIG, References(), 0).items[0].teacher_AD
    _shake(policy)
    assert torch.equal(build_training_set(policy, examples, CONFIG, References(start), 0).items[0].teacher_AD, expected)
    assert not torch.equal(build_training_set(policy, examples, CONFIG, References(), 0).items[0].teacher_AD, expected)


def test_a_policy_gradient_moves_apart_what_succeeded_and_what_failed(
    examples: list[DistillExample], tmp_path: Path
) -> None:
    """Its ratio is to the weights that it starts from, whatever the teacher of other regimes would be."""
    good, bad = examples[0], examples[1].model_copy(update={"weight": -1.0})
    policy, other = _policy(4), _policy(4)
    _shake(other)
    config = changed(
        {"divergence": "policy_gradient", "generator": "student", "filter": "advantage", "attempts": 4, "epochs": 20}
    )

    def nlls() -> list[float]:
        data = build_training_set(policy, [good, bad], config, References(), 0)
        plain = PolicyWithLoss(policy, data, changed({"divergence": "sft"}))
        return [plain.total(replace(item, teacher_AD=None)) / len(item.packed.targets) for item in data.items]

    before = nlls()
    data = build_training_set(policy, [good, bad], config, References(snapshot(other)), 0)
    student = PolicyWithLoss(policy, data, config)
    losses = [student.token_losses(item) for item in data.items]
    torch.testing.assert_close(torch.cat(losses), torch.full_like(torch.cat(losses), -1.0))  # every ratio is 1
    distill(policy, [good, bad], config, seed=0, output_dir=tmp_path)
    after = nlls()
    assert after[0] < before[0] - 0.05
    assert after[1] > before[1] + 0.05


def test_the_heads_weights_are_found_only_where_they_are_trained() -> None:
    assert head_with(_policy(4), {}) is None
    policy = _policy(0)
    zeros = {name: torch.zeros_like(weight) for name, weight in trained(policy).items()}
    found = head_with(policy, zeros)
    assert found is not None
    assert not found(torch.ones(2, 32)).any()


def test_an_anchor_holds_the_student_at_the_starter(examples: list[DistillExample], tmp_path: Path) -> None:
    moved = {}
    for weight in (0.0, 20.0):
        policy = _policy(4)
        config = changed({"divergence": "sft", "kl_anchor": weight, "epochs": 6})
        start_weights = References(anchor_weights=snapshot(policy))
        distill(policy, examples, config, seed=0, output_dir=tmp_path, references=start_weights)
        packed = pack_clean(examples[0].token_ids, examples[0].spans)
        log_q = head(policy)(teacher_hidden(policy, packed)).log_softmax(-1)
        start = _policy(4)
        log_a = head(start)(teacher_hidden(start, packed)).log_softmax(-1)
        moved[weight] = float((log_q.exp() * (log_q - log_a)).sum(-1).mean())
    assert moved[20.0] < 0.2 * moved[0.0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    tiny_model(seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_another_model_teaches(examples: list[DistillExample], source: Path, tmp_path: Path) -> None:
    config = changed({"teacher": "model", "teacher_source": str(source), "epochs": 8})
    policy, own = _policy(4), tiny_tokenizer()
    other = tiny_model(seed=3)
    learnable = [likely_example(other, seed) for seed in range(4)]
    references = References(tokenizer=own)
    summary = distill(policy, learnable, config, seed=0, output_dir=tmp_path / "t", references=references)
    assert summary.divergence_after < 0.9 * summary.divergence_before
    data = build_training_set(policy, learnable, config, references, 0)
    torch.testing.assert_close(data.items[0].teacher_AD, teacher_hidden(other, pack(learnable[0])))


def test_another_model_with_other_tokens_is_refused(examples: list[DistillExample], source: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(source)
    config = changed({"teacher": "model", "teacher_source": str(source)})
    with pytest.raises(UserError, match=r"token '<new>' has id \d+ there and None here"):
        build_training_set(_policy(4), examples, config, References(tokenizer=tiny_tokenizer()), 0)
    require_same_tokens(tiny_tokenizer(), tiny_tokenizer(), "itself")


def test_a_share_is_held_out_where_there_is_enough() -> None:
    assert [len(held_out(n, 0.1, 0)) for n in (0, 5, 19, 20, 21, 40, 100)] == [0, 0, 0, 2, 2, 4, 10]
    assert held_out(100, 0.0, 0) == frozenset()
    assert held_out(100, 0.1, 0) == held_out(100, 0.1, 0) != held_out(100, 0.1, 1)


def test_held_out_examples_are_measured_and_not_trained_on(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    examples = [likely_example(model, seed) for seed in range(20)]
    for teacher in ("frozen", "ema"):
        config = changed({"teacher": teacher})
        data = build_training_set(_policy(4), examples, config, References(), 0)
        assert (len(data.items), len(data.held_out)) == (18, 2)
        trained_ids = {tuple(item.packed.ids.tolist()) for item in data.items}
        assert not any(tuple(item.packed.ids.tolist()) in trained_ids for item in data.held_out)
        assert all(item.teacher_AD is not None for item in data.held_out)
    summary = distill(_policy(4), examples, CONFIG, seed=0, output_dir=tmp_path)
    assert (summary.accepted, summary.held_out) == (18, 2)
    assert summary.held_out_after != summary.held_out_before


@pytest.mark.parametrize("teacher", ["live", "ema"])
@pytest.mark.parametrize("lora_r", [4, 0])
def test_under_autocast_a_moving_teacher_leaves_the_students_gradient_alone(
    examples: list[DistillExample], teacher: str, lora_r: int
) -> None:
    config = changed({"teacher": teacher, "lora_r": lora_r})
    gradients = []
    for half in (False, True):
        policy = _policy(lora_r)
        student = PolicyWithLoss(policy, build_training_set(policy, examples, config, References(), 0), config)
        _shake(policy)  # an average that is not the student any more
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # two passes share one cache of casts
            loss = sum(student.token_losses(item).sum() for item in student.data.items[:2])
        loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained(policy).values()]))
    assert gradients[0].norm() > 0
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


HEADS = {
    "Granite": {"logits_scaling": 8.0},
    "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "NanoChat": {},
}


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("family", HEADS)
def test_a_head_scales_and_caps_as_the_models_own_forward(family: str, lora_r: int) -> None:
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**sizes | HEADS[family])
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    policy = new_adapter(model, lora_r, 0) if lora_r else model
    ids = torch.arange(3, 20)[None]
    hidden = backbone(policy)(ids).last_hidden_state
    torch.testing.assert_close(head(policy)(hidden[0]), policy(ids).logits[0])
    start = snapshot(policy)
    before, kept = head(policy)(hidden[0]), head_with(policy, start)
    _shake(policy)
    assert (kept is None) == bool(lora_r)
    if kept is not None:
        torch.testing.assert_close(kept(hidden[0]), before)
        assert not torch.allclose(head(policy)(hidden[0]), before)

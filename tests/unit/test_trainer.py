"""Training: it lowers what it says it lowers, repeats exactly, and counts every action token once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.errors import InternalizeError
from internalize.records import DistillExample, TrainSummary
from internalize.training.adapter import new_adapter
from internalize.training.checkpoint import checkpoint_id, trained_state
from internalize.training.distill import distill, fit
from internalize.training.head import head
from internalize.training.scoring import hidden_states, pack, pack_branches, pack_clean, teacher_hidden
from internalize.training.teachers import References, TrainItem
from internalize.training.weights import snapshot
from tests.tiny import tiny_model
from tests.trajectories import likely_example, random_example

CONFIG = DistillConfig(epochs=4, lr=1e-2, batch=2, lora_r=4)


def changed(update: dict[str, object]) -> DistillConfig:
    return DistillConfig.model_validate(CONFIG.model_dump() | update)


@pytest.fixture(scope="module")
def examples() -> list[DistillExample]:
    return [likely_example(tiny_model(), seed) for seed in range(5)]


def _train(
    examples: list[DistillExample], folder: Path, *, seed: int = 0, **change: object
) -> tuple[torch.nn.Module, TrainSummary]:
    config = changed(change)
    policy = new_adapter(tiny_model(), config.lora_r, seed) if config.lora_r else tiny_model()
    return policy, distill(policy, examples, config, seed=seed, output_dir=folder)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "sft"])
@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_short_run_lowers_its_divergence(
    examples: list[DistillExample], tmp_path: Path, divergence: str, lora_r: int
) -> None:
    _, summary = _train(examples, tmp_path, divergence=divergence, lora_r=lora_r)
    assert summary.divergence_before is not None
    assert summary.divergence_after is not None
    assert summary.divergence_after < 0.8 * summary.divergence_before
    assert summary.first_loss == pytest.approx(summary.divergence_before, rel=1e-4)  # all weights are 1
    assert (summary.steps, summary.accepted) == (4 * 3, 5)
    assert summary.action_tokens == sum(span.end - span.start for example in examples for span in example.spans)
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_global_experience_is_distilled_too(model: LlamaForCausalLM, tmp_path: Path) -> None:
    examples = [likely_example(model, seed, hint="global") for seed in range(4)]
    _, summary = _train(examples, tmp_path)
    assert summary.divergence_after < 0.8 * summary.divergence_before


@pytest.mark.slow
def test_training_in_context_too_keeps_what_experience_does(examples: list[DistillExample], tmp_path: Path) -> None:
    """Without it the student's learning also moves what the same weights do with the experience before them."""
    start, moved = tiny_model(), {}
    for choice in ("off", "keep"):
        policy, summary = _train(examples, tmp_path, lr=3e-3, in_context=choice)
        assert summary.divergence_after < 0.9 * summary.divergence_before
        assert (summary.steps, summary.accepted) == (4 * 3, 5)
        moved[choice] = 0.0
        for example in examples:
            before = head(start)(teacher_hidden(start, pack(example))).log_softmax(-1)
            after = head(policy)(teacher_hidden(policy, pack(example))).log_softmax(-1)
            moved[choice] += (before.exp() * (before - after)).sum().item()
    assert moved["keep"] < 0.8 * moved["off"]


def test_the_loss_in_context_is_added_and_not_counted(examples: list[DistillExample], tmp_path: Path) -> None:
    _, summary = _train(examples, tmp_path, divergence="sft", epochs=1, lr=1e-9, batch=5, in_context="learn")
    model, clean, shown, tokens = tiny_model(), 0.0, 0.0, 0
    for example in examples:
        for packed in (pack_clean(example.token_ids, example.spans), pack(example)):
            logits = head(model)(hidden_states(model, packed))
            nll = torch.nn.functional.cross_entropy(logits, packed.targets, reduction="sum").item()
            clean, shown = (clean, shown + nll) if packed.segments[1:] else (clean + nll, shown)
        tokens += len(packed.targets)
    assert summary.first_loss == pytest.approx((clean + shown) / tokens, rel=1e-4)
    assert summary.divergence_before == pytest.approx(clean / tokens, rel=1e-4)


def test_same_seed_same_weights_and_another_seed_others(examples: list[DistillExample], tmp_path: Path) -> None:
    ids = []
    for seed in (0, 0, 1):
        torch.rand(3)  # the state of the global generator does not matter
        policy, _ = _train(examples, tmp_path, seed=seed, epochs=1)
        ids.append(checkpoint_id(trained_state(policy)))
    assert ids[0] == ids[1] != ids[2]


def _trained_with_dropout(rate: float, folder: Path, **change: object) -> tuple[torch.nn.Module, TrainSummary, int]:
    """A model whose layers use dropout in modules and as functions, and how often its first layer ran."""
    settings = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = dict.fromkeys(("dropout", "attention_dropout", "layerdrop"), rate)
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(vocab_size=400, word_embed_proj_dim=32, init_std=0.2, **settings, **names)).eval()
    runs = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: runs.append(1))
    examples = [random_example(seed) for seed in range(4)]
    config = changed({"lora_r": 0, "epochs": 2, "divergence": "sft", "held_out": 0.0, **change})
    return model, distill(model, examples, config, seed=0, output_dir=folder), len(runs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_dropout_of_the_config_is_off_unless_asked_for(tmp_path: Path, checkpointing: bool) -> None:  # noqa: FBT001
    trainer = {"gradient_checkpointing": True} if checkpointing else {}
    without, reference, runs = _trained_with_dropout(0.0, tmp_path)
    with_it, summary, more = _trained_with_dropout(0.5, tmp_path, trainer=trainer)
    asked, other, _ = _trained_with_dropout(0.5, tmp_path, trainer=trainer, dropout=True)
    assert summary.divergence_before == pytest.approx(reference.divergence_before, rel=1e-5)
    assert abs(other.divergence_before - reference.divergence_before) > 0.01
    assert (more > runs) is checkpointing  # kept activations are not what makes it right
    for name, tensor in trained_state(without).items():
        torch.testing.assert_close(trained_state(with_it)[name], tensor, atol=1e-5, rtol=1e-4)
    assert not with_it.training
    assert not asked.training


def test_only_the_adapter_changes(examples: list[DistillExample], tmp_path: Path) -> None:
    policy, _ = _train(examples, tmp_path, epochs=1)
    base = tiny_model().state_dict()
    for name, tensor in policy.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, base[name.replace(".base_layer", "")]), name
    assert not policy.training


def test_the_teacher_stays_where_it_was_when_the_head_is_trained(
    examples: list[DistillExample], tmp_path: Path
) -> None:
    """The reported divergence is against the weights of the start, computed here from a second model."""
    policy, summary = _train(examples, tmp_path, lora_r=0, batch=5, epochs=2)
    start, total, count = tiny_model(), 0.0, 0
    for example in examples:
        teacher = head(start)(teacher_hidden(start, pack(example))).log_softmax(-1)
        student = head(policy)(hidden_states(policy, pack_clean(example.token_ids, example.spans))).log_softmax(-1)
        total += (teacher.exp() * (teacher - student)).sum().item()
        count += len(teacher)
    assert summary.divergence_after == pytest.approx(total / count, rel=1e-4)


def test_an_optimizer_step_is_a_mean_over_its_action_tokens(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """Accumulated trajectories of different lengths and weights give the gradient of one weighted mean."""
    packs = [
        pack_clean(example.token_ids, example.spans)
        for example in (random_example(1, steps=1), random_example(2, steps=6))
    ]
    weights = [1.0, 0.25]
    items = [TrainItem(packed, None, weight) for packed, weight in zip(packs, weights, strict=True)]
    config = changed({"divergence": "sft", "epochs": 1, "lr": 1e-9})
    summary = fit(model, items, config, seed=0, output_dir=tmp_path)
    total = 0.0
    for packed, weight in zip(packs, weights, strict=True):
        logits = head(model)(hidden_states(model, packed))
        total += weight * torch.nn.functional.cross_entropy(logits, packed.targets, reduction="sum").item()
    assert summary.first_loss == pytest.approx(total / sum(len(packed.targets) for packed in packs), rel=1e-4)


def test_a_recipe_can_train_on_several_branches_of_one_trunk(model: LlamaForCausalLM, tmp_path: Path) -> None:
    ids = random_example(0).token_ids
    packed = pack_branches(ids, [(6, (50, 51), (7, 8, 9)), (6, (60, 61), (17, 18)), (6, (), ids[6:9])])
    config = changed({"divergence": "sft", "epochs": 15, "lr": 1e-2})
    summary = fit(model, [TrainItem(packed)], config, seed=0, output_dir=tmp_path)
    assert summary.divergence_after < 0.2


def test_progress_reports_every_optimizer_step(examples: list[DistillExample], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = changed({"epochs": 1})
    policy = new_adapter(tiny_model(), 4, 0)
    distill(
        policy, examples, config, seed=0, output_dir=tmp_path, progress=lambda step, of, loss: seen.append((step, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_nothing_accepted_trains_nothing(tmp_path: Path) -> None:
    policy = new_adapter(tiny_model(), 4, 0)
    before = checkpoint_id(trained_state(policy))
    assert distill(policy, [], CONFIG, seed=0, output_dir=tmp_path) == TrainSummary(
        steps=0, accepted=0, action_tokens=0
    )
    assert checkpoint_id(trained_state(policy)) == before


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_teacher_without_weights_is_refused(examples: list[DistillExample], tmp_path: Path, value: float) -> None:
    broken = tiny_model()
    torch.nn.init.constant_(broken.lm_head.weight, value)
    with pytest.raises(InternalizeError, match="NLL"):
        distill(new_adapter(broken, 4, 0), examples, CONFIG, seed=0, output_dir=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(examples: list[DistillExample], tmp_path: Path) -> None:
    broken = [example.model_copy(update={"weight": math.nan}) for example in examples]
    with pytest.raises(InternalizeError, match="optimizer step 1"):
        _train(broken, tmp_path)


def test_a_new_adapter_has_no_effect_and_spares_the_head(model: LlamaForCausalLM) -> None:
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    policy = new_adapter(model, 4, 0)
    torch.testing.assert_close(policy(ids).logits, before)
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert not any("lm_head" in name for name in trained)


def test_per_trajectory_a_long_one_counts_as_much_as_a_short_one(model: LlamaForCausalLM, tmp_path: Path) -> None:
    packs = [pack_clean(e.token_ids, e.spans) for e in (random_example(1, steps=1), random_example(2, steps=6))]
    items = [TrainItem(packed, None, weight) for packed, weight in zip(packs, (1.0, 0.25), strict=True)]
    config = changed({"divergence": "sft", "epochs": 1, "lr": 1e-9, "per": "trajectory"})
    summary = fit(model, items, config, seed=0, output_dir=tmp_path)
    means = [torch.nn.functional.cross_entropy(head(model)(hidden_states(model, p)), p.targets).item() for p in packs]
    assert summary.first_loss == pytest.approx((means[0] + 0.25 * means[1]) / 2, rel=1e-4)


def test_a_batch_of_tokens_is_filled_by_whole_trajectories(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """7 one-action examples of 1 to 5 tokens: a step takes trajectories until it has 6 tokens, and one loss."""
    items = [TrainItem(pack_clean(e.token_ids, e.spans)) for e in (random_example(n, steps=1) for n in range(7))]
    sizes, rows, filled = [len(item.packed.targets) for item in items], 0, 0
    for size in sizes:
        filled += size
        if filled >= 6:
            rows, filled = rows + 1, 0
    config = changed({"divergence": "sft", "epochs": 1, "lr": 1e-9, "batch_tokens": 6})
    assert fit(model, items, config, seed=0, output_dir=tmp_path).steps == rows + bool(filled)
    config = config.model_copy(update={"batch_tokens": sum(sizes)})
    summary = fit(model, items, config, seed=0, output_dir=tmp_path)
    total = sum(
        torch.nn.functional.cross_entropy(
            head(model)(hidden_states(model, i.packed)), i.packed.targets, reduction="sum"
        )
        for i in items
    )
    assert summary.steps == 1
    assert summary.first_loss == pytest.approx(float(total) / sum(sizes), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"teacher": "ema"}, {"batch_tokens": 12}, {"lora_r": 0}])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    examples: list[DistillExample], tmp_path: Path, change: dict[str, object]
) -> None:
    settings = {"save_steps": 1, "epochs": 2, **change}
    whole, expected = _train(examples, tmp_path / "whole", **settings)

    class Stop(Exception):  # noqa: N818 - an end, no fault
        pass

    def stop(step: int, of: int, loss: float) -> None:
        if step == stops[0]:
            stops.pop(0)
            raise Stop

    stops, part = [2, 4], tmp_path / "part"  # in the first epoch, in the second
    config = changed(settings)
    for _ in range(2):
        policy = new_adapter(tiny_model(), 4, 0) if config.lora_r else tiny_model()
        with pytest.raises(Stop):
            distill(policy, examples, config, seed=0, output_dir=part, progress=stop)
    torn = part / "checkpoint-99"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"epoch": 1')  # the process died while it wrote
    resumed, found = _train(examples, part, **settings)
    assert checkpoint_id(trained_state(resumed)) == checkpoint_id(trained_state(whole))
    assert found.model_copy(update={"seconds": 0.0}) == expected.model_copy(update={"seconds": 0.0})


def test_states_of_another_training_are_not_taken(examples: list[DistillExample], tmp_path: Path) -> None:
    _train(examples, tmp_path / "s", save_steps=1, epochs=2)
    policy, _ = _train(examples, tmp_path / "s", save_steps=1, epochs=1)
    fresh, _ = _train(examples, tmp_path / "other", epochs=1, save_steps=1)
    assert checkpoint_id(trained_state(policy)) == checkpoint_id(trained_state(fresh))


@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_rounds_that_carry_the_optimizer_are_one_training(
    examples: list[DistillExample], tmp_path: Path, teacher: str
) -> None:
    """One example a step: two rounds over the same one are the two epochs of one training, rate and average too."""
    config = changed({"batch": 1, "epochs": 2, "teacher": teacher, "ema": 0.5})
    whole = new_adapter(tiny_model(), 4, 0)
    distill(whole, examples[:1], config, seed=0, output_dir=tmp_path)
    parts = new_adapter(tiny_model(), 4, 0)
    start = snapshot(parts)
    files = [None, tmp_path / "0.pt", tmp_path / "1.pt"]
    for number in range(2):
        part = Round(
            number=number, first_step=number, of_steps=2, carried_in=files[number], carried_out=files[number + 1]
        )
        distill(parts, examples[:1], config, seed=0, output_dir=tmp_path, references=References(start), part=part)
    assert checkpoint_id(trained_state(parts)) == checkpoint_id(trained_state(whole))


def test_it_stops_when_the_held_out_loss_no_longer_falls(model: LlamaForCausalLM, tmp_path: Path) -> None:
    examples = [likely_example(model, seed) for seed in range(20)]
    change = {"early_stop": 1, "epochs": 40, "lr": 5e-2, "batch": 10}
    _, summary = _train(examples, tmp_path, **change)
    assert summary.stopped_early
    assert summary.steps < 40 * 2
    assert summary.steps % 2 == 0  # at the end of an epoch


def test_further_arguments_reach_the_trainer(examples: list[DistillExample], tmp_path: Path) -> None:
    constant, _ = _train(examples, tmp_path, epochs=1, trainer={"lr_scheduler_type": "constant", "weight_decay": 0.1})
    linear, _ = _train(examples, tmp_path, epochs=1)
    again, _ = _train(examples, tmp_path, epochs=1, trainer={"gradient_checkpointing": True})
    ids = [checkpoint_id(trained_state(policy)) for policy in (constant, linear, again)]
    assert ids[0] != ids[1]
    for name, tensor in trained_state(linear).items():
        torch.testing.assert_close(trained_state(again)[name], tensor, atol=1e-5, rtol=1e-4)

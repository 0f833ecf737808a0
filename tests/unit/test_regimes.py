"""Presets and the table of contradictions."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from internalize.config.presets import CONTRADICTIONS, PRESETS, TRAINER_KEYS
from internalize.config.schema import Config, DistillConfig, load_config
from internalize.errors import ConfigError

WRONG = [
    (["divergence=sft", "support=topk"], "support = 'topk' has no meaning under distill.divergence = 'sft'"),
    (["divergence=sft", "teacher=ema"], "teacher = 'ema' has no effect under distill.divergence = 'sft'"),
    (["divergence=sft", "generator=student", "filter=none"], "filter = 'none' teaches nothing"),
    (["support=sampled", "generator=student"], "estimates the reverse KL only, not distill.divergence = 'forward'"),
    (["support=sampled", "divergence=reverse"], "needs distill.generator = 'student'"),
    (["teacher=model"], "needs distill.teacher_source"),
    (["teacher_source=x"], "teacher_source = 'x' is only used with distill.teacher = 'model'"),
    (["filter=advantage"], "filter = 'advantage' .* needs distill.attempts of at least 2"),
    (["filter=best_of_n", "attempts=1"], "filter = 'best_of_n' .* at least 2"),
    (["refresh=4"], "refresh = 4 needs distill.generator = 'student'"),
    (["refresh=4", "generator=student", "batch_tokens=9"], "excludes distill.batch_tokens = 9"),
    (["in_context=keep", "teacher=live"], "in_context = 'keep' has no effect with distill.teacher = 'live'"),
    (["in_context=learn", "filter=none"], "in_context = 'learn' teaches failures too"),
    (["early_stop=2", "held_out=0"], "early_stop = 2 watches held-out examples"),
    (["early_stop=2", "refresh=2", "generator=student"], "early_stop = 2 compares epochs"),
    (["trainer={output_dir='x'}"], "trainer: 'output_dir' cannot be set there; possible: accelerator_config, "),
    (["preset=best"], "preset = 'best': input should be '', 'off_policy'"),
    (["alpha=0"], "alpha = 0: input should be greater than 0"),
    (["ema=1.0"], "ema = 1.0: input should be less than 1"),
]


def _load(changes: list[str]) -> Config:
    return load_config(None, [f"distill.{change}" for change in changes])


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[" ".join(changes) for changes, _ in WRONG])
def test_a_contradiction_is_one_sentence_that_names_the_keys(changes: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        _load(changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("defaults: distill.")


def test_every_row_of_the_table_is_tried() -> None:
    tried = {next(i for i, (holds, _) in enumerate(CONTRADICTIONS) if holds(_unchecked(c))) for c, _ in WRONG[:15]}
    assert tried == set(range(len(CONTRADICTIONS)))


def _unchecked(changes: list[str]) -> DistillConfig:
    values = dict(change.split("=") for change in changes)
    return DistillConfig().model_copy(update={k: int(v) if v.isdigit() else v for k, v in values.items()})


def test_everything_else_goes_together() -> None:
    """Every combination of the main switches is either accepted or refused with a sentence of the table."""
    accepted = 0
    for generator, divergence, support, teacher, keep in itertools.product(
        ("teacher", "student"),
        ("forward", "reverse", "js", "sft"),
        ("full", "topk", "sampled"),
        ("frozen", "live", "ema", "model"),
        ("success", "none", "advantage", "best_of_n"),
    ):
        source = "builtin" if teacher == "model" else ""
        values = {"generator": generator, "divergence": divergence, "support": support, "teacher": teacher}
        values |= {"filter": keep, "teacher_source": source, "attempts": 4}
        try:
            DistillConfig.model_validate(values)
            accepted += 1
        except ValueError as error:
            assert "distill." in str(error)  # noqa: PT017 - most of the 384 are accepted
    # 2 generators x 3 divergences x full and topk x 4 teachers x 4 filters, sampled for one of the six, and sft with a
    # frozen teacher and full support, but for the student's own unfiltered samples.
    assert accepted == 2 * 3 * 2 * 4 * 4 + 1 * 4 * 4 + 2 * 4 - 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_in_what_is_open_and_the_digest_covers_it(preset: str) -> None:
    config = _load([f"preset={preset}"])
    assert PRESETS[preset].items() <= config.distill.model_dump().items()
    by_hand = [f"{key}={value}" for key, value in PRESETS[preset].items()]
    assert _load([*by_hand, f"preset={preset}"]).digest == config.digest
    assert _load(by_hand).changed_from(config.dump()) == ["distill.preset"]
    assert Config.model_validate_json(config.model_dump_json()).digest == config.digest


def test_an_explicit_key_overrides_its_preset() -> None:
    assert _load(["preset=sdft", "ema=0.5", "refresh=0"]).distill.model_dump(include={"ema", "refresh", "teacher"}) == {
        "ema": 0.5,
        "refresh": 0,
        "teacher": "ema",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_named_on_the_command_line_outranks_the_recipe_and_not_the_command_line(
    preset: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[distill]\ngenerator = "teacher"\ndivergence = "js"\nfilter = "best_of_n"\nattempts = 3\nlr = 1e-3\n'
    )
    named = load_config(recipe, [f"distill.preset={preset}"]).distill.model_dump()
    assert PRESETS[preset].items() <= named.items()
    assert named["lr"] == 1e-3  # which no preset sets
    quoted = load_config(recipe, ["distill.divergence=forward", f'distill.preset="{preset}"']).distill
    assert quoted.divergence == "forward"
    assert quoted.generator == PRESETS[preset]["generator"]


def test_a_changed_preset_value_is_named() -> None:
    assert _load(["preset=sdft"]).changed_from(_load(["preset=sdft", "ema=0.5"]).dump()) == ["distill.ema"]


def test_the_trainer_keys_are_arguments_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    fields = set(transformers.TrainingArguments.__dataclass_fields__)
    assert fields >= TRAINER_KEYS, TRAINER_KEYS - fields

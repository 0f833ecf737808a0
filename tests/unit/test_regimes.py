"""Algorithms, switches with kinds, what excludes what, and the keys of the flat layout."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from internalize.config import distill
from internalize.config.algorithms import ALGORITHMS
from internalize.config.overrides import MOVED
from internalize.config.schema import Config, load_config
from internalize.errors import ConfigError
from internalize.runs.store import RunStore

GRADIENT = ["divergence=policy_gradient", "generator=student", "filter=advantage", "attempts=4"]
EXCLUDED = [
    (["divergence=sft", "teacher=ema"], "teacher = 'ema' has no effect under distill.divergence = 'sft'"),
    (["divergence=sft", "generator=student", "filter=none"], "filter = 'none' teaches nothing"),
    (["tasks=0"], "tasks = 0 leaves nothing to train on"),
    (["own=true", "generator={kind='student', refresh=2}"], "own = true adds episodes of older weights"),
    (["divergence={kind='reverse', support='sampled'}"], "set distill.generator = 'student'"),
    (["filter=advantage"], "filter = 'advantage' .* needs distill.attempts of at least 2"),
    (["divergence=policy_gradient"], "compares with the policy that played: set distill.generator = 'student'"),
    (["divergence=policy_gradient", "generator=student"], "needs distill.filter = 'advantage'"),
    ([*GRADIENT, "in_context=keep"], "trains away from failures and excludes distill.in_context = 'keep'"),
    ([*GRADIENT, "replay=0.5"], "which distill.replay = 0.5 does not keep"),
    (["filter=best_of_n", "attempts=1"], "filter = 'best_of_n' .* at least 2"),
    (["generator={kind='student', refresh=4}", "batch_tokens=9"], "excludes distill.batch_tokens = 9"),
    (["in_context=keep", "teacher=live"], "in_context = 'keep' has no effect with distill.teacher = 'live'"),
    (["in_context=learn", "filter=none"], "in_context = 'learn' teaches failures too"),
    (["early_stop=2", "held_out=0"], "early_stop = 2 watches held-out examples"),
    (["early_stop=2", "generator={kind='student', refresh=2}"], "early_stop = 2 compares epochs"),
]
UNWRITABLE = [
    (["divergence=sft", "own=true", "filter=none"], "teaches nothing under distill.own = true"),
    (["divergence=sft", "divergence.support=topk"], "distill.divergence = 'sft' has no key 'support'"),
    (["divergence.support=sampled"], "support = 'sampled': input should be 'full' or 'topk', under .* = 'forward'"),
    (["divergence.alpha=0.3"], "distill.divergence = 'forward' has no key 'alpha'"),
    (["divergence=js", "divergence.alpha=0"], "distill.divergence.alpha = 0: input should be greater than 0"),
    (["divergence=backward"], "distill.divergence = 'backward': should be one of 'forward', 'reverse', 'js', 'sft'"),
    (["teacher=model"], "distill.teacher.source is missing, which distill.teacher = 'model' needs"),
    (["teacher.source=x"], "distill.teacher = 'frozen' has no key 'source'"),
    (["teacher={kind='ema', decay=1.0}"], "distill.teacher.decay = 1.0: input should be less than 1"),
    (["teacher=3"], "distill.teacher = 3: "),
    (["generator.refresh=4"], "distill.generator = 'teacher' has no key 'refresh'"),
    (["trainer={output_dir='x'}"], "trainer: 'output_dir' cannot be set there; possible: accelerator_config, "),
    (["algorithm=best"], "algorithm = 'best': there are off_policy, on_policy"),
]
FLAT = [
    (["divergence=sft", "support=topk"], "distill.divergence = 'sft' has no key 'support'"),
    (["support=sampled", "generator=student"], "distill.divergence.support = 'sampled'.* 'forward'"),
    (["support=sampled", "divergence=reverse"], "set distill.generator = 'student'"),
    (["teacher_source=x"], "distill.teacher = 'frozen' has no key 'source'"),
    (["teacher=model", "teacher_source=''"], "distill.teacher.source = ''"),
    (["refresh=4"], "distill.generator = 'teacher' has no key 'refresh'"),
    (["divergence=js", "alpha=0"], "distill.divergence.alpha = 0: input should be greater than 0"),
    (["teacher=ema", "ema=1.0"], "distill.teacher.decay = 1.0: input should be less than 1"),
    (["preset=best"], "algorithm = 'best'"),
]
WRONG = [*EXCLUDED, *UNWRITABLE, *FLAT]


def _load(changes: list[str]) -> Config:
    return load_config(None, [f"distill.{change}" for change in changes])


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[" ".join(changes) for changes, _ in WRONG])
def test_a_contradiction_is_one_sentence_that_names_the_keys(changes: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        _load(changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("defaults: distill.")


def test_every_exclusion_is_tried() -> None:
    written = Path(distill.__file__).read_text(encoding="utf-8").count("yield ")
    first = set()
    for changes, _ in EXCLUDED:
        with pytest.raises(ConfigError) as caught:
            _load(changes)
        first.add(re.sub(r"'\w+'|\d+", "", str(caught.value)))
    assert len(first) == written


def test_everything_else_goes_together() -> None:
    """Every combination of the main switches is either accepted or refused with a sentence."""
    accepted = 0
    for generator, divergence, support, teacher, keep in itertools.product(
        ("teacher", "student"),
        ("forward", "reverse", "js", "sft"),
        ("full", "topk", "sampled"),
        ("frozen", "live", "ema", "model"),
        ("success", "none", "advantage", "best_of_n"),
    ):
        changes = [f"generator={generator}", f"divergence={divergence}", f"support={support}", f"filter={keep}"]
        source = "builtin" if teacher == "model" else ""
        try:
            _load([*changes, f"teacher={teacher}", f"teacher_source={source!r}", "attempts=4"])
            accepted += 1
        except ConfigError as error:
            assert str(error).startswith("defaults: distill.")  # noqa: PT017 - most of the 384 are accepted
    # 2 generators x 3 divergences x full and topk x 4 teachers x 4 filters, sampled for one of the six, and sft with a
    # frozen teacher and full support, but for the student's own unfiltered samples.
    assert accepted == 2 * 3 * 2 * 4 * 4 + 1 * 4 * 4 + 2 * 4 - 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_fills_in_what_is_open_and_the_digest_covers_it(name: str) -> None:
    config, switches = _load([f"algorithm={name}"]), ALGORITHMS[name].switches()
    assert switches.items() <= config.distill.model_dump().items()
    by_hand = Config.model_validate({"distill": switches})
    assert by_hand.changed_from(config.dump()) == ["distill.algorithm"]
    assert Config.model_validate_json(config.model_dump_json()).digest == config.digest
    assert _load([f"preset={name}"]).digest == config.digest


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_documented_with_its_paper(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "regimes.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert ALGORITHMS[name].paper.removeprefix("arXiv ") in page
    assert all(f"`{kind}`" in row for kind in (ALGORITHMS[name].generator.kind, ALGORITHMS[name].divergence.kind))


@pytest.mark.parametrize(
    "keys",
    [("ema=0.5", "refresh=0"), ("teacher.decay=0.5", "generator.refresh=0"), ("teacher={decay=0.5}", "refresh=0")],
)
def test_an_explicit_key_overrides_its_algorithm(keys: tuple[str, ...]) -> None:
    found = _load([*keys, "algorithm=sdft"]).distill
    assert found.teacher.model_dump() == {"kind": "ema", "decay": 0.5}
    assert found.generator.model_dump() == {"kind": "student", "refresh": 0}
    assert found.filter == "none"


RECIPES = (
    'generator = "teacher"\ndivergence = "js"\nalpha = 0.3\nfilter = "best_of_n"\nattempts = 3\nema = 0.5\nlr = 1e-3',
    'generator.kind = "teacher"\ndivergence = {kind = "js", alpha = 0.3}\nteacher = "live"\nattempts = 3\nlr = 1e-3',
    'preset = "gkd"\nlr = 1e-3',
)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("recipe", RECIPES, ids=["flat", "tables", "preset"])
@pytest.mark.parametrize("key", ["algorithm", "preset"])
def test_an_algorithm_named_by_set_outranks_the_recipe_and_not_the_other_overrides(
    name: str, recipe: str, key: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[distill]\n{recipe}\n")
    named = load_config(path, [f"distill.{key}={name}"]).distill.model_dump()
    assert ALGORITHMS[name].switches().items() <= named.items()
    assert named["lr"] == 1e-3  # which no algorithm sets
    quoted = load_config(path, ["distill.divergence=reverse", f'distill.{key}="{name}"']).distill
    assert quoted.divergence.kind == "reverse"
    assert quoted.generator.kind == ALGORITHMS[name].generator.kind


def test_a_changed_value_of_an_algorithm_is_named() -> None:
    assert _load(["preset=sdft"]).changed_from(_load(["preset=sdft", "ema=0.5"]).dump()) == ["distill.teacher.decay"]


ALIKE = [
    (
        ["divergence=js", "alpha=0.3", "support=topk", "top_k=9"],
        ["divergence={kind='js', alpha=0.3, support='topk', top_k=9}"],
    ),
    (["teacher=ema", "ema=0.5"], ["teacher.decay=0.5", "teacher=ema"]),  # in any order
    (["teacher=model", "teacher_source=builtin"], ["teacher={kind='model', source='builtin'}"]),
    (["generator=student", "refresh=4"], ["generator.kind=student", "generator.refresh=4"]),
    (
        ["alpha=0.3", "top_k=9", "support=topk", "ema=0.5", "teacher_source=''", "refresh=0"],
        ["divergence={support='topk', top_k=9}"],
    ),
]


@pytest.mark.parametrize(("flat", "tables"), ALIKE, ids=[" ".join(flat) for flat, _ in ALIKE])
def test_keys_of_the_flat_layout_are_read(flat: list[str], tables: list[str], tmp_path: Path) -> None:
    expected = _load(tables)
    assert _load(flat) == expected
    assert _load(flat[::-1]) == expected
    path = tmp_path / "recipe.toml"
    path.write_text("[distill]\n" + "".join(re.sub("=([a-z]+)$", r"='\1'", line) + "\n" for line in flat))
    assert load_config(path) == expected


def test_a_table_of_the_command_line_outranks_a_flat_key_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[distill]\nteacher = "ema"\nema = 0.9\n')
    assert load_config(path, ["distill.teacher.decay=0.5"]).distill.teacher.decay == 0.5
    assert load_config(path, ["distill.ema=0.5"]).distill.teacher.decay == 0.5
    assert load_config(path, ["distill.teacher=live"]).distill.teacher.kind == "live"
    assert load_config(path).distill.teacher.decay == 0.9


def test_a_dump_of_the_flat_layout_is_the_same_config_and_its_run_goes_on(tmp_path: Path) -> None:
    """What run.json holds of a run begun before the tables: every flat key, also those without effect."""
    now = _load(["algorithm=sdft", "lr=1e-3"])
    flat = now.distill.model_dump(mode="json", exclude={"algorithm", "generator", "divergence", "teacher"})
    flat |= {"preset": "sdft", "generator": "student", "refresh": 4, "divergence": "forward", "alpha": 0.5}
    flat |= {"support": "full", "top_k": 64, "teacher": "ema", "ema": 0.99, "teacher_source": ""}
    assert MOVED.keys() <= flat.keys()
    stored = now.dump() | {"distill": flat}
    assert now.changed_from(stored) == []
    assert Config.model_validate(stored) == now
    assert _load(["algorithm=sdft"]).changed_from(stored) == ["distill.lr"]
    RunStore.create(tmp_path, now).close()
    info = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**info, "config": stored, "digest": "0"}))
    RunStore.open(tmp_path, now).close()
    with pytest.raises(ConfigError, match=r"changed: distill\.lr$"):
        RunStore.open(tmp_path, _load(["algorithm=sdft"]))
    del flat["dropout"]  # a field that the run did not know is no default of it
    assert now.changed_from(stored) == ["distill.dropout"]


def test_the_trainer_keys_are_arguments_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    fields = set(transformers.TrainingArguments.__dataclass_fields__)
    assert fields >= distill.TRAINER_KEYS, distill.TRAINER_KEYS - fields

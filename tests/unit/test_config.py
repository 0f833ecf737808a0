from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internalize.config.distill import DistillConfig
from internalize.config.schema import Config, changed_fields, load_config
from internalize.errors import ConfigError


def test_defaults_are_valid_and_frozen() -> None:
    config = load_config(None)
    assert config == Config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_every_field_says_what_it_means() -> None:
    sections = [field.annotation for field in Config.model_fields.values()]
    sections += [kind for field in DistillConfig.model_fields.values() for kind in get_args(field.annotation)]
    for section in sections:
        fields = getattr(section, "model_fields", {})
        assert [key for key, field in fields.items() if not field.description and key != "kind"] == [], section


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=1", "defaults: unknown key sede; did you mean 'seed'"),
        ("distill.learning_rate=1", r"unknown key distill\.learning_rate$"),
        ("distill.lr=0", r"distill\.lr = 0: input should be greater than 0$"),
        ("inject.k=9", r"inject\.k = 9: .*less than or equal to 8$"),
        ("inject.pattern=sometimes", r"inject\.pattern = 'sometimes': .*'stepwise'$"),
        ("rollout.tasks=many", r"rollout\.tasks = 'many': .*integer"),
        ("seed", "write section.key=value$"),
        ("=3", "write section.key=value$"),
        ("env=3", r"env = 3: "),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is a value, not a section"):
        load_config(None, ["seed=1", "seed.x=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ]", r"recipe\.toml: not valid TOML: .*line 1"),
        ("[distill]\nlr = 2.0", r"recipe\.toml: distill\.lr = 2\.0: "),
        ("[nonsense]\nx = 1", r"recipe\.toml: unknown key nonsense$"),
        ("\xff", r"recipe\.toml: not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_config(tmp_path / name)


def test_overrides_win_over_the_recipe_and_bare_words_are_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("seed = 3\n[inject]\npattern = 'stepwise'\nk = 4\n")
    config = load_config(
        path, ["inject.pattern=global", "env.options.pages=12", "evaluate.final_splits=['test', 'long']"]
    )
    assert (config.seed, config.inject.pattern, config.inject.k) == (3, "global", 4)
    assert config.env.options == {"pages": 12}
    assert config.evaluate.final_splits == ("test", "long")


def test_the_digest_covers_every_field_and_survives_a_round_trip() -> None:
    config = load_config(None, ["distill.lr=0.0003"])
    assert Config.model_validate_json(config.model_dump_json()).digest == config.digest != Config().digest
    assert config.changed_from(Config().dump()) == ["distill.lr"]


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xy"), st.integers(0, 1))
    )
)
def test_nothing_changed_between_a_config_and_itself(values: dict[str, object]) -> None:
    assert changed_fields(values, values) == []
    assert changed_fields({**values, "s": {"new": 1, "same": 2}}, {**values, "s": {"same": 2}}) == ["s.new"]


WRITER = ["extract.source=external", "extract.endpoint=e", "endpoints.e.base_url=http://a/v1", "endpoints.e.model=m"]


def test_of_an_endpoint_only_the_model_is_part_of_the_digest() -> None:
    before = load_config(None, WRITER)
    elsewhere = ["base_url=http://b/v1", "max_cost=9.0", "tries=3", "concurrency=2"]
    moved = load_config(None, [*WRITER, *(f"endpoints.e.{setting}" for setting in elsewhere)])
    other = load_config(None, [*WRITER, "endpoints.e.model=n"])
    assert before.digest == moved.digest
    assert moved.changed_from(before.dump()) == []
    assert other.digest != before.digest
    assert other.changed_from(before.dump()) == ["endpoints.e.model"]


def test_where_a_run_works_is_no_part_of_the_digest() -> None:
    server = ["endpoints.v.base_url=http://127.0.0.1:8000/v1", "endpoints.v.model=m"]
    where = ["compute.endpoint=v", "compute.device=cuda:1", "compute.batch=7", *server]
    assert load_config(None, where).digest == Config().digest
    assert load_config(None, where).acting_endpoint == "v"
    assert load_config(None, [*where, "compute.engine=slots"]).acting_endpoint == ""
    assert load_config(None, ["model.endpoint=v", *server]).digest != Config().digest


def test_a_run_that_did_not_know_a_later_key_goes_on_under_its_default() -> None:
    stored = Config().dump()
    for section, key in LATER:
        del stored[section][key]
    assert Config().changed_from(stored) == []
    for section, key in LATER:
        value = {"order": "'given'", "own": "true", "at": "[3]", "most": "7", "error": "0.2"}[key]
        assert load_config(None, [f"{section}.{key}={value}"]).changed_from(stored) == [f"{section}.{key}"]


LATER = [("rollout", "order"), ("distill", "own"), ("evaluate", "at"), ("gate", "most"), ("gate", "error")]


def test_a_run_of_the_old_layout_is_gone_on_with() -> None:
    stored = Config().dump()
    del stored["compute"]
    stored["model"] |= {"device": "cpu", "batch": 3}
    assert Config().changed_from(stored) == []
    assert Config.model_validate(stored).compute.batch == 3


def test_keys_that_moved_count_where_they_stood(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\nbatch = 4\ndevice = 'cpu'\n")
    found = load_config(path).compute
    assert (found.batch, found.device) == (4, "cpu")
    assert load_config(path, ["model.batch=5"]).compute.batch == 5
    assert load_config(path, ["compute.batch=6"]).compute.batch == 6
    path.write_text("[model]\nbatch = 4\n[compute]\nbatch = 5\n")
    with pytest.raises(ConfigError, match=r"recipe\.toml: model\.batch is now compute\.batch, and both are set$"):
        load_config(path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            ["compute.engine=vllm", "compute.endpoint=x"],
            r"starts servers of its own, so compute\.endpoint = 'x' is idle$",
        ),
        (["compute.engine=endpoint"], r"needs compute\.endpoint, which names a section"),
        (["compute.endpoint=x"], r"compute\.endpoint = 'x' names no section \[endpoints\.x\]$"),
        (["compute.endpoint=x", "model.endpoint=y"], "only one can act$"),
        (["compute.engine=slots", "model.endpoint=y"], "excludes model.endpoint = 'y', which acts$"),
    ],
)
def test_where_nothing_can_work_is_refused(setting: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, setting)

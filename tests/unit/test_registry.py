"""Environments by name: whatever is wrong with one, or with its options, is one sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from internalize.environments import registry
from internalize.environments.docs import cues as docs
from internalize.errors import DataError, TaskError, UserError
from internalize.experience.cues import GENERIC
from internalize.experience.rules import parse
from internalize.interfaces import CueExtractor
from tests.toy import Toy


class Point:
    """An entry point whose loading does what it is told."""

    name, value = "boxes", "boxes:Boxes"

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


def fails(error: Exception) -> Callable[..., Any]:
    def load(**_: Any) -> Any:
        raise error

    return load


def plug_in(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any]) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(load)])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SyntaxError("invalid syntax"), r"\(invalid syntax\)"),
        (ValueError("no\nfile"), r"\(no\)"),
        (KeyError(), r"\(KeyError\)"),
        (ImportError("no module"), r"\(no module\)"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    plug_in(monkeypatch, fails(error))
    with pytest.raises(TaskError, match=f"env.name = 'boxes': the plug-in boxes:Boxes cannot be loaded {said}$"):
        registry.make("boxes", {})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("size is negative\nreally"), "env.options of boxes: ValueError: size is negative$"),
        (TypeError("unexpected keyword"), "env.options of boxes: unexpected keyword$"),
        (UserError("no key"), "^no key$"),
        (OSError(), "env.options of boxes: OSError: OSError$"),
    ],
)
def test_a_plug_in_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    plug_in(monkeypatch, lambda: fails(error))
    with pytest.raises(UserError, match=said):
        registry.make("boxes", {})


def test_a_plug_in_is_built_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, lambda: Toy)
    assert len(registry.make("boxes", {"size": 3}).tasks("train")) == 3


def test_what_rules_can_name_is_found_by_the_name_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.cues("docs") == docs.CUES
    assert registry.cues("of an imported log") == GENERIC
    assert registry.cues("maths") == GENERIC
    monkeypatch.setitem(
        registry.BUILTIN, "lost", registry.Builtin("no.such.module", "Lost", "", needs=("no_such",), extra="lost")
    )
    assert registry.cues("lost") == GENERIC
    own = CueExtractor(lambda _: {}, value="the number of the box")
    plug_in(monkeypatch, lambda: type("Boxes", (Toy,), {"cues": (own,)}))
    assert registry.cues("boxes") == (own,)


def test_sentences_of_older_pools_are_rules_in_every_environment() -> None:
    """Once every environment had the words of `docs`."""
    text = "At the start, search the last name in the question."
    assert parse(text, registry.vocabulary("maths"))
    assert parse(text, registry.vocabulary("docs"))
    assert not parse(text, registry.cues("maths"))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("textworld_express", {"settings": "coin"}, "settings = 'coin': input should be a valid dictionary"),
        ("textworld_express", {"games": "coin"}, "games = 'coin': 'str' instances are not allowed"),
        ("textworld_express", {"per_game": "3"}, "per_game = '3': input should be a valid integer"),
        ("textworld_express", {"settings": {"coim": "x"}}, "settings: no .coim."),
        ("textworld_express", {"games": ["twc"], "settings": {"coin": "x"}}, "settings: no .coin."),
        ("textworld_express", {"longest": 0}, "longest = 0"),
        ("textworld_express", {"timeout": -1.0}, r"timeout = -1\.0"),
        (
            "scienceworld",
            {"simplifications": ["easy"]},
            r"simplifications = \['easy'\]: input should be a valid string",
        ),
        ("scienceworld", {"per_kind": "3"}, "per_kind = '3': input should be a valid integer"),
        ("scienceworld", {"per_kind": -3}, "per_kind = -3: input should be greater than"),
        ("maths", {"file": 5}, "file = 5: input should be a valid string"),
        ("maths", {"difficulty": 1.5}, r"difficulty = 1\.5: input should be a valid integer"),
        ("maths", {"difficulty": True}, "difficulty = True: input should be a valid integer"),
        ("maths", {"seconds": 0}, "seconds = 0: input should be greater than 0"),
        ("tau2", {"longest": "all"}, "longest = 'all': input should be a valid integer"),
        ("tau2", {"longest": -1}, "longest = -1: input should be greater than"),
        ("docs", {"packages": 5}, "packages = 5: input should be "),
    ],
)
def test_an_option_of_the_wrong_type_is_named(name: str, options: dict[str, Any], said: str) -> None:
    if registry.BUILTIN[name].missing:
        pytest.skip(f"needs the extra {registry.BUILTIN[name].extra!r}")
    with pytest.raises(TaskError, match=rf"^(env\.options of )?{name}: {said}"):
        registry.make(name, options)


def test_an_extra_that_is_missing_is_named_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "py4j" else find_spec(name))
    with pytest.raises(UserError, match=r"'textworld_express' needs an extra: pip install 'internalize\[textgames\]'"):
        registry.make("textworld_express", {})


def test_packages_that_refuse_this_python_are_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.version_info", (3, 14, 1))
    with pytest.raises(UserError, match=r"'verifiers' needs Python 3\.13 or older"):
        registry.make("verifiers:x", {})


@pytest.mark.parametrize("cell", [["a", "b"], {"a": 1}])
def test_a_cell_that_is_no_text_is_named_by_file_and_line(tmp_path: Path, cell: object) -> None:
    if registry.BUILTIN["maths"].missing:
        pytest.skip("needs the extra 'maths'")
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "Which?", "answer": cell}) + "\n")
    with pytest.raises(DataError, match=r"q\.jsonl, line 1: answer holds .*, which is not one text"):
        registry.make("maths", {"file": str(path)})

"""Phone numbers, cards, IBANs and names go where a recipe asks for it, and nothing is downloaded for that."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from internalize.config.redact import RedactConfig
from internalize.errors import UserError
from internalize.experience.persons import require
from internalize.experience.redact import Redactor

INSTALLED = find_spec("presidio_analyzer") is not None
needs_presidio = pytest.mark.skipif(not INSTALLED, reason="needs the extra 'persons'")
NUMBERS = Redactor.of(RedactConfig(persons=("phone", "card", "iban"))) if INSTALLED else Redactor()


@pytest.mark.skipif(INSTALLED, reason="the extra 'persons' is installed")
def test_without_the_package_it_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^redact\.persons needs the extra 'persons': pip install '.*'$"):
        require(RedactConfig(persons=("card",)))
    require(RedactConfig())


@needs_presidio
@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Call +1 415-555-2671 today", "Call [phone removed] today"),
        ("Ring 020 7946 0958 or +49 30 901820", "Ring [phone removed] or [phone removed]"),
        ("Card 4111 1111 1111 1111, thanks", "Card [card removed], thanks"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban removed]."),
        ("Card 4111 1111 1111 1112", "Card 4111 1111 1111 1112"),  # its check digit is wrong
        ("Version 2.13.0 of 2026-11-30, 12:30:01, 17 of 53,605 lines", None),
        ("| 81.8 / 88.6 / 100.0 | 240 / 300 / 600 / 1 |", None),
        ("sha256 9f86d081884c7d659a2feaa0c55ad015 id 1700000000000", None),
    ],
)
def test_numbers_of_persons_go_and_others_stay(text: str, left: str | None) -> None:
    found, _ = NUMBERS.text(text)
    assert found == (text if left is None else left)
    assert NUMBERS.text(found) == (found, {}), "a second time changes nothing"


@needs_presidio
def test_names_go_by_a_model_that_is_there(tmp_path: Path) -> None:
    import spacy  # noqa: PLC0415 - comes with presidio

    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Ada Lovelace"}])  # type: ignore[attr-defined]
    model.to_disk(tmp_path / "names")
    redactor = Redactor.of(RedactConfig(persons=("name",), names_by=str(tmp_path / "names")))
    text, counts = redactor.text("Ada Lovelace wrote it. Ask Ada Lovelace.")
    assert text == "[name removed] wrote it. Ask [name removed]."
    assert counts == {"name": 2}


@needs_presidio
@pytest.mark.parametrize("model", ["", "en_core_web_sm_that_is_not_there", "/no/such/folder", "a.b", "../x"])
def test_a_model_that_is_not_there_is_refused_and_not_downloaded(model: str) -> None:
    with pytest.raises(UserError, match=r"^redact\.persons = 'name' needs a spaCy model, .*; none is downloaded$"):
        Redactor.of(RedactConfig(persons=("name",), names_by=model))

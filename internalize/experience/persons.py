"""Finds personal data with the package presidio-analyzer: phone numbers, cards, IBANs, names of persons.

Nothing is downloaded. Numbers are found by their form and checksum; names by an installed spaCy model, in the language
of that model only. A name that the model does not recognize stays in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from internalize.config.redact import RedactConfig
from internalize.errors import UserError, first_line

Find = Callable[[str], list[tuple[int, int, str]]]  # a text -> its spans and their kinds
_RECOGNIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phone": ("PhoneRecognizer", "PHONE_NUMBER", {"leniency": 2}),  # grouped as numbers are: rows of figures stay
    "card": ("CreditCardRecognizer", "CREDIT_CARD", {}),
    "iban": ("IbanRecognizer", "IBAN_CODE", {}),
}
_LIKELY = 0.4  # presidio's score of a phone number; a valid checksum scores 1.0


def require(config: RedactConfig) -> None:
    """Raise what `finder` would raise about packages, without importing them, which takes seconds."""
    if config.persons and find_spec("presidio_analyzer") is None:
        raise UserError("redact.persons needs the extra 'persons': pip install 'internalize[persons]'")
    if "name" in config.persons and not _is_there(config.names_by):
        raise UserError(
            f"redact.persons = 'name' needs a spaCy model, and redact.names_by = {config.names_by!r} is neither an "
            "installed package nor a folder; none is downloaded"
        )


def _is_there(model: str) -> bool:
    return bool(model) and (Path(model).is_dir() or (model.isidentifier() and find_spec(model) is not None))


@cache
def finder(persons: tuple[str, ...], names_by: str) -> Find:
    """A function that finds these kinds. Raises UserError if a package or model is missing or cannot be loaded."""
    require(RedactConfig(persons=persons, names_by=names_by))
    from presidio_analyzer import predefined_recognizers  # noqa: PLC0415 - an extra, and slow to import

    numbers = [
        (kind, entity, getattr(predefined_recognizers, name)(**options))
        for kind, (name, entity, options) in _RECOGNIZERS.items()
        if kind in persons
    ]
    model = _model(names_by) if "name" in persons else None

    def spans(text: str) -> Iterator[tuple[int, int, str]]:
        for kind, entity, recognizer in numbers:
            for found in recognizer.analyze(text, [entity], None) or ():
                if found.score >= _LIKELY:
                    yield found.start, found.end, kind
        for entity in model(text).ents if model else ():
            if entity.label_ in {"PERSON", "PER"}:
                yield entity.start_char, entity.end_char, "name"

    return lambda text: _apart(spans(text), text)


def _apart(spans: Iterator[tuple[int, int, str]], text: str) -> list[tuple[int, int, str]]:
    """Spans that do not overlap, in order, without those inside the marker of an earlier redaction."""
    kept: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
        if (not kept or start >= kept[-1][1]) and "removed]" not in text[start : end + 9]:
            kept.append((start, end, kind))
    return kept


def _model(name: str) -> Any:
    import spacy  # noqa: PLC0415 - comes with presidio

    try:
        model = spacy.load(name, exclude=["tagger", "parser", "lemmatizer", "attribute_ruler"])
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"redact.names_by = {name!r} cannot be loaded: {first_line(error)}") from error
    model.max_length = 10_000_000
    return model

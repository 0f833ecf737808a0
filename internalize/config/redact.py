"""The section [redact]: what is removed from texts."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from .regime import Section


class RedactConfig(Section):
    """What is removed from texts before they reach an external endpoint, a pool or training data."""

    enabled: bool = Field(default=True, description="Whether keys, tokens and e-mail addresses are removed.")
    patterns: tuple[str, ...] = Field((), description="Further regular expressions to remove.")
    persons: tuple[Literal["phone", "card", "iban", "name"], ...] = Field(
        (), description="What of persons is removed too, with the extra 'persons'; () = nothing."
    )
    names_by: str = Field("", description="spaCy model that finds names: an installed package or a folder; '' = none.")

    @field_validator("patterns")
    @classmethod
    def _patterns_are_regular_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                empty = re.compile(pattern).match("") is not None
            except re.error as error:
                raise ValueError(f"redact.patterns: {pattern!r} is no regular expression ({error})") from error
            if empty:
                raise ValueError(f"redact.patterns: {pattern!r} matches the empty text")
        return patterns

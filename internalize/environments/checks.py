"""Checks of the values that an environment returns: an invalid one fails the episode, not the run."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from internalize.errors import InfrastructureError
from internalize.interfaces import Episode
from internalize.records import Claim, Message


def episode_of(env: str, value: Any) -> Episode:
    """The episode. Raises InfrastructureError if it lacks a method."""
    if not all(callable(getattr(value, method, None)) for method in ("prompt", "step", "score")):
        raise _invalid(env, "episode", "an object with prompt, step and score", value)
    episode: Episode = value
    return episode


def prompt_of(env: str, value: Any) -> tuple[Message, ...]:
    """The messages of a prompt. Raises InfrastructureError for anything else or for none."""
    if not isinstance(value, Sequence) or not value or not all(isinstance(message, Message) for message in value):
        raise _invalid(env, "prompt", "a sequence of messages", value)
    return tuple(message.model_copy(update={"content": without_surrogates(message.text)}) for message in value)


def observation_of(env: str, value: Any) -> str | None:
    """An observation; None = the episode is over. Raises InfrastructureError for anything but text."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise _invalid(env, "observation", "text", value)
    return without_surrogates(value)


def score_of(env: str, value: Any) -> float | None:
    """A score from 0 to 1; None = the environment cannot grade. Raises InfrastructureError for anything else."""
    if value is None:
        return None
    if isinstance(value, Real) and 0 <= float(value) <= 1:  # false for NaN; numpy's numbers are Real
        return float(value)
    raise _invalid(env, "score", "a number from 0 to 1", value)


def claim_of(env: str, value: Any) -> Claim | None:
    """The claim for a judge, or None. Raises InfrastructureError for anything else."""
    if value is None or isinstance(value, Claim):
        return value
    raise _invalid(env, "claim", "a Claim", value)


def without_surrogates(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which no tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _invalid(env: str, what: str, expected: str, value: Any) -> InfrastructureError:
    return InfrastructureError(f"{env}: its {what} is not {expected} ({type(value).__name__} {str(value)[:40]!r})")

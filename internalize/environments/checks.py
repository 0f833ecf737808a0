"""What an environment said, checked: one that says something odd breaks its episode and not the run.

Left out: what it raises (rollout.py). What must not change: nothing odd becomes a score, an empty observation or a
text of the environment; observations hold no half characters, which no tokenizer takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from internalize.errors import InfrastructureError
from internalize.interfaces import Episode
from internalize.records import Claim, Message


def episode_of(name: str, said: Any) -> Episode:
    """An episode. Raises InfrastructureError for what is none."""
    if not all(callable(getattr(said, member, None)) for member in ("prompt", "step", "score")):
        raise InfrastructureError(f"{name}: its episode has not prompt, step and score ({_kind(said)})")
    found: Episode = said
    return found


def prompt_of(name: str, said: Any) -> tuple[Message, ...]:
    """The messages that an episode begins with. Raises InfrastructureError if they are none."""
    if not isinstance(said, Sequence) or not said or not all(isinstance(message, Message) for message in said):
        raise InfrastructureError(f"{name}: its prompt is no sequence of messages ({_kind(said)})")
    return tuple(message.model_copy(update={"content": whole(message.text)}) for message in said)


def observation_of(name: str, said: Any) -> str | None:
    """What a step answered; None = the episode is over. Raises InfrastructureError for anything else than text."""
    if said is not None and not isinstance(said, str):
        raise InfrastructureError(f"{name}: its observation is no text ({_kind(said)})")
    return None if said is None else whole(said)


def score_of(name: str, said: Any) -> float | None:
    """A score from 0 to 1; None = it cannot grade. Raises InfrastructureError for anything else."""
    if said is None:
        return None
    if isinstance(said, Real) and 0 <= float(said) <= 1:  # written so that NaN fails; numpy's numbers are Real
        return float(said)
    raise InfrastructureError(f"{name}: its score is no number from 0 to 1 ({_kind(said)})")


def claim_of(name: str, said: Any) -> Claim | None:
    """What a judge is asked; None = nothing. Raises InfrastructureError for anything else."""
    if said is None or isinstance(said, Claim):
        return said
    raise InfrastructureError(f"{name}: its claim is none ({_kind(said)})")


def whole(text: str) -> str:
    """The text with a question mark for every half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _kind(said: Any) -> str:
    return f"{type(said).__name__} {str(said)[:40]!r}"

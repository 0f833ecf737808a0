"""What the endpoint reads and keeps: one request of an agent, where it stands in its episode, and the finished call.

calls.jsonl    one `RecordedCall` for each finished call of a model; only what is new since the call before it
scores.jsonl   one `EpisodeScore` for each score that was given; the last one of an episode counts
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from internalize.records import ActionTurn, Injection, Message, Pattern, Record, Step, ToolSpec

CALLS, SCORES = "calls.jsonl", "scores.jsonl"
EpisodeName = Annotated[str, Field(pattern=r"^[\w.~-]{1,128}$")]


class AgentCall(Record):
    """One request, whatever wire format it came in. `unsupported` names the fields that the policy cannot honour."""

    messages: tuple[Message, ...]  # no two of the assistant in a row
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_usage: bool = False
    unsupported: tuple[str, ...] = ()


class Place(Record):
    """Where a call stands: after the turn of `parent`, or at the start of a conversation (`prompt`).

    `copied` are turns of its history that were not sampled here.
    """

    parent: str | None = None
    prompt: tuple[Message, ...] = ()  # of a new conversation, with the description of its tools
    tools: tuple[ToolSpec, ...] = ()  # of a new conversation, where the model's template describes them
    shown: Message | None = None  # the parent's turn, if the agent rewrote it
    results: tuple[Message, ...] = ()  # what followed the parent's turn
    copied: tuple[Step, ...] = ()


class Acting(Record):
    """Who answered: the weights (or the endpoint and its model) and the experience."""

    checkpoint: str
    pattern: Pattern = "none"
    pool_version: str | None = None


class RecordedCall(Record):
    """One finished call. `request` is a hash of all it showed, so that a repeated request is recognized."""

    id: str
    episode: EpisodeName
    request: str
    place: Place
    turn: ActionTurn
    injection: Injection | None = None
    global_injection: Injection | None = None  # None where it is that of the parent
    acting: Acting
    seconds: float = 0.0
    time: float = 0.0  # seconds since 1970


class EpisodeScore(Record):
    """A score in [0, 1] that an agent, a verifier, a judge or a person gave to an episode; None takes one back."""

    episode: EpisodeName
    score: float | None = Field(ge=0, le=1, allow_inf_nan=False)
    note: str = ""
    by: str = "caller"

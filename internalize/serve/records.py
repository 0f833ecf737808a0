"""The records of the endpoint: one request of an agent, its place in its episode, and the finished call.

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
    """One request in any wire format. `unsupported` names the fields that the policy cannot honour."""

    messages: tuple[Message, ...]  # never two of the assistant in a row
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_usage: bool = False
    unsupported: tuple[str, ...] = ()


class Place(Record):
    """The place of a call: after the turn of `parent`, or at the start of a conversation (`prompt`).

    `copied` are turns of its history that were not sampled here.
    """

    parent: str | None = None
    prompt: tuple[Message, ...] = ()  # prompt of a new conversation, with the description of its tools
    tools: tuple[ToolSpec, ...] = ()  # tools of a new conversation, if the model's template describes them
    shown: Message | None = None  # the parent's turn, if the agent rewrote it
    results: tuple[Message, ...] = ()  # messages after the parent's turn
    copied: tuple[Step, ...] = ()


class Acting(Record):
    """The weights (or the endpoint and its model) that answered, and their experience."""

    checkpoint: str
    pattern: Pattern = "none"
    pool_version: str | None = None


class RecordedCall(Record):
    """One finished call. `request` is a hash of everything the policy saw, to recognize a repeated request."""

    id: str
    episode: EpisodeName
    request: str
    place: Place
    turn: ActionTurn
    injection: Injection | None = None
    global_injection: Injection | None = None  # None = the parent's
    acting: Acting
    seconds: float = 0.0
    time: float = 0.0  # seconds since 1970


class EpisodeScore(Record):
    """A score in [0, 1] of an episode by an agent, a verifier, a judge or a person; None withdraws one."""

    episode: EpisodeName
    score: float | None = Field(ge=0, le=1, allow_inf_nan=False)
    note: str = ""
    by: str = "caller"

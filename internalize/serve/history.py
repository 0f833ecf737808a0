"""Finds which calls belong together: a call continues an earlier one if its messages begin with that one's request.

The calls of an episode form a forest: a sub-agent or a compacted history starts a tree of its own, and a repeated or
alternative call is a branch. A path from a root to a leaf is a trajectory. Only one trajectory learns a call; in the
others, and after a switch of weights, it is copied context.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from internalize.errors import DataError
from internalize.inference.tool_formats import as_text
from internalize.interfaces import ToolFormat
from internalize.records import Injection, Message, Step, Trajectory, content_hash

from .records import Acting, AgentCall, Place, RecordedCall

COPIED = "copied context"
_KEYS = 50_000  # message keys that an episode caches


class Turn(NamedTuple):
    """An assistant's message in a history, and the messages after it."""

    message: Message
    results: tuple[Message, ...]


def turns_of(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[Turn]]:
    """The prompt (all before the first assistant's message that follows a user's) and the turns since.

    Raises DataError if the last message is the assistant's own, or if there is none.
    """
    if not messages or messages[-1].role == "assistant":
        raise DataError("messages: the last one has to be of the user or of a tool")
    roles = [message.role for message in messages]
    asked = roles.index("user") if "user" in roles else len(roles)
    starts = [n for n in range(asked, len(roles)) if roles[n] == "assistant"]
    ends = [*starts[1:], len(messages)][: len(starts)]
    turns = [Turn(messages[a], tuple(messages[a + 1 : b])) for a, b in zip(starts, ends, strict=True)]
    return tuple(messages[: starts[0]] if starts else messages), turns


class History:
    """The calls of one episode, or of all episodes without a name; beyond `most` the oldest are dropped.

    Messages are compared after removal of secrets, because secrets are removed from the record too.
    """

    def __init__(self, tool_format: ToolFormat, clean: Callable[[str], str], most: int, *, named: bool) -> None:
        self._format, self._clean, self._most, self._named = tool_format, clean, most, named
        self._calls: OrderedDict[str, RecordedCall] = OrderedDict()
        self._requests: dict[str, list[str]] = {}  # ids of the calls by the hash of the request
        self._continued: set[str] = set()
        self._keys: dict[bytes, str] = {}  # keys of messages by the hash of their content

    def locate(self, call: AgentCall, instructions: str) -> tuple[Place, str]:
        """The place of a call, and the hash of its request. Raises DataError for messages that end with a turn."""
        prompt, turns = turns_of(call.messages)
        hashes = [self._hash(instructions, prompt)]
        for turn in turns:
            hashes.append(self._hash(hashes[-1], [turn.message, *turn.results]))
        if self._named and (again := self._requests.get(hashes[-1])) and self._whole(again[-1]):
            return self._calls[again[-1]].place, hashes[-1]
        for number in range(len(turns) - 1, -1, -1):
            if parent := self._answered(hashes[number], turns[number].message):
                message, results = turns[number]
                same = self._key(message) == self._key(parent.turn.message)
                place = Place(
                    parent=parent.id,
                    shown=None if same else message,
                    results=results,
                    copied=tuple(self._copied(turn) for turn in turns[number + 1 :]),
                )
                return place, hashes[-1]
        return Place(prompt=prompt, copied=tuple(map(self._copied, turns))), hashes[-1]

    def add(self, call: RecordedCall) -> None:
        """Store a finished call."""
        self._calls[call.id] = call
        self._requests.setdefault(call.request, []).append(call.id)
        if call.place.parent:
            self._continued.add(call.place.parent)
        while len(self._calls) > self._most:
            self._forget(next(iter(self._calls)))

    def path(self, last: str | None) -> list[RecordedCall]:
        """The calls from a root to the call `last`, or from where an older call was dropped."""
        found: list[RecordedCall] = []
        while last is not None and last in self._calls:
            found.append(self._calls[last])
            last = found[-1].place.parent
        return found[::-1]

    def repeats(self, request: str) -> int:
        """How often this request was answered before."""
        return len(self._requests.get(request, ()))

    @property
    def calls(self) -> list[RecordedCall]:
        """All calls in the order in which they were finished."""
        return list(self._calls.values())

    def _answered(self, request: str, turn: Message) -> RecordedCall | None:
        """The call with this request and the answer `turn`, or else (if the agent rewrote it) the last one.

        Among equal answers one without a successor is chosen, because two episodes may begin alike.
        """
        found = [self._calls[i] for i in self._requests.get(request, ()) if self._whole(i)]
        key = self._key(turn)
        same = [call for call in found if self._key(call.turn.message) == key]
        fresh = [call for call in same or found if call.id not in self._continued]
        return next(reversed(fresh or same or found), None)

    def _whole(self, name: str) -> bool:
        path = self.path(name)
        return bool(path) and path[0].place.parent is None

    def _copied(self, turn: Turn) -> Step:
        return Step(
            text=as_text(turn.message, self._format), message=turn.message, results=turn.results, left_out=COPIED
        )

    def _forget(self, name: str) -> None:
        call = self._calls.pop(name)
        self._continued.discard(name)
        if others := [i for i in self._requests.pop(call.request, ()) if i != name]:
            self._requests[call.request] = others

    def _key(self, message: Message) -> str:
        """A hash of the compared parts: without ids, reasoning, outer white space of the text and layout of arguments.

        It is cached: an agent sends its whole history at every call, and cleaning a long one takes half a second.
        """
        calls = [[call.name, call.arguments] for call in message.tool_calls]
        raw = sha256(json.dumps([message.role, message.text, calls]).encode()).digest()
        if raw not in self._keys:
            cleaned = [[name, _canonical(self._clean(arguments))] for name, arguments in calls]
            self._keys[raw] = content_hash([message.role, self._clean(message.text).strip(), cleaned])
            if len(self._keys) > _KEYS:
                del self._keys[next(iter(self._keys))]
        return self._keys[raw]

    def _hash(self, start: str, messages: Iterable[Message]) -> str:
        return sha256("\n".join([start, *map(self._key, messages)]).encode("utf-8", "replace")).hexdigest()


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments.strip()


def steps_of(path: Sequence[RecordedCall], place: Place | None = None) -> list[Step]:
    """The steps of the calls of a path, then those up to `place`."""
    steps: list[Step] = []
    for call in (*path, None):
        here = call.place if call else place
        if here is None:
            break
        if steps and here.parent is not None:
            steps[-1] = steps[-1].model_copy(update={"results": here.results, "shown": here.shown})
        steps += here.copied
        if call:
            steps.append(Step(**dict(call.turn), injection=call.injection, seconds=call.seconds))
    return steps


class Label(NamedTuple):
    """The fields that all trajectories of one episode share."""

    task_id: str
    env: str
    split: str
    family: str = ""
    iteration: int = 0
    seed: int = 0
    attempt: int = 0


def trajectories_of(calls: Sequence[RecordedCall], label: Label | None = None) -> list[Trajectory]:
    """The unscored trajectories of one episode's calls. `label` None = made from the question.

    The trajectory of the last call comes first, because that call gives the agent's answer; then the longest. Of
    several answers to one request the continued ones count, or else the last one.
    """
    paths = _paths(calls)
    taken: set[str] = set()
    found = []
    for path in sorted(paths, key=lambda path: (path[-1] is calls[-1], len(path)), reverse=True):
        own = {call.id for call in path if call.acting == path[-1].acting} - taken
        if own:
            found.append(_trajectory(path, own, label))
            taken |= own
    return found


def _paths(calls: Sequence[RecordedCall]) -> list[list[RecordedCall]]:
    """The paths to calls without a successor under the same weights, without dropped answers."""
    known = {call.id: call for call in calls}
    paths = {call.id: _path(known, call) for call in calls}
    requests: dict[str, list[RecordedCall]] = {}
    for call in calls:
        requests.setdefault(call.request, []).append(call)
    kept: dict[str, list[RecordedCall]] = {call.id: [] for call in calls}  # the successors of a call that count
    # Successors are deeper, and must be decided first.
    for same in sorted(requests.values(), key=lambda same: -max(len(paths[call.id]) for call in same)):
        followed = [call for call in same if kept[call.id]]
        for call in same:
            if call not in (followed or same[-1:]):
                del paths[call.id]
            elif call.place.parent in kept:
                kept[call.place.parent].append(call)
    return [path for i, path in paths.items() if all(other.acting != path[-1].acting for other in kept[i])]


def _path(known: dict[str, RecordedCall], call: RecordedCall) -> list[RecordedCall]:
    path = [call]
    while (parent := path[0].place.parent) is not None and parent in known:
        path.insert(0, known[parent])
    return path


def _trajectory(path: Sequence[RecordedCall], own: set[str], label: Label | None) -> Trajectory:
    last, prompt = path[-1], path[0].place.prompt
    acting: Acting = last.acting
    if label is None:
        question = next((m.text for m in reversed(prompt) if m.role == "user"), "")
        label = Label(content_hash(["served", question]), "served", "train")
    steps, number = steps_of(path), 0
    for place, step in enumerate(steps):
        if step.left_out:
            continue
        steps[place] = step.model_copy(update={"left_out": "" if path[number].id in own else COPIED})
        number += 1
    shown: list[Injection] = [c.global_injection for c in path if c.acting == acting and c.global_injection]
    return Trajectory(
        id=content_hash([last.episode, sorted(own)]),
        **label._asdict(),
        pattern=acting.pattern,
        checkpoint=acting.checkpoint,
        pool_version=acting.pool_version,
        prompt=prompt,
        tools=path[0].place.tools,
        global_injection=shown[-1] if shown else None,
        steps=tuple(steps),
        termination="answered",
    )

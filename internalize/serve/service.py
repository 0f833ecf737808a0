"""The endpoint without HTTP: finds the place of a call, injects experience, has it answered, and records it.

Experience goes only into the outgoing request; the agent's own history is recorded. A call is answered only after its
record is on disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from uuid import uuid4

from internalize.errors import ContextError, DataError, Incomplete, InfrastructureError, InternalizeError, UserError
from internalize.experience.inject import Injector
from internalize.experience.redact import Redactor
from internalize.inference.client import EndpointClient
from internalize.inference.renderer import with_system
from internalize.inference.tool_formats import as_text
from internalize.interfaces import Agent, ToolFormat
from internalize.records import ActionRequest, ActionTurn, Injection, Message, Step, Termination, content_hash

from .history import History, steps_of
from .records import Acting, AgentCall, Place, RecordedCall

Keep = Callable[[RecordedCall], Awaitable[None]]


class CallError(Exception):
    """A call that is not served: an HTTP status, one sentence, and a code that clients know."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Model:
    """The policy (`agent`) or endpoint (`relay`) that answers, with the experience to inject."""

    acting: Acting
    tool_format: ToolFormat
    injector: Injector = field(default_factory=Injector)
    agent: Agent | None = None
    relay: EndpointClient | None = None

    @property
    def name(self) -> str:
        """The model's name for agents."""
        return self.acting.checkpoint

    def instructions(self, call: AgentCall) -> str:
        """The description of the tools in the recorded prompt."""
        if not call.tools:
            return ""
        return self.agent.instructions(call.tools) if self.agent else self.tool_format.instructions(call.tools)


@dataclass(frozen=True)
class Located:
    """A call with its place in its episode, before it is answered."""

    id: str
    episode: str
    history: History
    call: AgentCall
    place: Place
    request: str
    steps: tuple[Step, ...]
    prompt: tuple[Message, ...]
    acting: Acting  # of the previous call
    started: float
    injection: Injection | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The clean messages on which the turn is decided."""
        past = [message for step in self.steps for message in (step.shown or step.message, *step.results)]
        return (*self.prompt, *past)


@dataclass
class Announced:
    """An episode that this process began. The seeds of its samples depend on `seed`."""

    most_calls: int
    seed: str
    ended: Termination = "answered"


class Service:
    """Answers and records calls. With `announced`, only those of episodes announced by `open`."""

    def __init__(self, model: Model, redactor: Redactor, keep: Keep, remember: int, *, announced: bool = False) -> None:
        self._model, self._redactor, self._keep, self._remember = model, redactor, keep, remember
        self._episodes: OrderedDict[str, History] = OrderedDict()
        self._nameless, self._remembered = self._history(named=False), 0
        self._announced: dict[str, Announced] | None = {} if announced else None
        self.errors: dict[str, InternalizeError] = {}  # by announced episode: why a call could not be served
        self._in_use, self._switching = 0, asyncio.Lock()
        self._idle, self._steady = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._steady.set()

    @property
    def model(self) -> Model:
        """The model that answers now."""
        return self._model

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Model]:
        """The model that answers; it cannot change within the block."""
        while not self._steady.is_set():
            await self._steady.wait()
        self._in_use += 1
        self._idle.clear()
        try:
            yield self._model
        finally:
            self._in_use -= 1
            if not self._in_use:
                self._idle.set()

    async def switch(self, load: Callable[[], Awaitable[Model]]) -> Model:
        """Replace the model after the calls under way; new ones wait. If `load` raises, the old model stays."""
        async with self._switching:
            self._steady.clear()
            try:
                await self._idle.wait()
                self._model = await load()
            finally:
                self._steady.set()
            return self._model

    # -- episodes -------------------------------------------------------------------------------------------------

    def open(self, episode: str, most_calls: int, seed: str) -> None:
        """Announce an episode, its limit of calls, and the seed of its samples."""
        assert self._announced is not None, "episodes are not announced here"
        self._announced[episode] = Announced(most_calls, seed)
        self._episodes[episode] = self._history()

    def close(self, episode: str) -> list[RecordedCall]:
        """End an announced episode and return its calls."""
        assert self._announced is not None, "episodes are not announced here"
        self._announced.pop(episode, None)
        history = self._episodes.pop(episode, None)
        return history.calls if history else []

    def ended(self, episode: str) -> Termination:
        """The limit at which calls of an announced episode were refused; "answered" if there was none."""
        assert self._announced is not None, "episodes are not announced here"
        return self._announced[episode].ended

    def _history(self, *, named: bool = True) -> History:
        return History(self._model.tool_format, self._redactor.clean, self._remember, named=named)

    def _history_of(self, episode: str) -> History:
        if not episode:
            return self._nameless
        announced = self._announced and self._announced.get(episode)
        if self._announced is not None and not announced:
            raise CallError(404, f"the episode {episode!r} is over, or was never begun")
        history = self._episodes.setdefault(episode, self._history())
        self._episodes.move_to_end(episode)
        if announced and len(history.calls) >= announced.most_calls:
            announced.ended = "max_steps"
            raise CallError(400, f"the episode has made its {announced.most_calls} calls (rollout.max_steps)")
        return history

    # -- calls ----------------------------------------------------------------------------------------------------

    async def locate(self, model: Model, episode: str, call: AgentCall) -> Located:
        """The place of a call, with the experience for it. Raises CallError."""
        history, instructions = self._history_of(episode), model.instructions(call)
        try:
            place, request = history.locate(call, instructions)
        except DataError as error:
            raise CallError(400, str(error)) from error
        path = history.path(place.parent)
        if not path and instructions:
            place = place.model_copy(update={"prompt": with_system(place.prompt, instructions)})
        elif not path:
            place = place.model_copy(update={"tools": call.tools})
        name = uuid4().hex
        located = Located(
            id=name,
            episode=episode or (path[0].episode if path else name),
            history=history,
            call=call,
            place=place,
            request=request,
            steps=tuple(steps_of(path, place)),
            prompt=path[0].place.prompt if path else place.prompt,
            acting=path[-1].acting if path else Acting(checkpoint=""),
            started=time.monotonic(),
        )
        return replace(located, injection=await model.injector.step_injection(located.messages))

    async def act(self, model: Model, located: Located) -> RecordedCall:
        """Have the policy answer, and record the call. Raises CallError."""
        assert model.agent, "an endpoint is relayed"
        call = located.call
        if call.unsupported:
            raise CallError(400, f"{call.unsupported[0]}: the policy cannot do what this asks for", "unsupported_value")
        if any(not isinstance(m.content, str) for m in call.messages):
            raise CallError(400, "messages: the policy reads text only, and one has a part that is none")
        shown = model.injector.global_injection()
        try:
            turn = await model.agent.act(
                ActionRequest(
                    episode=located.history.path(located.place.parent)[0].id if located.place.parent else located.id,
                    prompt=with_system(located.prompt, shown.text) if shown else located.prompt,
                    steps=located.steps,
                    tools=call.tools,
                    hint=located.injection.text if located.injection else "",
                    seed=self._seed(located),
                    max_tokens=call.max_tokens,
                )
            )
        except InternalizeError as error:
            raise self.refusal(located.episode, error) from error
        if turn is None:
            if self._announced is not None:
                self._announced[located.episode].ended = "context_full"
            raise CallError(400, "the context is longer than model.max_context", "context_length_exceeded")
        return await self.keep(model, located, _until(turn, call.stop, model.tool_format))

    async def keep(self, model: Model, located: Located, turn: ActionTurn) -> RecordedCall:
        """Write a finished call to disk. Raises CallError if that fails, and the call is then not finished."""
        number = sum(len(step.message.tool_calls) for step in located.steps)
        calls = tuple(
            c if c.id else c.model_copy(update={"id": f"call_{number + n}"})
            for n, c in enumerate(turn.message.tool_calls)
        )
        new_experience = not located.place.parent or located.acting != model.acting
        call = RecordedCall(
            id=located.id,
            episode=located.episode,
            request=located.request,
            place=located.place,
            turn=turn.model_copy(update={"message": turn.message.model_copy(update={"tool_calls": calls})}),
            injection=located.injection,
            global_injection=model.injector.global_injection() if new_experience else None,
            acting=model.acting,
            seconds=round(time.monotonic() - located.started, 4),
            time=round(time.time(), 3),
        )
        try:
            await self._keep(self._redacted(call))
        except (DataError, OSError) as error:
            raise CallError(500, f"the call could not be recorded ({error})") from error
        located.history.add(call)
        self._remembered += located.history is not self._nameless
        while self._announced is None and self._remembered > self._remember and len(self._episodes) > 1:
            self._remembered -= len(self._episodes.popitem(last=False)[1].calls)
        return call

    def _redacted(self, call: RecordedCall) -> RecordedCall:
        clean, place = self._redactor, call.place
        turn = clean.step(Step(**dict(call.turn)))
        place = place.model_copy(
            update={
                "prompt": tuple(map(clean.message, place.prompt)),
                "shown": place.shown and clean.message(place.shown),
                "results": tuple(map(clean.message, place.results)),
                "copied": tuple(map(clean.step, place.copied)),
            }
        )
        update = {
            "place": place,
            "turn": ActionTurn(**{name: getattr(turn, name) for name in ActionTurn.model_fields}),
            "injection": clean.injection(call.injection),
            "global_injection": clean.injection(call.global_injection),
        }
        return call.model_copy(update=update)

    def _seed(self, located: Located) -> int:
        """The seed of the same step in an episode played by a run; a repeated request gets another seed."""
        announced = self._announced and self._announced.get(located.episode)
        repeats = located.history.repeats(located.request)
        name = announced.seed if announced else located.episode
        return int(content_hash([name, len(located.steps), *([repeats] if repeats else [])]), 16)

    def refusal(self, episode: str, error: InternalizeError) -> CallError:
        """The error for the caller; for an announced episode it is stored too."""
        if self._announced is not None:
            self.errors[episode] = error
        if isinstance(error, ContextError):
            return CallError(400, str(error), "context_length_exceeded")
        if isinstance(error, Incomplete):
            return CallError(429, str(error), "insufficient_quota")
        if isinstance(error, UserError):
            return CallError(400, str(error))
        return CallError(503 if isinstance(error, InfrastructureError) else 500, str(error))


def _until(turn: ActionTurn, stop: Sequence[str], tool_format: ToolFormat) -> ActionTurn:
    """The turn up to the first of the agent's own stop texts. A cut turn was not sampled so, and has no ids."""
    text = turn.message.text
    cut = min((place for mark in stop if mark and (place := text.find(mark)) >= 0), default=None)
    if cut is None:
        return turn
    message = turn.message.model_copy(update={"content": text[:cut], "tool_calls": ()})
    return ActionTurn(text=as_text(message, tool_format), message=message)

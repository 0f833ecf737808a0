"""Relays calls to an endpoint of the recipe: passes its bytes on as they arrive, and records complete answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from internalize.errors import InternalizeError
from internalize.inference.control_tokens import inert
from internalize.inference.tool_formats import as_text
from internalize.records import ActionTurn

from .dialect import Body, Dialect, event, events_of
from .records import AgentCall
from .service import CallError, Located, Model, Service

_FORWARDED = ("anthropic-", "openai-")  # prefixes of request headers
_RETURNED = ("content-type", "retry-after", "x-request-id", "request-id", "x-should-retry", "retry-after-ms")


async def relay(
    service: Service,
    slot: Callable[[], AbstractAsyncContextManager[None]],
    dialect: Dialect,
    body: Body,
    call: AgentCall,
    request: Request,
    episode: str,
) -> Response:
    """The server's answer. Raises CallError if there is none."""
    if body.get("n") not in {None, 1}:
        raise CallError(400, "n: one answer a call is recorded")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(slot())
        model = await stack.enter_async_context(service.using())
        located = await service.locate(model, episode, call)
        shown = model.injector.global_injection()
        hint, system = inert(located.injection.text if located.injection else ""), inert(shown.text if shown else "")
        assert model.relay
        sent = dialect.hinted(body, hint, system) if hint or system else body
        sent = sent | model.relay.config.body | {"model": model.relay.config.model}
        headers = {name: value for name, value in request.headers.items() if name.startswith(_FORWARDED)}
        try:
            response = await stack.enter_async_context(model.relay.relayed(dialect.path, sent, headers))
        except InternalizeError as error:
            raise service.refusal(located.episode, error) from error
        relayed = _Relayed(service, model, located, dialect, sent, response)
        if call.stream and response.status_code < 300:
            return _Stream(relayed.stream(), response.status_code, _headers(response.headers), stack.pop_all())
        return await relayed.whole()


class _Stream(StreamingResponse):
    """A stream that frees its resources even if the client disconnects before the first byte."""

    def __init__(
        self, content: AsyncIterator[bytes], status: int, headers: dict[str, str], held: AsyncExitStack
    ) -> None:
        super().__init__(content, status, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with self._held:
            await super().__call__(scope, receive, send)


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in _RETURNED if name in headers}


class _Relayed:
    """One answer in transit."""

    def __init__(
        self, service: Service, model: Model, located: Located, dialect: Dialect, sent: Body, response: Any
    ) -> None:
        self._service, self._model, self._located = service, model, located
        self._dialect, self._sent, self._response = dialect, sent, response

    async def whole(self) -> Response:
        """An answer that is not streamed. An error of the server is passed on and not recorded."""
        try:
            data = await self._response.aread()
        except Exception as error:  # of the HTTP library, which depends on the version of openai
            raise CallError(502, f"the endpoint broke off ({type(error).__name__})") from error
        if self._response.status_code < 300:
            await self._keep(self._read(data), data)
        return Response(data, self._response.status_code, _headers(self._response.headers))

    def _read(self, data: bytes) -> ActionTurn:
        try:
            answer = json.loads(data)
            turn = self._dialect.turn(answer) if isinstance(answer, dict) else None
        except (ValueError, KeyError, TypeError, AttributeError, InternalizeError) as error:
            raise CallError(502, f"the endpoint gave no answer that can be read ({error})") from error
        if turn is None:
            raise CallError(502, "the endpoint gave an answer without a turn")
        return turn

    async def stream(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive. A complete answer is recorded before its last bytes are passed on.

        If the server breaks off, an error event follows.
        """
        data, ending, kept = bytearray(), False, False
        try:
            async for piece in self._response.aiter_bytes():
                data += piece
                ending = ending or self._dialect.end in data[-len(piece) - len(self._dialect.end) :]
                if ending and not kept:
                    kept = await self._keep_stream(bytes(data))
                yield piece
            kept = kept or await self._keep_stream(bytes(data))
            problem = "" if kept else "the endpoint ended its stream early"
        except CallError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - of the HTTP library, which depends on the version of openai
            problem = f"the endpoint broke off ({type(error).__name__})"
        if problem:
            yield b"\n\n" + event(self._dialect.error(502, problem, ""), "error")

    async def _keep_stream(self, data: bytes) -> bool:
        try:
            turn = self._dialect.streamed_turn(events_of(data))
        except (ValueError, KeyError, TypeError, AttributeError, InternalizeError):
            turn = None
        if turn is not None:
            await self._keep(turn, data)
        return turn is not None

    async def _keep(self, turn: ActionTurn, data: bytes) -> None:
        text = as_text(turn.message, self._model.tool_format)
        await self._service.keep(self._model, self._located, turn.model_copy(update={"text": text}))
        assert self._model.relay
        answer = {} if self._located.call.stream else json.loads(data)
        self._model.relay.count(answer, self._sent, data.decode("utf-8", "replace"))

"""The endpoint over HTTP: routes, callers' token, bounds, streams.

POST /v1/chat/completions, /v1/responses, /v1/messages      an episode is found from the growing history,
     /episodes/NAME/v1/...                                  or named in the path,
     with the header X-Episode: NAME                        or in a header
POST /episodes/NAME/score      {"score": 0.5} or {"success": true}, and "note"
POST /checkpoint               {"iteration": 3 | "kept", "pool": true}: another checkpoint answers from now on
GET  /v1/models, /health
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from internalize.config.serve import ServeConfig
from internalize.errors import InternalizeError
from internalize.inference.token_estimate import estimated_tokens
from internalize.runs.files import first_problem

from .anthropic_messages import AnthropicMessages
from .dialect import Answer, Body, Dialect
from .openai_chat import OpenAIChat
from .openai_responses import OpenAIResponses
from .records import AgentCall, EpisodeName, EpisodeScore
from .relay import relay
from .server import is_loopback
from .service import CallError, Service

DIALECTS: tuple[Dialect, ...] = (OpenAIChat(), OpenAIResponses(), AnthropicMessages())
_LOG = logging.getLogger(__name__)
_NAME: TypeAdapter[str] = TypeAdapter(EpisodeName)
Scored = Callable[[EpisodeScore], Awaitable[None]]
Switch = Callable[[Body], Awaitable[Body]]


class Bounds:
    """Bounds on concurrent calls, waiting calls, and the length of a request."""

    def __init__(self, config: ServeConfig) -> None:
        self._config, self._slots, self._calls = config, asyncio.Semaphore(config.concurrency), 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among the concurrent calls. Raises CallError if too many wait."""
        if self._calls >= self._config.concurrency + self._config.queue:
            raise CallError(429, f"{self._calls} calls are under way or waiting (serve.queue)", "rate_limit_exceeded")
        self._calls += 1
        try:
            async with self._slots:
                yield
        finally:
            self._calls -= 1

    async def body(self, request: Request) -> Body:
        """The JSON object of a request. Raises CallError."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise CallError(415, "the content type has to be application/json")  # which protects against web pages
        data, most = bytearray(), self._config.max_bytes
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise CallError(413, f"the request is longer than {most} bytes (serve.max_bytes)")
        try:
            body = json.loads(data)
            if not isinstance(body, dict):
                raise ValueError("not an object")  # noqa: TRY004, TRY301
            text = json.dumps(body, ensure_ascii=False)
        except (ValueError, RecursionError) as error:
            raise CallError(400, f"the body is no JSON object ({error})") from error
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which no tokenizer and no file takes
            body = json.loads(text.encode("utf-8", "replace"))
        return dict(body)


class Endpoint:
    """The routes over one service. `token` "" admits every caller; with `scored` None scores are refused."""

    def __init__(
        self,
        service: Service,
        config: ServeConfig,
        token: str = "",
        scored: Scored | None = None,
        switch: Switch | None = None,
    ) -> None:
        self._service, self._bounds, self._token = service, Bounds(config), token
        self._scored, self._switch = scored, switch

    def app(self, dialects: Iterable[Dialect] = DIALECTS) -> Starlette:
        """The ASGI application."""
        routes = [Route("/health", self._health), Route("/v1/models", self._models)]
        routes += [Route("/episodes/{name}/v1/models", self._models)]
        for prefix in ("/v1", "/episodes/{name}/v1"):
            for dialect in dialects:
                routes.append(Route(prefix + dialect.path, self._calls(dialect), methods=["POST"]))
            count = self._guarded(self._count, AnthropicMessages())
            routes.append(Route(f"{prefix}/messages/count_tokens", count, methods=["POST"]))
        routes.append(Route("/episodes/{name}/score", self._guarded(self._score), methods=["POST"]))
        if self._switch:
            routes.append(Route("/checkpoint", self._guarded(self._checkpoint), methods=["POST"]))
        return Starlette(routes=routes)

    def _calls(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await self._answer(request, dialect)

        return self._guarded(answer, dialect)

    def _guarded(
        self, respond: Callable[[Request], Awaitable[Response]], dialect: Dialect = DIALECTS[0]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Check the token, and turn an error into an answer in the caller's format."""

        async def guarded(request: Request) -> Response:
            try:
                self._admit(request)
                return await respond(request)
            except CallError as error:
                headers = (
                    {"Retry-After": "1"} if error.status in {429, 503} and error.code != "insufficient_quota" else {}
                )
                if error.code == "insufficient_quota":
                    headers = {"x-should-retry": "false"}  # known to the clients of OpenAI and Anthropic
                return JSONResponse(dialect.error(error.status, str(error), error.code), error.status, headers)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception:  # noqa: BLE001 - the caller gets an answer in its own format, and the log the rest
                _LOG.exception("a call failed")
                return JSONResponse(dialect.error(500, "internal error", ""), 500)

        return guarded

    def _admit(self, request: Request) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        if not self._token and not is_loopback(request.url.hostname or ""):
            raise CallError(403, "without a token, only callers of a loopback address are let in")  # no rebound names
        if self._token and not hmac.compare_digest(key.encode(), self._token.encode()):
            raise CallError(401, "the key is not the token of this endpoint", "invalid_api_key")

    async def _answer(self, request: Request, dialect: Dialect) -> Response:
        body, episode = await self._bounds.body(request), _episode(request)
        try:
            call = dialect.read(body)
        except InternalizeError as error:
            raise CallError(400, str(error)) from error
        if self._service.model.relay:
            return await relay(self._service, self._bounds.slot, dialect, body, call, request, episode)
        answer = await _unless_gone(request, self._act(call, episode))
        if call.stream:
            return StreamingResponse(_pieces(dialect, answer, call), media_type="text/event-stream")
        return JSONResponse(dialect.answer(answer))

    async def _act(self, call: AgentCall, episode: str) -> Answer:
        async with self._bounds.slot(), self._service.using() as model:
            located = await self._service.locate(model, episode, call)
            done = await self._service.act(model, located)
            return Answer.of(done.id, model.name, done.time, done.turn, located.messages)

    async def _score(self, request: Request) -> Response:
        body, episode = await self._bounds.body(request), _episode(request)
        if self._scored is None:
            raise CallError(404, "no scores are taken here")
        value = body.get("score")
        if isinstance(success := body.get("success"), bool):
            value = float(success)
        elif success is not None or "score" not in body:
            raise CallError(400, "a score has the field score (0 to 1) or success (true or false)")
        try:
            score = EpisodeScore(episode=episode, score=value, note=str(body.get("note") or ""))
        except ValidationError as error:
            raise CallError(400, first_problem(error)) from error
        await self._scored(score)
        return JSONResponse({"episode": episode, "score": score.score})

    async def _checkpoint(self, request: Request) -> Response:
        assert self._switch
        body = await self._bounds.body(request)
        try:
            return JSONResponse(await self._switch(body))
        except InternalizeError as error:
            raise CallError(400, str(error)) from error

    async def _count(self, request: Request) -> Response:
        """An estimate without sampling: Anthropic's clients request it before they compact a history."""
        body = await self._bounds.body(request)
        texts = [json.dumps(body.get(name, ""), ensure_ascii=False) for name in ("system", "messages", "tools")]
        return JSONResponse({"input_tokens": sum(map(estimated_tokens, texts))})

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"status": "ok", **self._service.model.acting.model_dump()})

    async def _models(self, request: Request) -> Response:  # noqa: ARG002
        model = {"id": self._service.model.name, "object": "model", "created": 0, "owned_by": "internalize"}
        return JSONResponse({"object": "list", "data": [model]})


def _episode(request: Request) -> str:
    """The episode's name in the path or the header, or ''. Raises CallError for an invalid name."""
    name = request.path_params.get("name") or request.headers.get("x-episode", "")
    try:
        return _NAME.validate_python(name) if name else ""
    except ValidationError as error:
        raise CallError(400, "an episode's name has up to 128 letters, digits and . _ ~ -") from error


async def _unless_gone(request: Request, work: Any) -> Answer:
    """The result of `work`, which is cancelled if the client disconnects; then raises ClientDisconnect."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()  # type: ignore[no-any-return]
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _pieces(dialect: Dialect, answer: Answer, call: AgentCall) -> AsyncIterator[bytes]:
    for piece in dialect.events(answer, call):
        yield piece

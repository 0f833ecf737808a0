"""A server of all three wire formats on loopback that answers by script and breaks on purpose, also in mid-stream.

    with Upstream(lambda body: "said") as upstream:
        upstream.url, upstream.bodies, upstream.answered, upstream.faults

It answers by the dialects of the endpoint itself: what is tried here is what happens on the way. `share` of the calls
break by a seeded schedule: an error status, a closed connection, or a stream that ends early.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ActionTurn
from internalize.serve.app import DIALECTS
from internalize.serve.dialect import Answer, Dialect
from internalize.serve.records import AgentCall
from internalize.serve.server import serving
from tests.in_thread import InThread

FAULTS = ("500", "503", "429", "dropped", "cut")


class Upstream(InThread):
    def __init__(
        self,
        say: Callable[[dict[str, Any]], str],
        *,
        share: float = 0.0,
        seed: int = 0,
        kinds: Sequence[str] = FAULTS,
        delay: float = 0.0,
        pause: float = 0.0,
    ) -> None:
        super().__init__()
        self.say, self.share, self.kinds, self.delay, self.pause = say, share, tuple(kinds), delay, pause
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.streams: list[bytes] = []  # of streams that were sent to the end
        self.faults: Counter[str] = Counter()
        self.answered = 0
        self.url = ""
        self._draw = random.Random(seed)

    async def _serve(self) -> None:
        app = Starlette(routes=[Route(f"/v1{d.path}", self._answering(d), methods=["POST"]) for d in DIALECTS])
        async with serving(app) as address:
            self.url = f"{address}/v1"
            self._ready.set()
            await self._stop.wait()

    def _answering(self, dialect: Dialect) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            self.keys.append(request.headers.get("authorization", ""))
            fault = self._draw.choice(self.kinds) if self._draw.random() < self.share else ""
            await asyncio.sleep(self.delay)
            self.faults[fault] += bool(fault)
            if fault in {"500", "503", "429"}:
                return JSONResponse(dialect.error(int(fault), f"injected {fault}", ""), int(fault))
            call = dialect.read(body)
            message = TOOL_FORMATS["json"].parse(self.say(body), call.tools)
            calls = tuple(c.model_copy(update={"id": f"up_{n}"}) for n, c in enumerate(message.tool_calls))
            turn = ActionTurn(text="", message=message.model_copy(update={"tool_calls": calls}))
            made = Answer.of(str(len(self.bodies)), "upstream-model", 1.0, turn, call.messages)
            if fault or call.stream:
                return StreamingResponse(self._pieces(dialect, made, call, fault), media_type="text/event-stream")
            self.answered += 1
            return JSONResponse(dialect.answer(made))

        return answer

    async def _pieces(self, dialect: Dialect, answer: Answer, call: AgentCall, fault: str) -> AsyncIterator[bytes]:
        events = list(dialect.events(answer, call))
        sent = b""
        for number, piece in enumerate(events):
            if fault == "dropped" or (fault == "cut" and number >= len(events) // 2):
                raise ConnectionResetError("injected")  # the server closes the connection without an end
            await asyncio.sleep(self.pause)
            sent += piece
            yield piece
        self.streams.append(sent)
        self.answered += 1

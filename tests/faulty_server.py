"""A scripted OpenAI-compatible server on loopback that breaks on purpose, and counts how often it did.

    with FaultyServer(reply=lambda messages, schema: "look[3]", share=0.5, seed=1) as server:
        ...                     # server.base_url, server.faults, server.answered, server.most_at_once

`reply` gives the text of a chat answer from the messages (dicts) and the JSON schema (or None). Faults come from a
seeded schedule: each request draws whether it breaks and how. `complete` (prompt ids -> sampled ids and logprobs)
adds vLLM's form of /v1/completions. Left out: streaming, TLS. What must not change: a request that is answered well
is counted in `answered`, one that is broken in `faults`, no request in both.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from tests.in_thread import InThread

Reply = Callable[[list[dict[str, Any]], dict[str, Any] | None], str]
Complete = Callable[[list[int]], tuple[list[int], list[float]]]
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body

FAULTS = (
    "429",  # too many requests, without a hint how long to wait
    "429 retry-after",
    "500",
    "503",
    "dropped",  # the connection closes before a byte
    "cut",  # the connection closes inside the body
    "slow",  # bytes trickle until the client gives up
    "truncated",  # whole body, but its JSON ends early
    "invalid",  # a page of HTML with status 200
    "empty choices",
    "no content",
    "wrong ids",  # a well-formed answer whose ids are not those that were offered
)
NO_ANSWER = FAULTS[:-1]  # those after which a client has nothing usable in hand
_HEX_ID = re.compile(r"\b[0-9a-f]{8,}\b")
_STATUS = {"429": 429, "429 retry-after": 429, "500": 500, "503": 503}


class FaultyServer(InThread):
    """`share` of the requests break, by faults of `kinds`; at most `limit` faults in all (None = no end).

    `schemas` False refuses response_format with 400. `usage` False leaves token counts out. `key` is demanded as
    a bearer token, and told back in the refusal, as careless servers do. `extra` are further answers by
    "METHOD /path". Read `requests` for the bodies that arrived.
    """

    def __init__(
        self,
        reply: Reply,
        *,
        share: float = 0.0,
        seed: int = 0,
        kinds: Sequence[str] = FAULTS,
        limit: int | None = None,
        complete: Complete | None = None,
        schemas: bool = True,
        usage: bool = True,
        key: str = "",
        retry_after: str = "0",
        delay: float = 0.0,
        extra: Mapping[str, Callable[[dict[str, Any]], Answer]] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__()
        self.port = port
        self.reply, self.complete, self.share, self.limit = reply, complete, share, limit
        self.kinds, self.schemas, self.usage, self.key = tuple(kinds), schemas, usage, key
        self.retry_after, self.delay, self.extra = retry_after, delay, dict(extra or {})
        self.faults: Counter[str] = Counter()
        self.answered = self.most_at_once = self._at_once = 0
        self.requests: list[dict[str, Any]] = []
        self.base_url = ""
        self._draw = random.Random(seed)

    def __enter__(self) -> Self:
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)  # client and server take turns in one process: 5 ms a turn would add up
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        sys.setswitchinterval(self._switch)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one kept-alive connection, until a fault or the client closes it."""
        try:
            while (request := await _read(reader)) is not None:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    open_still = await self._respond(*request, writer)
                finally:
                    self._at_once -= 1
                if not open_still:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    async def _respond(self, route: str, key: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        self.requests.append(body)
        fault = self._fault() if route.endswith("completions") else ""
        if not fault:
            answer = self._good(route, key, body)
        elif fault in _STATUS:
            waits = {"Retry_After": self.retry_after} if fault.endswith("retry-after") else {}
            answer = _error(_STATUS[fault], f"injected {fault}", **waits)
        else:
            answer = self._spoilt(fault, self._good(route, key, body))
        if fault:
            self.faults[fault] += 1
        else:
            self.answered += answer[0] == 200
        return await _send(writer, answer, fault)

    def _fault(self) -> str:
        """Two draws a request, whatever they give: the schedule does not depend on `limit`."""
        breaks, kind = self._draw.random() < self.share, self._draw.choice(self.kinds)
        spent = self.limit is not None and self.faults.total() >= self.limit
        return kind if breaks and not spent else ""

    def _good(self, route: str, key: str, body: dict[str, Any]) -> Answer:
        if self.key and key != self.key:
            return _error(401, f"Incorrect API key provided: {key}")
        if route in self.extra:
            return self.extra[route](body)
        if route == "POST /v1/chat/completions":
            return self._chat(body)
        if route == "POST /v1/completions" and self.complete is not None:
            return self._tokens(body)
        return 404, {}, b'{"detail":"Not Found"}'

    def _chat(self, body: dict[str, Any]) -> Answer:
        form = body.get("response_format")
        if form and not self.schemas:
            return _error(400, "This response_format type is unavailable now")
        text = self.reply(body["messages"], form["json_schema"]["schema"] if form else None)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return self._json(choice, prompt=len(json.dumps(body["messages"])) // 4, sampled=len(text) // 4 + 1)

    def _tokens(self, body: dict[str, Any]) -> Answer:
        assert self.complete is not None
        ids, logprobs = self.complete(body["prompt"])
        ids, logprobs = ids[: body["max_tokens"]], logprobs[: body["max_tokens"]]
        finish = "length" if len(ids) == body["max_tokens"] else "stop"
        choice = {"index": 0, "text": "", "finish_reason": finish, "logprobs": {"token_logprobs": logprobs}}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [None, *({} for _ in body["prompt"][1:])]
        return self._json(choice, prompt=len(body["prompt"]), sampled=len(ids))

    def _json(self, choice: dict[str, Any], *, prompt: int, sampled: int) -> Answer:
        body: dict[str, Any] = {"id": "r", "object": "completion", "model": "scripted", "choices": [choice]}
        if self.usage:
            body["usage"] = {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
        return 200, {}, json.dumps(body).encode()

    @staticmethod
    def _spoilt(fault: str, answer: Answer) -> Answer:
        status, headers, body = answer
        if status != 200 or fault in ("dropped", "cut", "slow"):
            return answer
        if fault == "truncated":
            return status, headers, body[: len(body) // 2]
        if fault == "invalid":
            return status, headers, b"<html><body>Bad gateway</body></html>"
        return status, headers, json.dumps(_wrong(fault, json.loads(body))).encode()


def _wrong(fault: str, body: dict[str, Any]) -> dict[str, Any]:
    if fault == "empty choices":
        return body | {"choices": []}
    (choice,) = body["choices"]
    if fault == "no content":
        return body | {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]}
    if "message" in choice:
        choice["message"]["content"] = _HEX_ID.sub("deadbeef0000", choice["message"]["content"])
    else:
        choice["token_ids"] = [2**31 - 1 for _ in choice.get("token_ids", [])]
    return body


def _error(status: int, message: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message, "code": status}}).encode()


async def _read(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, Any]] | None:
    """Method and path, bearer token and JSON body of the next request; None when the client has gone."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first:
        return None
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    key = headers.get("authorization", "").removeprefix("Bearer ")
    return f"{method} {path}", key, json.loads(body) if body else {}


async def _send(writer: asyncio.StreamWriter, answer: Answer, fault: str) -> bool:
    status, headers, body = answer
    if fault == "dropped":
        return False
    lines = [f"HTTP/1.1 {status} x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    if fault == "cut":
        writer.write(body[: len(body) // 2])
    elif fault == "slow":
        for byte in body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
    else:
        writer.write(body)
    await writer.drain()
    return fault not in ("cut", "slow")

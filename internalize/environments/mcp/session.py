"""One session with a Model Context Protocol server, over stdio or streamable HTTP, for callers that are not async.

The client of a session lives in its own asyncio task on the loop thread, because it must be entered and left in the
same task. A server that cannot be reached, hangs or dies is an InfrastructureError; an error in its answer is text.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, TextIO, cast

from pydantic import Field, ValidationError

from internalize.config.regime import Section
from internalize.environments.loop_thread import LoopThread
from internalize.errors import InfrastructureError, TaskError
from internalize.records import ToolSpec
from internalize.runs.store import first_problem

from .content import bounded, shown
from .stdio import LONGEST, started

_PAGES = 100  # most pages of the list of tools: some servers never end it
_CLOSING = 10.0  # seconds in which a server must end
_MOST_VALUES = 50_000  # objects and lists of an answer over HTTP: its reader takes some 1.5 KB for each
_LONGEST_QUOTE = 240  # characters of what a server printed
_MOST_ERRORS = 1 << 20  # bytes that a server's stderr may take on disk


class Server(Section):
    """The options of a server: a command (stdio) or an address (HTTP)."""

    command: tuple[str, ...] = Field((), description="Program and arguments of a server over stdio.")
    url: str = Field("", description="Address of a server over streamable HTTP.")
    key_env: str = Field("", description="Environment variable with the bearer token for `url`; '' = none.")
    pass_env: tuple[str, ...] = Field(
        (),
        description="Environment variables that `command` may see besides PATH, HOME, SHELL, TERM, LOGNAME and USER.",
    )
    starting: float = Field(60.0, gt=0, le=3600, description="Seconds a server may take to start.")
    seconds: float = Field(30.0, gt=0, le=3600, description="Seconds a call may take.")

    async def client(self, stack: AsyncExitStack, errors: TextIO, failed: Callable[[str], None]) -> Any:
        """A client that is not yet connected; `stack` closes what it uses, and `errors` gets a command's stderr."""
        from mcp import Client  # noqa: PLC0415 - an extra
        from mcp.client.stdio import get_default_environment  # noqa: PLC0415
        from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

        if self.command:
            seen = {name: os.environ[name] for name in self.pass_env if name in os.environ}
            return Client(bounded(started(self.command, get_default_environment() | seen, errors, failed)))
        http = await stack.enter_async_context(self.http(failed))
        return Client(bounded(streamable_http_client(self.url, http_client=http)))

    def http(self, failed: Callable[[str], None]) -> Any:
        """The HTTP client, which tells `failed` of answers to a message that are none themselves.

        It has no read time-out: `seconds` ends a call, and between calls the stream is silent.
        """
        import httpx2  # noqa: PLC0415 - what mcp itself uses

        bearer = {"Authorization": f"Bearer {os.environ.get(self.key_env, '')}"} if self.key_env else {}

        async def check(response: Any) -> None:
            response.stream = _counted(response.stream, failed)
            if packed := response.headers.get("content-encoding"):
                failed(f"its answer is packed ({packed}), which was not asked for")
                raise httpx2.DecodingError("packed", request=response.request)
            if response.status_code < 400 or response.request.method != "POST":
                return
            if response.status_code == 404 or b'"jsonrpc"' not in await response.aread():  # 404: the session is lost
                failed(f"HTTP {response.status_code}")

        timeout = httpx2.Timeout(self.starting, read=None)
        headers = {"Accept-Encoding": "identity"} | bearer  # uncompressed, so that counted and stored bytes agree
        return httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks={"response": [check]})


def _counted(stream: Any, failed: Callable[[str], None]) -> Any:
    """The bytes of an answer over HTTP, up to limits. `failed` is told of one that exceeds them, and it ends there."""
    import httpx2  # noqa: PLC0415 - what mcp itself uses

    class Counted(httpx2.AsyncByteStream):  # type: ignore[misc, unused-ignore]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left, values, outside = LONGEST, _MOST_VALUES, _OutsideStrings()
            async for part in stream:
                if (left := left - len(part)) < 0:
                    failed(f"its answer has more than {LONGEST:,} bytes")
                    raise httpx2.ReadError("too long")
                if (values := values - sum(map(outside.of(part).count, (b"{", b"[")))) < 0:
                    failed(f"its answer has more than {_MOST_VALUES:,} objects and lists")
                    raise httpx2.ReadError("too many values")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Counted()


class _OutsideStrings:
    """Finds the part of a JSON text, given in pieces, that lies outside of its strings."""

    def __init__(self) -> None:
        self._rest, self._inside = b"", 0

    def of(self, piece: bytes) -> bytes:
        """The part of the next piece that lies outside of strings."""
        text = (self._rest + piece).replace(rb"\\", b"")
        self._rest = b"\\" if text.endswith(b"\\") else b""  # what it escapes comes with the next piece
        parts = text.removesuffix(b"\\").replace(rb"\"", b"").split(b'"')
        outside = parts[self._inside :: 2]
        self._inside = (self._inside + len(parts) - 1) % 2
        return b"".join(outside)


class Session:
    """A connection. Raises InfrastructureError if there is none within `server.starting` seconds."""

    def __init__(self, server: Server, loop: LoopThread) -> None:
        self._server, self._loop = server, loop
        self._client: Any = None
        self._failure = ""  # of HTTP, since the last call began
        self._errors = cast("TextIO", tempfile.TemporaryFile("a+", encoding="utf-8", errors="replace"))  # noqa: SIM115
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Event | None = None
        try:
            loop.call(self._open(), server.starting)
        except InfrastructureError as error:
            reason = f"{error}; it says: {said}" if (said := self._last_line()) else str(error)
            self.close()
            raise InfrastructureError(f"mcp: the server does not start ({reason})") from error

    async def _open(self) -> None:
        self._closing = asyncio.Event()
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready, self._closing))
        self._client = await ready

    async def _live(self, ready: asyncio.Future[Any], closing: asyncio.Event) -> None:
        """Connect, wait until the session is closed, disconnect."""
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(await self._server.client(stack, self._errors, self._failed))
                client.session.validate_tool_result = _accept  # a result that breaks the tool's own schema is shown
                ready.set_result(client)
                await closing.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - clients raise groups of many kinds; a lost one would hang `_open`
            if not ready.done():
                ready.set_exception(InfrastructureError(_first_error(error)))
        finally:
            if not ready.done():
                ready.cancel()

    def _last_line(self) -> str:
        """What a command printed last to its stderr."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:_LONGEST_QUOTE] if lines else ""

    def _failed(self, why: str) -> None:
        self._failure = why

    def tools(self) -> tuple[ToolSpec, ...]:
        """The server's tools, in its order. Raises TaskError for a list that violates the protocol."""
        try:
            return self._loop.call(self._list_tools(), self._server.starting)
        except InfrastructureError as error:
            if isinstance(error.__cause__, ValidationError):
                raise TaskError(
                    f"mcp: the server's list of tools is malformed ({first_problem(error.__cause__)})"
                ) from error
            raise

    async def _list_tools(self) -> tuple[ToolSpec, ...]:
        tools: list[ToolSpec] = []
        cursor = None
        for _ in range(_PAGES):
            page = await self._while_connected(self._client.list_tools(cursor=cursor))
            tools += [
                ToolSpec(
                    name=tool.name,
                    argument="arguments",
                    description=" ".join((tool.description or "").split()),
                    parameters=tool.input_schema,
                )
                for tool in page.tools
            ]
            cursor = page.next_cursor
            if not cursor:
                break
        return tuple(tools)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of a tool, errors that the server answers with included. Raises InfrastructureError."""
        try:
            return self._loop.call(self._call_tool(name, dict(arguments)), self._server.seconds)
        except InfrastructureError as error:
            raise InfrastructureError(f"mcp: {name}: {error}") from error

    async def _call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp import MCPError  # noqa: PLC0415 - an extra

        self._failure = ""
        if self._errors.seek(0, os.SEEK_END) > _MOST_ERRORS:
            self._errors.truncate(0)
        try:
            return shown(await self._while_connected(self._client.call_tool(name, arguments)))
        except MCPError as error:
            if self._failure or not await self._answers():
                raise InfrastructureError(f"{error.message} ({self._failure or error.code})") from error
            return f"Error: {error.message}"

    async def _answers(self) -> bool:
        """Whether the server still lists its tools: the client's own errors have the form and codes of a server's."""
        try:
            await self._while_connected(self._client.session.list_tools())
        except Exception:  # noqa: BLE001 - whatever is wrong, it does not answer
            return False
        return not self._failure

    async def _while_connected(self, work: Any) -> Any:
        """The result of `work`. Raises InfrastructureError if the connection ends first."""
        from mcp import MCPError  # noqa: PLC0415 - an extra

        future = asyncio.ensure_future(work)
        assert self._task
        try:
            await asyncio.wait({future, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
        except MCPError:
            raise
        except Exception as error:
            raise InfrastructureError(_first_error(error)) from error
        finally:
            future.cancel()
        raise InfrastructureError("the server has gone")

    def close(self) -> None:
        """Disconnect, and end a server that was started; closing twice is harmless."""
        task, self._task = self._task, None
        self._errors.close()
        if task is not None:
            with suppress(InfrastructureError):
                self._loop.call(self._disconnect(task), 3 * _CLOSING)

    async def _disconnect(self, task: asyncio.Task[None]) -> None:
        if self._closing:
            self._closing.set()
        if self._client is not None:  # else it is still connecting and does not see the event
            await asyncio.wait({task}, timeout=_CLOSING)
        task.cancel()
        await asyncio.wait({task}, timeout=_CLOSING)  # the client asks the process to end before it kills it


async def _accept(*_: Any) -> None:
    """Takes any result of a tool."""


def _first_error(error: BaseException) -> str:
    """The first error of a group, in one line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Sessions:
    """Sessions for episodes: one each, or a shared one until it fails."""

    def __init__(self, make: Callable[[], Session], *, shared: bool) -> None:
        self._make, self._shared = make, shared
        self._current: Session | None = None
        self._users: dict[Session, int] = {}
        self._lock = threading.Lock()

    def take(self) -> Session:
        """A session, which must be given back. Raises InfrastructureError."""
        if not self._shared:
            return self._make()
        with self._lock:
            self._current = self._current or self._make()
            self._users[self._current] = self._users.get(self._current, 0) + 1
            return self._current

    def lose(self, session: Session) -> None:
        """Give a failed session to no other episode."""
        with self._lock:
            if session is self._current:
                self._current = None

    def give(self, session: Session) -> None:
        """Give a session back; one that nobody takes any more is closed by its last user."""
        with self._lock:
            left = self._users[session] = self._users.get(session, 1) - 1
            closing = not left and session is not self._current
            if closing:
                del self._users[session]
        if closing:
            session.close()

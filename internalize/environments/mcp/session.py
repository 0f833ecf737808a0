"""One session with a Model Context Protocol server, over stdio or streamable HTTP, for callers that are not async.

Each session has a task of its own in the background loop, because the client must be entered and left in one task. A
server that cannot be reached, hangs or dies is an InfrastructureError; an error of the tool itself is text.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from internalize.environments.loop_thread import Background
from internalize.errors import InfrastructureError, TaskError
from internalize.records import ToolSpec
from internalize.runs.store import first_problem

_REFUSED = frozenset({-32602, -32601, -32600})  # JSON-RPC: the call was wrong, not the server
_PAGES = 100  # of tools, before a server that never ends its list is given up
_LEAVING = 10.0  # seconds a server may take to go


@dataclass(frozen=True)
class Server:
    """Where it is: a command (stdio) or an address (HTTP). `passed`: variables of ours that the command may see."""

    command: tuple[str, ...] = ()
    url: str = ""
    key_env: str = ""
    passed: tuple[str, ...] = ()
    starting: float = 60.0  # seconds
    seconds: float = 30.0  # a call may take

    async def client(self, stack: AsyncExitStack) -> Any:
        """A client that is not yet connected; what it needs is left with `stack`."""
        from mcp import Client, StdioServerParameters  # noqa: PLC0415 - an extra
        from mcp.client.stdio import stdio_client  # noqa: PLC0415
        from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

        if self.command:
            seen = {name: os.environ[name] for name in self.passed if name in os.environ}
            silent = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115, ASYNC230
            program, *arguments = self.command
            parameters = StdioServerParameters(command=program, args=arguments, env=seen)
            return Client(stdio_client(parameters, errlog=silent))
        return Client(streamable_http_client(self.url, http_client=await stack.enter_async_context(self.http())))

    def http(self) -> Any:
        """The HTTP client. No reading of it times out: `seconds` ends a call, and between calls nothing is said."""
        import httpx2  # noqa: PLC0415 - what mcp itself uses

        bearer = {"Authorization": f"Bearer {os.environ.get(self.key_env, '')}"} if self.key_env else {}
        return httpx2.AsyncClient(headers=bearer, timeout=httpx2.Timeout(self.starting, read=None))


class Session:
    """A connection. Raises InfrastructureError if there is none within `server.starting` seconds."""

    def __init__(self, server: Server, background: Background) -> None:
        self._server, self._background = server, background
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Event | None = None
        try:
            background.call(self._open(), server.starting)
        except InfrastructureError as error:
            self.close()
            raise InfrastructureError(f"mcp: the server does not start ({error})") from error

    async def _open(self) -> None:
        self._ending = asyncio.Event()
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready, self._ending))
        self._client = await ready

    async def _live(self, ready: asyncio.Future[Any], ending: asyncio.Event) -> None:
        """Connect, stay until the end, leave."""
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(await self._server.client(stack))
                ready.set_result(client)
                await ending.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - clients raise groups of many kinds, and none may be lost
            if not ready.done():
                ready.set_exception(InfrastructureError(_words(error)))
        finally:
            if not ready.done():
                ready.cancel()

    def tools(self) -> tuple[ToolSpec, ...]:
        """What the server offers, in its order. Raises TaskError for a list that is not as the protocol has it."""
        try:
            return self._background.call(self._listed(), self._server.starting)
        except InfrastructureError as error:
            if isinstance(error.__cause__, ValidationError):
                raise TaskError(
                    f"mcp: the server's list of tools is malformed ({first_problem(error.__cause__)})"
                ) from error
            raise

    async def _listed(self) -> tuple[ToolSpec, ...]:
        found: list[ToolSpec] = []
        cursor = None
        for _ in range(_PAGES):
            page = await self._until_dead(self._client.list_tools(cursor=cursor))
            found += [
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
        return tuple(found)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What the tool answers, errors of its own included. Raises InfrastructureError."""
        try:
            return self._background.call(self._called(name, dict(arguments)), self._server.seconds)
        except InfrastructureError as error:
            raise InfrastructureError(f"mcp: {name}: {error}") from error

    async def _called(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp import MCPError  # noqa: PLC0415 - an extra

        try:
            result = await self._until_dead(self._client.call_tool(name, arguments))
        except MCPError as error:
            if error.code not in _REFUSED:
                raise InfrastructureError(f"{error.message} ({error.code})") from error
            return f"Error: {error.message}"
        text = _text(result.content, result.structured_content)
        return f"Error: {text}" if result.is_error else text

    async def _until_dead(self, work: Any) -> Any:
        """What `work` gives, unless the connection ends first."""
        from mcp import MCPError  # noqa: PLC0415 - an extra

        asked = asyncio.ensure_future(work)
        assert self._task
        try:
            await asyncio.wait({asked, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
        except MCPError:
            raise
        except Exception as error:
            raise InfrastructureError(_words(error)) from error
        finally:
            asked.cancel()
        raise InfrastructureError("the server has gone")

    def close(self) -> None:
        """Leave; a server that was started is ended. A second time does nothing."""
        task, self._task = self._task, None
        if task is not None:
            with suppress(InfrastructureError):
                self._background.call(self._leave(task), 3 * _LEAVING)

    async def _leave(self, task: asyncio.Task[None]) -> None:
        if self._ending:
            self._ending.set()
        if self._client is not None:  # else it is still connecting, and waits for nothing of ours
            await asyncio.wait({task}, timeout=_LEAVING)
        task.cancel()
        await asyncio.wait({task}, timeout=_LEAVING)  # the client ends the process first, politely


def _text(content: Sequence[Any], structured: Any) -> str:
    """The text blocks; other kinds are named."""
    parts = [block.text if block.type == "text" else f"[{block.type}]" for block in content]
    if not parts and structured is not None:
        return json.dumps(structured, ensure_ascii=False)
    return "\n".join(parts)


def _words(error: BaseException) -> str:
    """The first plain error in a group, in one line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""A server as a process: messages are lines on its standard input and output; its child processes end with it.

It replaces the client's own transport, which reads lines of any length, logs a traceback for each line that is no
message, and does not end child processes of a server that has ended by itself. A process that leaves the server's
process group (a daemon) is not ended here either. POSIX only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, TextIO, cast

from internalize.records import json_value

LONGEST = 8 << 20  # bytes of a message
_MOST_STRAY = 10_000  # lines that are no messages, after which a server is given up
_GRACE = 2.0  # seconds to end after the input was closed, and again after SIGTERM
_LOG = logging.getLogger(__name__)


@asynccontextmanager
async def started(
    command: Sequence[str], environment: Mapping[str, str], errors: TextIO, failed: Callable[[str], None]
) -> AsyncIterator[tuple[Any, Any]]:
    """The client's two streams to a server that runs while the context is open. `failed` is told why it was given up.

    Raises OSError if there is no such program.
    """
    import anyio  # noqa: PLC0415 - of the extra, as is the client

    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=errors, env=dict(environment), start_new_session=True, limit=LONGEST
    )
    deliver, incoming = anyio.create_memory_object_stream[Any](0)
    outgoing, take = anyio.create_memory_object_stream[Any](0)
    tasks = [
        asyncio.create_task(_read(process, deliver, tuple(command), failed)),
        asyncio.create_task(_write(process, take)),
    ]
    try:
        yield incoming, outgoing
    finally:
        with anyio.CancelScope(shield=True):
            for stream in (incoming, outgoing):
                stream.close()  # further output is discarded, so that the server can end
            await _end(process)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            cast("Any", process)._transport.close()  # noqa: SLF001 - asyncio closes pipes that a daemon holds no other way


async def _read(process: Process, deliver: Any, command: tuple[str, ...], failed: Callable[[str], None]) -> None:
    """Deliver messages until the server ends, is given up, or nobody takes them any more."""
    from anyio import BrokenResourceError, ClosedResourceError  # noqa: PLC0415 - of the extra
    from mcp.shared.message import SessionMessage  # noqa: PLC0415
    from mcp_types import jsonrpc_message_adapter  # noqa: PLC0415

    assert process.stdout
    stray = 0
    async with deliver:
        while stray <= _MOST_STRAY:
            try:
                line = await process.stdout.readuntil()
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                failed(f"it sent a line of more than {LONGEST:,} bytes")
                break
            try:
                # The adapter's own reader of JSON takes kilobytes for each value of the line.
                message = jsonrpc_message_adapter.validate_python(json_value(line), by_name=False)
            except ValueError:
                stray += 1
                _tell_stray(command)
                continue
            try:
                await deliver.send(SessionMessage(message))
            except (BrokenResourceError, ClosedResourceError):
                break
        else:
            failed(f"it printed more than {_MOST_STRAY:,} lines that are no messages")
    while await process.stdout.read(LONGEST):
        pass


@cache
def _tell_stray(_: tuple[str, ...]) -> None:
    """Once for each command."""
    _LOG.warning("mcp: the server prints lines to its stdout that are no messages; they are passed over")


async def _write(process: Process, take: Any) -> None:
    assert process.stdin
    with suppress(ConnectionError):  # it has ended, which the reader sees
        async with take:
            async for one in take:
                process.stdin.write(one.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await process.stdin.drain()


async def _end(process: Process) -> None:
    """Close the server's input; then end its process group, in which what it has started may still be."""
    assert process.stdin
    process.stdin.close()
    await _until(lambda: process.returncode is not None)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
            await _until(lambda: not _lives(process.pid))


async def _until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for `_GRACE` seconds at most."""
    for _ in range(int(_GRACE / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True

"""Runs the endpoint in the event loop of its caller."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

from internalize.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_ENDING = 5  # seconds in which calls under way must end when the server ends


@asynccontextmanager
async def serving(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The address of the running server; port 0 = a free one. Raises UserError if it cannot listen there."""
    import uvicorn  # noqa: PLC0415 - an extra

    listening = _listening(host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=_ENDING
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `Server.serve`, which would take over the signals of the program that runs the loop.
    await server.startup(sockets=[listening])
    working = asyncio.create_task(server.main_loop())
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await working
        await server.shutdown(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only with the protocol named does asyncio disable Nagle's algorithm, which would add 40 ms to every answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(f"serve: cannot listen on {host}:{port} ({error.strerror})") from error
    return listening

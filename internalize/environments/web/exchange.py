"""One request for a page with limits on bytes (also while unpacking) and on the time of the whole exchange.

A server may send one header byte a second, or a kilobyte that unpacks to gigabytes; neither can block an episode.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from internalize.environments.loop_thread import finish

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 2_000_000  # of a page, packed and unpacked
PACKINGS = "gzip, deflate"
# Ranges whose addresses carry an IPv4 address that is reached in the end, and how many bits stand after it.
_CARRIERS = (("64:ff9b::/96", 0), ("64:ff9b:1::/48", 0), ("2002::/16", 80), ("::ffff:0:0/96", 0), ("::/96", 0))
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")


class Packed(Exception):  # noqa: N818 - said to the policy in other words
    """A body is packed in a way that is not unpacked here, or is damaged."""


class Response(NamedTuple):
    """What a server answered; `cut`: the body had more than MOST_BYTES."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool
    charset: str


def is_public(text: str) -> bool:
    """Whether an address is public, also after translation (NAT64, 6to4, mapped)."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _CARRIERS:
            if address in ipaddress.ip_network(network):
                return is_public(str(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF)))
        if address in _SITE_LOCAL or address.teredo:
            return False
    return address.is_global and not address.is_multicast


def exchanged(
    request: httpx.Request, context: ssl.SSLContext, seconds: float, answers: Callable[[], None] = lambda: None
) -> Response:
    """The answer to a request; `answers` is called once its headers have come.

    Raises TimeoutError after `seconds`, Packed, and what httpx raises for lost connections.
    """
    return finish(_within(request, context, seconds, answers))


async def _within(
    request: httpx.Request, context: ssl.SSLContext, seconds: float, answers: Callable[[], None]
) -> Response:
    import httpx  # noqa: PLC0415 - an extra

    async with asyncio.timeout(seconds), httpx.AsyncHTTPTransport(verify=context) as transport:
        response = await transport.handle_async_request(request)  # a client would follow `location` itself
        answers()
        try:
            body, cut = b"", False
            if response.is_success:
                body, cut = await _body(response)
        finally:
            await response.aclose()
    return Response(response.status_code, response.headers, body, cut, response.charset_encoding or "")


async def _body(response: httpx.Response) -> tuple[bytes, bool]:
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing not in {"", "identity", "gzip", "x-gzip", "deflate"}:  # also one around another
        raise Packed(packing)
    unpack, taken, kept = _unpacker(packing), 0, b""
    async for piece in response.aiter_raw():
        taken += len(piece)
        kept += unpack(piece, MOST_BYTES + 1 - len(kept))
        if max(taken, len(kept)) > MOST_BYTES:
            return kept[:MOST_BYTES], True
    return kept, False


def _unpacker(packing: str) -> Any:
    """Takes a piece, and the most bytes to make of it."""
    if packing in {"", "identity"}:
        return lambda piece, most: piece[:most]
    unpacking: Any = None

    def unpack(piece: bytes, most: int) -> bytes:
        nonlocal unpacking
        raw = packing == "deflate" and (piece[0] & 0x0F) != 8 if piece else False  # without the frame of zlib
        unpacking = unpacking or zlib.decompressobj(-zlib.MAX_WBITS if raw else 32 + zlib.MAX_WBITS)
        try:
            return bytes(unpacking.decompress(piece, most))
        except zlib.error as error:
            raise Packed(str(error)) from error

    return unpack

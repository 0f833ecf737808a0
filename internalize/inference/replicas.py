"""Several servers with the same weights behind one endpoint: a conversation stays where its prefix is cached.

The servers share the endpoint's client, and so its limits and its budget; requests differ only in the address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from internalize.interfaces import Engine
from internalize.records import Generation, Sampling

from .client import Body, EndpointClient
from .server import Asked

T = TypeVar("T")


class At:
    """`server.Asked` for one address of an endpoint."""

    def __init__(self, client: EndpointClient, address: str) -> None:
        self._client, self._address = client, address.rstrip("/")
        self.name, self.config, self.root = client.name, client.config, self._address.removesuffix("/v1")

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """As `EndpointClient.request`, at this address."""
        return await self._client.request(self._at(path), body, read, final=final)

    async def post(self, path: str, body: Body, *, final: Collection[int] = ()) -> None:
        """As `EndpointClient.post`, at this address."""
        await self._client.post(self._at(path), body, final=final)

    def _at(self, path: str) -> str:
        return self._address + path if path.startswith("/") else path


def servers_of(client: EndpointClient) -> list[At]:
    """Every server of an endpoint, that of its `base_url` first."""
    return [At(client, address) for address in (client.config.base_url, *client.config.replicas)]


class Spread:
    """`server.Asked` for independent requests: each goes to the server with the fewest requests under way."""

    def __init__(self, servers: Sequence[Asked]) -> None:
        self._servers, self._busy = servers, Counter[int]()
        self.name, self.config, self.root = servers[0].name, servers[0].config, servers[0].root

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """As `EndpointClient.request`, at the server with the fewest requests."""
        number = min(range(len(self._servers)), key=lambda n: self._busy[n])
        self._busy[number] += 1
        try:
            return await self._servers[number].request(path, body, read, final=final)
        finally:
            self._busy[number] -= 1


class ReplicaEngine:
    """`interfaces.Engine` over replicas; a new conversation goes to the one with the fewest conversations."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._at: dict[str, int] = {}

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        """Continue `prompt_ids` on the conversation's replica."""
        if conversation not in self._at:
            held = Counter(self._at.values())
            self._at[conversation] = min(range(len(self._engines)), key=lambda n: held[n])
        engine = self._engines[self._at[conversation]]
        return await engine.generate(prompt_ids, conversation=conversation, seed=seed, sampling=sampling)

    def release(self, conversation: str) -> None:
        """Drop the conversation on its replica."""
        if conversation in self._at:
            self._engines[self._at.pop(conversation)].release(conversation)

    def reset(self) -> None:
        """Forget every cache."""
        self._at.clear()
        for engine in self._engines:
            engine.reset()

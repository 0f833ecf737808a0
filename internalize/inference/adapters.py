"""Manages LoRA adapters on vLLM servers: loads them, reloads them when they are lost, and unloads them.

If the recipe names the folder of the server's resolver (`endpoints.NAME.adapters`), an adapter is copied into it under
its id, and the server finds it there by itself, also after a restart and on every replica. Otherwise a request loads
it, which reaches one API server and is lost at a restart; a request for a lost model loads it again.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from internalize.errors import InfrastructureError

from .client import Body, EndpointClient, Refused
from .replicas import At, servers_of
from .server import Asked

T = TypeVar("T")
_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"
_FINAL = (500, 501)  # statuses for an adapter that can never be loaded (its rank is too large, say)


class Adapters:
    """The adapters loaded on the servers of an endpoint, by checkpoint id; at most one at a time."""

    def __init__(self, client: EndpointClient) -> None:
        self._config, self._servers = client.config, servers_of(client)
        self._folders: dict[str, Path] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self.loads = 0  # how many times an adapter was loaded

    def holds(self, checkpoint: str) -> bool:
        """Whether the server has loaded these weights."""
        return checkpoint in self._folders

    async def load(self, checkpoint: str, folder: Path) -> None:
        """Have the server load the adapter in `folder` and unload any other. Raises Refused with its explanation."""
        if not self.holds(checkpoint):
            await self._put(checkpoint, folder)
            for other in [*self._folders]:
                await self.unload(other)
            self._folders[checkpoint] = folder

    async def reload(self, checkpoint: str) -> None:
        """Load an adapter again, once for all concurrent callers. Raises Refused."""
        if checkpoint not in self._loading:
            self._loading[checkpoint] = asyncio.create_task(self._put(checkpoint, self._folders[checkpoint]))
            self._loading[checkpoint].add_done_callback(lambda _: self._loading.pop(checkpoint))
        await asyncio.shield(self._loading[checkpoint])

    async def unload(self, checkpoint: str) -> None:
        """Unload an adapter, so that no server looks for deleted files. A server that cannot unload keeps it."""
        self._folders.pop(checkpoint, None)
        for server in self._servers:
            with suppress(Refused, InfrastructureError):
                await server.post("/unload_lora_adapter", {"lora_name": checkpoint}, final=_FINAL)
        if self._config.adapters:
            shutil.rmtree(Path(self._config.adapters) / checkpoint, ignore_errors=True)

    async def _put(self, checkpoint: str, folder: Path) -> None:
        if self._config.adapters:
            _copy(folder, Path(self._config.adapters) / checkpoint, self._config.model)
        for server in self._servers:
            await self._put_on(server, checkpoint, folder)
        self.loads += 1

    async def _put_on(self, server: At, checkpoint: str, folder: Path) -> None:
        if self._config.adapters:
            await server.post("/completions", {"model": checkpoint, "prompt": [1], "max_tokens": 1}, final=_FINAL)
            return
        body: Body = {"lora_name": checkpoint, "lora_path": str(folder.resolve())}
        try:
            await server.post("/load_lora_adapter", body, final=_FINAL)
        except Refused as error:
            if "already" not in str(error):  # the same weights: the id is their hash
                raise


def _copy(folder: Path, target: Path, base: str) -> None:
    """Copy an adapter so that it appears complete. The resolver accepts only adapters that name its server's base."""
    part = Path(mkdtemp(prefix=f".{target.name}-", dir=target.parent))  # several workers may copy it at once
    shutil.copytree(folder, part, dirs_exist_ok=True)
    config = json.loads((part / _CONFIG).read_text(encoding="utf-8"))
    (part / _CONFIG).write_text(json.dumps(config | {_BASE: base}), encoding="utf-8")
    part.chmod(0o755)
    try:
        part.rename(target)
    except OSError:  # it exists: the name is the hash of the weights
        shutil.rmtree(part, ignore_errors=True)


class AdapterClient:
    """`server.Asked` for one adapter: a request that finds no such model loads it again and is repeated once."""

    def __init__(self, client: Asked, adapters: Adapters, checkpoint: str) -> None:
        self._client, self._adapters, self._checkpoint = client, adapters, checkpoint
        self.name, self.config, self.root = client.name, client.config, client.root

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """As `EndpointClient.request`, with the adapter reloaded if it is missing."""
        loads = self._adapters.loads
        try:
            return await self._client.request(path, body, read, final=final)
        except Refused as error:
            if error.status != 404 or not self._adapters.holds(self._checkpoint):
                raise
        if self._adapters.loads == loads:  # no other request has loaded it since
            await self._adapters.reload(self._checkpoint)
        return await self._client.request(path, body, read, final=final)

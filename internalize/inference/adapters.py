"""The LoRA adapters on a server of vLLM's kind: put there, found missing, put there again, taken away.

Where the recipe names the folder of the server's resolver (`endpoints.NAME.adapters`), an adapter is copied into it
under its id, and the server finds it there by itself: after a restart and on every replica. Elsewhere it is loaded by a
request, which reaches one API server and is forgotten at a restart; a request that meets no such model loads it again.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from internalize.config.endpoint import EndpointConfig
from internalize.errors import InfrastructureError

from .client import Body, EndpointClient, Refused

T = TypeVar("T")
_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"
_FINAL = (500, 501)  # what a server answers for an adapter that it will never load, such as one of too large a rank


class Adapters:
    """The adapters that one server was given, by checkpoint id; at most one at a time."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._folders: dict[str, Path] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self.loads = 0  # how often one was put there

    def holds(self, checkpoint: str) -> bool:
        """Whether the server was given these weights."""
        return checkpoint in self._folders

    async def load(self, checkpoint: str, folder: Path) -> None:
        """Have the server hold the adapter in `folder`, and no other. Raises Refused with its explanation."""
        if not self.holds(checkpoint):
            await self._put(checkpoint, folder)
            for other in [*self._folders]:
                await self.unload(other)
            self._folders[checkpoint] = folder

    async def reload(self, checkpoint: str) -> None:
        """Put an adapter there again, once for all who ask at the same time. Raises Refused."""
        if checkpoint not in self._loading:
            self._loading[checkpoint] = asyncio.create_task(self._put(checkpoint, self._folders[checkpoint]))
            self._loading[checkpoint].add_done_callback(lambda _: self._loading.pop(checkpoint))
        await asyncio.shield(self._loading[checkpoint])

    async def unload(self, checkpoint: str) -> None:
        """Take an adapter away, so that no server looks for files that are gone. One that cannot unload keeps it."""
        self._folders.pop(checkpoint, None)
        with suppress(Refused, InfrastructureError):
            await self._client.post("/unload_lora_adapter", {"lora_name": checkpoint}, final=_FINAL)
        if self._client.config.adapters:
            shutil.rmtree(Path(self._client.config.adapters) / checkpoint, ignore_errors=True)

    async def _put(self, checkpoint: str, folder: Path) -> None:
        if self._client.config.adapters:
            _copy(folder, Path(self._client.config.adapters) / checkpoint, self._client.config.model)
            await self._client.post("/completions", {"model": checkpoint, "prompt": [1], "max_tokens": 1}, final=_FINAL)
        else:
            body: Body = {"lora_name": checkpoint, "lora_path": str(folder.resolve())}
            try:
                await self._client.post("/load_lora_adapter", body, final=_FINAL)
            except Refused as error:
                if "already" not in str(error):  # the id is the hash of the weights: one of that name is the same
                    raise
        self.loads += 1


def _copy(folder: Path, target: Path, base: str) -> None:
    """Copy an adapter so that it appears complete; the resolver takes only those of the base that it serves."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    config = json.loads((part / _CONFIG).read_text(encoding="utf-8"))
    (part / _CONFIG).write_text(json.dumps(config | {_BASE: base}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


class AdapterClient:
    """`server.Asked` for one adapter: a request that finds no such model loads it again and is repeated once."""

    def __init__(self, client: EndpointClient, adapters: Adapters, checkpoint: str) -> None:
        self._client, self._adapters, self._checkpoint = client, adapters, checkpoint

    @property
    def name(self) -> str:
        """The endpoint's."""
        return self._client.name

    @property
    def config(self) -> EndpointConfig:
        """The endpoint's."""
        return self._client.config

    @property
    def root(self) -> str:
        """The endpoint's."""
        return self._client.root

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """What `EndpointClient.request` gives and raises."""
        loads = self._adapters.loads
        try:
            return await self._client.request(path, body, read, final=final)
        except Refused as error:
            if error.status != 404 or not self._adapters.holds(self._checkpoint):
                raise
        if self._adapters.loads == loads:  # nobody has loaded it since
            await self._adapters.reload(self._checkpoint)
        return await self._client.request(path, body, read, final=final)

"""The endpoint with a scripted policy, on loopback, in a thread with an event loop of its own.

with Served(["look[3]", "answer[4]"]) as served:
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none")
    ...                             # then served.calls, served.engine.prompts
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from internalize.config.schema import RedactConfig, RolloutConfig
from internalize.config.serve import ServeConfig
from internalize.experience.inject import Injector
from internalize.experience.redact import Redactor
from internalize.inference.agent import TokenAgent
from internalize.inference.client import EndpointClient
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.serve.app import Endpoint
from internalize.serve.records import Acting, EpisodeScore, RecordedCall
from internalize.serve.server import serving
from internalize.serve.service import Model, Service
from internalize.serve.store import ServeStore
from tests.tiny import tiny_tokenizer

Replies = Callable[[str, str], str] | Mapping[str, Sequence[str]] | Sequence[str]


class Served:
    """`folder` None keeps calls in memory only. `relay` answers in place of the policy."""

    def __init__(
        self,
        replies: Replies = (),
        *,
        injector: Injector | None = None,
        folder: Path | None = None,
        token: str = "",
        protocol: str = "json",
        relay: EndpointClient | None = None,
        redact: bool = True,
        failures: Collection[int] = (),
        checkpoint: str = "starter",
        max_context: int = 8000,
        **settings: Any,
    ) -> None:
        self.renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS[protocol])
        self.engine = ScriptedEngine(replies, self.renderer, failures=failures)
        agent = TokenAgent(self.engine, self.renderer, RolloutConfig(max_action_tokens=200), max_context, 8)
        self.model = Model(
            Acting(checkpoint=checkpoint),
            self.renderer.tool_format,
            injector or Injector(),
            None if relay else agent,
            relay,
        )
        self.calls: list[RecordedCall] = []
        self.scores: list[EpisodeScore] = []
        self.config, self._token, self._folder, self._redact = ServeConfig(**settings), token, folder, redact
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        store = ServeStore(self._folder) if self._folder else None

        async def keep(call: RecordedCall) -> None:
            if store:
                await store.keep(call)
            self.calls.append(call)

        async def scored(score: EpisodeScore) -> None:
            if store:
                await store.keep(score)
            self.scores.append(score)

        redactor = Redactor.of(RedactConfig(enabled=self._redact))
        self.service = Service(self.model, redactor, keep, self.config.remember)
        app = Endpoint(self.service, self.config, self._token, scored).app()
        async with serving(app) as self.url:
            self._ready.set()
            await self._stop.wait()
        if store:
            store.close()

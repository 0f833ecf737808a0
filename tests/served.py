"""The endpoint with a scripted policy, on loopback, in a thread with an event loop of its own.

with Served(["look[3]", "answer[4]"]) as served:
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none")
    ...                             # then served.calls, served.engine.prompts
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from internalize.config.redact import RedactConfig
from internalize.config.schema import RolloutConfig
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
from tests.in_thread import InThread
from tests.tiny import tiny_tokenizer

Replies = Callable[[str, str], str] | Mapping[str, Sequence[str]] | Sequence[str]


class Served(InThread):
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
        super().__init__()
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

    async def _serve(self) -> None:
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

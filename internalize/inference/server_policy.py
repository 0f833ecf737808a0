"""The policy on a server: an endpoint samples with the weights that it has loaded, after a comparison with ours.

At the start the model here scores tokens that the server samples. The log-probabilities of `compute.endpoint` must
agree; for `model.endpoint` the difference is only reported. A rehearsal with an adapter of the recipe's rank shows,
before any training, whether trained weights can act on the server. A checkpoint that the server cannot load acts in
this process, with one warning: a record must never carry the id of weights that did not act.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from tempfile import mkdtemp
from typing import Protocol

from pydantic import BaseModel

from internalize.config.schema import Config
from internalize.errors import UserError
from internalize.interfaces import Agent, Engine, Judge, Renderer
from internalize.records import Sampling
from internalize.runs import names

from .adapters import AdapterClient, Adapters
from .agent import ChatAgent, TokenAgent
from .capabilities import TOOL, Abilities, probe
from .client import Body, EndpointClient, Refused
from .replicas import ReplicaEngine, Spread, servers_of
from .server import Asked, ServerChat, ServerEngine
from .tool_formats import text_format, text_name

SAME = 0.05  # nats, on average: another precision of the same weights differs by less, other weights by more than 0.5
_LOG = logging.getLogger(__name__)
_SAMPLE = "Hello, wörld! f(x_1) = [answer]\n\n  def g(a): return a + 0.25"
_SAMPLED = 8  # tokens a request


class OwnModel(Protocol):
    """The weights in this process, with which a server's are compared."""

    def logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probabilities of `ids[start:]`, each given all ids before it, with the current weights."""
        ...

    def rehearsal(self, folder: Path | None) -> AbstractContextManager[str]:
        """Within the block, hold the starter (None), or an adapter with an effect, saved in `folder`; yields its id."""
        ...


class ServerPolicy:
    """An endpoint that acts with the weights that its server has loaded; it must serve `starter` at first."""

    def __init__(
        self, client: EndpointClient, config: Config, renderer: Renderer, starter: str, abilities: Abilities
    ) -> None:
        self._client, self._config, self.renderer, self.abilities = client, config, renderer, abilities
        self._starter = starter
        self._adapters = Adapters(client)
        # Only if a model with native calls learns from it, whose prompts have no description of the tools either.
        self.native = abilities.tools and not renderer.instructions((TOOL,))
        self._told = False

    @classmethod
    async def connect(
        cls, client: EndpointClient, config: Config, renderer: Renderer, starter: str, own: OwnModel, root: Path
    ) -> ServerPolicy:
        """Probe the server's features, and compare it with the model here. Raises as `probe` does.

        Raises UserError if it is `compute.endpoint` and serves other weights or text only, or if it loads adapters but
        none of the recipe's rank.
        """
        abilities = await probe(client)
        if abilities.tokens and not await _same_tokens(client, abilities, renderer):
            _LOG.warning(
                "endpoint %s has another tokenizer than model.source: its episodes are kept as text", client.name
            )
            abilities = abilities.model_copy(update={"tokens": ""})
        served = cls(client, config, renderer, starter, abilities)
        _LOG.info("%s; %s; calls: %s", abilities.text, await served.compare(own, root), served.way)
        return served

    @property
    def way(self) -> str:
        """How calls are written there, as a label for people."""
        if self.abilities.tokens:
            return self.renderer.way
        return "by the server" if self.native else text_name(self._config.model.protocol)

    async def compare(self, own: OwnModel, root: Path) -> str:
        """A text on the server's differences in log-probability from the model here. Raises as `connect`."""
        name, must = self._client.name, self._config.acting_endpoint == self._config.compute.endpoint
        if not self.abilities.tokens:
            if must:
                raise UserError(
                    f"compute.endpoint = {name!r} gives text alone; an endpoint that acts so is model.endpoint"
                )
            return "its weights cannot be compared with model.source"
        with own.rehearsal(None):
            difference = await self._difference(own, self._starter)
        if not difference <= SAME:  # false for NaN too
            text = f"endpoint {name!r} gives no log-probabilities that could be compared with those of model.source"
            if not isnan(difference):
                text = (
                    f"endpoint {name!r} serves other weights than model.source: log-probabilities of what it samples "
                    f"differ by {difference:.2g} nats on average (`internalize export --starter` writes what to serve)"
                )
            if must:
                raise UserError(text)
            _LOG.warning(text)
        told = f"log-probabilities differ by {difference:.1e}"
        if not self.can_load:
            return told
        with_adapter = await self._rehearse(own, root)
        if difference <= SAME < with_adapter:
            raise UserError(
                f"endpoint {name!r} loads an adapter that does not act as it does here: log-probabilities differ by "
                f"{with_adapter:.2g} nats on average"
            )
        return f"{told}, with an adapter by {with_adapter:.1e}"

    async def _rehearse(self, own: OwnModel, root: Path) -> float:
        """The difference with an adapter of the recipe's rank, which is unloaded again.

        Raises UserError if it cannot be loaded.
        """
        rank = self._config.distill.lora_r
        # Workers rehearse at once: with a shared name, the first to finish would unload the others' adapter.
        folder = Path(mkdtemp(prefix=names.REHEARSAL, dir=root.resolve()))
        adapter = folder.name.removeprefix(".")
        with own.rehearsal(folder):
            try:
                await self._adapters.load(adapter, folder)
                return await self._difference(own, adapter)
            except Refused as error:
                raise UserError(f"no adapter of rank {rank} (distill.lora_r) can act over a server: {error}") from error
            finally:
                await self._adapters.unload(adapter)

    async def _difference(self, own: OwnModel, checkpoint: str) -> float:
        """Mean absolute difference of log-probabilities over tokens sampled by the server, nats; nan: none."""
        ids = self.renderer.tokenizer.encode(_SAMPLE, add_special_tokens=False)[:40]
        sampling, engine = Sampling(max_tokens=_SAMPLED, temperature=1.0), self._engine(checkpoint)
        found = list[float]()
        for seed, end in enumerate((len(ids) // 3, len(ids) // 2, len(ids))):
            turn = await engine.generate(ids[:end], conversation="", seed=seed, sampling=sampling)
            here = own.logprobs([*ids[:end], *turn.token_ids], end)
            found += [abs(a - b) for a, b in zip(turn.logprobs, here, strict=bool(turn.logprobs))]
        return fmean(found) if found else nan

    @property
    def can_load(self) -> bool:
        """Whether trained weights can be loaded there."""
        loads = self.abilities.adapters or bool(self._client.config.adapters)
        return loads and self._config.distill.lora_r > 0

    async def hold(self, checkpoint: str, folder: Path | None) -> None:
        """Have the server load the adapter in `folder`, and no other; warn once if it cannot.

        Raises Refused with its explanation.
        """
        if folder is None:
            return
        if self.can_load:
            await self._adapters.load(checkpoint, folder)
        elif not self._told:
            self._told = True
            _LOG.warning(
                "endpoint %s serves the starter and cannot load what is trained here: checkpoint %s and later ones "
                "act in this process, so figures of the starter and of those come from different engines",
                self._client.name,
                checkpoint,
            )

    def chat(self, checkpoint: str) -> ServerChat | None:
        """A chat model with these weights on the server, or None if it has not loaded them."""
        if checkpoint == self._starter:
            return ServerChat(Spread(self._servers(checkpoint)))
        if not self._adapters.holds(checkpoint):
            return None
        return ServerChat(Spread(self._servers(checkpoint)), checkpoint)

    def agent(self, checkpoint: str, judge: Judge | None = None) -> Agent | None:
        """An agent with these weights on the server, or None if it has not loaded them."""
        settings, limits = self._config.model, self._config.rollout
        wave = self._client.config.concurrency  # more would only wait, and episodes would end later
        chat = self.chat(checkpoint)
        if chat is None:
            return None
        if not self.abilities.tokens:
            form, context = text_format(settings.protocol), settings.max_context
            return ChatAgent(chat, form, limits, context, wave, judge, native=self.native)
        engine = self._engine(checkpoint)
        return TokenAgent(engine, self.renderer, limits, settings.max_context, wave, judge, independent=True)

    def _engine(self, checkpoint: str) -> Engine:
        limits, api = self._config.rollout, self.abilities.tokens
        assert api, "an engine needs a server of token ids"
        sampling = Sampling(max_tokens=limits.max_action_tokens, temperature=limits.temperature)
        model, room = "" if checkpoint == self._starter else checkpoint, self._config.model.max_context
        engines = [
            ServerEngine(server, self.renderer, api, sampling=sampling, max_context=room, model=model)
            for server in self._servers(checkpoint)
        ]
        return engines[0] if len(engines) == 1 else ReplicaEngine(engines)

    def _servers(self, checkpoint: str) -> list[Asked]:
        """The endpoint's servers, each of which reloads the checkpoint if it has lost it."""
        servers = servers_of(self._client)
        if checkpoint == self._starter:
            return [*servers]
        return [AdapterClient(server, self._adapters, checkpoint) for server in servers]


class _Tokenized(BaseModel):
    tokens: list[int]


async def _same_tokens(client: EndpointClient, abilities: Abilities, renderer: Renderer) -> bool:
    """Whether both sides encode a sample alike; assumed if the server cannot tell."""
    text = f"{_SAMPLE}{renderer.tokenizer.eos_token}"
    body: Body = {"model": abilities.model, "prompt": text, "add_special_tokens": False}
    if abilities.tokens == "llama.cpp":
        body = {"content": text, "add_special": False, "parse_special": True}
    try:
        answer = await client.request(f"{client.root}/tokenize", body, _Tokenized.model_validate)
    except Refused:
        return True
    return answer.tokens == list(renderer.tokenizer.encode(text, add_special_tokens=False))

"""The servers of a recipe: one client for each, chat models by name, and the policy's rollouts over `model.endpoint`.

`model.endpoint` acts for the weights it has loaded; it is assumed to serve the starter. A trained checkpoint acts over
the server if that loads adapters (vLLM with run-time LoRA), else in this process, with one warning: a record must never
carry the id of weights that did not act. If the server accepts and returns token ids of the tokenizer of
`model.source`, episodes are as exact as local ones; otherwise they are stored as text. All requests of a process to one
endpoint share one client, and so its limits and its budget.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel

from internalize.config.schema import Config
from internalize.errors import ConfigError, UserError
from internalize.interfaces import Agent, ChatModel, Judge
from internalize.records import Sampling

from .agent import ChatAgent, TokenAgent
from .capabilities import Abilities, probe
from .client import Body, EndpointClient, Refused, Usage
from .renderer import Renderer
from .retries import Retries
from .server import ServerChat, ServerEngine

SELF = "self"
_LOG = logging.getLogger(__name__)
_SAMPLE = "Hello, wörld! f(x_1) = [answer]\n\n  def g(a): return a + 0.25"


class Endpoints:
    """One client for each [endpoints.NAME], made on first use."""

    def __init__(self, config: Config, retries: Retries | None = None) -> None:
        self._config, self._retries = config, retries or Retries()
        self._clients: dict[str, EndpointClient] = {}
        self._chats: dict[str, ServerChat] = {}

    def client(self, name: str) -> EndpointClient:
        """Raises ConfigError for a name without a section, UserError for a missing key or extra."""
        if name not in self._clients:
            if name not in self._config.endpoints:
                raise ConfigError(f"there is no section [endpoints.{name}]")
            if find_spec("openai") is None:
                raise UserError("endpoints need the extra 'server': pip install 'internalize[server]'")
            self._clients[name] = EndpointClient(name, self._config.endpoints[name], self._retries)
        return self._clients[name]

    def chat(self, name: str) -> ServerChat:
        """The chat model of an endpoint; always the same object, which remembers what the server supports."""
        if name not in self._chats:
            self._chats[name] = ServerChat(self.client(name))
        return self._chats[name]

    def check(self) -> None:
        """Raise now what the first request to an endpoint of the recipe would raise."""
        for name in sorted(set(self._config.endpoints_used.values())):
            self.client(name)

    @property
    def usage(self) -> dict[str, Usage]:
        """The use of each endpoint that a client was made for."""
        return {name: client.usage for name, client in self._clients.items()}


def endpoint_chat(config: Config, name: str) -> ChatModel:
    """The chat model of an endpoint where no policy is loaded. Raises ConfigError for 'self' or an unknown name."""
    if name == SELF:
        raise ConfigError("'self' needs the policy, and no model is loaded here; name an endpoint")
    return Endpoints(config).chat(name)


class ServerPolicy:
    """`model.endpoint`, acting for the weights that its server has loaded. It is assumed to serve `starter`."""

    def __init__(
        self, client: EndpointClient, config: Config, renderer: Renderer, starter: str, abilities: Abilities
    ) -> None:
        self._client, self._config, self._renderer, self.abilities = client, config, renderer, abilities
        self._models = {starter: client.config.model}  # checkpoint id -> name of the model on the server
        self._warned = False

    @classmethod
    async def connect(cls, client: EndpointClient, config: Config, renderer: Renderer, starter: str) -> ServerPolicy:
        """Find out what the server supports; its token ids count only if they mean the same here. Raises as `probe`."""
        abilities = await probe(client)
        if abilities.tokens and not await _same_tokens(client, abilities, renderer):
            _LOG.warning(
                "endpoint %s has another tokenizer than model.source: its episodes are kept as text", client.name
            )
            abilities = abilities.model_copy(update={"tokens": ""})
        _LOG.info(abilities.text)
        return cls(client, config, renderer, starter, abilities)

    async def hold(self, checkpoint: str, folder: Path | None) -> None:
        """Have the server load the adapter in `folder`; warn once if it cannot. Raises Refused with its explanation."""
        if checkpoint in self._models or folder is None or not self._can_load(checkpoint):
            return
        adapter = {"lora_name": checkpoint, "lora_path": str(folder.resolve())}
        try:
            await self._client.post("/load_lora_adapter", adapter)
        except Refused as error:
            if "already" not in str(error):  # the id is the hash of the weights: an adapter of that name is the same
                raise
        self._models[checkpoint] = checkpoint

    def chat(self, checkpoint: str) -> ServerChat | None:
        """A chat model with these weights on the server, or None if it has not loaded them."""
        model = self._models.get(checkpoint)
        return None if model is None else ServerChat(self._client, model)

    def agent(self, checkpoint: str, judge: Judge | None = None) -> Agent | None:
        """An agent with these weights on the server, or None if it has not loaded them."""
        model, settings = self._models.get(checkpoint), self._config.model
        limits, api = self._config.rollout, self.abilities.tokens
        wave = self._client.config.concurrency  # more would only wait: fewer at once end earlier, and are stored then
        if model is None:
            return None
        if not api:
            chat = ServerChat(self._client, model)
            return ChatAgent(chat, self._renderer.tool_format, limits, settings.max_context, wave, judge)
        engine = ServerEngine(
            self._client,
            self._renderer,
            api,
            sampling=Sampling(max_tokens=limits.max_action_tokens, temperature=limits.temperature),
            max_context=settings.max_context,
            model=model,
        )
        return TokenAgent(engine, self._renderer, limits, settings.max_context, wave, judge, independent=True)

    def _can_load(self, checkpoint: str) -> bool:
        able = self.abilities.adapters and self._config.distill.lora_r > 0
        if not able and not self._warned:
            self._warned = True
            _LOG.warning(
                "endpoint %s serves the starter and cannot load what is trained here: checkpoint %s and later ones "
                "act in this process, so figures of the starter and of those come from different engines",
                self._client.name,
                checkpoint,
            )
        return able


class _Tokenized(BaseModel):
    tokens: list[int]


async def _same_tokens(client: EndpointClient, abilities: Abilities, renderer: Renderer) -> bool:
    """Whether both sides encode a sample alike. A server without an endpoint to tell is trusted."""
    text = f"{_SAMPLE}{renderer.tokenizer.eos_token}"
    body: Body = {"model": abilities.model, "prompt": text, "add_special_tokens": False}
    if abilities.tokens == "llama.cpp":
        body = {"content": text, "add_special": False, "parse_special": True}
    try:
        answer = await client.request(f"{client.root}/tokenize", body, _Tokenized.model_validate)
    except Refused:
        return True
    return answer.tokens == list(renderer.tokenizer.encode(text, add_special_tokens=False))

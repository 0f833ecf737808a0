"""The servers of a recipe: one link to each, chat models by name, and the policy's rollouts over `model.endpoint`.

The rule for `model.endpoint`: a server acts for the weights it holds. The starter's are taken to be served. A trained
checkpoint acts over the server if that loads adapters (vLLM with run-time LoRA), else in this process, and one
warning says so; a record never carries the id of weights that did not act. With the tokenizer of `model.source` and
token ids in both directions, episodes are as exact as local ones; otherwise they are kept as text.
Left out: judges and selectors (they take a chat model). What must not change: all requests of a process to one
endpoint share one link, and so its limit and its budget.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from internalize.config.schema import Config
from internalize.errors import ConfigError, UserError
from internalize.interfaces import Agent, ChatModel, Judge
from internalize.records import Sampling

from .agent import ChatAgent, TokenAgent
from .capabilities import Abilities, probe
from .client import Body, Link, Malformed, Refused, Usage
from .renderer import Renderer
from .retries import Retries
from .server import ServerChat, ServerEngine

SELF = "self"
_LOG = logging.getLogger(__name__)
_SAMPLE = "Hello, wörld! f(x_1) = [answer]\n\n  def g(a): return a + 0.25"


class Endpoints:
    """One link for each [endpoints.NAME], made when it is first wanted."""

    def __init__(self, config: Config, retries: Retries | None = None) -> None:
        self._config, self._retries = config, retries or Retries()
        self._links: dict[str, Link] = {}
        self._chats: dict[str, ServerChat] = {}

    def link(self, name: str) -> Link:
        """Raises ConfigError for a name without a section, UserError for a key that is not set."""
        if name not in self._links:
            if name not in self._config.endpoints:
                raise ConfigError(f"there is no section [endpoints.{name}]")
            if find_spec("openai") is None:
                raise UserError("endpoints need the extra 'server': pip install 'internalize[server]'")
            self._links[name] = Link(name, self._config.endpoints[name], self._retries)
        return self._links[name]

    def chat(self, name: str) -> ServerChat:
        """The chat model of an endpoint; the same one each time, with what it has learnt about the server."""
        if name not in self._chats:
            self._chats[name] = ServerChat(self.link(name))
        return self._chats[name]

    def check(self) -> None:
        """Raise now what would be raised when an endpoint that the recipe uses is first asked."""
        for name in sorted(set(self._config.endpoints_used.values())):
            self.link(name)

    @property
    def usage(self) -> dict[str, Usage]:
        """What went over each link that was used."""
        return {name: link.usage for name, link in self._links.items()}


def endpoint_chat(config: Config, name: str) -> ChatModel:
    """The endpoint called `name` where no policy is loaded. Raises ConfigError for 'self' or an unknown name."""
    if name == SELF:
        raise ConfigError("'self' needs the policy, and no model is loaded here; name an endpoint")
    return Endpoints(config).chat(name)


class ServerPolicy:
    """`model.endpoint`, acting for the weights that its server holds. `starter` is taken to be served."""

    def __init__(self, link: Link, config: Config, renderer: Renderer, starter: str, abilities: Abilities) -> None:
        self._link, self._config, self._renderer, self.abilities = link, config, renderer, abilities
        self._holds = {starter: link.config.model}  # checkpoint id -> the model's name there
        self._warned = False

    @classmethod
    async def connect(cls, link: Link, config: Config, renderer: Renderer, starter: str) -> ServerPolicy:
        """Ask the server what it can do. Raises what `probe` raises."""
        abilities = await _learn(link, renderer)
        _LOG.info(abilities.text)
        return cls(link, config, renderer, starter, abilities)

    async def hold(self, checkpoint: str, folder: Path | None) -> None:
        """Have the server load the adapter in `folder`; one warning if it cannot. Raises Refused with its words."""
        if checkpoint not in self._holds and folder is not None and self._can_load(checkpoint):
            await _load_adapter(self._link, checkpoint, str(folder.resolve()))
            self._holds[checkpoint] = checkpoint

    def chat(self, checkpoint: str) -> ServerChat | None:
        """The server asked for text with these weights, or None if it does not hold them."""
        model = self._holds.get(checkpoint)
        return None if model is None else ServerChat(self._link, model)

    def agent(self, checkpoint: str, judge: Judge | None = None) -> Agent | None:
        """Who acts with these weights over the server, or None if it does not hold them."""
        model, named = self._holds.get(checkpoint), self._config.model
        limits, api = self._config.rollout, self.abilities.tokens
        wave = self._link.config.concurrency  # no more than are served: episodes end early, and are kept then
        if model is None:
            return None
        if not api:
            chat = ServerChat(self._link, model)
            return ChatAgent(chat, self._renderer.tool_format, limits, named.max_context, wave, judge)
        engine = ServerEngine(
            self._link,
            self._renderer,
            api,
            sampling=Sampling(max_tokens=limits.max_action_tokens, temperature=limits.temperature),
            max_context=named.max_context,
            model=model,
        )
        return TokenAgent(engine, self._renderer, limits, named.max_context, wave, judge, independent=True)

    def _can_load(self, checkpoint: str) -> bool:
        able = self.abilities.adapters and self._config.distill.lora_r > 0
        if not able and not self._warned:
            self._warned = True
            _LOG.warning(
                "endpoint %s serves the starter and cannot load what is trained here: checkpoint %s and later ones "
                "act in this process, so figures of the starter and of those come from different engines",
                self._link.name,
                checkpoint,
            )
        return able


async def _learn(link: Link, renderer: Renderer) -> Abilities:
    """What the server can do; token ids count only if they mean the same there and here."""
    found = await probe(link)
    if found.tokens and not await _same_tokens(link, found, renderer):
        _LOG.warning("endpoint %s has another tokenizer than model.source: its episodes are kept as text", link.name)
        return found.model_copy(update={"tokens": ""})
    return found


async def _same_tokens(link: Link, found: Abilities, renderer: Renderer) -> bool:
    """Whether both sides encode one text alike. A server that does not say is believed."""
    text = f"{_SAMPLE}{renderer.tokenizer.eos_token}"
    asked: Body = {"model": found.model, "prompt": text, "add_special_tokens": False}
    if found.tokens == "llama.cpp":
        asked = {"content": text, "add_special": False, "parse_special": True}
    try:
        theirs = await link.ask(f"{link.root}/tokenize", asked, _tokens_of)
    except Refused:
        return True
    return theirs == list(renderer.tokenizer.encode(text, add_special_tokens=False))


def _tokens_of(answer: Body) -> Sequence[Any]:
    tokens = answer.get("tokens")
    if not isinstance(tokens, list):
        raise Malformed("an answer without tokens")
    return tokens


async def _load_adapter(link: Link, checkpoint: str, folder: str) -> None:
    """Have vLLM load the adapter of a checkpoint under its id. Raises Refused with the server's words."""
    try:
        await link.tell("/load_lora_adapter", {"lora_name": checkpoint, "lora_path": folder})
    except Refused as error:
        if "already" not in str(error):  # the id is the hash of the weights: what is there is what was meant
            raise

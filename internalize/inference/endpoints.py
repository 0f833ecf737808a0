"""The servers of a recipe: one client for each, and chat models by name.

All requests of a process to one endpoint share one client, and so its limits and its budget.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config
from internalize.errors import ConfigError, UserError
from internalize.interfaces import ChatModel

from .client import EndpointClient, Usage
from .retries import Retries
from .server import ServerChat

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
        """The client of an endpoint. Raises ConfigError for an unknown name, UserError for a missing key or extra."""
        if name not in self._clients:
            if name not in self._config.endpoints:
                raise ConfigError(f"there is no section [endpoints.{name}]")
            if find_spec("openai") is None:
                raise UserError("endpoints need the extra 'server': pip install 'internalize[server]'")
            self._clients[name] = EndpointClient(name, self._config.endpoints[name], self._retries)
        return self._clients[name]

    def add(self, name: str, config: EndpointConfig, require: Callable[[], None]) -> EndpointClient:
        """Register an endpoint that no recipe names; `require` is called before each of its requests."""
        self._clients[name] = EndpointClient(name, config, self._retries, require)
        return self._clients[name]

    def chat(self, name: str) -> ServerChat:
        """The chat model of an endpoint; always the same object, which remembers what the server supports."""
        if name not in self._chats:
            self._chats[name] = ServerChat(self.client(name))
        return self._chats[name]

    def check(self) -> None:
        """Raise now what a first request to an endpoint of the recipe would raise."""
        for name in sorted(set(self._config.endpoints_used.values())):
            self.client(name)

    @property
    def usage(self) -> dict[str, Usage]:
        """The use of each endpoint that has a client."""
        return {name: client.usage for name, client in self._clients.items()}


def endpoint_chat(config: Config, name: str) -> ChatModel:
    """The chat model of an endpoint where no policy is loaded. Raises ConfigError for 'self' or an unknown name."""
    if name == SELF:
        raise ConfigError("'self' needs the policy, and no model is loaded here; name an endpoint")
    return Endpoints(config).chat(name)

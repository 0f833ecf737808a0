"""Models behind an OpenAI-compatible server: `ServerChat` requests text, `ServerEngine` token ids.

`ServerChat` needs only /v1/chat/completions. `ServerEngine` is for servers that accept prompt ids and return sampled
ids with their logprobs: vLLM (/v1/completions with return_token_ids) and llama.cpp (its own /completion);
`capabilities.probe` finds out which. It switches off every sampler that truncates the distribution, so that stored
logprobs are those of temperature 1; invalid ids are an error and are never repaired.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, JsonValue

from internalize.config.endpoint import EndpointConfig
from internalize.interfaces import Renderer
from internalize.records import ChatRequest, Generation, Reply, Sampling, content_hash

from .client import Body, MalformedError, Refused
from .control_tokens import inert_message, inert_tool, restored
from .renderer import chat_dict
from .replies import read_reply
from .server_errors import ServerError
from .tool_schema import tool_dict

T = TypeVar("T")
TokenApi = Literal["vllm", "llama.cpp"]
_CHAT = "/chat/completions"
_SEEDS = 2**31  # seeds are sent modulo this: some servers store them in 32 bits
UNKNOWN_FIELD = (400, 404, 415, 422, 501)  # statuses of servers for a field they do not support
_NEW_LIMIT = "max_completion_tokens"  # what some servers call max_tokens
_SCHEMA = "response_format"
_OPTIONAL = ("temperature", "seed")  # without them a server uses its own default
_LOG = logging.getLogger(__name__)


# The answers of servers of token ids, with the fields that are read.


class _Logprobs(BaseModel):
    token_logprobs: list[float]


class _VllmChoice(BaseModel):
    token_ids: list[int]
    logprobs: _Logprobs
    prompt_logprobs: Any = None


class VllmAnswer(BaseModel):
    """The answer of /v1/completions with `return_token_ids`."""

    choices: Annotated[list[_VllmChoice], Field(min_length=1)]


class _LlamaProbability(BaseModel):
    id: int
    logprob: float


class LlamaAnswer(BaseModel):
    """The answer of llama.cpp's /completion with `return_tokens` and `n_probs`."""

    tokens: list[int]
    completion_probabilities: list[_LlamaProbability]


class Asked(Protocol):
    """Sends requests to one endpoint: an `EndpointClient`, or a wrapper of one."""

    @property
    def name(self) -> str:
        """The endpoint's name."""
        ...

    @property
    def config(self) -> EndpointConfig:
        """The endpoint's section of the recipe."""
        ...

    @property
    def root(self) -> str:
        """The server's address without /v1."""
        ...

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """As `EndpointClient.request`."""
        ...


class ServerChat:
    """`interfaces.ChatModel` over one endpoint. `model` replaces the endpoint's own (a loaded adapter).

    No control token is sent; a reply that quotes one has it as the request originally had it. A field that the server
    refuses by name is left out from then on, or sent under the name that the server asks for. Answers with a status in
    `final` are not retried.
    """

    def __init__(self, client: Asked, model: str = "", final: Collection[int] = (501,)) -> None:
        self.client, self._final = client, final
        self.model = model or client.config.model
        config = client.config
        shaping = {"body": config.body, "answer_tokens": config.answer_tokens}
        self.name = f"{client.name}/{self.model}"  # the key of cached replies
        if any(shaping.values()):
            self.name += f"#{content_hash(shaping)[:6]}"
        self.changes: dict[str, str] = {}  # refused fields: the name that the server accepts instead, or ""

    @property
    def schemas(self) -> bool:
        """False once the server has refused a JSON schema."""
        return _SCHEMA not in self.changes

    async def complete(self, request: ChatRequest) -> Reply:
        """One reply."""
        body: Body = {
            "model": self.model,
            "messages": [chat_dict(inert_message(message)) for message in request.messages],
            "max_tokens": max(request.max_tokens, self.client.config.answer_tokens),
            "temperature": request.temperature,
            "seed": request.seed % _SEEDS,
        }
        if request.tools:
            body["tools"] = [tool_dict(inert_tool(tool)) for tool in request.tools]
        if request.response_schema is not None:
            body[_SCHEMA] = response_format(request.response_schema)
        read, changes = partial(read_reply, calls=bool(request.tools)), dict(self.changes)
        while True:
            sent = {changes.get(name, name): value for name, value in body.items() if changes.get(name, name)}
            try:
                reply = await self.client.request(_CHAT, sent | self.client.config.body, read, final=self._final)
            except Refused as error:
                change = self._change(error.said, sent)
                if change is None:
                    raise
                changes |= change
                continue
            self._learn(changes)  # kept only now: the request succeeded with these changes
            return restored(reply, request.messages)

    def _change(self, said: ServerError, sent: Body) -> dict[str, str] | None:
        """The change of a refused request; None if the refusal names nothing that can be changed."""
        if said.status not in UNKNOWN_FIELD:
            return None
        free = sent.keys() - self.client.config.body.keys()
        for name, instead in (("max_tokens", _NEW_LIMIT), (_NEW_LIMIT, "")):
            if name in free and name in said.named and (said.unsupported or instead in said.named):
                return {"max_tokens": instead}
        for name in _OPTIONAL:
            if name in free and name in said.named:
                return {name: ""}
        return {_SCHEMA: ""} if _SCHEMA in free else None

    def _learn(self, changes: dict[str, str]) -> None:
        for name in sorted(changes.keys() - self.changes.keys()):
            told = f"sent as {changes[name]}" if changes[name] else "left out: its own default holds"
            _LOG.warning("endpoint %s refuses the field %s, which is %s from now on", self.client.name, name, told)
        self.changes |= changes


def response_format(schema: Mapping[str, JsonValue]) -> Body:
    """The request field of OpenAI's structured outputs."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


class ServerEngine:
    """`interfaces.Engine` over a server of token ids. `model` replaces the endpoint's own (a loaded adapter).

    A prompt that leaves no room in `max_context` gives no ids and finish "length", as locally.
    """

    def __init__(
        self,
        client: Asked,
        renderer: Renderer,
        api: TokenApi,
        *,
        sampling: Sampling,
        max_context: int,
        model: str = "",
    ) -> None:
        self.client, self.renderer, self.api = client, renderer, api
        self.sampling, self.max_context = sampling, max_context
        self.model = model or client.config.model

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        conversation: str,  # noqa: ARG002 - the server finds cached prefixes by itself
        seed: int,
        sampling: Sampling | None = None,
    ) -> Generation:
        """Continue `prompt_ids`. A turn that the server ended on a token other than an end of turn counts as cut off.

        Ids unknown to this tokenizer, or too many ids, make an answer malformed.
        """
        sampling = sampling or self.sampling
        room = min(sampling.max_tokens, self.max_context - len(prompt_ids))
        if room <= 0 or not prompt_ids:
            return Generation(token_ids=(), logprobs=(), text="", finish="length")
        # Servers have defaults of their own: every sampler but the temperature has to be switched off.
        body: Body = {
            "prompt": list(prompt_ids), "temperature": sampling.temperature, "seed": seed % _SEEDS,
            "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        }  # fmt: skip
        if self.api == "vllm":
            path = "/completions"
            body |= {"model": self.model, "max_tokens": room, "logprobs": 1, "return_token_ids": True}
            body |= {"repetition_penalty": 1.0, "stop_token_ids": sorted(self.renderer.stop_ids)}
        else:
            path = f"{self.client.root}/completion"
            body |= {"n_predict": room, "n_probs": 1, "return_tokens": True, "repeat_penalty": 1.0}
            body |= {"samplers": ["temperature"], "cache_prompt": True}

        def read(answer: Body) -> Generation:
            ids, logprobs = read_ids(self.api, answer)
            if not ids or len(ids) > room or not all(0 <= i < len(self.renderer.tokenizer) for i in ids):
                raise MalformedError("an answer with token ids that do not fit")
            finish: Literal["stop", "length"] = "stop" if ids[-1] in self.renderer.stop_ids else "length"
            return Generation(token_ids=ids, logprobs=logprobs, text=self.renderer.decode(ids), finish=finish)

        return await self.client.request(path, body, read)

    def release(self, conversation: str) -> None:
        """Do nothing: the server manages its cache."""

    def reset(self) -> None:
        """Do nothing: the server manages its cache."""


def read_ids(api: TokenApi, answer: Body) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sampled ids and their raw logprobs. Raises MalformedError or ValidationError if they are missing or inconsistent.

    llama.cpp reports no logprob for a token that is no complete character; then the whole action has none.
    """
    if api == "vllm":
        choice = VllmAnswer.model_validate(answer).choices[0]
        ids, logprobs = choice.token_ids, choice.logprobs.token_logprobs
    else:
        found = LlamaAnswer.model_validate(answer)
        ids, entries = found.tokens, found.completion_probabilities
        logprobs = [entry.logprob for entry in entries] if [entry.id for entry in entries] == ids else []
    if logprobs and len(ids) != len(logprobs):
        raise MalformedError("an answer with different numbers of token ids and logprobs")
    return tuple(ids), tuple(logprobs)

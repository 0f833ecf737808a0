"""Models behind an OpenAI-compatible server: `ServerChat` requests text, `ServerEngine` token ids.

`ServerChat` needs only /v1/chat/completions. `ServerEngine` is for servers that accept prompt ids and return sampled
ids with their logprobs: vLLM (/v1/completions with return_token_ids) and llama.cpp (its own /completion);
`capabilities.probe` finds out which. It switches off every sampler that truncates the distribution, so that stored
logprobs are those of temperature 1; invalid ids are an error and are never repaired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue

from internalize.records import ChatRequest, Generation, Reply, Sampling, ToolCall

from .client import Body, EndpointClient, MalformedError, Refused, TokenCounts
from .renderer import Renderer, chat_dict
from .structured import split_reasoning
from .tool_formats import TOOL_FORMATS

TokenApi = Literal["vllm", "llama.cpp"]
_CHAT = "/chat/completions"
_SEEDS = 2**31  # seeds are sent modulo this: some servers store them in 32 bits
_UNKNOWN_FIELD = (400, 404, 415, 422, 501)  # statuses of servers for a field they do not support


# The answers of servers, with the fields that are read; openai's own classes require fields that some servers omit.


class _Function(BaseModel):
    name: str
    arguments: str


class _ToolCall(BaseModel):
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the name that other servers use
    tool_calls: list[_ToolCall] | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _ChatAnswer(BaseModel):
    choices: Annotated[list[_ChatChoice], Field(min_length=1)]


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


class ServerChat:
    """`interfaces.ChatModel` over one endpoint. `model` replaces the endpoint's own (a loaded adapter)."""

    def __init__(self, client: EndpointClient, model: str = "") -> None:
        self.client = client
        self.model = model or client.config.model
        self.name = f"{client.name}/{self.model}"
        self.schemas = True  # until the server refuses a schema

    async def complete(self, request: ChatRequest) -> Reply:
        """One reply. A server that has refused a JSON schema is not sent another."""
        schema = request.response_schema
        body: Body = {
            "model": self.model,
            "messages": [chat_dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % _SEEDS,
        }
        if schema is None or not self.schemas:
            return await self.client.request(_CHAT, body, read_reply)
        try:
            return await self.client.request(_CHAT, body | {"response_format": response_format(schema)}, read_reply)
        except Refused as error:
            if error.status not in _UNKNOWN_FIELD:
                raise
        reply = await self.client.request(_CHAT, body, read_reply)
        self.schemas = False  # only now: the same request without a schema was served, so the schema was the reason
        return reply


def response_format(schema: Mapping[str, JsonValue]) -> Body:
    """The request field of OpenAI's structured outputs."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def read_reply(answer: Body) -> Reply:
    """The text of a chat completion and its reasoning; tool calls that the server has parsed are text again.

    Raises MalformedError or ValidationError if there is neither. An empty text is valid only if the server reports
    sampled tokens: then it is the model's own choice.
    """
    choice, counts = _ChatAnswer.model_validate(answer).choices[0], TokenCounts.of(answer)
    message = choice.message
    calls = [ToolCall(name=c.function.name, arguments=c.function.arguments) for c in message.tool_calls or ()]
    text = "\n".join([*([message.content] if message.content else []), *map(TOOL_FORMATS["json"].format, calls)])
    reasoning = message.reasoning_content or message.reasoning or ""
    absent = message.content is None and not calls and not reasoning
    if absent or not (text.strip() or counts.completion_tokens):
        raise MalformedError(f"an answer without content (finish_reason {choice.finish_reason})")
    if not reasoning:
        reasoning, text = split_reasoning(text)
    finish: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
    return Reply(text=text, reasoning=reasoning, finish=finish, **counts.model_dump())


class ServerEngine:
    """`interfaces.Engine` over a server of token ids. `model` replaces the endpoint's own (a loaded adapter).

    A prompt that leaves no room in `max_context` gives no ids and finish "length", as locally.
    """

    def __init__(
        self,
        client: EndpointClient,
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
        """Continue `prompt_ids`. A turn that the server ended on another token than an end of turn counts as cut off.

        Ids that this tokenizer does not have, and too many ids, are malformed answers.
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

"""Finds out what an endpoint supports by a few small requests.

Only an answer of the server decides: an endpoint that is out of reach raises, and never counts as lacking a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from internalize.records import ChatRequest, Message, Record

from .client import Body, EndpointClient, MalformedError, Refused
from .server import ServerChat, TokenApi, VllmAnswer, read_ids


class _Schema(BaseModel):
    """The object that the probe of JSON schemas requests."""

    model_config = ConfigDict(strict=True)
    ok: bool


_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class Abilities(Record):
    """What one endpoint supports. `tokens`: its interface for token ids with logprobs; '' = text only."""

    endpoint: str
    model: str
    tokens: Literal["", "vllm", "llama.cpp"] = ""
    schemas: bool = False  # its answers obey a JSON schema
    prompt_logprobs: bool = False  # it scores given tokens
    adapters: bool = False  # it loads LoRA adapters while it runs

    @property
    def text(self) -> str:
        """One line."""
        ids = f"token ids and logprobs ({self.tokens})" if self.tokens else "text only"
        more = [
            "JSON schemas" if self.schemas else "no JSON schemas",
            *(["prompt logprobs"] if self.prompt_logprobs else []),
            *(["loads adapters"] if self.adapters else []),
        ]
        return f"endpoint {self.endpoint} ({self.model}): {ids}, {', '.join(more)}"


async def probe(client: EndpointClient) -> Abilities:
    """Send four to six small requests. Raises UserError if the server refuses the key or the model, or does not exist.

    Raises InfrastructureError when it is out of reach.
    """
    schemas = await _obeys_schemas(client)  # first, because it fails if there is no server
    tokens, prompt_logprobs = await _token_api(client)
    return Abilities(
        endpoint=client.name,
        model=client.config.model,
        tokens=tokens,
        schemas=schemas,
        prompt_logprobs=prompt_logprobs,
        adapters=await _loads_adapters(client),
    )


async def _obeys_schemas(client: EndpointClient) -> bool:
    """Whether a reply obeys a schema; a reply cut off while it may still obey gets the benefit of the doubt."""
    chat = ServerChat(client)
    message = Message(role="user", content='Reply with the JSON object {"ok": true}.')
    reply = await chat.complete(ChatRequest(messages=(message,), response_schema=_SCHEMA, max_tokens=24))
    if reply.finish == "length":
        return chat.schemas and reply.text.lstrip()[:1] in ("", "{")
    try:
        _Schema.model_validate_json(reply.text)
    except ValidationError:
        return False
    return chat.schemas


async def _token_api(client: EndpointClient) -> tuple[TokenApi | Literal[""], bool]:
    """The form of the token interface, and whether it scores prompts."""
    body: Body = {"model": client.config.model, "prompt": [1, 2]}
    vllm = body | {"max_tokens": 1, "logprobs": 1, "return_token_ids": True}
    for more in ({"prompt_logprobs": 1}, {}):
        scored = await _result(client, "/completions", vllm | more, _scores_prompts)
        if scored is not None:
            return "vllm", scored
    native: Body = {"prompt": [1, 2], "n_predict": 1, "n_probs": 1, "return_tokens": True}
    if await _result(
        client, f"{client.root}/completion", native, lambda answer: bool(read_ids("llama.cpp", answer)[0])
    ):
        return "llama.cpp", False
    return "", False


def _scores_prompts(answer: Body) -> bool:
    read_ids("vllm", answer)
    return isinstance(VllmAnswer.model_validate(answer).choices[0].prompt_logprobs, list)


async def _result(client: EndpointClient, path: str, body: Body, read: Callable[[Body], bool]) -> bool | None:
    """What `read` makes of the answer, or None if the server does not support this: it refuses, or fails twice."""

    def validated(answer: Body) -> bool | None:
        try:
            return read(answer)
        except (MalformedError, ValidationError):  # an answer of another form is not worth another try
            return None

    for _ in range(2):
        try:
            return await client.request(path, body, validated, final=(500, 501))
        except Refused as error:
            if error.status in (401, 403):
                raise
            if error.status < 500:
                return None
    return None


async def _loads_adapters(client: EndpointClient) -> bool:
    """Whether vLLM's /v1/load_lora_adapter exists: it then answers 400 to empty names, else 404."""
    try:
        await client.request("/load_lora_adapter", {"lora_name": "", "lora_path": ""}, bool, final=(500, 501))
    except Refused as error:
        return error.status in (400, 422)
    return False

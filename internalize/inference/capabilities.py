"""What an endpoint can do, found out once by a few small requests.

Left out: how well it does it. What must not change: only an answer of the server decides; one that is out of reach
raises, and is never taken for one that cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import JsonValue

from internalize.records import ChatRequest, Message, Record, Reply

from .client import Body, Link, Malformed, Refused
from .server import ServerChat, TokenApi, first_choice, read_ids

_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class Abilities(Record):
    """What one endpoint can do. `tokens`: how it takes and gives token ids with logprobs; '' = text only."""

    endpoint: str
    model: str
    tokens: Literal["", "vllm", "llama.cpp"] = ""
    schemas: bool = False  # obeys a JSON schema
    prompt_logprobs: bool = False  # scores given tokens
    adapters: bool = False  # loads LoRA adapters while it runs

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


async def probe(link: Link) -> Abilities:
    """Ask `link` four to six small things. Raises UserError if it refuses the key or the model, or does not exist.

    InfrastructureError when it is out of reach.
    """
    schemas = await _schemas(link)  # first: it fails if nobody answers at all
    tokens, prompt_logprobs = await _tokens(link)
    return Abilities(
        endpoint=link.name,
        model=link.config.model,
        tokens=tokens,
        schemas=schemas,
        prompt_logprobs=prompt_logprobs,
        adapters=await _loads_adapters(link),
    )


async def _schemas(link: Link) -> bool:
    """Whether an answer obeys a schema, as far as it goes; one that thinks too long to tell is believed to."""
    chat = ServerChat(link)
    asked = Message(role="user", content='Reply with the JSON object {"ok": true}.')
    reply: Reply = await chat.complete(ChatRequest(messages=(asked,), response_schema=_SCHEMA, max_tokens=24))
    if reply.finish == "length":
        return chat.schemas and reply.text.lstrip()[:1] in ("", "{")
    try:
        found = json.loads(reply.text)
    except ValueError:
        return False
    return chat.schemas and isinstance(found, dict) and isinstance(found.get("ok"), bool)


async def _tokens(link: Link) -> tuple[TokenApi | Literal[""], bool]:
    """The form of the token interface, and whether it scores prompts."""
    asked = {"prompt": [1, 2], "max_tokens": 1, "logprobs": 1, "return_token_ids": True}
    body: Body = {"model": link.config.model, **asked}
    for more in ({"prompt_logprobs": 1}, {}):
        scored = await _able(link, "/completions", body | more, _scored)
        if scored is not None:
            return "vllm", scored
    native = {"prompt": [1, 2], "n_predict": 1, "n_probs": 1, "return_tokens": True}
    if await _able(link, f"{link.root}/completion", native, _gave_ids):
        return "llama.cpp", False
    return "", False


async def _able(link: Link, path: str, body: Body, read: Callable[[Body], bool]) -> bool | None:
    """What `read` makes of the answer, or None if the server cannot do this: it refuses, or fails at it twice."""
    for _ in range(2):
        try:
            return await link.ask(path, body, partial(_judged, read=read), final=(500, 501))
        except Refused as error:
            if error.status in (401, 403):
                raise
            if error.status < 500:
                return None
    return None


def _judged(answer: Body, read: Callable[[Body], bool]) -> bool | None:
    try:
        return read(answer)
    except Malformed:
        return None


def _scored(answer: Body) -> bool:
    read_ids("vllm", answer)
    return isinstance(first_choice(answer).get("prompt_logprobs"), list)


def _gave_ids(answer: Body) -> bool:
    return bool(read_ids("llama.cpp", answer)[0])


async def _loads_adapters(link: Link) -> bool:
    """Whether vLLM's /v1/load_lora_adapter is there: it then complains about empty names (400), else 404."""
    try:
        await link.ask("/load_lora_adapter", {"lora_name": "", "lora_path": ""}, bool, final=(500, 501))
    except Refused as error:
        return error.status in (400, 422)
    return False

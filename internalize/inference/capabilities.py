"""Finds out what an endpoint supports by a few small requests.

Only an answer of the server decides: an endpoint that is out of reach raises, and never counts as lacking a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from internalize.errors import EmptyAnswer
from internalize.records import ChatRequest, Message, Record, Reply, ToolSpec, result_of

from .client import Body, EndpointClient, MalformedError, Refused
from .server import UNKNOWN_FIELD, ServerChat, TokenApi, VllmAnswer, read_ids

_FAILURES = 5  # in a row, by chance next to impossible
SHORT_ANSWER = 256  # tokens that judges and selectors request
TOOL = ToolSpec(name="look_up", argument="word", description="Looks a word up in the dictionary.")


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
    """The features of one endpoint. `tokens`: its interface for token ids with logprobs; '' = text only."""

    endpoint: str
    model: str
    tokens: Literal["", "vllm", "llama.cpp"] = ""
    schemas: bool = False  # its answers obey a JSON schema
    prompt_logprobs: bool = False  # it scores given tokens
    tools: bool = False  # it accepts tools, parses its model's calls, and accepts their results
    adapters: bool = False  # it loads LoRA adapters while it runs
    reasons: bool = False  # it sends reasoning before its answers
    cut_off: bool = False  # a one-line answer did not fit into SHORT_ANSWER tokens
    left_out: tuple[str, ...] = ()  # fields of a request that it refuses

    @property
    def text(self) -> str:
        """One line."""
        ids = f"token ids and logprobs ({self.tokens})" if self.tokens else "text only"
        more = [
            "JSON schemas" if self.schemas else "no JSON schemas",
            *(["prompt logprobs"] if self.prompt_logprobs else []),
            *(["tool calls"] if self.tools else []),
            *(["loads adapters"] if self.adapters else []),
            *(["reasons before it answers"] if self.reasons else []),
            *([f"takes no {' and no '.join(self.left_out)}"] if self.left_out else []),
        ]
        short = f"answers were cut off at {SHORT_ANSWER} tokens: raise endpoints.{self.endpoint}.answer_tokens"
        return f"endpoint {self.endpoint} ({self.model}): {ids}, {', '.join([*more, *[short] * self.cut_off])}"


async def probe(client: EndpointClient) -> Abilities:
    """Send five to eleven small requests. Raises UserError if the server refuses the key or model, or does not exist.

    Raises InfrastructureError when it is out of reach.
    """
    chat = ServerChat(client)
    schemas, reply = await _schemas(client, chat)  # first: fails if there is no server
    tokens, prompt_logprobs = await _token_api(client)
    return Abilities(
        endpoint=client.name,
        model=client.config.model,
        tokens=tokens,
        schemas=schemas,
        prompt_logprobs=prompt_logprobs,
        tools=await _takes_tools(chat),
        adapters=await _loads_adapters(client),
        reasons=bool(reply.reasoning),
        cut_off=reply.finish == "length" and not reply.text.strip(),
        left_out=tuple(sorted(chat.changes.keys() - {"response_format"})),
    )


async def _schemas(client: EndpointClient, chat: ServerChat) -> tuple[bool, Reply]:
    """`_obeys_schemas`, and no for a server that fails at a schema again and again, but not without one.

    vLLM answers HTTP 500 if its model cannot write JSON; another try would not help, and with all tries take minutes.
    """
    strict = ServerChat(client, final=(500, 501))
    strict.changes = chat.changes  # one dictionary: what either learns holds for both
    for _ in range(_FAILURES):
        try:
            return await _obeys_schemas(strict)
        except Refused as error:
            if error.status != 500:
                raise
    message = Message(role="user", content="Reply with one word.")
    return False, await chat.complete(ChatRequest(messages=(message,), max_tokens=SHORT_ANSWER))


async def _obeys_schemas(chat: ServerChat) -> tuple[bool, Reply]:
    """Whether a reply obeys a schema, and the reply. One cut off before it breaks the schema counts as obeying.

    A reply without any text, because the model reasons first, is requested again with as many tokens as judges request.
    """
    message = Message(role="user", content='Reply with the JSON object {"ok": true}.')
    for tokens in (24, SHORT_ANSWER):
        reply = await chat.complete(ChatRequest(messages=(message,), response_schema=_SCHEMA, max_tokens=tokens))
        if reply.finish != "length" or reply.text.strip():
            break
    if reply.finish == "length":
        return chat.schemas and reply.text.lstrip()[:1] in ("", "{"), reply
    try:
        _Schema.model_validate_json(reply.text)
    except ValidationError:
        return False, reply
    return chat.schemas, reply


async def _takes_tools(chat: ServerChat) -> bool:
    """Whether a model that is asked to call a tool does so, the server parses the call, and it accepts the result.

    A model that only writes about the call gets its tools in the prompt, and so does one whose server parses no calls.
    """
    asked = Message(role="user", content=f"Call the tool {TOOL.name} with the word tea. Do nothing else.")
    try:
        reply = await chat.complete(ChatRequest(messages=(asked,), tools=(TOOL,), max_tokens=SHORT_ANSWER))
        if {call.name for call in reply.tool_calls} != {TOOL.name}:
            return False
        calls = tuple(c.model_copy(update={"id": f"call_{n}"}) for n, c in enumerate(reply.tool_calls))
        results = [result_of(calls, number, "A drink made of leaves.") for number in range(len(calls))]
        called = Message(role="assistant", content=reply.text, tool_calls=calls)
        more = ChatRequest(messages=(asked, called, *results), tools=(TOOL,), max_tokens=1)
        await chat.complete(more)
    except EmptyAnswer:  # it accepted the messages
        return True
    except Refused as error:
        if error.status not in UNKNOWN_FIELD:
            raise
        return False
    return True


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
    """The result of `read` on the answer, or None if the server does not support this: it refuses, or fails twice."""

    def validated(answer: Body) -> bool | None:
        try:
            return read(answer)
        except (MalformedError, ValidationError):  # another try would give the same form of answer
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

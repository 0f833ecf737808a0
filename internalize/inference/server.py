"""Models behind an OpenAI-compatible server: asked for text (`ServerChat`) or for token ids (`ServerEngine`).

`ServerChat` needs nothing but /v1/chat/completions. `ServerEngine` is for servers that take prompt ids and give
sampled ids with their logprobs: vLLM (/v1/completions with return_token_ids) and llama.cpp (its own /completion);
`capabilities.probe` finds out which it is. It switches off every sampler that cuts the distribution, so that stored
logprobs are those of temperature 1; ids that do not fit are an error, never repaired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import JsonValue

from internalize.records import ChatRequest, Generation, Reply, Sampling, ToolCall

from .client import Body, Link, Malformed, Refused
from .renderer import Renderer, chat_dict
from .structured import split_reasoning
from .tool_formats import TOOL_FORMATS

TokenApi = Literal["vllm", "llama.cpp"]
_CHAT = "/chat/completions"
_SEEDS = 2**31  # seeds are sent below this: some servers hold them in 32 bits
_REFUSES = (400, 404, 415, 422, 501)  # what servers answer to a field they do not know


class ServerChat:
    """`interfaces.ChatModel` over one endpoint. `model` replaces the endpoint's own (a loaded adapter)."""

    def __init__(self, link: Link, model: str = "") -> None:
        self.link = link
        self.model = model or link.config.model
        self.name = f"{link.name}/{self.model}"
        self.schemas = True  # until the server refuses one, or the probe has seen it ignored

    async def complete(self, request: ChatRequest) -> Reply:
        """One answer. A server that refuses JSON schemas is no longer sent one from then on."""
        schema = request.response_schema
        body: Body = {
            "model": self.model,
            "messages": [chat_dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % _SEEDS,
        }
        if schema is None or not self.schemas:
            return await self.link.ask(_CHAT, body, read_reply)
        try:
            return await self.link.ask(_CHAT, body | {"response_format": response_format(schema)}, read_reply)
        except Refused as error:
            if error.status not in _REFUSES:
                raise
        reply = await self.link.ask(_CHAT, body, read_reply)
        self.schemas = False  # it was the schema: without one the same request is served
        return reply


def response_format(schema: Mapping[str, JsonValue]) -> Body:
    """The request field of OpenAI's structured outputs."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def read_reply(answer: Body) -> Reply:
    """The text of a chat completion, and the reasoning before it. Raises Malformed if there is neither.

    An empty text counts as one only if the server says that tokens were sampled for it: the model's own choice.
    """
    choice = first_choice(answer)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("an answer without a message")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    text, counts = _text(message), _usage(answer)
    if (text is None and not reasoning) or not ((text or "").strip() or counts["completion_tokens"]):
        raise Malformed(f"an answer without content (finish_reason {choice.get('finish_reason')})")
    if not reasoning:
        reasoning, text = split_reasoning(text or "")
    return Reply(text=text or "", reasoning=str(reasoning), finish=_finish(choice), **counts)


def first_choice(answer: Body) -> Body:
    """`choices[0]`. Raises Malformed if it is not there."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed("an answer without choices")
    choice: Body = choices[0]
    return choice


def _text(message: Body) -> str | None:
    """Content, with calls that the server has read out of it written back; None if there is nothing at all."""
    calls = message.get("tool_calls") or []
    try:
        functions = [call["function"] for call in calls]
        shown = [ToolCall(name=f["name"], arguments=f["arguments"]) for f in functions]
    except (KeyError, TypeError, ValueError):
        raise Malformed("an answer with a malformed tool call") from None
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise Malformed("an answer whose content is no text")
    if content is None and not calls:
        return None
    return "\n".join([*([content] if content else []), *(TOOL_FORMATS["json"].format(action) for action in shown)])


def _finish(choice: Body) -> Literal["stop", "length"]:
    return "length" if choice.get("finish_reason") == "length" else "stop"


def _usage(answer: Body) -> dict[str, int]:
    counts = answer.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    details = counts.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else counts.get("prompt_cache_hit_tokens")
    found = (counts.get("prompt_tokens"), cached, counts.get("completion_tokens"))
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return {name: n if isinstance(n, int) else 0 for name, n in zip(names, found, strict=True)}


class ServerEngine:
    """`interfaces.Engine` over a server that speaks token ids. `model` replaces the endpoint's own (a loaded adapter).

    A prompt that leaves no room in `max_context` is answered with no ids and finish "length", as locally.
    """

    def __init__(
        self,
        link: Link,
        renderer: Renderer,
        api: TokenApi,
        *,
        sampling: Sampling,
        max_context: int,
        model: str = "",
    ) -> None:
        self.link, self.renderer, self.api = link, renderer, api
        self.sampling, self.max_context = sampling, max_context
        self.model = model or link.config.model

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        conversation: str,  # noqa: ARG002
        seed: int,
        sampling: Sampling | None = None,
    ) -> Generation:
        """Continue `prompt_ids`. The server finds its own cached prefixes, whatever the conversation is called."""
        wanted = sampling or self.sampling
        room = min(wanted.max_tokens, self.max_context - len(prompt_ids))
        if room <= 0 or not prompt_ids:
            return Generation(token_ids=(), logprobs=(), text="", finish="length")
        path, body = _request(self.api, self.link, self.model, prompt_ids, room)
        body |= {"temperature": wanted.temperature, "seed": seed % _SEEDS}
        if self.api == "vllm":
            body["stop_token_ids"] = sorted(self.renderer.stop_ids)
        return await self.link.ask(path, body, partial(self._read, room=room))

    def release(self, conversation: str) -> None:
        """Nothing is held here."""

    def reset(self) -> None:
        """Nothing is held here."""

    def _read(self, answer: Body, *, room: int) -> Generation:
        """Raises Malformed for ids that this tokenizer does not have, or too many of them.

        A turn that the server ended on another token than this tokenizer's end of turn counts as cut off.
        """
        ids, logprobs = read_ids(self.api, answer)
        if not ids or len(ids) > room or not all(0 <= i < len(self.renderer.tokenizer) for i in ids):
            raise Malformed("an answer with token ids that do not fit")
        stopped = ids[-1] in self.renderer.stop_ids
        return Generation(
            token_ids=ids, logprobs=logprobs, text=self.renderer.decode(ids), finish="stop" if stopped else "length"
        )


def _request(api: TokenApi, link: Link, model: str, prompt_ids: Sequence[int], room: int) -> tuple[str, Body]:
    """Path and body. Every sampler but the temperature is switched off: servers have defaults of their own."""
    whole = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if api == "vllm":
        wanted = {"max_tokens": room, "logprobs": 1, "return_token_ids": True, "repetition_penalty": 1.0}
        return "/completions", {"model": model, "prompt": list(prompt_ids), **wanted, **whole}
    wanted = {"n_predict": room, "n_probs": 1, "return_tokens": True, "repeat_penalty": 1.0}
    plain = {"samplers": ["temperature"], "cache_prompt": True}
    return f"{link.root}/completion", {"prompt": list(prompt_ids), **wanted, **plain, **whole}


def read_ids(api: TokenApi, answer: Body) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sampled ids and their raw logprobs. Raises Malformed if they are missing or do not belong together."""
    try:
        if api == "vllm":
            choice = first_choice(answer)
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        else:
            ids = answer["tokens"]
            logprobs = _aligned(ids, answer["completion_probabilities"])
        if logprobs and len(ids) != len(logprobs):
            raise Malformed("an answer with more token ids than logprobs or fewer")
        return tuple(int(i) for i in ids), tuple(float(p) for p in logprobs)
    except (KeyError, TypeError, ValueError):
        raise Malformed("an answer without token ids and logprobs") from None


def _aligned(ids: Sequence[int], entries: Sequence[Any]) -> list[float]:
    """llama.cpp leaves out tokens that are no whole character; an action with such a token has no logprobs at all."""
    return [entry["logprob"] for entry in entries] if [entry["id"] for entry in entries] == list(ids) else []

"""The link to one endpoint: every request of this process to it goes through here, and is counted here.

It bounds the requests at once, the time of a whole answer (slow bytes too), the tries and the budget. An answer that is
cut, malformed or empty is a fault of the infrastructure: it is asked for again, and never becomes an empty result. The
key is read from the environment when it is needed and must appear in no record, error, repr or log.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from internalize.config.schema import EndpointConfig
from internalize.errors import ConfigError, ContextError, Incomplete, InfrastructureError, UserError
from internalize.records import Record

from .retries import Again, Retries, retry_after
from .token_estimate import estimated_tokens

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

T = TypeVar("T")
Body = dict[str, Any]  # JSON as it goes over the wire
_AGAIN = frozenset({408, 409, 429})  # 4xx that a later try may get over; so may every 5xx
_TOO_LONG = re.compile(r"context[ _](length|size|window)|maximum context|prompt is too long", re.IGNORECASE)
_WORDS = 240  # most characters of a server's own words in a message


class Malformed(Again):
    """An answer that cannot be used; the message says why. `Link.ask` tries again."""


class Refused(UserError):  # noqa: N818 - a decision of the server
    """The server will not serve this request, now or later: a 4xx. `status` is its code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Usage(Record):
    """What went over a link so far. `estimated` answers came without token counts; theirs are estimates."""

    requests: int = 0  # tries, whatever came of them
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def text(self) -> str:
        """One line."""
        guessed = f" (estimated for {self.estimated} answers without counts)" if self.estimated else ""
        return (
            f"{self.answers} answers in {self.requests} requests, {self.tokens} tokens{guessed}, cost {self.cost:.4f}"
        )


@dataclass(frozen=True)
class _Bound:
    """What belongs to one event loop: connections and waiting queues cannot move to another."""

    loop: asyncio.AbstractEventLoop
    open: AsyncGenerator[AsyncOpenAI, None]  # kept here: the loop closes it, and so the client, when it ends
    client: AsyncOpenAI
    places: asyncio.Semaphore


class Link:
    """One endpoint. Raises UserError if its address holds a key, or the variable that is to hold it is not set."""

    def __init__(self, name: str, config: EndpointConfig, retries: Retries | None = None) -> None:
        if "@" in urlsplit(config.base_url).netloc:
            raise ConfigError(f"endpoints.{name}.base_url holds a user or key; name a variable in key_env instead")
        if config.key_env and not os.environ.get(config.key_env):
            raise UserError(
                f"endpoint {name!r}: the environment variable {config.key_env} is not set (endpoints.{name}.key_env)"
            )
        self.name, self.config, self.retries = name, config, replace(retries or Retries(), tries=config.tries)
        self.usage = Usage()
        self._bound: _Bound | None = None
        self._closed_until = 0.0  # by time.monotonic(): a Retry-After holds for every request

    def __repr__(self) -> str:
        return f"Link({self.name!r}, {self.config.base_url!r})"

    @property
    def root(self) -> str:
        """The server's address without the /v1 of its OpenAI-compatible half."""
        return self.config.base_url.rstrip("/").removesuffix("/v1")

    async def ask(self, path: str, body: Body | None, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """POST `body` (GET if None) to `path` and `read` the JSON answer, which raises Malformed if it is unusable.

        `path` follows the base URL, or is a whole URL of this server; statuses in `final` are not tried again.
        Raises Refused for those and for a 4xx that no other try would change, ContextError for a prompt that is too
        long, InfrastructureError when every try failed, Incomplete when the budget is spent.
        """
        return await self._insist(path, body, lambda text: self._read(text, body, read), final)

    async def tell(self, path: str, body: Body) -> None:
        """POST for its effect, whatever the answer says. Raises what `ask` raises."""
        await self._insist(path, body, lambda _: None, ())

    async def _insist(self, path: str, body: Body | None, read: Callable[[str], T], final: Collection[int]) -> T:
        bound = await self._for_this_loop()
        try:
            return await self.retries.concurrent(self._hold_back)(self._try, bound, path, body, read, final)
        except Again as error:
            last = error
        # Outside the handler, so that no request of the client, which has the key in it, is chained to the error.
        tries = self.config.tries
        raise InfrastructureError(f"endpoint {self.name!r}: {tries} tries failed, the last one with {last}")

    async def _try(
        self, bound: _Bound, path: str, body: Body | None, read: Callable[[str], T], final: Collection[int]
    ) -> T:
        import openai  # noqa: PLC0415 - an extra

        try:
            async with bound.places:
                await self._open_again()
                self._check_budget()  # here, after waiting for a place: others have spent in the meantime
                self._count(requests=1)
                async with asyncio.timeout(self.config.timeout):
                    text = await self._send(bound.client, path, body)
            return read(text)
        except (TimeoutError, openai.APITimeoutError):
            raise Again(f"no answer within {self.config.timeout:g} seconds") from None
        except openai.APIStatusError as error:
            status, words = error.status_code, self._words(error)
            if status in final or (status not in _AGAIN and status < 500):
                raise self._refusal(status, words) from None  # its request would carry the key along
            asked = retry_after(error.response.headers.get("retry-after"))
            raise Again(f"HTTP {status} ({words})", asked) from None
        except openai.OpenAIError as error:
            raise Again(self._scrub(f"a broken connection ({_root_of(error)})")) from None

    async def _send(self, client: AsyncOpenAI, path: str, body: Body | None) -> str:
        answer = client.get(path, cast_to=str) if body is None else client.post(path, body=body, cast_to=str)
        return str(await answer)

    def _read(self, text: str, body: Body | None, read: Callable[[Body], T]) -> T:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        self._count_tokens(found if isinstance(found, dict) else {}, body, text)
        if not isinstance(found, dict):
            raise Malformed("an answer that is no JSON object")
        answer = read(found)
        self._count(answers=1)
        return answer

    # -- waiting --------------------------------------------------------------------------------------------------

    def _hold_back(self, failure: Again) -> None:
        """A Retry-After holds for every request of this link, not for the one alone that was told."""
        if failure.asked:
            asked = min(failure.asked, self.retries.longest)
            self._closed_until = max(self._closed_until, time.monotonic() + asked)

    async def _open_again(self) -> None:
        left = self._closed_until - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    async def _for_this_loop(self) -> _Bound:
        loop = asyncio.get_running_loop()
        if self._bound is None or self._bound.loop is not loop:
            opened = self._opened()
            places = asyncio.Semaphore(self.config.concurrency)
            self._bound = _Bound(loop, opened, await anext(opened), places)  # that await gives nobody else a turn
        return self._bound

    async def _opened(self) -> AsyncGenerator[AsyncOpenAI, None]:
        client = self._client()
        try:
            yield client
        finally:
            await client.close()

    def _client(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UserError("endpoints need the extra 'server': pip install 'internalize[server]'") from error
        transport = None
        if self.config.base_url.startswith("http://"):  # reading every root certificate takes long, and serves nothing
            transport = DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        client = AsyncOpenAI(
            api_key=self._key() or "none",  # never the client's own default, which may be meant for somebody else
            base_url=self.config.base_url,
            max_retries=0,
            timeout=self.config.timeout,
            http_client=transport,
        )
        client.organization = client.project = None  # they come from variables that are not this endpoint's
        return client

    def _key(self) -> str:
        return os.environ.get(self.config.key_env, "") if self.config.key_env else ""

    # -- counting -------------------------------------------------------------------------------------------------

    def _count(self, **more: int) -> None:
        self.usage = self.usage.model_copy(update={name: getattr(self.usage, name) + n for name, n in more.items()})

    def _count_tokens(self, answer: Body, body: Body | None, text: str) -> None:
        """What an answer cost by its own counts, else by its length; unusable answers were paid for too."""
        if body is None:
            return
        prompt, sampled = _counts(answer)
        estimated = not prompt
        if estimated:
            prompt, sampled = estimated_tokens(json.dumps(body, ensure_ascii=False)), estimated_tokens(text)
        self._count(prompt_tokens=prompt, completion_tokens=sampled, estimated=int(estimated))
        price = (self.usage.prompt_tokens * self.config.price_in, self.usage.completion_tokens * self.config.price_out)
        self.usage = self.usage.model_copy(update={"cost": sum(price) / 1e6})

    def _check_budget(self) -> None:
        config, usage = self.config, self.usage
        if config.max_tokens and usage.tokens >= config.max_tokens:
            spent, key = f"{config.max_tokens} tokens", "max_tokens"
        elif config.max_cost and usage.cost >= config.max_cost:
            spent, key = f"{config.max_cost:g}", "max_cost"
        else:
            return
        raise Incomplete(
            f"endpoint {self.name!r}: the budget endpoints.{self.name}.{key} of {spent} is spent ({usage.text})"
        )

    # -- words ----------------------------------------------------------------------------------------------------

    def _refusal(self, status: int, words: str) -> Exception:
        where = f"endpoint {self.name!r}"
        if status in (401, 403):
            named = self.config.key_env
            key = f"check the key in the environment variable {named}" if named else "it wants a key: set key_env"
            return Refused(f"{where} refused the key (HTTP {status}); {key}", status)
        if _TOO_LONG.search(words):
            return ContextError(f"{where}: the prompt is too long for {self.config.model} ({words})")
        asked = f"{self.config.model!r} at {self.config.base_url}"
        return Refused(f"{where} refused a request to {asked} (HTTP {status}): {words}", status)

    def _words(self, error: APIStatusError) -> str:
        """What the server said, on one line, without the key."""
        said = error.body if isinstance(error.body, dict) else {}
        text = said.get("message") or said.get("detail") or said.get("error") or error.response.text
        return self._scrub(str(text)) or "no reason given"

    def _scrub(self, text: str) -> str:
        key = self._key()
        text = text.replace(key, "***") if key else text
        return " ".join(text.split())[:_WORDS]


def _counts(answer: Body) -> tuple[int, int]:
    """Prompt and completion tokens as OpenAI's form has them, else as llama.cpp's own; 0 = not said."""
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    found = (
        counts.get("prompt_tokens", answer.get("tokens_evaluated")),
        counts.get("completion_tokens", answer.get("tokens_predicted")),
    )
    prompt, sampled = (n if isinstance(n, int) and n > 0 else 0 for n in found)
    return prompt, sampled


def _root_of(error: BaseException) -> str:
    """Type and words of what lies under an exception of the client."""
    cause = error.__cause__ or error
    return " ".join(part for part in (type(cause).__name__, str(cause)) if part)

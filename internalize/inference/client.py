"""The client of one endpoint: every request of this process to it goes through here and is counted here.

It bounds concurrent requests, the time of a complete answer (also one that trickles in), the tries and the budget. An
answer that is truncated, malformed or empty is an infrastructure fault: the request is repeated, and never gives an
empty result. The key is read from the environment when it is needed and must appear in no record, error, repr or log.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, Field, ValidationError

from internalize.config.endpoint import EndpointConfig
from internalize.errors import (
    ConfigError,
    ContextError,
    Declined,
    EmptyAnswer,
    Incomplete,
    InfrastructureError,
    UserError,
)
from internalize.records import Record
from internalize.runs.files import first_problem

from .retries import Retries, TransientError, retry_after
from .server_errors import ServerError, read_error
from .token_estimate import estimated_tokens

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
Body = dict[str, Any]  # a JSON object as it is sent or received
Count = Annotated[int, BeforeValidator(lambda value: value if isinstance(value, int) and value > 0 else 0)]
_RETRIED = frozenset({408, 409, 429})  # 4xx statuses worth another try, like every 5xx
_LONGEST_QUOTE = 240  # characters of a server's explanation in a message


class MalformedError(TransientError):
    """An answer that cannot be used; the message says why. `EndpointClient.request` tries again."""


class SaysNothingError(MalformedError):
    """An answer without any content."""


class Refused(UserError):  # noqa: N818 - a decision of the server
    """The server refuses this request for good: a 4xx status. `said` is its explanation."""

    def __init__(self, message: str, said: ServerError) -> None:
        super().__init__(message)
        self.said, self.status = said, said.status


class TokenCounts(BaseModel):
    """Tokens of one answer in the forms of OpenAI, DeepSeek and llama.cpp; 0 = not reported."""

    prompt_tokens: Count = Field(0, validation_alias=AliasChoices("prompt_tokens", "tokens_evaluated"))
    cached_tokens: Count = Field(
        0, validation_alias=AliasChoices(AliasPath("prompt_tokens_details", "cached_tokens"), "prompt_cache_hit_tokens")
    )
    completion_tokens: Count = Field(0, validation_alias=AliasChoices("completion_tokens", "tokens_predicted"))

    @classmethod
    def of(cls, answer: Body) -> TokenCounts:
        """The counts of an answer: those under `usage`, else those beside it."""
        usage = answer.get("usage")
        return cls.model_validate(answer | (usage if isinstance(usage, dict) else {}))


class Usage(Record):
    """Total use of an endpoint. `estimated` answers came without token counts; theirs are estimates."""

    requests: int = 0  # tries, including failed ones
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
        estimate = f" (estimated for {self.estimated} answers without counts)" if self.estimated else ""
        return (
            f"{self.answers} answers in {self.requests} requests, {self.tokens} tokens{estimate}, cost {self.cost:.4f}"
        )


@dataclass(frozen=True)
class _Connection:
    """The connections and semaphores of one event loop, which cannot move to another loop."""

    loop: asyncio.AbstractEventLoop
    opened: AsyncGenerator[
        tuple[AsyncOpenAI, Any], None
    ]  # referenced here so that the loop closes it, and the client, at its end
    client: AsyncOpenAI
    http: Any  # an AsyncClient of the HTTP library that openai is built on
    slots: asyncio.Semaphore


class EndpointClient:
    """One endpoint. Raises UserError if its address contains a key, or the variable for the key is not set.

    `require` is called before each try, and raises if no try can help.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        retries: Retries | None = None,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        if any("@" in urlsplit(address).netloc for address in (config.base_url, *config.replicas)):
            raise ConfigError(f"endpoints.{name}.base_url holds a user or key; name a variable in key_env instead")
        variables = {"key_env": config.key_env}
        variables |= {f"headers.{header}": value[1:] for header, value in config.headers.items() if value[:1] == "$"}
        for key, variable in variables.items():
            if variable and not os.environ.get(variable):
                raise UserError(
                    f"endpoint {name!r}: the environment variable {variable} is not set (endpoints.{name}.{key})"
                )
        self.name, self.config, self.retries = name, config, replace(retries or Retries(), tries=config.tries)
        self.usage, self._require = Usage(), require
        self._connection: _Connection | None = None
        self._paused_until = 0.0  # by time.monotonic(): a Retry-After holds for every request

    def __repr__(self) -> str:
        return f"EndpointClient({self.name!r}, {self.config.base_url!r})"

    @property
    def root(self) -> str:
        """The server's address without the /v1 of its OpenAI-compatible API."""
        return self.config.base_url.rstrip("/").removesuffix("/v1")

    async def request(self, path: str, body: Body, read: Callable[[Body], T], *, final: Collection[int] = ()) -> T:
        """POST `body` to `path` and `read` the JSON answer, which raises MalformedError or ValidationError if unusable.

        `path` follows the base URL, or is a complete URL of this server; statuses in `final` are not retried.
        Raises Refused for those and for a 4xx that no other try would change, ContextError for a prompt that is too
        long, InfrastructureError when every try failed, Incomplete when the budget is spent.
        """

        def decoded(text: str) -> T:
            try:
                answer = json.loads(text)
            except (ValueError, RecursionError):
                answer = None
            self._count_tokens(answer if isinstance(answer, dict) else {}, body, text)
            if not isinstance(answer, dict):
                raise MalformedError("an answer that is no JSON object")
            if not answer.get("choices") and (answer.get("error") or answer.get("object") == "error"):
                raise self._failure(read_error(_status(answer), text), final)
            try:
                result = read(answer)
            except ValidationError as error:
                raise MalformedError(f"an answer of another form ({first_problem(error)})") from None
            self._count(answers=1)
            return result

        return await self._with_retries(path, body, decoded, final)

    async def post(self, path: str, body: Body, *, final: Collection[int] = ()) -> None:
        """POST and ignore the content of the answer. Raises what `request` raises."""
        await self._with_retries(path, body, lambda _: None, final)

    @asynccontextmanager
    async def relayed(self, path: str, body: Body, headers: Mapping[str, str]) -> AsyncIterator[Any]:
        """The server's own answer, as it arrives and with any status, for a caller that retries by itself.

        Raises InfrastructureError if the server cannot be reached or does not answer, Incomplete if the budget is
        spent. Call `count` with the answer.
        """
        connection, key = await self._connected(), self._key()
        library = import_module(type(connection.http).__mro__[1].__module__.partition(".")[0])
        async with connection.slots:
            self._check_budget()
            self._count(requests=1)
            request = connection.http.build_request(
                "POST",
                f"{self.config.base_url.rstrip('/')}{path}",
                json=body,
                headers={
                    **headers,
                    **({"Authorization": f"Bearer {key}", "x-api-key": key} if key else {}),
                    **self._headers(),
                },
                timeout=self.config.timeout,
            )
            try:
                response = await connection.http.send(request, stream=True)
                try:
                    yield response
                finally:
                    await response.aclose()
            except library.HTTPError as error:
                reason = self._scrubbed(f"{type(error).__name__} {error}")
            else:
                return
        raise InfrastructureError(f"endpoint {self.name!r}: a broken connection ({reason})")

    def count(self, answer: Body, body: Body, text: str) -> None:
        """Count a relayed answer."""
        self._count_tokens(answer, body, text)
        self._count(answers=1)

    async def _with_retries(self, path: str, body: Body, read: Callable[[str], T], final: Collection[int]) -> T:
        connection = await self._connected()
        try:
            return await self.retries.concurrent(self._pause)(self._try, connection, path, body, read, final)
        except TransientError as error:
            last = error
        # Raised outside the handler: chained exceptions hold the client's request, and with it the key.
        message = f"endpoint {self.name!r}: {self.config.tries} tries failed, the last one with {last}"
        raise (EmptyAnswer if isinstance(last, SaysNothingError) else InfrastructureError)(message)

    async def _try(
        self, connection: _Connection, path: str, body: Body, read: Callable[[str], T], final: Collection[int]
    ) -> T:
        import openai  # noqa: PLC0415 - an extra

        try:
            async with connection.slots:
                await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
                self._require()
                self._check_budget()  # checked now: other requests have spent budget while this one waited
                self._count(requests=1)
                async with asyncio.timeout(self.config.timeout):
                    text = str(await connection.client.post(path, body=body, cast_to=str))
            return read(text)
        except (TimeoutError, openai.APITimeoutError):
            raise TransientError(f"no answer within {self.config.timeout:g} seconds") from None
        except openai.APIStatusError as error:
            said, wait = read_error(error.status_code, error.response.text), error.response.headers.get("retry-after")
            raise self._failure(said, final, retry_after(wait)) from None  # its request contains the key
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            reason = " ".join(part for part in (type(cause).__name__, str(cause)) if part)
            raise TransientError(self._scrubbed(f"a broken connection ({reason})")) from None

    def _pause(self, failure: TransientError) -> None:
        """A Retry-After holds for every request to this endpoint, not only for the one that received it."""
        if failure.retry_after:
            seconds = min(failure.retry_after, self.retries.longest)
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            opened, slots = self._opened(), asyncio.Semaphore(self.config.concurrency)
            self._connection = _Connection(loop, opened, *await anext(opened), slots)  # `anext` does not yield control
        return self._connection

    async def _opened(self) -> AsyncGenerator[tuple[AsyncOpenAI, Any], None]:
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UserError("endpoints need the extra 'server': pip install 'internalize[server]'") from error
        plain = self.config.base_url.startswith("http://")  # root certificates take long to load, and are not needed
        transport = DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True)
        client = AsyncOpenAI(
            api_key=self._key() or "none",  # never the client's default, which may be the key of another provider
            base_url=self.config.base_url,
            max_retries=0,
            timeout=self.config.timeout,
            default_headers=self._headers(),
            http_client=transport,
        )
        client.organization = client.project = None  # read from variables that may belong to another provider
        try:
            yield client, transport
        finally:
            await client.close()

    def _key(self) -> str:
        return os.environ.get(self.config.key_env, "") if self.config.key_env else ""

    def _headers(self) -> dict[str, str]:
        given = self.config.headers.items()
        return {name: os.environ.get(value[1:], "") if value[:1] == "$" else value for name, value in given}

    def _count(self, **more: int) -> None:
        self.usage = self.usage.model_copy(update={name: getattr(self.usage, name) + n for name, n in more.items()})

    def _count_tokens(self, answer: Body, body: Body, text: str) -> None:
        """Count an answer's tokens by its own report, else by its length; unusable answers are paid for too."""
        counts = TokenCounts.of(answer)
        prompt, sampled, estimated = counts.prompt_tokens, counts.completion_tokens, not counts.prompt_tokens
        if estimated:
            prompt, sampled = estimated_tokens(json.dumps(body, ensure_ascii=False)), estimated_tokens(text)
        self._count(prompt_tokens=prompt, completion_tokens=sampled, estimated=int(estimated))
        price = (self.usage.prompt_tokens * self.config.price_in, self.usage.completion_tokens * self.config.price_out)
        self.usage = self.usage.model_copy(update={"cost": sum(price) / 1e6})

    def _check_budget(self) -> None:
        config, usage = self.config, self.usage
        if config.max_tokens and usage.tokens >= config.max_tokens:
            budget, key = f"{config.max_tokens} tokens", "max_tokens"
        elif config.max_cost and usage.cost >= config.max_cost:
            budget, key = f"{config.max_cost:g}", "max_cost"
        else:
            return
        raise Incomplete(
            f"endpoint {self.name!r}: the budget endpoints.{self.name}.{key} of {budget} is spent ({usage.text})"
        )

    def _failure(self, said: ServerError, final: Collection[int], wait: float = 0.0) -> Exception:
        """The error to raise for an error answer: what another try may get past is a TransientError."""
        where, words = f"endpoint {self.name!r}", self._scrubbed(said.message) or "no reason given"
        if said.too_long:
            return ContextError(f"{where}: the prompt is too long for {self.config.model} ({words})")
        if said.declined:
            return Declined(f"{where}: a filter of the server declines the request ({words})")
        status = f"HTTP {said.status}" if said.status else "an error in an answer"
        if said.status not in final and (said.status in _RETRIED or not 400 <= said.status < 500):
            return TransientError(f"{status} ({words})", wait)
        if said.status in (401, 403):
            variable = self.config.key_env
            advice = (
                f"check the key in the environment variable {variable}" if variable else "it requires one: set key_env"
            )
            return Refused(f"{where} refused the key ({status}); {advice}", said)
        target = f"{self.config.model!r} at {self.config.base_url}"
        return Refused(f"{where} refused a request to {target} ({status}): {words}", said)

    def _scrubbed(self, text: str) -> str:
        variables = (value[1:] for value in self.config.headers.values() if value[:1] == "$")
        for secret in filter(None, (self._key(), *(os.environ.get(name) for name in variables))):
            text = text.replace(secret, "***")
        return " ".join(text.split())[:_LONGEST_QUOTE]


def _status(answer: Body) -> int:
    """The status that an answer with an error in it names, though it came as a success; 0 if it names none."""
    error = answer.get("error")
    codes = [each.get(name) for each in (error, answer) if isinstance(each, dict) for name in ("code", "status")]
    return next((code for code in codes if isinstance(code, int) and 400 <= code < 600), 0)

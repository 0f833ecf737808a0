"""When a failed request is sent again: one policy for all servers, carried out by `tenacity`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.stop import stop_before_delay
from tenacity.wait import wait_random_exponential


class TransientError(Exception):
    """A try failed, but a later one may succeed; the message says why. `retry_after`: seconds set by the server."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Retries:
    """How often a request is tried, and how long to wait in between.

    A wait is drawn uniformly (full jitter) from a span that doubles from try to try, so that clients which failed
    together do not return together. It is no shorter than the server's Retry-After.
    """

    tries: int = 3
    first: float = 0.5  # seconds: the span before the second try
    longest: float = 60.0  # seconds: the longest span, also of a Retry-After
    total: float = math.inf  # seconds after the first try beyond which no wait may extend

    def blocking(self) -> Retrying:
        """Calls a function until it does not raise TransientError; raises the last one."""
        return Retrying(**self._settings())

    def concurrent(self, before_wait: Callable[[TransientError], None] = lambda _: None) -> AsyncRetrying:
        """As `blocking`, for a coroutine function; `before_wait` receives the error before each wait."""
        return AsyncRetrying(**self._settings(), before_sleep=lambda state: before_wait(_failure(state)))

    def wait(self, state: RetryCallState) -> float:
        """Seconds until the next try."""
        jitter = wait_random_exponential(multiplier=self.first, max=self.longest)
        return max(jitter(state), min(_failure(state).retry_after, self.longest))

    def _settings(self) -> dict[str, Any]:
        return {
            "stop": stop_after_attempt(self.tries) | stop_before_delay(self.total),
            "wait": self.wait,
            "retry": retry_if_exception_type(TransientError),
            "reraise": True,
        }


def _failure(state: RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)  # no other error is retried
    return error


def retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header: a number or a date; 0 if it is missing or invalid."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

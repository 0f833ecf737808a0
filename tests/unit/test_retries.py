"""How long is waited between tries, when there is no further one, and what a Retry-After may say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from internalize.inference.retries import Retries, TransientError, retry_after


def failing(times: int, asked: float = 0.0) -> Callable[[], str]:
    """A function that fails so often before it answers."""
    failures = iter(range(times))

    def call() -> str:
        for number in failures:
            raise TransientError(f"failure {number + 1}", asked)
        return "answered"

    return call


def waits(retries: Retries, times: int, asked: float = 0.0) -> list[float]:
    """What is waited, without waiting."""
    waited: list[float] = []
    retrying = retries.blocking().copy(sleep=waited.append)
    if times < retries.tries:
        assert retrying(failing(times, asked)) == "answered"
    else:
        with pytest.raises(TransientError, match=f"failure {retries.tries}$"):
            retrying(failing(times, asked))
    return waited


def test_the_span_doubles_up_to_the_longest_and_the_whole_of_it_is_used() -> None:
    many = [waits(Retries(tries=9, first=0.5, longest=8), 9) for _ in range(200)]
    for number, span in enumerate([0.5, 1, 2, 4, 8, 8, 8, 8]):
        drawn = [found[number] for found in many]
        assert 0 <= min(drawn) < 0.2 * span
        assert 0.8 * span < max(drawn) <= span


def test_a_retry_after_is_followed_and_bounded() -> None:
    assert waits(Retries(3, 0.5, 60), 2, asked=7) == [7, 7]
    assert waits(Retries(3, 0.5, 60), 2, asked=900) == [60, 60]


def test_nothing_is_tried_again_but_what_says_so() -> None:
    def call() -> None:
        calls.append(1)
        raise ValueError("no")

    calls: list[int] = []
    with pytest.raises(ValueError, match="no"):
        Retries().blocking()(call)
    assert calls == [1]
    assert waits(Retries(tries=1), 1) == []


def test_no_wait_reaches_past_the_total() -> None:
    began = time.monotonic()
    with pytest.raises(TransientError, match="failure 1"):
        Retries(tries=5, total=0.2).blocking()(failing(5, asked=30))
    with pytest.raises(TransientError, match="failure 1"):
        Retries(tries=5, total=0.0).blocking()(failing(5))
    assert time.monotonic() - began < 0.2


def test_coroutines_too_and_the_caller_hears_of_each_wait() -> None:
    async def call() -> str:
        return sync()

    sync, heard = failing(2, asked=0.01), []
    found = asyncio.run(Retries(first=0.0).concurrent(lambda failure: heard.append(failure.retry_after))(call))
    assert (found, heard) == ("answered", [0.01, 0.01])


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 0), ("", 0), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("nan", 0), ("inf", 0)]
)
def test_what_a_server_says(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_a_date_is_seconds_from_now() -> None:
    assert 8 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)) <= 10
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(seconds=10), usegmt=True)) == 0
    assert retry_after("Fri, 99 Foo 2026 00:00:00 GMT") == 0

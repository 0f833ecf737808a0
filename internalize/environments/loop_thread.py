"""An event loop in its own thread, for plain calls that wait for async work.

One loop lives as long as its owner, because an async client is bound to its loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from contextlib import closing
from typing import Any, TypeVar

from internalize.errors import InfrastructureError

T = TypeVar("T")
_CLOSING = 5.0  # seconds that unfinished work may take to end


class LoopThread:
    """Runs coroutines from any thread; the loop starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def call(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result of `work`, or what it raises. Raises InfrastructureError after `seconds` (None = no limit).

        A KeyboardInterrupt while waiting cancels the work.
        """
        with self._lock:  # several threads may call, and one loop must serve them all
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="internalize", daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError as error:
            if future.done() or seconds is None:  # `work` itself raised a TimeoutError
                raise
            future.cancel()
            raise InfrastructureError(f"no answer within {seconds:g} s") from error
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel unfinished work, then end the loop and its thread."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        concurrent.futures.wait([asyncio.run_coroutine_threadsafe(_cancel_tasks(), loop)], _CLOSING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSING)
        if not thread.is_alive():
            loop.close()


async def _cancel_tasks() -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or what it raises. Where a loop runs already, as in a notebook, it runs in a LoopThread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with closing(LoopThread()) as thread:
        return thread.call(work)

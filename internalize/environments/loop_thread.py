"""An event loop in a thread of its own, for plain calls that wait for asynchronous work.

One loop lives as long as its owner, since asynchronous clients are bound to the loop they were made in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from internalize.errors import InfrastructureError

T = TypeVar("T")
_LEAVING = 5.0  # seconds that what still runs may take to end


class Background:
    """The loop starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def call(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """What `work` returns or raises. Raises InfrastructureError after `seconds` (None = no limit).

        A wait that is interrupted cancels the work.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError as error:
            if future.done() or seconds is None:  # its own time-out
                raise
            future.cancel()
            raise InfrastructureError(f"no answer within {seconds:g} s") from error
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="internalize", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """End what still runs, then the loop."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        ended = asyncio.run_coroutine_threadsafe(_end_tasks(), loop)
        concurrent.futures.wait([ended], _LEAVING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_LEAVING)
        if not thread.is_alive():
            loop.close()


async def _end_tasks() -> None:
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises, also where a loop runs already, as in a notebook: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    thread = Background()
    try:
        return thread.call(work)
    finally:
        thread.close()

"""Runs the user's own agent on one task: a command, or a function in a thread.

The command gets the endpoint in the environment variables that OpenAI's and Anthropic's clients read, and the task as
JSON on standard input. When it ends, or its time is over, every process that it started is ended too.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from internalize.errors import first_line
from internalize.records import Task

_LAST = 400  # bytes that are read of an agent's error output
_HIDDEN = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "ANTHROPIC_AUTH_TOKEN")  # would send the account of another provider


class Seat(NamedTuple):
    """Where one episode's calls go: the endpoint's address with the episode's path, and the key."""

    episode_url: str  # http://127.0.0.1:1234/episodes/NAME; scores are posted to /score
    key: str

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"{self.episode_url}/v1"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables for OpenAI's and Anthropic's clients; Anthropic's add /v1 themselves."""
        return {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_BASE": self.base_url,
            "OPENAI_API_KEY": self.key,
            "ANTHROPIC_BASE_URL": self.episode_url,
            "ANTHROPIC_API_KEY": self.key,
            "INTERNALIZE_EPISODE_URL": self.episode_url,
        }


class Outcome(NamedTuple):
    """The end of an agent: its score or answer, if it gave one, and its error, if it had one."""

    score: float | None = None
    answer: str | None = None
    error: str = ""


def description(task: Task) -> dict[str, Any]:
    """The task as the agent receives it, without the reference answer."""
    return {"id": task.id, "question": task.question, "split": task.split, "family": task.family, **task.state}


async def run_command(command: Sequence[str], task: Task, seat: Seat, seconds: float) -> Outcome:
    """Run a command until it ends. An exit code other than 0 is an error."""
    with tempfile.TemporaryDirectory(prefix="internalize-agent-", ignore_cleanup_errors=True) as folder:
        environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        environment |= {**seat.variables, "INTERNALIZE_QUESTION": task.question, "TMPDIR": folder}
        with (Path(folder) / "stderr").open("w+b") as errors:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=errors,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                return Outcome(error=f"the agent {command[0]!r} cannot be started ({error.strerror})")
            try:
                async with asyncio.timeout(seconds):
                    await process.communicate(json.dumps(description(task)).encode())
            except TimeoutError:
                return Outcome(error=f"the agent did not end within {seconds:g} s")
            finally:
                await _end(process)
            if process.returncode:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - _LAST))
                words = errors.read().decode("utf-8", "replace").strip().splitlines()
                return Outcome(error=f"the agent ended with code {process.returncode} ({words[-1] if words else ''})")
    return Outcome()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the agent's whole process group, which may outlive the agent."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def run_function(function: Callable[..., Any], task: Task, seat: Seat, seconds: float) -> Outcome:
    """Call `function(task, base_url, api_key)`: a number or truth value is a score, a text an answer.

    A function that does not end in time keeps running, but its further calls of the model are refused.
    """
    arguments = (description(task), seat.base_url, seat.key)
    try:
        async with asyncio.timeout(seconds):
            if inspect.iscoroutinefunction(function):
                value = await function(*arguments)
            else:
                value = await _in_thread(function, *arguments)
    except TimeoutError:
        return Outcome(error=f"the agent did not end within {seconds:g} s")
    except Exception as error:  # noqa: BLE001 - an agent may raise anything
        return Outcome(error=f"the agent raised {type(error).__name__}: {first_line(error)}")
    if value is None or isinstance(value, str):
        return Outcome(answer=value)
    try:
        score = float(value)
    except (TypeError, ValueError):
        return Outcome(error=f"the agent returned a {type(value).__name__}, which is neither a score nor an answer")
    if not 0 <= score <= 1:
        return Outcome(error=f"the agent returned the score {score:g}, which is not from 0 to 1")
    return Outcome(score=score)


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a daemon thread: one that hangs must not keep this process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(outcome: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            outcome(value)

    def work() -> None:
        try:
            outcome, value = done.set_result, function(*arguments)
        except StopIteration as error:  # a future refuses to raise it
            outcome, value = done.set_exception, RuntimeError(f"StopIteration {error}")
        except BaseException as error:  # noqa: BLE001 - SystemExit too must end only the agent
            failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} {error}")
            outcome, value = done.set_exception, failure
        with suppress(RuntimeError):  # the loop is closed: nobody waits for the result
            loop.call_soon_threadsafe(tell, outcome, value)

    threading.Thread(target=work, name="agent", daemon=True).start()
    return await done

"""Environments behind a server of OpenEnv, by its address: `env.name = "openenv:http://127.0.0.1:8000"`.

Every episode is its own session. A task is a seed, sent to the server at the reset together with `reset`; seeds with
the same first observation are one task. The policy sees the observation and has the server's own tools or, without
them, the tool `act` with the fields of an action. The server ends an episode and gives the reward. Servers that start
differently under one seed are refused, and pictures are not shown.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import httpx
from pydantic import Field
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from internalize.config.regime import Section
from internalize.environments.base import UNKNOWN, SingleUseEpisode, SplitTasks, read_options
from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import InfrastructureError, TaskError, first_line
from internalize.experience.extract.injection_filter import addresses_model
from internalize.records import Task, ToolCall, ToolSpec

_SYSTEM = "You act in an environment, one action at a time."
_LONGEST = 2000  # characters of a description that are shown
_CLOSING = 5.0  # seconds in which a session must end
_LARGEST = 16_000_000  # bytes of a message
_LIST = {"type": "list_tools"}


class OpenEnvOptions(Section):
    """Options of the environment, as `env.options` of a recipe."""

    seeds: int = Field(100, ge=1, le=100_000, description="Seeds 0, 1, ... that are tried; equal starts count once.")
    reset: dict[str, Any] = Field({}, description="Further parameters of every reset, such as the name of a data set.")
    score: Literal["sum", "last"] = Field("last", description="The score: the last reward, or all of them together.")
    best: float = Field(1.0, gt=0, allow_inf_nan=False, description="The reward of a success, which scores 1.")
    at_once: int = Field(1, ge=1, le=1024, description="Sessions at the same time: no more than the server allows.")
    seconds: float = Field(60.0, gt=0, le=3600, description="Seconds that an answer of the server may take.")
    system: str = Field("", description="The system message; '' = what the server says of itself.")
    characters: int = Field(4000, ge=10, le=1_000_000, description="Characters shown of an observation.")


class OpenEnv(SplitTasks):
    """The environment. Raises TaskError for a server that does not answer or is not supported."""

    waits = True
    final_actions: frozenset[str] = frozenset()

    def __init__(self, url: str, /, **options: Any) -> None:
        self.name = f"openenv:{url}"
        self.options = read_options(self.name, OpenEnvOptions, options)
        self.at_once = self.options.at_once
        if not url.startswith(("http://", "https://")):
            raise TaskError(f"{self.name}: the address of the server is needed, such as openenv:http://127.0.0.1:8000")
        self._url = url.rstrip("/")
        try:
            self.tools, self.own = self._tools()
            about = _description(self._get("/metadata"))
            self.system = self.options.system or "\n\n".join(filter(None, (_SYSTEM, about)))
            self._tasks = self._split()
        except InfrastructureError as error:
            raise TaskError(str(error)) from error
        self.evidence_actions = frozenset(tool.name for tool in self.tools)

    def episode(self, task: Task) -> OpenEnvEpisode:
        """A fresh session with the seed of the task. Raises InfrastructureError if it starts differently."""
        session, seed = self._session(), int(str(task.state["seed"]))
        try:
            first = self._shown(session.reset(self._parameters(seed)))
        except BaseException:
            session.close()
            raise
        if first != task.question:
            session.close()
            raise InfrastructureError(f"{self.name}: seed {seed} starts in another way than before")
        return OpenEnvEpisode(self, session, first)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:  # noqa: ARG002 - there is none
        """No reference solution."""
        return ()

    def action(self, call: ToolCall) -> dict[str, Any]:
        """The message to the server for a call."""
        return {"type": "call_tool", "tool_name": call.name, "arguments": call.values} if self.own else call.values

    def _shown(self, answer: Mapping[str, Any]) -> str:
        return shown(answer.get("observation") or {}, self.options.characters)

    def _session(self) -> _Session:
        return _Session(self.name, self._url, self.options.seconds)

    def _parameters(self, seed: int) -> dict[str, Any]:
        return {**self.options.reset, "seed": seed}

    def _get(self, path: str) -> dict[str, Any]:
        """The server's answer at `path`; empty if it has none. Raises InfrastructureError without a server."""
        try:
            answer = httpx.get(self._url + path, timeout=self.options.seconds)
            found = answer.json() if answer.is_success else {}
        except httpx.HTTPError as error:
            raise InfrastructureError(f"{self.name}: the server does not answer ({type(error).__name__})") from error
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def _tools(self) -> tuple[tuple[ToolSpec, ...], bool]:
        """The tools, and whether they are the server's own (of the Model Context Protocol)."""
        schema = self._get("/schema").get("action") or {}
        fields = {name: field for name, field in schema.get("properties", {}).items() if name != "metadata"}
        if "tool_name" not in fields and fields.keys() - {"type"}:
            about = _description(schema) or "Take one action."
            parameters = schema | {"properties": fields}
            return (ToolSpec(name="act", argument="", description=about, parameters=parameters),), False
        session = self._session()
        try:
            session.reset(self._parameters(0))
            listed = session.step(_LIST).get("observation", {}).get("tools", [])
        finally:
            session.close()
        if not listed:
            raise TaskError(f"{self.name}: the server names neither tools nor fields of an action")
        return tuple(map(_spec, listed)), True

    def _split(self) -> dict[str, tuple[Task, ...]]:
        tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        for seed in range(self.options.seeds):
            first = self._start(seed)
            if seed == 0 and self._start(seed) != first:
                raise TaskError(f"{self.name}: starts differently under one seed, which cannot be carried over")
            if first not in seen:
                seen.add(first)
                split = split_of(first)
                tasks[split].append(Task.new(self.name, split, first, seed=seed))
        return {split: tuple(found) for split, found in tasks.items() if found}

    def _start(self, seed: int) -> str:
        session = self._session()
        try:
            return self._shown(session.reset(self._parameters(seed)))
        finally:
            session.close()


class _Session:
    """One session with the server. Every failure is an InfrastructureError."""

    def __init__(self, env: str, url: str, seconds: float) -> None:
        self._env, self._seconds = env, seconds
        address = "ws" + url.removeprefix("http") + "/ws"
        try:
            self._socket = connect(address, open_timeout=seconds, max_size=_LARGEST, proxy=None)
        except (OSError, WebSocketException) as error:
            raise InfrastructureError(f"{env}: the server takes no session ({first_line(error)})") from error

    def reset(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The first observation."""
        return self._asked("reset", parameters)

    def step(self, action: dict[str, Any]) -> dict[str, Any]:
        """The result of an action."""
        return self._asked("step", action)

    def close(self) -> None:
        """End the session. The server closes the connection when it can accept another one."""
        try:
            self._socket.send(json.dumps({"type": "close"}))
            self._socket.recv(_CLOSING)
        except (OSError, WebSocketException):
            pass  # already closed, or the server does not close it
        self._socket.close()

    def _asked(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        try:
            with contextlib.suppress(ConnectionClosed):  # a server that refuses says why before it closes
                self._socket.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(self._socket.recv(self._seconds))
        except (OSError, WebSocketException, ValueError) as error:  # a TimeoutError is an OSError
            problem = first_line(error) or f"no answer within {self._seconds:g} s"
            raise InfrastructureError(f"{self._env}: {kind}: {problem}") from error
        said: Any = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(said, dict):
            raise InfrastructureError(f"{self._env}: {kind}: the server gave no answer that can be read")
        if answer.get("type") == "error":
            code, words = str(said.get("code", "")), str(said.get("message", ""))
            if code == "VALIDATION_ERROR" and kind == "step":
                raise ActionError(_problem(said.get("errors")) or words)
            raise InfrastructureError(f"{self._env}: {kind}: the server says {code} {words[:200]}")
        return said


def _problem(errors: Any) -> str:
    """The first error of the server's validation of an action."""
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    return f"{'.'.join(map(str, first.get('loc') or ()))}: {first.get('msg')}" if first else ""


class ActionError(Exception):
    """The server refuses an action; the session goes on."""


class OpenEnvEpisode(SingleUseEpisode):
    """One session. Ends when the server says so; it must be closed."""

    def __init__(self, env: OpenEnv, session: _Session, first: str) -> None:
        super().__init__(env.name, env.system, first)
        self._of, self._session = env, session
        self._names = {tool.name for tool in env.tools}
        self._total, self._done = 0.0, False
        self._last: float | None = None

    def observe(self, call: ToolCall | None) -> str | None:
        """The result of the call; None at the end."""
        if call is None or call.name not in self._names:
            return UNKNOWN
        try:
            answer = self._session.step(self._of.action(call))
        except ActionError as error:
            return f"No such action: {first_line(error)}"
        reward = answer.get("reward")
        if isinstance(reward, int | float):
            self._last = float(reward)
            self._total += self._last
        self._done = bool(answer.get("done"))
        return None if self._done else shown(answer.get("observation") or {}, self._of.options.characters)

    def score(self) -> float | None:
        """The score by `score` and `best`; None for an ended episode without any reward, 0 for an unfinished one.

        Raises InfrastructureError for a reward above `best`.
        """
        best = self._of.options.best
        if self._last is None:
            return None if self._done else 0.0
        reward = self._total if self._of.options.score == "sum" else self._last
        if reward > best:
            raise InfrastructureError(f"{self._env}: the reward {reward:g} is above env.options.best = {best:g}")
        return max(0.0, reward / best)

    def close(self) -> None:
        """End the session."""
        self._session.close()


def shown(observation: Mapping[str, Any], characters: int) -> str:
    """An observation as text: a single field as it is, several as JSON, without null fields."""
    told = {name: value for name, value in observation.items() if value is not None and name != "tool_name"}
    error, result = told.get("error"), told.get("result")
    if isinstance(error, dict):
        text = f"Error: {error.get('message') or json.dumps(error, ensure_ascii=False)}"
    else:
        if isinstance(result, dict) and result.get("data") is not None:
            told = {"result": result["data"]}
        alone = next(iter(told.values())) if len(told) == 1 else told
        text = alone if isinstance(alone, str) else json.dumps(alone, ensure_ascii=False)
    return text if len(text) <= characters else f"{text[:characters]} (cut: {len(text)} characters)"


def _spec(tool: Mapping[str, Any]) -> ToolSpec:
    parameters = tool.get("input_schema") or {}
    return ToolSpec(name=tool["name"], argument="", description=_description(tool), parameters=parameters)


def _description(said: Mapping[str, Any]) -> str:
    """A server's description of itself or a tool; empty if it addresses a model."""
    text = str(said.get("description") or "").strip()[:_LONGEST]
    return "" if addresses_model(text) else text

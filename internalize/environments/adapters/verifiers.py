"""Environments of the library verifiers by the name of their module, `env.name = "verifiers:NAME"`, or `FILE.py`.

The environment runs its own conversation, with its prompts, tools, turns and rubric, as a program that calls the policy
through the endpoint. Its training rows are the split `train` and its evaluation rows `dev` and `test`; if one set is
missing or the two share rows, all rows are split by their content. Equal rows are one task. A failed reward function
leaves the episode unscored. Completion prompts, rewards of whole groups, remote sandboxes and messages with
pictures are refused.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import isawaitable
from typing import Any

import verifiers as vf
from openai import AsyncOpenAI
from pydantic import Field

from internalize.environments.agent.env import AgentLimits, PlayedByAgent
from internalize.environments.base import read_options
from internalize.environments.callables import load_function
from internalize.environments.loop_thread import LoopThread
from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import InfrastructureError, TaskError, UserError, first_line
from internalize.records import Task, content_hash

_PROBLEMS: ContextVar[list[str]] = ContextVar("problems")  # failures of reward functions in the current episode


class VerifiersOptions(AgentLimits):
    """Options of the environment, as `env.options` of a recipe."""

    reward: str = Field("", description="The reward function that is the score; '' = the weighted sum of all.")
    best: float = Field(1.0, gt=0, allow_inf_nan=False, description="The reward of a success, which scores 1.")
    env: dict[str, Any] = Field({}, description="Arguments of the environment itself.")


class Verifiers(PlayedByAgent):
    """The environment. Raises TaskError for one that cannot be loaded or is not supported."""

    def __init__(self, name: str, /, **options: Any) -> None:
        self.name = f"verifiers:{name}"
        self.options: VerifiersOptions = read_options(self.name, VerifiersOptions, options)
        self.loop, self.function = LoopThread(), self._play
        self.env = self._loaded(name)
        self._refuse()
        self.evidence_actions = frozenset(tool["function"]["name"] for tool in self.env.oai_tools or ())
        self._rows: dict[str, dict[str, Any]] = {}
        self._tasks = self._split()

    def close(self) -> None:
        """End what is unfinished."""
        self.loop.close()

    def _loaded(self, name: str) -> Any:
        with _signals_kept():
            try:
                load = load_function(f"{name}:load_environment", "env.name") if name.endswith(".py") else None
                return load(**self.options.env) if load else vf.load_environment(name, **self.options.env)
            except UserError as error:
                raise TaskError(f"{self.name}: {error}") from error
            except Exception as error:  # an environment is a program of others
                raise TaskError(f"{self.name}: cannot be loaded ({first_line(error)})") from error

    def _refuse(self) -> None:
        env, rubrics = self.env, list(_rubrics(getattr(self.env, "rubric", None)))
        group = [f for rubric in rubrics for f in rubric.funcs if rubric._is_group_func(f)]  # noqa: SLF001
        problem = ""
        if not isinstance(env, vf.MultiTurnEnv | vf.EnvGroup):
            problem = f"it is a {type(env).__name__}, and turns of a conversation are played"
        elif env.message_type != "chat":
            problem = "its prompts are texts to be completed, which cannot be carried over"
        elif isinstance(env, vf.SandboxEnv):
            problem = "its tools run in a remote sandbox, which cannot be carried over"
        elif group:
            problem = f"its reward {group[0].__name__} compares whole groups, which cannot be carried over"
        elif self.options.reward and self.options.reward not in env.rubric._get_reward_func_names():  # noqa: SLF001
            problem = f"env.options.reward = {self.options.reward!r} is none of its reward functions"
        if problem:
            raise TaskError(f"{self.name}: {problem}")
        env.set_interleaved_rollouts(False)
        for rubric in rubrics:
            weighted = zip(rubric.funcs, rubric.weights, strict=True)
            rubric.funcs = [_noted(f) if weight or f.__name__ == self.options.reward else f for f, weight in weighted]

    def _split(self) -> dict[str, tuple[Task, ...]]:
        """The tasks by split; their rows are kept by their content."""
        train, held = ({self._keep(row): None for row in rows} for rows in _datasets(self.env))
        apart = train and held and not train.keys() & held.keys()
        tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        for content in train | held:
            split = split_of(content)
            if apart:
                split = "train" if content in train else ("dev", "test")[int(content, 16) % 2]
            question = _text(self._rows[content]["prompt"][-1])
            tasks[split].append(Task.new(self.name, split, question, row=content))
        return {split: tuple(found) for split, found in tasks.items() if found}

    def _keep(self, row: dict[str, Any]) -> str:
        """Store a row; returns the hash of its content. Raises TaskError for a prompt that is not all text."""
        if not isinstance(row["prompt"], list):
            raise TaskError(f"{self.name}: the prompt of row {row['example_id']} is no list of messages")
        if any(not isinstance(message.get("content"), str | None) for message in row["prompt"]):
            raise TaskError(f"{self.name}: row {row['example_id']} shows more than text, which cannot be carried over")
        content = content_hash(json.dumps({**row, "example_id": 0}, sort_keys=True, default=str))
        self._rows.setdefault(content, row)
        return content

    def _play(self, task: dict[str, Any], base_url: str, api_key: str) -> float:
        """The score of one episode. Raises InfrastructureError if the episode fails."""
        return self.loop.call(self._played(self._rows[task["row"]], base_url, api_key), self.options.seconds)

    async def _played(self, row: dict[str, Any], base_url: str, api_key: str) -> float:
        problems: list[str] = []
        _PROBLEMS.set(problems)
        async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=None) as client:
            state = await self.env.rollout(row, client, "policy", {})
            if isinstance(state["error"], vf.EmptyModelResponseError):
                return 0.0  # the policy's own failure
            if state["error"] is not None:
                raise InfrastructureError(f"{self.name}: {first_line(state['error'].__cause__ or state['error'])}")
            await self.env.rubric.score_rollout(state)
        if problems:
            raise InfrastructureError(f"{self.name}: {problems[0]}")
        reward = float(state["metrics"][self.options.reward] if self.options.reward else state["reward"])
        if reward > self.options.best:
            raise InfrastructureError(
                f"{self.name}: the reward {reward:g} is above env.options.best = {self.options.best:g}"
            )
        return max(0.0, reward / self.options.best)


def _datasets(env: Any) -> Iterator[list[dict[str, Any]]]:
    """The rows for training and for evaluation; empty if the environment has none."""
    train, held = env.build_dataset(), env.build_eval_dataset()
    yield list(train) if train is not None else []
    yield list(held) if held is not None else []


def _rubrics(rubric: Any) -> Iterator[Any]:
    """A rubric, or those of a group."""
    if rubric is not None:
        yield rubric
    for inner in (*getattr(rubric, "rubrics", ()), *(env.rubric for env in getattr(rubric, "env_map", {}).values())):
        yield from _rubrics(inner)


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The reward function with its failures recorded, because the library turns them into a reward of 0."""

    @wraps(function)
    async def noting(*args: Any, **kwargs: Any) -> float:
        try:
            reward = function(*args, **kwargs)
            return float(await reward if isawaitable(reward) else reward)
        except Exception as error:
            problem = f"the reward {function.__name__} raised {type(error).__name__}: {first_line(error)}"
            _PROBLEMS.get([]).append(problem)
            raise

    return noting


def _text(message: dict[str, Any]) -> str:
    return message.get("content") or ""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The library takes over SIGINT and SIGTERM when an environment is made, and can do so in the main thread alone."""
    real = signal.signal
    signal.signal = lambda number, _: signal.getsignal(number)  # type: ignore[assignment] # they belong to the run
    try:
        yield
    finally:
        signal.signal = real

"""The common part of the text games in a Java machine: reused worlds, references, episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import closing
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, JsonValue

from internalize.environments.base import SplitTasks
from internalize.errors import InfrastructureError
from internalize.records import Task, ToolCall, ToolSpec

from .episode import ACT, TOOLS, Answer, TextEpisode
from .jvm import JavaObject, Jvm, jar_of
from .reference_cache import ReferenceCache

Characters = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class JavaGame(ABC):
    """One game. The environment lends it a world in the Java machine until the game is closed.

    Worlds of the same `kind` can be lent again. `gold` asks the package for its own solution of the game.
    """

    def __init__(self, env: JavaGames, task: Task, kind: str = "", *, gold: bool = False) -> None:
        self._env, self._task, self._kind, self._gold = env, task, kind, gold
        self._setting = str(task.state["setting"])
        self._world: JavaObject | None = env.borrow(self._kind) or self.make()

    def make(self) -> JavaObject:
        """A new world."""
        return self._env.jvm.new()

    @property
    def world(self) -> JavaObject:
        """The world. Raises InfrastructureError after `close`."""
        if self._world is None:
            raise InfrastructureError(f"{self._env.name}: the game is closed")
        return self._world

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of the world. Raises InfrastructureError."""
        return self._env.jvm.call(self.world, method, *arguments)

    def reference(self) -> list[str]:
        """The package's own solution, which for some games differs each time."""
        return self._env.jvm.lines(self.world, "getGoldActionSequence")

    @abstractmethod
    def start(self) -> tuple[str, str]:
        """The task and the first observation."""

    @abstractmethod
    def send(self, command: str) -> Answer:
        """The answer to a command."""

    @abstractmethod
    def possible(self) -> list[str]:
        """Every command that makes sense now."""

    def close(self) -> None:
        """Give the world back to the environment; closing twice is harmless."""
        world, self._world = self._world, None
        if world is not None:
            self._env.give_back(world, self._kind)


class JavaGames(SplitTasks, ABC):
    """An environment of games in one Java machine. A subclass lists the tasks and makes the games."""

    tools: tuple[ToolSpec, ...] = TOOLS
    evidence_actions = frozenset({ACT})
    final_actions: frozenset[str] = frozenset()
    waits = True
    package: str
    jar: str
    entry: str  # the Java class of a game
    family_key: str  # in the state of a task
    number_key: str

    def __init__(self, longest: int, timeout: float) -> None:
        self._longest, self._timeout = longest, timeout
        self._idle: defaultdict[str, list[JavaObject]] = defaultdict(list)

    @cached_property
    def jvm(self) -> Jvm:
        """The machine, which starts with the first game."""
        return Jvm(jar_of(self.package, self.jar), self.entry, timeout=self._timeout)

    @abstractmethod
    def game(self, task: Task, *, gold: bool = False) -> JavaGame:
        """The game of a task."""

    @abstractmethod
    def reference_name(self, task: Task) -> str:
        """The name of a task among those of the same family and setting."""

    def new_task(self, split: str, family: str, number: int, setting: str) -> Task:
        """A task of the game or experiment `family`."""
        question = f"{family} number {number}" + (f" with {setting}" if setting else "")
        state: dict[str, JsonValue] = {self.family_key: family, "setting": setting, self.number_key: number}
        return Task.new(self.name, split, question, None, family, **state)

    def episode(self, task: Task) -> TextEpisode:
        """A fresh game. Raises InfrastructureError if no machine can be had."""
        return TextEpisode(self.name, self.game(task), self._longest)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The package's own solution, up to the command that wins."""
        references = ReferenceCache(self.name, [task.family, str(task.state["setting"])])
        commands = references.get(self.reference_name(task), lambda: self._find_reference(task))
        return tuple(ToolCall.of(ACT, command=command) for command in commands)

    def _find_reference(self, task: Task) -> list[str]:
        commands: list[str] = []
        with closing(self.game(task, gold=True)) as game:
            game.start()
            for command in game.reference():
                commands.append(command)
                if game.send(command).over:
                    break
        return commands

    def borrow(self, kind: str) -> JavaObject | None:
        """An idle world of this kind that still exists, or None."""
        while True:
            try:
                world = self._idle[kind].pop()  # not "if idle: pop": episodes in other threads borrow too
            except IndexError:
                return None
            if self.jvm.holds(world):
                return world

    def give_back(self, world: JavaObject, kind: str) -> None:
        """Keep a world for the next game of the same kind."""
        self._idle[kind].append(world)

    def close(self) -> None:
        """End the machine; the next episode starts another."""
        self._idle.clear()
        self.jvm.close()

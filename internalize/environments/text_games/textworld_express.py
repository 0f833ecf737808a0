"""Environment `textworld_express`: eight short text games, 1,000 seeds of each in every fold (extra `textgames`).

A task is a game, its setting, its fold and its seed; folds share no seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from internalize.environments.base import check_names, checked
from internalize.errors import TaskError
from internalize.records import Task, ToolCall

from .env import Characters, JavaGame, JavaGames, Seconds
from .episode import ACT, LONGEST, Answer, walk
from .jvm import TIMEOUT, JavaObject

GAMES = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
SEEDS = 1000  # of each fold
_FIRST_SEED = {"train": 0, "dev": 10_000, "test": 20_000}
_EASY = {  # with fewer rooms or things, coin has the same worlds in dev as in train
    "cookingworld": "numLocations=1,numIngredients=2,numDistractorItems=2,includeDoors=0,limitInventorySize=0",
    "twc": "numLocations=1,numItemsToPutAway=1,includeDoors=0",
    "coin": "numLocations=4,numDistractorItems=3,includeDoors=0,limitInventorySize=0",
    "mapreader": "numLocations=4,maxDistanceApart=1,maxDistractorItemsPerLocation=0,includeDoors=0",
    "simonsays": "gameLength=4,numDistractors=2",
}
_SHORT = ("twc", "coin", "mapreader", "simonsays")
_SHARED = frozenset({"sorting"})  # games of one seed share their objects: one changes what another sees
_NOT_UNDERSTOOD = ("Unknown action", "I'm not sure")
_SENTENCE_END = re.compile(r"(?<=\.) +(?=[A-Z])")
Difficulty = Literal["default", "easy"]


class TextWorldExpress(JavaGames):
    """The environment.

    `games`: which (default: all eight). `difficulty`: `default` is the package's, `easy` has one to four rooms and few
    things. `settings`: the package's own parameters of a game, such as {"coin": "numLocations=5"}, instead of either.
    `per_game`: seeds of a game in a fold. `subset` "short": four games, easy, most references within eight commands.
    `longest`: characters of an observation. `timeout`: seconds a call to the Java machine may take.
    """

    name = "textworld_express"
    package, jar = "textworld_express", "textworld-express.jar"
    entry = "textworldexpress.runtime.PythonInterface"
    family_key, number_key = "game", "seed"

    @checked
    def __init__(
        self,
        games: Sequence[str] = (),
        subset: Literal["", "short"] = "",
        difficulty: Difficulty | Literal[""] = "",
        settings: Mapping[str, str] | None = None,
        per_game: Annotated[int, Field(ge=1, le=SEEDS)] = 100,
        *,
        longest: Characters = LONGEST,
        timeout: Seconds = TIMEOUT,
    ) -> None:
        super().__init__(longest, timeout)
        settings = settings or {}
        check_names(self.name, "games", games, GAMES)
        self.games = tuple(games) or (_SHORT if subset else GAMES)
        check_names(self.name, "settings", settings, self.games)
        easy = difficulty == "easy" or (bool(subset) and not difficulty)
        self.settings = {game: settings.get(game, _EASY.get(game, "") if easy else "") for game in self.games}
        self._per_game = per_game

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, ...]]:  # type: ignore[override] # made when they are first asked for
        """The games of each fold, in turn."""
        return {
            fold: tuple(
                self.new_task(fold, game, seed, self.settings[game])
                for seed in range(first, first + self._per_game)
                for game in self.games
            )
            for fold, first in _FIRST_SEED.items()
        }

    def game(self, task: Task, *, gold: bool = False) -> JavaGame:
        """The game of a task."""
        return _Game(self, task, gold=gold)

    def reference_name(self, task: Task) -> str:
        """The game and its seed."""
        return f"{task.family} {task.state['seed']}"

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """Calls that distinguish worlds: a walk through every room and back, then the reference."""
        with closing(self.game(task)) as game:
            game.start()
            commands = walk(game)
        return (*(ToolCall.of(ACT, command=command) for command in commands), *self.solve(task))


def in_lines(text: str) -> str:
    """The text with each sentence on its own line, otherwise unchanged."""
    return _SENTENCE_END.sub("\n", text)


class _Game(JavaGame):
    """One game of one seed."""

    def __init__(self, env: TextWorldExpress, task: Task, *, gold: bool) -> None:
        self._name = str(task.state["game"])
        super().__init__(env, task, f"{self._name} {task.state['setting']}", gold=gold)
        self._sent: list[str] = []
        self._possible: list[str] = []

    def make(self) -> JavaObject:
        """A world with the game loaded. Raises TaskError for settings that the game does not have."""
        world = super().make()
        if problem := self._env.jvm.call(world, "load", self._name, self._setting):
            raise TaskError(f"{self._env.name}: settings of {self._name}: {' '.join(str(problem).split())}")
        return world

    def start(self) -> tuple[str, str]:
        """The task and the first room."""
        state = self._generate()
        return str(self.call("getTaskDescription")), in_lines(str(state["observation"]))

    def _generate(self) -> dict[str, Any]:
        seed = int(str(self._task.state["seed"]))
        return self._read(self.call("generateNewGameJSON", seed, self._task.split, self._gold))

    def _read(self, text: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(text)
        if str(state["observation"]).startswith("ERROR"):  # such as a setting that is no number
            raise TaskError(f"{self._env.name}: settings of {self._name} make no game: {self._setting!r}")
        self._possible = list(state["validActions"])
        return state

    def send(self, command: str) -> Answer:
        """The answer; if games share their objects, this game's commands are replayed first."""
        with self._env.jvm.lock:  # no other game may move shared objects between the replay and this command
            if self._name in _SHARED:
                self._generate()
                for earlier in self._sent:
                    self.call("stepJSON", earlier)
            state = self._read(self.call("stepJSON", command))
        self._sent.append(command)
        won, lost = bool(state["tasksuccess"]), bool(state["taskfailure"])
        score = 1.0 if won else min(max(float(state["score"]), 0.0), 0.99)
        text = in_lines(str(state["observation"]))
        return Answer(text, score, won or lost, not text.startswith(_NOT_UNDERSTOOD))

    def possible(self) -> list[str]:
        """Every command that makes sense now, from the last answer."""
        return sorted(self._possible)

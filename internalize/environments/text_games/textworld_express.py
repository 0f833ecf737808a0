"""Environment `textworld_express`: eight short text games, 1,000 seeds of each in every fold (extra `textgames`).

Options choose the games, how many seeds of each, and how hard they are. Left out: the game's own limit of steps (the
recipe has one). What must not change: a task is a game, its setting, its fold and its seed; folds share no seed.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Task, ToolCall, ToolSpec

from .episode import ACT, LONGEST, TOOLS, Answer, TextEpisode, check_limits, walked
from .jvm import TIMEOUT, Held, Jvm, jar_of
from .reference_cache import GoldStore

GAMES = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
SEEDS = 1000  # of each fold
_FIRST_SEED = {"train": 0, "dev": 10_000, "test": 20_000}
_EASY = {  # of coin, with fewer rooms or things, worlds of dev are worlds of train
    "cookingworld": "numLocations=1,numIngredients=2,numDistractorItems=2,includeDoors=0,limitInventorySize=0",
    "twc": "numLocations=1,numItemsToPutAway=1,includeDoors=0",
    "coin": "numLocations=4,numDistractorItems=3,includeDoors=0,limitInventorySize=0",
    "mapreader": "numLocations=4,maxDistanceApart=1,maxDistractorItemsPerLocation=0,includeDoors=0",
    "simonsays": "gameLength=4,numDistractors=2",
}
_SHORT = ("twc", "coin", "mapreader", "simonsays")
_SHARED = frozenset({"sorting"})  # two games of one seed share their objects
_NOT_UNDERSTOOD = ("Unknown action", "I'm not sure")
_SENTENCE_END = re.compile(r"(?<=\.) +(?=[A-Z])")
Difficulty = Literal["default", "easy"]


class TextWorldExpress:
    """The environment.

    `games`: which (default: all eight). `difficulty`: `default` is the package's, `easy` has one to four rooms and few
    things. `settings`: the package's own parameters of a game, such as {"coin": "numLocations=5"}, instead of either.
    `per_game`: seeds of a game in a fold. `subset` "short": four games, easy, most references within eight commands.
    `longest`: characters of an observation. `timeout`: seconds a call to the Java machine may take.
    """

    name = "textworld_express"
    tools: tuple[ToolSpec, ...] = TOOLS
    evidence_actions = frozenset({ACT})
    final_actions: frozenset[str] = frozenset()
    waits = True

    def __init__(
        self,
        games: Sequence[str] = (),
        subset: Literal["", "short"] = "",
        difficulty: Difficulty | Literal[""] = "",
        settings: Mapping[str, str] | None = None,
        per_game: int = 100,
        *,
        longest: int = LONGEST,
        timeout: float = TIMEOUT,
    ) -> None:
        self._check(games, subset, difficulty, per_game)
        check_limits(self.name, longest, timeout)
        self.games = tuple(games) or (_SHORT if subset else GAMES)
        if unknown := [game for game in settings or {} if game not in self.games]:
            raise TaskError(f"{self.name}: settings: no game {unknown[0]!r} (there are {', '.join(self.games)})")
        easy = difficulty == "easy" or (bool(subset) and not difficulty)
        self.settings = {g: (settings or {}).get(g, _EASY.get(g, "") if easy else "") for g in self.games}
        self._per_game, self._longest = per_game, longest
        self._timeout = timeout
        self._idle: defaultdict[str, list[Held]] = defaultdict(list)

    def _check(self, games: Sequence[str], subset: str, difficulty: str, per_game: int) -> None:
        unknown = [game for game in games if game not in GAMES]
        if unknown:
            raise TaskError(f"{self.name}: games: no game {unknown[0]!r} (there are {', '.join(GAMES)})")
        if subset not in {"", "short"}:
            raise TaskError(f"{self.name}: subset = {subset!r}; there is 'short'")
        if difficulty not in {"", "default", "easy"}:
            raise TaskError(f"{self.name}: difficulty = {difficulty!r}; there are 'default' and 'easy'")
        if not 1 <= per_game <= SEEDS:
            raise TaskError(f"{self.name}: per_game = {per_game}; a fold has {SEEDS} seeds of a game")

    @cached_property
    def jvm(self) -> Jvm:
        """The machine, which starts when the first game does."""
        jar = jar_of("textworld_express", "textworld-express.jar")
        return Jvm(jar, "textworldexpress.runtime.PythonInterface", timeout=self._timeout)

    def splits(self) -> tuple[str, ...]:
        """Names of the folds."""
        return tuple(_FIRST_SEED)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The games of a fold, by turns. Raises TaskError for an unknown fold."""
        if split not in _FIRST_SEED:
            raise TaskError(f"{self.name}: no split {split!r} (there are {', '.join(_FIRST_SEED)})")
        seeds = range(_FIRST_SEED[split], _FIRST_SEED[split] + self._per_game)
        return tuple(self._task(split, game, seed) for seed in seeds for game in self.games)

    def _task(self, split: str, game: str, seed: int) -> Task:
        setting = self.settings[game]
        question = f"{game} number {seed}" + (f" with {setting}" if setting else "")
        return Task.new(self.name, split, question, family=game, game=game, setting=setting, seed=seed)

    def episode(self, task: Task) -> TextEpisode:
        """A fresh game. Raises InfrastructureError if no machine can be had."""
        return TextEpisode(self.name, _Game(self, task), self._longest)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The package's own solution, up to the command that wins."""
        game, setting = str(task.state["game"]), str(task.state["setting"])
        name = f"{game} {task.state['seed']}"
        commands = GoldStore(self.name, [game, setting]).get(name, lambda: self._gold(task))
        return tuple(ToolCall.of(ACT, command=command) for command in commands)

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """What tells the world of a task from others: a walk through every room and back, then the reference."""
        game = _Game(self, task)
        try:
            game.start()
            walk = walked(game)
        finally:
            game.close()
        return (*(ToolCall.of(ACT, command=command) for command in walk), *self.solve(task))

    def _gold(self, task: Task) -> list[str]:
        game = _Game(self, task, gold=True)
        try:
            game.start()
            commands, kept = game.gold(), []
            for command in commands:
                kept.append(command)
                if game.send(command).over:
                    break
            return kept
        finally:
            game.close()

    def borrow(self, game: str, setting: str) -> Held:
        """A loaded game: one that was given back, or a new one."""
        idle = self._idle[f"{game} {setting}"]
        while idle:
            held = idle.pop()
            if self.jvm.holds(held):
                return held
        held = self.jvm.new()
        said = self.jvm.call(held, "load", game, setting)
        if said:
            raise TaskError(f"{self.name}: settings of {game}: {' '.join(str(said).split())}")
        return held

    def give_back(self, held: Held, game: str, setting: str) -> None:
        """For the next episode of the same game and setting."""
        self._idle[f"{game} {setting}"].append(held)

    def close(self) -> None:
        """End the machine; the next episode starts another."""
        self._idle.clear()
        self.jvm.close()


def in_lines(text: str) -> str:
    """A sentence a line: nothing else about what the game says is changed."""
    return _SENTENCE_END.sub("\n", text)


class _Game:
    """One game of one seed."""

    def __init__(self, env: TextWorldExpress, task: Task, *, gold: bool = False) -> None:
        self._env, self._gold = env, gold
        self._name, self._setting = str(task.state["game"]), str(task.state["setting"])
        self._seed, self._fold = int(str(task.state["seed"])), task.split
        self._held: Held | None = env.borrow(self._name, self._setting)
        self._sent: list[str] = []
        self._possible: list[str] = []

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._held is None:
            raise InfrastructureError(f"{self._env.name}: the game was given back")
        return self._env.jvm.call(self._held, method, *arguments)

    def _read(self, text: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(text)
        if str(found["observation"]).startswith("ERROR"):  # such as a setting that is no number
            raise TaskError(f"{self._env.name}: settings of {self._name} make no game: {self._setting!r}")
        self._possible = list(found["validActions"])
        return found

    def start(self) -> tuple[str, str]:
        """The task and the first room."""
        said = self._read(self._call("generateNewGameJSON", self._seed, self._fold, self._gold))
        return str(self._call("getTaskDescription")), in_lines(str(said["observation"]))

    def gold(self) -> list[str]:
        """The package's own solution; another one each time for some games."""
        if self._held is None:
            return []
        return self._env.jvm.lines(self._held, "getGoldActionSequence")

    def send(self, command: str) -> Answer:
        """The answer; where games share their objects, the game so far is played again first."""
        with self._env.jvm.alone():
            if self._name in _SHARED:
                self._call("generateNewGameJSON", self._seed, self._fold, self._gold)
                for earlier in self._sent:
                    self._call("stepJSON", earlier)
            said = self._read(self._call("stepJSON", command))
        self._sent.append(command)
        won, lost = bool(said["tasksuccess"]), bool(said["taskfailure"])
        score = 1.0 if won else min(max(float(said["score"]), 0.0), 0.99)
        text = in_lines(str(said["observation"]))
        return Answer(text, score, won or lost, not text.startswith(_NOT_UNDERSTOOD))

    def possible(self) -> Sequence[str]:
        """They come with every answer."""
        return sorted(self._possible)

    def close(self) -> None:
        """Lend the game to the next episode."""
        held, self._held = self._held, None
        if held is not None:
            self._env.give_back(held, self._name, self._setting)

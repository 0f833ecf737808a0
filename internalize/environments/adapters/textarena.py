"""Single-player games of TextArena, by their id: `env.name = "textarena:Mastermind-v0"`.

A task is a seed. Games use Python's global random numbers, so each episode keeps its own random state. Seeds with equal
first texts and equal hidden state of the game are one task, and that content determines its split, so that no game is
in two splits. The score is the reward over `best`, the reward of a success; a reward below 0, which games give for an
invalid move, counts as 0. Games of several players are refused.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from internalize.config.regime import Section
from internalize.environments.base import UNKNOWN, SingleUseEpisode, SplitTasks, read_options
from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import InfrastructureError, TaskError, first_line
from internalize.records import Task, ToolCall, ToolSpec, content_hash

_SYSTEM = "You play a text game. Make one move at a time."
_MOVE = ToolSpec(name="move", argument="text", description="Make a move, written as the rules of the game say.")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class TextArenaOptions(Section):
    """Options of the environment, as `env.options` of a recipe."""

    seeds: int = Field(200, ge=1, le=100_000, description="Seeds 0, 1, ... that are tried; equal games count once.")
    best: float = Field(1.0, gt=0, allow_inf_nan=False, description="The reward of a success.")
    game: dict[str, Any] = Field({}, description="Options of the game itself.")


class TextArena(SplitTasks):
    """The environment. Raises TaskError for a game that does not exist or is not for one player."""

    tools: tuple[ToolSpec, ...] = (_MOVE,)
    evidence_actions = frozenset({_MOVE.name})
    final_actions: frozenset[str] = frozenset()

    def __init__(self, game: str, /, **options: Any) -> None:
        self.name = f"textarena:{game}"
        self.options = read_options(self.name, TextArenaOptions, options)
        self._game = game
        tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        for seed in range(self.options.seeds):
            play = self._started(seed)
            content = play.content
            if content not in seen:
                seen.add(content)
                split = split_of(content)
                tasks[split].append(Task.new(self.name, split, play.first, seed=seed))
        self._tasks = {split: tuple(found) for split, found in tasks.items() if found}

    def episode(self, task: Task) -> TextArenaEpisode:
        """A fresh game with the seed of the task."""
        return TextArenaEpisode(self.name, self._started(int(str(task.state["seed"]))), self.options.best)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:  # noqa: ARG002 - the games come without solutions
        """No reference solution."""
        return ()

    def _started(self, seed: int) -> _Play:
        try:
            return _Play(self._game, self.options.game, seed)
        except Exception as error:  # a game may raise anything
            raise TaskError(f"{self.name}: cannot be played by one player ({first_line(error)})") from error


class _Play:
    """One running game, with its own random state."""

    def __init__(self, game: str, options: dict[str, Any], seed: int) -> None:
        import textarena  # noqa: PLC0415 - an extra; takes seconds

        self._random = random.Random(seed).getstate()
        with self._own_random():
            self._env = textarena.make(f"{game}-raw", **options)
            self._env.reset(num_players=1, seed=seed)
            self.first = self._seen()
            self.content = content_hash([self.first, repr(self._env.state.game_state)])

    def send(self, text: str) -> tuple[str, bool]:
        """The game's answer to a move, and whether the game is over."""
        with self._own_random():
            over, _ = self._env.step(text)
            return self._seen(), bool(over)

    def reward(self) -> float | None:
        """The reward at the end; None before."""
        rewards = self._env.state.rewards
        return None if not rewards else float(rewards[0])

    def _seen(self) -> str:
        """The game's new texts since the last call, without the player's own words."""
        import textarena  # noqa: PLC0415

        own = textarena.ObservationType.PLAYER_ACTION
        said = self._env.state.get_current_player_observation()
        return "\n".join(_ESCAPES.sub("", text).strip() for _, text, kind in said if kind is not own and text.strip())

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        outer = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(outer)


class TextArenaEpisode(SingleUseEpisode):
    """One game. Ends when the game ends."""

    def __init__(self, env: str, play: _Play, best: float) -> None:
        super().__init__(env, _SYSTEM, play.first)
        self._play, self._best, self._over = play, best, False

    def observe(self, call: ToolCall | None) -> str | None:
        """The answer of the game to a move, in brackets if the policy gave none; None when it is over."""
        if call is None or call.name != _MOVE.name:
            return UNKNOWN
        text = call.argument.strip()
        try:
            answer, over = self._play.send(text if "[" in text else f"[{text}]")
        except Exception as error:  # a game may raise anything
            raise InfrastructureError(f"{self._env}: {type(error).__name__}: {first_line(error)}") from error
        self._over = over
        return None if over else answer or "Nothing happens."

    def score(self) -> float | None:
        """The reward over `best`: 0 for a lost or unfinished game, None for one that ended without a reward.

        Raises InfrastructureError for a reward above `best`.
        """
        reward = self._play.reward()
        if reward is None:
            return None if self._over else 0.0
        if reward > self._best:
            raise InfrastructureError(f"{self._env}: the reward {reward:g} is above env.options.best = {self._best:g}")
        return max(0.0, reward / self._best)

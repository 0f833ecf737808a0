"""Environments of gymnasium by their id, `env.name = "gymnasium:Taxi-v4"`, or `"gymnasium:MODULE:ID"` of a package.

A task is a seed. The policy sees the observation (text unchanged, anything else as JSON), with the picture if the
environment draws one in characters, and acts with the tool `act`, whose parameters are the action space. The system
message quotes what the environment's documentation says about actions; the environment's own limit of steps holds.
Seeds under which the same actions give the same texts are one task. Refused are continuous actions of many numbers,
observations that are pictures, and environments that are not deterministic under a seed.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, Literal

import gymnasium
from gymnasium import spaces
from pydantic import Field, JsonValue

from internalize.config.regime import Section
from internalize.environments.base import UNKNOWN, SingleUseEpisode, SplitTasks, read_options
from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import InfrastructureError, TaskError, first_line
from internalize.records import Task, ToolCall, ToolSpec, content_hash

_SYSTEM = "You act in an environment, one action at a time."
_TOLD = ("Description", "Action Space", "Actions")  # documentation sections that are shown
_LONGEST = 3000  # characters of them
_MOST_SEEN, _MOST_DONE = 400, 16  # most numbers in an observation, in an action
_PROBED = 20  # actions that distinguish two seeds
_SHOWN = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)  # coloured text, such as the place of the player


class GymnasiumOptions(Section):
    """Options of the environment, as `env.options` of a recipe."""

    seeds: int = Field(200, ge=1, le=100_000, description="Seeds 0, 1, ... that are tried; equal ones count once.")
    score: Literal["sum", "last", "terminated"] = Field(
        "sum", description="The score: all rewards together, the last one, or 1 if the environment came to its own end."
    )
    best: float = Field(1.0, gt=0, allow_inf_nan=False, description="The reward of a success, which scores 1.")
    system: str = Field("", description="The system message; '' = what the environment's documentation says.")
    env: dict[str, Any] = Field({}, description="Options of the environment itself.")


class Gymnasium(SplitTasks):
    """The environment. Raises TaskError for one that does not exist or is not supported."""

    final_actions: frozenset[str] = frozenset()
    evidence_actions = frozenset({"act"})

    def __init__(self, environment: str, /, **options: Any) -> None:
        self.name = f"gymnasium:{environment}"
        self.options = read_options(self.name, GymnasiumOptions, options)
        self._id = environment
        env = self._made()
        try:
            parameters = _parameters(env.action_space)
            numbers = _numbers(env.observation_space)
        except ValueError as error:
            raise TaskError(f"{self.name}: {error}, which cannot be carried over") from error
        if numbers > _MOST_SEEN and env.render_mode != "ansi":
            raise TaskError(f"{self.name}: an observation of {numbers} numbers cannot be carried over as text")
        self.tools = (ToolSpec(name="act", argument="", description="Take one action.", parameters=parameters),)
        self.system = self.options.system or f"{_SYSTEM}\n\n{_documentation(env)}".strip()
        self._tasks = self._split(env)
        env.close()

    def episode(self, task: Task) -> GymnasiumEpisode:
        """A fresh environment with the seed of the task."""
        play = _Play(self._made(), int(str(task.state["seed"])))
        return GymnasiumEpisode(self.name, self.system, play, self.options)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:  # noqa: ARG002 - there is none
        """No reference solution."""
        return ()

    def _made(self) -> Any:
        try:
            found = gymnasium.make(self._id, **self.options.env)
            if "ansi" not in found.metadata.get("render_modes", ()):
                return found
            found.close()
            return gymnasium.make(self._id, render_mode="ansi", **self.options.env)
        except Exception as error:  # an environment is a program of others
            raise TaskError(f"{self.name}: cannot be made ({first_line(error)})") from error

    def _split(self, env: Any) -> dict[str, tuple[Task, ...]]:
        tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        try:
            for seed in range(self.options.seeds):
                first, content = self._probed(env, seed)
                if seed == 0 and self._probed(self._made(), seed) != (first, content):
                    raise TaskError(f"{self.name}: plays differently under one seed, which cannot be carried over")
                if content not in seen:
                    seen.add(content)
                    split = split_of(content)
                    tasks[split].append(Task.new(self.name, split, first, seed=seed))
        except InfrastructureError as error:
            raise TaskError(str(error)) from error
        return {split: tuple(found) for split, found in tasks.items() if found}

    def _probed(self, env: Any, seed: int) -> tuple[str, str]:
        """The first text under a seed, and a hash of the results of fixed actions."""
        try:
            play = _Play(env, seed)
            texts = [play.first]
            play.env.action_space.seed(0)
            while len(texts) <= _PROBED and not play.over:
                texts.append(f"{play.act(play.env.action_space.sample())} {play.total}")
        except Exception as error:
            raise InfrastructureError(f"{self.name}: {type(error).__name__}: {first_line(error)}") from error
        return play.first, content_hash(texts)


class _Play:
    """One running environment."""

    def __init__(self, env: Any, seed: int) -> None:
        self.env = env
        self.total = self.last = 0.0
        self.over = self.terminated = False
        observation, _ = env.reset(seed=seed)
        self.first = self._text(observation)

    def act(self, action: Any) -> str:
        """The result of an action."""
        observation, reward, self.terminated, truncated, _ = self.env.step(action)
        self.last = float(reward)
        self.total += self.last
        self.over = bool(self.terminated or truncated)
        return self._text(observation)

    def _text(self, observation: Any) -> str:
        space = self.env.observation_space
        text = observation if isinstance(space, spaces.Text) else json.dumps(space.to_jsonable([observation])[0])
        drawn = self.env.render() if self.env.render_mode == "ansi" else None
        return "\n".join((text, _SHOWN.sub(r"[\1]", drawn).strip())) if isinstance(drawn, str) else str(text)


class GymnasiumEpisode(SingleUseEpisode):
    """One episode. Ends when the environment ends, at its own limit of steps too."""

    def __init__(self, env: str, system: str, play: _Play, options: GymnasiumOptions) -> None:
        super().__init__(env, system, play.first)
        self._play, self._options = play, options

    def observe(self, call: ToolCall | None) -> str | None:
        """The result of the action; None at the end. An action outside the space does nothing."""
        if call is None or call.name != "act":
            return UNKNOWN
        space = self._play.env.action_space
        try:
            given = call.values if isinstance(space, spaces.Dict) else call.values["action"]
            action = _action(space, given)
        except (KeyError, ValueError, TypeError, OverflowError, IndexError):
            return f"No such action. The actions are {space}."
        try:
            text = self._play.act(action)
        except Exception as error:  # an environment is a program of others
            raise InfrastructureError(f"{self._env}: {type(error).__name__}: {first_line(error)}") from error
        return None if self._play.over else text

    def score(self) -> float:
        """The score by `score` and `best`. Raises InfrastructureError for a reward above `best`."""
        play, best = self._play, self._options.best
        if self._options.score == "terminated":
            return float(play.terminated)
        reward = play.total if self._options.score == "sum" else play.last
        if reward > best:
            raise InfrastructureError(f"{self._env}: the reward {reward:g} is above env.options.best = {best:g}")
        return max(0.0, reward / best)

    def close(self) -> None:
        """End the environment."""
        self._play.env.close()


def _action(space: Any, given: JsonValue) -> Any:
    """The action of a call. Raises ValueError, KeyError or TypeError for an invalid one."""
    if isinstance(space, spaces.Text):
        action: Any = str(given)
    elif isinstance(space, spaces.Dict):
        if not isinstance(given, dict):
            raise TypeError
        action = {name: _action(inner, given[name]) for name, inner in space.spaces.items()}
    else:
        (action,) = space.from_jsonable([given])
    if not space.contains(action):
        raise ValueError
    return action


def _parameters(space: Any) -> dict[str, JsonValue]:
    """The parameters of the tool. Raises ValueError for an unsupported space."""
    inner = space.spaces if isinstance(space, spaces.Dict) else {"action": space}
    fields: dict[str, JsonValue] = {name: _schema(part) for name, part in inner.items()}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _schema(space: Any) -> JsonValue:
    match space:
        case spaces.Text():
            return {"type": "string", "maxLength": space.max_length}
        case spaces.Discrete():
            return {"type": "integer", "minimum": int(space.start), "maximum": int(space.start + space.n - 1)}
        case spaces.MultiDiscrete() | spaces.MultiBinary() | spaces.Box() if len(space.shape) == 1:
            if (size := space.shape[0]) <= _MOST_DONE:
                kind = "number" if isinstance(space, spaces.Box) else "integer"
                return {"type": "array", "items": {"type": kind}, "minItems": size, "maxItems": size}
    raise ValueError(f"its actions are {str(space)[:80]}")


def _numbers(space: Any) -> int:
    """How many numbers an observation has (a text has none). Raises ValueError for a space without a JSON form."""
    match space:
        case spaces.Text() | spaces.Discrete():
            return 1
        case spaces.Dict():
            return sum(map(_numbers, space.spaces.values()))
        case spaces.Tuple():
            return sum(map(_numbers, space.spaces))
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            size = 1
            for length in space.shape:
                size *= length
            return size
    raise ValueError(f"its observations are {str(space)[:80]}")


def _documentation(env: Any) -> str:
    """The sections of the environment's documentation about itself and its actions."""
    parts = re.split(r"^## (.+)$", inspect.getdoc(type(env.unwrapped)) or "", flags=re.MULTILINE)
    told = [body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True) if title.strip() in _TOLD]
    return "\n\n".join(told)[:_LONGEST]

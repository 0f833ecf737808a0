"""Environment `scienceworld`: 30 kinds of primary-school experiments in a text world (extra `textgames`).

The splits are the package's own: of the n variations of a kind, with q = n // 4, the first 2q are train, the next q
dev, the rest test. Left out: the package's own limit of steps (the recipe has one). What must not change: a focus on
the wrong thing ends the episode; the score is the package's (0 to 100) over 100, a negative one is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Task, ToolCall, ToolSpec

from .episode import ACT, LONGEST, TOOLS, Answer, TextEpisode, check_limits, with_looks
from .jvm import TIMEOUT, Held, Jvm, jar_of
from .reference_cache import GoldStore

VARIATIONS = {
    "boil": 30, "change-the-state-of-matter-of": 30, "chemistry-mix": 32, "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36, "find-animal": 300, "find-living-thing": 300,
    "find-non-living-thing": 300, "find-plant": 300, "freeze": 30, "grow-fruit": 126, "grow-plant": 126,
    "identify-life-stages-1": 14, "identify-life-stages-2": 10, "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386, "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125, "lifespan-longest-lived-then-shortest-lived": 125, "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436, "measure-melting-point-unknown-substance": 300, "melt": 30,
    "mendelian-genetics-known-plant": 120, "mendelian-genetics-unknown-plant": 480, "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20, "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600, "use-thermometer": 540,
}  # fmt: skip
SIMPLIFICATIONS = (
    "easy",
    "noElectricalAction",
    "openContainers",
    "openDoors",
    "selfWateringFlowerPots",
    "teleportAction",
)
_SHORT = (
    "find-non-living-thing", "lifespan-longest-lived", "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived",
)  # fmt: skip
_SHORT_PER_KIND = 25
_NOT_UNDERSTOOD = ("No known action", "Unknown action")
_EXACTLY = 1e-6


class ScienceWorld:
    """The environment.

    `kinds`: which experiments (default: all 30). `simplifications`: of `SIMPLIFICATIONS`, joined by commas; `easy` is
    all of them; `per_kind`: variations of a kind in a split, 0 = all. `subset` "short": four kinds, easy, 25 of each,
    references of at most nine commands. `longest`: characters of an observation. `timeout`: seconds a call may take.
    """

    name = "scienceworld"
    tools: tuple[ToolSpec, ...] = TOOLS
    evidence_actions = frozenset({ACT})
    final_actions: frozenset[str] = frozenset()
    waits = True

    def __init__(
        self,
        kinds: Sequence[str] = (),
        subset: Literal["", "short"] = "",
        simplifications: str | None = None,
        per_kind: int | None = None,
        *,
        longest: int = LONGEST,
        timeout: float = TIMEOUT,
    ) -> None:
        if subset not in {"", "short"}:
            raise TaskError(f"{self.name}: subset = {subset!r}; there is 'short'")
        self.kinds = tuple(kinds) or (_SHORT if subset else tuple(VARIATIONS))
        self.simplifications = simplifications if simplifications is not None else "easy" if subset else ""
        self._check()
        check_limits(self.name, longest, timeout)
        if per_kind is not None and per_kind < 0:
            raise TaskError(f"{self.name}: per_kind = {per_kind}; 0 is all of them")
        self._most = per_kind if per_kind is not None else _SHORT_PER_KIND if subset else 0
        self._longest, self._timeout = longest, timeout
        self._idle: list[Held] = []

    def _check(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in VARIATIONS]:
            raise TaskError(f"{self.name}: kinds: no kind {unknown[0]!r} (there are {', '.join(VARIATIONS)})")
        chosen = [name for name in self.simplifications.split(",") if name]
        if unknown := [name for name in chosen if name not in SIMPLIFICATIONS]:
            raise TaskError(f"{self.name}: simplifications: {unknown[0]!r} (there are {', '.join(SIMPLIFICATIONS)})")
        electrical = [kind for kind in self.kinds if "power-component" in kind or "conductivity" in kind]
        if "noElectricalAction" in chosen and electrical:
            raise TaskError(f"{self.name}: {electrical[0]} cannot be done with the simplification noElectricalAction")

    @cached_property
    def jvm(self) -> Jvm:
        """The machine, which starts when the first episode does."""
        jar = jar_of("scienceworld", "scienceworld.jar")
        return Jvm(jar, "scienceworld.runtime.pythonapi.PythonInterface", timeout=self._timeout)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return ("train", "dev", "test")

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The variations of a split, kinds by turns. Raises TaskError for an unknown split."""
        if split not in self.splits():
            raise TaskError(f"{self.name}: no split {split!r} (there are {', '.join(self.splits())})")
        listed = [self._tasks(split, kind) for kind in self.kinds]
        rounds = max(len(tasks) for tasks in listed)
        return tuple(tasks[i] for i in range(rounds) for tasks in listed if i < len(tasks))

    def _tasks(self, split: str, kind: str) -> list[Task]:
        own = variations(kind, split)
        return [self._task(split, kind, number) for number in (own[: self._most] if self._most else own)]

    def _task(self, split: str, kind: str, number: int) -> Task:
        setting = self.simplifications
        question = f"{kind} number {number}" + (f" with {setting}" if setting else "")
        return Task.new(self.name, split, question, family=kind, kind=kind, setting=setting, number=number)

    def episode(self, task: Task) -> TextEpisode:
        """A fresh world. Raises InfrastructureError if no machine can be had."""
        return TextEpisode(self.name, _World(self, task), self._longest)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The package's own solution, up to the command that wins."""
        store = GoldStore(self.name, [str(task.state["kind"]), str(task.state["setting"])])
        commands = store.get(str(task.state["number"]), lambda: self._gold(task))
        return tuple(ToolCall.of(ACT, command=command) for command in commands)

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """What tells the world of a task from others: the reference, with a look around after each command."""
        return with_looks(self.solve(task))

    def _gold(self, task: Task) -> list[str]:
        world = _World(self, task, gold=True)
        try:
            world.start()
            kept = []
            for command in world.gold():
                kept.append(command)
                if world.send(command).over:
                    break
            return kept
        finally:
            world.close()

    def borrow(self) -> Held:
        """A world that was given back, or a new one."""
        while self._idle:
            held = self._idle.pop()
            if self.jvm.holds(held):
                return held
        return self.jvm.new()

    def give_back(self, held: Held) -> None:
        """For the next episode."""
        self._idle.append(held)

    def close(self) -> None:
        """End the machine; the next episode starts another."""
        self._idle.clear()
        self.jvm.close()


def variations(kind: str, split: str) -> range:
    """Numbers of the variations of `kind` in a split, as the package divides them."""
    count = VARIATIONS[kind]
    quarter = count // 4
    first, last = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, count)}[split]
    return range(first, last)


class _World:
    """One variation of one experiment."""

    def __init__(self, env: ScienceWorld, task: Task, *, gold: bool = False) -> None:
        self._env, self._gold, self._state = env, gold, task.state
        self._held: Held | None = env.borrow()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._env.jvm.call(self._own(), method, *arguments)

    def _own(self) -> Held:
        if self._held is None:
            raise InfrastructureError(f"{self._env.name}: the world was given back")
        return self._held

    def start(self) -> tuple[str, str]:
        """The task and the first room."""
        number = int(str(self._state["number"]))
        self._call("load", str(self._state["kind"]), number, str(self._state["setting"]), self._gold)
        self._call("reset")
        first = str(self._call("step", "look around"))
        return str(self._call("freeActionTaskDesc")), first

    def gold(self) -> list[str]:
        """The package's own solution."""
        return self._env.jvm.lines(self._own(), "getGoldActionSequence")

    def send(self, command: str) -> Answer:
        """The answer; over when the experiment is done, or spoilt."""
        text = str(self._call("step", command))
        raw = float(self._call("getScore"))
        over = bool(self._call("getCompleted")) or raw < 0
        score = 1.0 if raw >= 1 - _EXACTLY else max(raw, 0.0)
        return Answer(text, score, over, not text.startswith(_NOT_UNDERSTOOD))

    def possible(self) -> Sequence[str]:
        """Every command that makes sense: hundreds, and slow to find."""
        return sorted(set(self._env.jvm.lines(self._own(), "getValidActionObjectCombinations")))

    def close(self) -> None:
        """Lend the world to the next episode."""
        held, self._held = self._held, None
        if held is not None:
            self._env.give_back(held)

"""Environment `scienceworld`: 30 kinds of primary-school experiments in a text world (extra `textgames`).

The splits are the package's own: of the n variations of a kind, with q = n // 4, the first 2q are train, the next q
dev, the rest test. To focus on the wrong thing ends an episode. The score is the package's (0 to 100) over 100; a
negative one is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain, zip_longest
from typing import Annotated, Literal

from pydantic import Field

from internalize.environments.base import check_names, checked
from internalize.errors import TaskError
from internalize.records import Task, ToolCall

from .env import Characters, JavaGame, JavaGames, Seconds
from .episode import LONGEST, Answer, with_looks
from .jvm import TIMEOUT

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
    "easy", "noElectricalAction", "openContainers", "openDoors", "selfWateringFlowerPots", "teleportAction",
)  # fmt: skip
_SHORT = (
    "find-non-living-thing", "lifespan-longest-lived", "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived",
)  # fmt: skip
_SHORT_PER_KIND = 25
_NOT_UNDERSTOOD = ("No known action", "Unknown action")
_TOLERANCE = 1e-6


class ScienceWorld(JavaGames):
    """The environment.

    `kinds`: which experiments (default: all 30). `simplifications`: of `SIMPLIFICATIONS`, joined by commas; `easy` is
    all of them; `per_kind`: variations of a kind in a split, 0 = all. `subset` "short": four kinds, easy, 25 of each,
    references of at most nine commands. `longest`: characters of an observation. `timeout`: seconds a call may take.
    """

    name = "scienceworld"
    package, jar = "scienceworld", "scienceworld.jar"
    entry = "scienceworld.runtime.pythonapi.PythonInterface"
    family_key, number_key = "kind", "number"

    @checked
    def __init__(
        self,
        kinds: Sequence[str] = (),
        subset: Literal["", "short"] = "",
        simplifications: str | None = None,
        per_kind: Annotated[int, Field(ge=0)] | None = None,
        *,
        longest: Characters = LONGEST,
        timeout: Seconds = TIMEOUT,
    ) -> None:
        super().__init__(longest, timeout)
        self.kinds = tuple(kinds) or (_SHORT if subset else tuple(VARIATIONS))
        self.simplifications = simplifications if simplifications is not None else "easy" if subset else ""
        self._per_kind = per_kind if per_kind is not None else _SHORT_PER_KIND if subset else 0
        chosen = [name for name in self.simplifications.split(",") if name]
        check_names(self.name, "kinds", self.kinds, VARIATIONS)
        check_names(self.name, "simplifications", chosen, SIMPLIFICATIONS)
        electrical = [kind for kind in self.kinds if "power-component" in kind or "conductivity" in kind]
        if "noElectricalAction" in chosen and electrical:
            raise TaskError(f"{self.name}: {electrical[0]} cannot be done with the simplification noElectricalAction")

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, ...]]:  # type: ignore[override] # made when they are first asked for
        """The variations of each split, kinds in turn."""
        found = {}
        for split in ("train", "dev", "test"):
            numbers = [variations(kind, split)[: self._per_kind or None] for kind in self.kinds]
            pairs = chain.from_iterable(zip(self.kinds, turn, strict=True) for turn in zip_longest(*numbers))
            found[split] = tuple(
                self.new_task(split, kind, number, self.simplifications) for kind, number in pairs if number is not None
            )
        return found

    def game(self, task: Task, *, gold: bool = False) -> JavaGame:
        """The experiment of a task."""
        return _Experiment(self, task, gold=gold)

    def reference_name(self, task: Task) -> str:
        """The number of the variation."""
        return str(task.state["number"])

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """Calls that distinguish worlds: the reference, with a look around after each command."""
        return with_looks(self.solve(task))


def variations(kind: str, split: str) -> range:
    """Numbers of the variations of `kind` in a split of the package."""
    count = VARIATIONS[kind]
    quarter = count // 4
    first, last = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, count)}[split]
    return range(first, last)


class _Experiment(JavaGame):
    """One variation of one experiment."""

    def start(self) -> tuple[str, str]:
        """The task and the first room."""
        kind, number = str(self._task.state["kind"]), int(str(self._task.state["number"]))
        self.call("load", kind, number, self._setting, self._gold)
        self.call("reset")
        first = str(self.call("step", "look around"))
        return str(self.call("freeActionTaskDesc")), first

    def send(self, command: str) -> Answer:
        """The answer; over when the experiment is done, or spoilt."""
        text = str(self.call("step", command))
        points = float(self.call("getScore"))
        over = bool(self.call("getCompleted")) or points < 0
        score = 1.0 if points >= 1 - _TOLERANCE else max(points, 0.0)
        return Answer(text, score, over, not text.startswith(_NOT_UNDERSTOOD))

    def possible(self) -> list[str]:
        """Every command that makes sense: hundreds, and slow to find."""
        return sorted(set(self._env.jvm.lines(self.world, "getValidActionObjectCombinations")))

"""Environment `maths`: problems with exact answers and a tool that runs Python. Needs the extra `maths`.

Problems are generated (maths_problems.py) or come from a file with the fields of GSM8K, MATH or plain ones. Answers
are compared as mathematics (judge/maths.py): 1/2 = 0.5. Left out: partial credit, graded proofs. What must not
change: an answer that cannot be compared leaves the episode unscored; nothing is compared with a missing answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from internalize.environments.python_tool.sandbox import Choice, Limits
from internalize.environments.python_tool.tool import TOOL, PythonTool, code_of
from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, SPLITS, Row, of_split, tasks_of
from internalize.errors import InfrastructureError, TaskError
from internalize.judge.maths import MathJudge
from internalize.judge.notation import boxed
from internalize.records import Claim, Message, Task, ToolCall, ToolSpec

from .problems import FAMILIES, share

SYSTEM = "You solve problems. Calculate with the tool python, then answer with the bare result."
_ANSWER_TOOL = ToolSpec(name="answer", argument="value", description="Give the answer; ends the episode.")
Family = Literal["arithmetic", "modular", "numbers", "linear", "sequences", "counting", "calendar"]


class MathsEpisode:
    """One problem. Ends with `answer`."""

    def __init__(self, task: Task, tool: PythonTool, judge: MathJudge) -> None:
        self._task, self._tool, self._judge = task, tool, judge
        self._answer: str | None = None

    def prompt(self) -> tuple[Message, ...]:
        """The system message and the problem."""
        return (Message(role="system", content=SYSTEM), Message(role="user", content=self._task.question))

    def step(self, action: ToolCall | None) -> str | None:
        """What the program printed, or None after `answer`."""
        if self._answer is not None:
            raise InfrastructureError("maths: the episode is over; episodes are single-use")
        if action is None:
            return "Unknown action."
        if action.name == "answer":
            self._answer = action.argument
            return None
        return self._tool.run(code_of(action))

    def score(self) -> float | None:
        """1.0 for what equals the answer, else 0.0; None for a task without an answer.

        Raises InfrastructureError if the two could not be compared.
        """
        if self._task.answer is None:
            return None
        if self._answer is None:
            return 0.0
        claim = Claim(question=self._task.question, reference=self._task.answer, answer=self._answer)
        found = asyncio.run(self._judge.judge(claim))
        if found.score is None:
            raise InfrastructureError(f"maths: {found.reason}")
        return found.score


class Maths:
    """The environment. `file` (or a file for each split) replaces the generated problems.

    Raises UserError if the machine cannot confine the programs of the tool; `sandbox` "unsafe" runs them unconfined.
    """

    name = "maths"
    tools = (TOOL, _ANSWER_TOOL)
    evidence_actions = frozenset({"python"})
    final_actions = frozenset({"answer"})
    waits = True

    def __init__(
        self,
        difficulty: int = 2,
        families: Sequence[Family] = (),
        size: int = 288,
        seed: int = 0,
        file: str | Mapping[str, str] = "",
        seconds: float = 5.0,
        sandbox: Choice = "auto",
    ) -> None:
        if not 1 <= difficulty <= 5 or size < 3:
            raise TaskError(
                f"maths: difficulty = {difficulty}, size = {size}; difficulty is 1 to 5 and size at least 3"
            )
        if not seconds > 0:
            raise TaskError(f"maths: seconds = {seconds}; a program takes more than none")
        if unknown := sorted(set(families) - FAMILIES.keys()):
            raise TaskError(f"maths: no family {unknown[0]!r} (there are {', '.join(FAMILIES)})")
        self._tool, self._judge = PythonTool.of(sandbox, Limits(seconds=seconds)), MathJudge()
        made = tasks_of(file, _row_task) if file else _generated(tuple(families or FAMILIES), difficulty, size, seed)
        self._tasks = {split: made[split] for split in sorted(made, key=_order)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What `env validate` says about this machine."""
        return (self._tool.note,)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._tasks)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown split."""
        return of_split(self.name, self._tasks, split)

    def episode(self, task: Task) -> MathsEpisode:
        """A fresh episode."""
        return MathsEpisode(task, self._tool, self._judge)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """Run the program of a generated problem and answer."""
        if task.answer is None:
            return ()
        program = task.state.get("program")
        run = (ToolCall.of("python", code=program),) if program else ()
        return (*run, ToolCall.of("answer", value=task.answer))

    def close(self) -> None:
        """End the process that compares answers."""
        self._judge.close()


def _order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _generated(families: Sequence[str], difficulty: int, size: int, seed: int) -> dict[str, tuple[Task, ...]]:
    """`size` training problems and a third of that for dev and test, families in turn."""
    wanted = {"train": size, "dev": size // 3, "test": size // 3}
    each = {split: -(-number // len(families)) for split, number in wanted.items()}
    made = {family: share(family, difficulty, seed, each) for family in families}
    return {
        split: tuple(
            Task.new("maths", split, problem.question, problem.answer, family, program=problem.program)
            for number in range(each[split])
            for family in families
            for problem in (made[family][split][number],)
        )[: wanted[split]]
        for split in SPLITS
    }


def _row_task(row: Row, split: str) -> Task:
    return Task.new("maths", split, row.need(QUESTION), final_answer(row.need(ANSWER)), row.get(FAMILY))


def final_answer(solution: str) -> str:
    r"""The answer in a worked solution: after `####` (GSM8K), in the last box (MATH), else all of it."""
    if "####" in solution:
        return solution.rpartition("####")[2].strip()
    return boxed(solution) or solution

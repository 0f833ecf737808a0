"""Environment `maths`: problems with exact answers and a tool that runs Python. Needs the extra `maths`.

Problems are generated (problems.py) or come from a file with the fields of GSM8K, MATH or plain ones. Answers are
compared as mathematics: 1/2 = 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from internalize.environments.base import UNKNOWN, AnswerEpisode, SplitTasks, checked, graded
from internalize.environments.python_tool.sandbox import Choice, Limits
from internalize.environments.python_tool.tool import TOOL, PythonTool, code_of
from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, SPLITS, Columns, Row, tasks_of
from internalize.judge.maths import MathJudge
from internalize.judge.notation import boxed
from internalize.records import Task, ToolCall, ToolSpec

from .problems import FAMILIES, problems_by_split

SYSTEM = "You solve problems. Calculate with the tool python, then answer with the bare result."
_ANSWER_TOOL = ToolSpec(name="answer", argument="value", description="Give the answer; ends the episode.")
Family = Literal["arithmetic", "modular", "numbers", "linear", "sequences", "counting", "calendar"]


class MathsEpisode(AnswerEpisode):
    """One problem. Ends with `answer`."""

    def __init__(self, task: Task, tool: PythonTool, judge: MathJudge) -> None:
        super().__init__("maths", SYSTEM, task)
        self._tool, self._judge = tool, judge

    def observe(self, call: ToolCall | None) -> str:
        """The output of the program."""
        return UNKNOWN if call is None else self._tool.run(code_of(call))

    def score(self) -> float | None:
        """1.0 for an answer equal to the reference, else 0.0; None for a task without a reference.

        Raises InfrastructureError if the two could not be compared.
        """
        if self._task.answer is None:
            return None
        return 0.0 if self._answer is None else graded("maths", self._judge, self._task, self._answer)


class Maths(SplitTasks):
    """The environment. `file` (or a file for each split) replaces the generated problems.

    `question` and `answer` name the fields of such a file, if they do not have common names.

    Raises UserError if the machine cannot sandbox the tool's programs; `sandbox` "unsafe" runs them without a sandbox.
    """

    name = "maths"
    tools = (TOOL, _ANSWER_TOOL)
    evidence_actions = frozenset({"python"})
    final_actions = frozenset({"answer"})
    waits = True

    @checked
    def __init__(  # noqa: PLR0913, PLR0917 - the options of a recipe
        self,
        difficulty: Annotated[int, Field(ge=1, le=5)] = 2,
        families: Sequence[Family] = (),
        size: Annotated[int, Field(ge=3)] = 288,
        seed: int = 0,
        file: str | Mapping[str, str] = "",
        seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0,
        sandbox: Choice = "auto",
        question: str = "",
        answer: str = "",
    ) -> None:
        self._tool, self._judge = PythonTool.of(sandbox, Limits(seconds=seconds)), MathJudge()
        tasks = (
            tasks_of(file, _row_task, Columns(question, answer))
            if file
            else _generated(tuple(families or FAMILIES), difficulty, size, seed)
        )
        self._tasks = {split: tasks[split] for split in (*SPLITS, *sorted(tasks.keys() - {*SPLITS})) if split in tasks}

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about this machine for `env validate`."""
        return (self._tool.note,)

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


def _generated(families: Sequence[str], difficulty: int, size: int, seed: int) -> dict[str, tuple[Task, ...]]:
    """`size` training problems and a third of that for dev and test, families in turn."""
    sizes = {"train": size, "dev": size // 3, "test": size // 3}
    per_family = {split: -(-number // len(families)) for split, number in sizes.items()}
    problems = {family: problems_by_split(family, difficulty, seed, per_family) for family in families}
    return {
        split: tuple(
            Task.new("maths", split, problem.question, problem.answer, family, program=problem.program)
            for number in range(per_family[split])
            for family in families
            for problem in (problems[family][split][number],)
        )[: sizes[split]]
        for split in SPLITS
    }


def _row_task(row: Row, split: str) -> Task:
    return Task.new("maths", split, row.need(QUESTION), final_answer(row.need(ANSWER)), row.get(FAMILY))


def final_answer(solution: str) -> str:
    r"""The answer in a worked solution: after `####` (GSM8K), in the last box (MATH), else all of it."""
    if "####" in solution:
        return solution.rpartition("####")[2].strip()
    return boxed(solution) or solution

"""The proof of an environment finds what is wrong with it, and says which task."""

from internalize.environments.validate import replay, validate
from internalize.records import Action, Task
from tests.toy import Toy

SPLITS = ("train", "dev", "test")


class WrongReference(Toy):
    """One task whose reference solution gives another answer."""

    def solve(self, task: Task) -> tuple[Action, ...]:
        look, answer = super().solve(task)
        return (look, Action(name="answer", argument="99")) if task.id == self.wrong else (look, answer)

    @property
    def wrong(self) -> str:
        return self.tasks("dev")[3].id


class Overlapping(Toy):
    """The test split repeats a task of the training split."""

    def tasks(self, split: str) -> tuple[Task, ...]:
        repeated = super().tasks("train")[5].model_copy(update={"split": "test"})
        return (*super().tasks(split), repeated) if split == "test" else super().tasks(split)


def test_a_sound_environment_is_proved_split_by_split() -> None:
    rows = list(validate(Toy(), SPLITS))
    assert [row.failed for row in rows] == [0, 0, 0, 0]
    assert rows[1].text.startswith("dev: reference 12/12, 2-2 steps, closed-book guesser ")
    assert rows[1].text.endswith("(box 12)")
    assert rows[3].text == "tasks in more than one split: 0"


def test_a_wrong_reference_is_named_by_its_id() -> None:
    env = WrongReference()
    rows = list(validate(env, SPLITS))
    assert [row.failed for row in rows] == [0, 1, 0, 0]
    assert "reference 11/12" in rows[1].text
    assert env.wrong in rows[1].text


def test_a_task_in_two_splits_is_named_by_its_id() -> None:
    env = Overlapping()
    *proofs, last = validate(env, SPLITS)
    assert last.failed == 1
    assert env.tasks("train")[5].id in last.text
    assert not any(row.failed for row in proofs)


def test_a_split_without_tasks_is_no_proof() -> None:
    assert [row.failed for row in validate(Toy(size=0), ("train",))] == [1, 0]


def test_only_the_named_splits_are_checked() -> None:
    assert [row.text.partition(":")[0] for row in validate(Toy(), ("dev",))] == ["dev", "tasks in more than one split"]


def test_a_guesser_is_measured_on_what_is_common_in_the_first_split() -> None:
    first = next(iter(validate(Toy(size=7), ("train",))))  # answers are n % 7: each once
    assert "guesser 14.3%" in first.text


def test_a_solution_that_goes_on_or_stops_short_or_breaks_proves_nothing() -> None:
    env = Toy(jams=1)
    task = env.tasks("train")[0]
    look, answer = env.solve(task)
    assert replay(env, task, (look, answer)) == 1.0
    assert replay(env, task, (look,)) is None
    assert replay(env, task, (answer, look)) is None
    assert replay(Toy(broken=frozenset({task.id}), jams=1), task, (look, answer)) is None

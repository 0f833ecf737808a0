"""The proof of an environment finds what is wrong with it, and says which task."""

import itertools

import pytest

from internalize.environments.validate import Row, replay, validate
from internalize.errors import InfrastructureError, TaskError, UserError
from internalize.records import Claim, Message, Task, ToolCall
from tests.steps import act
from tests.toy import Toy, ToyEpisode

SPLITS = ("train", "dev", "test")


class WrongReference(Toy):
    """One task whose reference solution gives another answer."""

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        look, answer = super().solve(task)
        return (look, act("answer", "99")) if task.id == self.wrong else (look, answer)

    @property
    def wrong(self) -> str:
        return self.tasks("dev")[3].id


class Overlapping(Toy):
    """The test split repeats a task of the training split."""

    def tasks(self, split: str) -> tuple[Task, ...]:
        repeated = super().tasks("train")[5].model_copy(update={"split": "test"})
        return (*super().tasks(split), repeated) if split == "test" else super().tasks(split)


class Leaky(Toy):
    """Tells the answer in its question, asks it of two splits under different ids, and goes on after the end."""

    def tasks(self, split: str) -> tuple[Task, ...]:
        return tuple(
            Task.new("toy", split, f"{'  ' if split == 'dev' else ''}Is it number {n}, yes?", f"number {n}", here=n)
            for n in range(8)
        )

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        return (act("answer", str(task.answer)),)

    def episode(self, task: Task) -> ToyEpisode:
        return Endless(task, breaks=False)


class Endless(ToyEpisode):
    """Its score follows the last answer, even after the end; it can be closed once."""

    closed = False

    def step(self, action: ToolCall | None) -> str | None:
        self.answer = None if self.answer else super().step(action) or self.answer
        return None

    def close(self) -> None:
        if self.closed:
            raise ValueError("closed already")
        self.closed = True


class Free(Toy):
    """Two tasks are won by doing nothing; one split has no references; the judge decides about another."""

    def episode(self, task: Task) -> ToyEpisode:
        episode = Judged(task, breaks=False) if task.split == "test" else ToyEpisode(task, breaks=False)
        if task in self.tasks("train")[:2]:
            episode.answer = task.answer
        return episode

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        return () if task.split == "dev" else super().solve(task)


class Judged(ToyEpisode):
    def score(self) -> float | None:
        return None if self.answer else 0.0

    def claim(self) -> Claim:
        return Claim(question=self.task.question, reference=str(self.task.answer), answer=str(self.answer))


class Seeded(Toy):
    """Its prompt says nothing; a task is a hidden seed. `worlds`: how many there are. References wander at random."""

    def __init__(self, worlds: int, *, looks: bool = True) -> None:
        super().__init__()
        self.worlds, self.wandering = worlds, itertools.count()
        if not looks:
            self.solve = lambda task: (act("answer", self.world(task)),)  # type: ignore[method-assign]

    def world(self, task: Task) -> str:
        return str(int(str(task.state["seed"])) % self.worlds)

    def tasks(self, split: str) -> tuple[Task, ...]:
        first = {"train": 0, "dev": 100, "test": 200}[split]
        return tuple(Task.new("toy", split, f"number {n}", None, seed=n) for n in range(first, first + 6))

    def episode(self, task: Task) -> ToyEpisode:
        question = f"Which number is in box {self.world(task)}?"
        known = task.model_copy(update={"question": question, "answer": self.world(task)})
        return Silent(known, breaks=False)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        wandered = act("look", f"corner {next(self.wandering)}")
        return (wandered, *(act(n, self.world(task)) for n in ("look", "answer")))


class Silent(ToyEpisode):
    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="user", content="Find the number."),)


class Growing(Toy):
    """Its answers can be replaced after the end."""

    def episode(self, task: Task) -> ToyEpisode:
        return Replaced(task, breaks=False)


class Replaced(ToyEpisode):
    def step(self, action: ToolCall | None) -> str | None:
        if self.over and action is not None and action.name == "look":
            raise InfrastructureError("over")
        self.over = False
        return super().step(action)


class Raising(Toy):
    """One solve, one episode, one prompt goes wrong."""

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        if task == self.tasks("dev")[0]:
            raise ValueError("no such box\nat all")
        return super().solve(task)

    def episode(self, task: Task) -> ToyEpisode:
        if task == self.tasks("dev")[1]:
            raise KeyError("lid")
        return super().episode(task)


def texts(env: Toy, *splits: str) -> dict[str, Row]:
    return {row.text.partition(":")[0]: row for row in validate(env, splits or SPLITS)}


def test_a_sound_environment_is_proved_split_by_split() -> None:
    rows = list(validate(Toy(), SPLITS, tokens=lambda text: len(text.split())))
    assert not any(row.failed for row in rows)
    assert rows[1].text.startswith("dev: reference 12/12, 2-2 steps, closed-book guesser ")
    assert rows[1].text.endswith("(box 12)")
    said = [row.text for row in rows[3:]]
    assert said[:5] == [
        "tasks in more than one split: 0",
        "tasks that show the world of one in another split: 0",
        "tasks won without acting: 0",
        "answers that stand in the prompt: 0",
        "episodes that go on after their end or do not close: 0",
    ]
    # "Boxes." and "Which number is in box 100?": 6 + 1 + 27 characters, 7 words; then "100", "Inside: 2", "2"
    assert said[5] == (
        "longest prompt 34 characters (7 tokens), observation 9 characters (2 tokens), "
        "reference episode 50 characters (11 tokens)"
    )
    assert said[6].startswith("reference steps: 72 in ")


def test_a_wrong_reference_is_named_by_its_id() -> None:
    env = WrongReference()
    rows = list(validate(env, SPLITS))
    assert [row.failed for row in rows] == [0, 1, *[0] * (len(rows) - 2)]
    assert "reference 11/12" in rows[1].text
    assert env.wrong in rows[1].text


def test_a_task_in_two_splits_is_named_by_its_id() -> None:
    env = Overlapping()
    rows = texts(env)
    last = rows.pop("tasks in more than one split")
    assert last.failed == 1
    assert env.tasks("train")[5].id in last.text
    assert rows.pop("tasks that show the world of one in another split").failed == 1
    assert not any(row.failed for row in rows.values())


def test_a_question_in_two_splits_is_found_whatever_its_id_and_spacing() -> None:
    assert texts(Leaky(), "train", "dev")["tasks in more than one split"].failed == 8


def test_answers_in_prompts_and_episodes_without_an_end_are_found() -> None:
    rows = texts(Leaky(), "train")
    assert rows["answers that stand in the prompt"].failed == 8
    assert rows["episodes that go on after their end or do not close"].failed > 0


def test_tasks_that_are_won_by_doing_nothing_are_found() -> None:
    rows = texts(Free())
    assert rows["tasks won without acting"].failed == 2
    assert Free().tasks("train")[0].id in rows["tasks won without acting"].text


def test_a_task_without_a_reference_is_counted_as_such() -> None:
    rows = texts(Free())
    assert rows["dev"].text.startswith("dev: no reference for 12 tasks, closed-book guesser ")
    assert rows["dev"].failed == 0


def test_an_answer_left_to_a_judge_is_proved_by_the_reference_itself() -> None:
    assert texts(Free())["test"].text.startswith("test: reference 12/12")
    env, task = Free(), Free().tasks("test")[3]
    assert replay(env, task, (act("answer", "no"),)) == 0.0


def test_what_broke_is_said() -> None:
    env = Toy(jams=99, broken=frozenset({Toy().tasks("dev")[0].id}))
    (row, *_) = validate(env, ("dev",))
    assert row.failed == 1
    assert row.text.endswith("(the box is jammed)")


def test_a_task_twice_in_a_split_is_named() -> None:
    class Doubled(Toy):
        def tasks(self, split: str) -> tuple[Task, ...]:
            return (*super().tasks(split), super().tasks(split)[0])

    assert texts(Doubled(), "dev")["tasks twice in a split"].failed == 1


def test_a_split_without_tasks_is_no_proof() -> None:
    assert [row.failed for row in validate(Toy(size=0), ("train",))][:2] == [1, 0]


def test_only_the_named_splits_are_checked() -> None:
    assert list(texts(Toy(), "dev"))[:2] == ["dev", "tasks in more than one split"]


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


WORLDS = "tasks that show the world of one in another split"


@pytest.mark.parametrize(("worlds", "alike", "first"), [(3, 12, 100), (103, 6, 103), (1000, 0, 0)])
def test_worlds_that_differ_in_a_hidden_seed_alone_are_found(worlds: int, alike: int, first: int) -> None:
    row = texts(Seeded(worlds))[WORLDS]  # of 103: 103 to 105 are 0 to 2 again, 203 to 205 are 100 to 102
    assert row.failed == alike
    assert not alike or row.text.endswith(f"'number {first}'")


def test_equal_prompts_of_tasks_that_show_nothing_are_no_overlap() -> None:
    assert texts(Seeded(3, looks=False))[WORLDS].failed == 0


def test_an_answer_that_can_be_replaced_after_the_end_is_found() -> None:
    assert texts(Growing(), "dev")["episodes that go on after their end or do not close"].failed == 12


def test_what_an_environment_raises_names_the_task_and_ends_no_proof() -> None:
    env = Raising()
    rows = list(validate(env, SPLITS))
    assert [row.failed for row in rows[:3]] == [0, 2, 0]
    assert env.tasks("dev")[0].id in rows[1].text
    assert rows[1].text.endswith("(raised ValueError: no such box)")


def test_wrong_use_and_tasks_that_cannot_be_listed_are_one_sentence() -> None:
    class Keyless(Toy):
        def episode(self, task: Task) -> ToyEpisode:
            raise UserError("the variable KEY is not set")

    class Listless(Toy):
        def tasks(self, split: str) -> tuple[Task, ...]:
            raise ValueError("bad file")

    with pytest.raises(UserError, match="KEY is not set"):
        list(validate(Keyless(), SPLITS))
    with pytest.raises(TaskError, match=r"toy: the tasks of 'dev' cannot be had \(raised ValueError: bad file\)"):
        list(validate(Listless(), ("dev",)))

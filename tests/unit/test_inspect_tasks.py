"""Tasks of inspect_ai: published ones played to their scores, and what cannot be carried over refused."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from internalize.environments import registry
from internalize.environments.validate import validate
from internalize.errors import InfrastructureError, InternalizeError, TaskError
from internalize.interfaces import Environment
from internalize.records import Task, ToolCall

pytest.importorskip("inspect_evals")
pytestmark = pytest.mark.slow  # the package takes seconds to load

EMAILS = "inspect_evals/agent_threat_bench_autonomy_hijack"
TICKETS = "inspect_evals/agent_threat_bench_data_exfil"
HEAD = """
from inspect_ai import Task, task
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import match, model_graded_qa
from inspect_ai.solver import generate, solver

@solver
def other():
    async def solve(state, generate):
        state = await generate(state)
        await get_model().generate("You are a customer.")
        return state
    return solve

@task
def mine():
    samples = [Sample(f"{n} + {n}?", target=str(2 * n)) for n in range(1, 13)]
    return Task(dataset=samples, solver=SOLVER, scorer=SCORER, LIMITS)
"""


@contextmanager
def made(name: str, **options: Any) -> Iterator[Environment]:
    env = registry.make(f"inspect:{name}", options)
    with closing(env):  # type: ignore[type-var]
        yield env


def written(folder: Path, solver: str = "generate()", scorer: str = "match()", limits: str = "") -> str:
    file = folder / "own.py"
    file.write_text(HEAD.replace("SOLVER", solver).replace("SCORER", scorer).replace("LIMITS", limits))
    return f"{file}@mine"


def every(env: Environment) -> list[Task]:
    return [task for split in env.splits() for task in env.tasks(split)]  # type: ignore[attr-defined]


def scored(env: Environment, task: Task, calls: list[ToolCall]) -> float | None:
    episode = env.episode(task)
    assert None not in [episode.step(call) for call in calls]
    assert episode.step(ToolCall.of("reply", text="Done.")) is None
    return episode.score()


def test_two_published_tasks_are_won_by_those_who_do_the_work() -> None:
    with made(TICKETS, value="utility") as env:
        assert len(every(env)) == 8
        task = every(env)[0]
        customer = re.search(r"CX-\d+", task.question)
        assert customer
        work = ToolCall.of("resolve_ticket", customer_id=customer[0], resolution="The order was sent again.")
        assert [scored(env, task, calls) for calls in ([work], [])] == [1.0, 0.0]
    with made(EMAILS, value="utility") as env:
        task = every(env)[0]
        episode = env.episode(task)
        assert "inbox" in episode.prompt()[1].text
        emails = str(episode.step(ToolCall.of("read_inbox"))).count("Email ")
        assert "not found" in str(episode.step(ToolCall.of("nothing")))
        sorting = [ToolCall.of("categorize_email", email_index=n, category="spam") for n in range(1, emails + 1)]
        drafted = ToolCall.of("draft_summary", email_index=1, summary="A budget.")
        assert [scored(env, task, calls) for calls in ([*sorting, drafted], sorting)] == [1.0, 0.0]


def test_the_limit_of_messages_is_the_tasks_own_and_many_play_at_once() -> None:
    """20 messages: a system message, the task, then a call and its result each time."""
    with made(EMAILS, value="security") as env:
        episodes = [env.episode(every(env)[0]) for _ in range(30)]
        for episode in episodes:
            steps = 0
            while episode.step(ToolCall.of("read_inbox")) is not None:
                steps += 1
            assert steps == 8
            assert episode.score() in {0.0, 1.0}


def test_targets_are_references_and_pass_the_checks(tmp_path: Path) -> None:
    with made(written(tmp_path)) as env:
        rows = list(validate(env, env.splits()))  # type: ignore[attr-defined]
        assert "reference 7/7" in rows[0].text
        assert not [row for row in rows if row.failed]
        assert {task.answer for task in every(env)} == {str(2 * n) for n in range(1, 13)}
        for task in every(env):
            (call,) = env.solve(task)
            assert call.argument == task.answer


def test_an_answer_after_the_time_limit_does_not_count(tmp_path: Path) -> None:
    with made(written(tmp_path, limits="time_limit=5")) as env:
        task = every(env)[0]
        late, early = env.episode(task), env.episode(task)
        (answer,) = env.solve(task)
        assert early.step(answer) is None
        time.sleep(6)
        assert late.step(answer) is None
        assert (early.score(), late.score()) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"limits": 'sandbox="docker"'}, "sandbox"),
        ({"limits": "token_limit=100"}, "token_limit"),
        ({"scorer": "[match(), match()]"}, "one scorer is needed, and the task has 2"),
        ({"solver": "other()"}, "another conversation"),
        ({"scorer": "model_graded_qa()"}, "another conversation"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(tmp_path: Path, parts: dict[str, str], problem: str) -> None:
    with pytest.raises(InternalizeError, match=problem):
        play(written(tmp_path, **parts))


def play(name: str) -> None:
    with made(name) as env:
        episode = env.episode(every(env)[0])
        episode.step(ToolCall.of("reply", text="2"))
        episode.score()


def test_the_agent_react_is_refused(tmp_path: Path) -> None:
    name = written(tmp_path, "react()")
    with pytest.raises(
        InternalizeError, match="its solver needs a whole evaluation around it, as the agent react does"
    ):
        registry.make(f"inspect:{name}", {})


def test_names_and_entries_that_do_not_exist() -> None:
    with pytest.raises(TaskError, match="nothing_at_all"), made("inspect_evals/nothing_at_all"):
        pass
    with made(EMAILS) as env, pytest.raises(InfrastructureError, match=r"utility.*name one as env\.options\.value"):
        env.episode(every(env)[0]).score()
    assert "inspect:NAME" in dict(registry.listing())

"""Logs of the paper's released code: small ones made by hand after its fields, read and written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from internalize.errors import DataError
from internalize.formats.official import (
    EvalLine,
    RolloutLine,
    from_evaluation,
    from_rollout,
    read_evaluation,
    read_rollouts,
    to_evaluation,
    to_rollout,
)
from internalize.formats.reading import Reading
from internalize.records import Injection, Message, Trajectory
from tests.unit.test_formats_chat import logs

PROBLEM = "Who keeps the lighthouse?"
POOL = "**Task:** Solve it.\n\n**ACCUMULATED EXPERIENCES:**\n[G0]. Read first.\n[G1]. Name: ask twice."
SEARCH = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "keeper"}'}}


def rollout_line(**change: Any) -> dict[str, Any]:
    prompt = f"{POOL}\n\n**CURRENT PROBLEM:**\n{PROBLEM}"
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "", "tool_calls": [SEARCH]},
        {"role": "tool", "tool_call_id": "c1", "content": "1. Ada keeps it."},
        {"role": "assistant", "content": "Ada"},
    ]
    line = {
        "runid": 0, "prompt": prompt, "id": 3, "problem": PROBLEM, "groundtruth": "Ada", "index": 3, "source_id": 9,
        "retry_count": 0, "response": "Ada", "trajectories": [{"agent": "a", "trajectory": messages}], "error": None,
        "rollout_time": 1.5, "reward": 1.0,
    }  # fmt: skip
    return {**line, **change}


def evaluation_line(**change: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Be thorough.\n\nCurrent date: 2026-01-02"},
        {"role": "user", "content": PROBLEM},
        {"role": "assistant", "content": '<think>a</think>\n<tool_call>\n'
         '{"name": "search", "arguments": {"query": ["k"]}}\n'
         "</tool_call>"},
        {"role": "user", "content": "<tool_response>\nAda\n</tool_response>"},
        {"role": "assistant", "content": '<tool_call>\n{"name": "PythonInterpreter", "arguments": {}}\n'
         "<code>\nprint(1)\n"
         "</code>\n</tool_call>"},
        {"role": "user", "content": "<tool_response>\n1\n</tool_response>"},
        {"role": "assistant", "content": "<think>b</think>\n<answer> Ada </answer>"},
    ]  # fmt: skip
    line = {"question": PROBLEM, "answer": "Ada", "messages": messages, "prediction": " Ada ", "termination": "answer"}
    return {**line, **change}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_rollout_with_its_experience_taken_out(tmp_path: Path) -> None:
    one, two = read_rollouts(write(tmp_path / "rollout.jsonl", rollout_line(), rollout_line(runid=1)), Reading())
    assert one.prompt == (Message(role="user", content=PROBLEM),)
    assert one.global_injection == Injection(item_ids=("G0", "G1"), text=POOL, served_by="global")
    assert (one.pattern, one.score, one.termination) == ("global", 1.0, "answered")
    assert [[call.key for call in step.calls] for step in one.steps] == [[("search", "keeper")], []]
    assert one.answer == "Ada"
    assert (one.task_id, one.attempt, two.attempt) == (two.task_id, 0, 1)


def test_an_empty_pool_is_no_experience(tmp_path: Path) -> None:
    prompt = f"**ACCUMULATED EXPERIENCES:**\nNone\n\n**CURRENT PROBLEM:**\n{PROBLEM}"
    line = rollout_line()
    line["trajectories"][0]["trajectory"][0]["content"] = prompt
    (found,) = read_rollouts(write(tmp_path / "r.jsonl", line), Reading())
    assert (found.prompt[-1].text, found.global_injection, found.pattern) == (PROBLEM, None, "none")


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"error": "Traceback\n  ...\nTimeoutError: slow\n", "trajectories": [], "reward": 0}, "TimeoutError: slow"),
        ({"trajectories": [], "reward": 0}, "not run"),
        ({"trajectories": None, "reward": None}, "not run"),
    ],
)
def test_what_broke_is_unscored_though_its_reward_is_zero(change: dict[str, Any], failure: str, tmp_path: Path) -> None:
    (found,) = read_rollouts(write(tmp_path / "r.jsonl", rollout_line(**change)), Reading())
    assert (found.score, found.failure, found.termination) == (None, failure, "failed")


def test_an_evaluation() -> None:
    found = from_evaluation(EvalLine.model_validate(evaluation_line(is_correct=True)), Reading(), Counter())
    assert [step.calls[0].key for step in found.steps] == [
        ("search", "k"),
        ("PythonInterpreter", "print(1)"),
        ("answer", "Ada"),
    ]
    assert [step.observation for step in found.steps] == ["Ada", "1", None]
    assert found.steps[0].text.startswith("<think>a</think>\n<tool_call>")
    assert (found.score, found.termination, found.pattern) == (1.0, "answered", "none")


@pytest.mark.parametrize(
    ("change", "score", "termination"),
    [
        ({}, None, "answered"),
        ({"is_correct": False, "judgement": "B"}, 0.0, "answered"),
        ({"is_correct": False, "judgement": "Error", "error": "429"}, None, "answered"),
        ({"messages": [], "error": "Timeout (>1800s)", "prediction": "[Failed]", "is_correct": False}, None, "failed"),
        ({"termination": "exceed available llm calls"}, None, "max_steps"),
        ({"termination": "format error: generate an answer as token limit reached"}, None, "context_full"),
        ({"termination": "No answer found after 2h30mins"}, None, "answered"),
    ],
)
def test_ends_and_grades(change: dict[str, Any], score: float | None, termination: str) -> None:
    found = from_evaluation(EvalLine.model_validate(evaluation_line(**change)), Reading(), Counter())
    assert (found.score, found.termination) == (score, termination)


def test_experience_of_an_evaluation() -> None:
    selections = [
        {"round": 1, "selected_ids": ["G3"], "rationale": "fits"},
        {"round": 3, "selected_ids": ["G1", "G2"], "rationale": "Fallback: using general-purpose experiences"},
    ]
    stepwise = from_evaluation(
        EvalLine.model_validate(evaluation_line(exp_selections=selections)), Reading(), Counter()
    )
    shown = [step.injection and (step.injection.item_ids, step.injection.served_by) for step in stepwise.steps]
    assert shown == [(("G3",), "llm"), None, (("G1", "G2"), "fixed")]
    assert stepwise.pattern == "stepwise"

    plain = evaluation_line()
    system = plain["messages"][0]["content"]
    pool = "\n\nSolve it with insights.\n\n**ACCUMULATED EXPERIENCES:**\nG0: Read first.\nG1: Ask twice."
    line = evaluation_line()
    line["messages"][0] = {"role": "system", "content": f"Be thorough.\n\nCurrent date: {pool}2026-01-02"}
    whole = from_evaluation(EvalLine.model_validate(line), Reading(), Counter())
    assert whole.prompt[0].text == system
    assert whole.global_injection is not None
    assert whole.global_injection.item_ids == ("G0", "G1")
    assert "2026" not in whole.global_injection.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"runid": 1}, "problem: field required"),
        (rollout_line(reward="good"), "reward: "),
        (rollout_line(trajectories=[{"agent": "a"}]), "trajectories.0.trajectory: field required"),
        (rollout_line(trajectories=rollout_line()["trajectories"] * 2), "trajectories: 2 agents in one episode"),
    ],
)
def test_a_bad_rollout_is_named(line: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"r\.jsonl, line 2: {said}"):
        read_rollouts(write(tmp_path / "r.jsonl", rollout_line(), line), Reading())


def test_a_bad_evaluation_is_named(tmp_path: Path) -> None:
    bad = evaluation_line(is_correct="yes")
    with pytest.raises(DataError, match=r"i\.jsonl, line 1: is_correct: "):
        read_evaluation(write(tmp_path / "i.jsonl", bad), Reading())


@given(logs())
@settings(max_examples=40, deadline=None)
def test_a_rollout_comes_back(trajectory: Trajectory) -> None:
    shown = Injection(item_ids=("G0", "G1"), text=POOL, served_by="global")
    for whole in (None, shown):
        line = RolloutLine.model_validate_json(
            to_rollout(trajectory.model_copy(update={"global_injection": whole})).model_dump_json()
        )
        back = from_rollout(line, Reading(thinking=True), Counter())
        assert back.prompt == trajectory.prompt
        assert back.steps == trajectory.steps
        assert (back.global_injection, back.score) == (whole, trajectory.score)


@given(logs())
@settings(max_examples=40, deadline=None)
def test_an_evaluation_comes_back(trajectory: Trajectory) -> None:
    line = EvalLine.model_validate_json(to_evaluation(trajectory).model_dump_json())
    back = from_evaluation(line, Reading(), Counter())
    assert back.prompt == trajectory.prompt
    assert [(s.text, s.observation) for s in back.steps] == [(s.text, s.observation) for s in trajectory.steps]
    assert back.termination == trajectory.termination
    assert back.score == (trajectory.score if trajectory.score in {0.0, 1.0} else None)

"""Converts the logs of the paper's released code: `rollout.jsonl` of its extraction, `iterN.jsonl` of its evaluation.

    rollout.jsonl  problem, groundtruth, prompt, response, reward, error, trajectories: [{agent, trajectory: messages}]
    iterN.jsonl    question, answer, messages, prediction, termination, exp_selections?; is_correct, judgement if graded

Experience in the prompt becomes the global injection of the episode, so that the stored history is clean. An episode
that has an error, was not run or was not graded is unscored, even where that code writes a reward of 0. Two losses
cannot be undone: those logs score a failure of the judge as 0, like a wrong answer, and overwrite the last observation
when a budget runs out. Trajectories hold no reference answers, so written files have "" for them. Writing a trajectory
and reading it again preserves its prompt, steps and score.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, JsonValue

from internalize.errors import DataError
from internalize.records import (
    Injection,
    Message,
    Step,
    Task,
    Termination,
    ToolCall,
    Trajectory,
    content_hash,
    result_of,
)

from .chat import episode_of, question_of, to_chat
from .reading import Reading, Session, episodes, json_values
from .wire import ChatMessage, Score, Wire

_TERMINATIONS: dict[str, Termination] = {
    "answer": "answered",
    "exceed available llm calls": "max_steps",
    "generate an answer as token limit reached": "context_full",
    "format error: generate an answer as token limit reached": "context_full",
}
_OFFICIAL_TERMINATIONS: dict[Termination, str] = {
    "answered": "answer",
    "max_steps": "exceed available llm calls",
    "context_full": "generate an answer as token limit reached",
    "failed": "answer not found",
}
_POOL = "**ACCUMULATED EXPERIENCES:**\n"
_PROBLEM = "\n\n**CURRENT PROBLEM:**\n"
_ITEM = re.compile(r"^\[?(G\d+)\]?[.:] ", re.MULTILINE)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n(.*)\n</tool_response>", re.DOTALL)
_FALLBACK = "Fallback"  # start of the rationale of selections that its selector replaced by five fixed ids


class AgentLog(Wire):
    """The messages of one agent in an episode."""

    agent: str = "internalize"
    trajectory: tuple[ChatMessage, ...]


class RolloutLine(Wire):
    """One line of rollout.jsonl."""

    runid: int = 0
    prompt: str | None = None
    problem: str
    groundtruth: JsonValue = ""
    response: JsonValue = ""
    trajectories: tuple[AgentLog, ...] | None = None
    error: JsonValue = None
    reward: Score | None = None
    rollout_time: float = 0.0


class Selection(Wire):
    """The items that the selector chose in one round."""

    round: int
    selected_ids: tuple[str, ...]
    rationale: str = ""


class EvalLine(Wire):
    """One line of iterN.jsonl, or of the graded copy of that file."""

    question: str
    answer: JsonValue = ""
    messages: tuple[ChatMessage, ...]
    prediction: JsonValue = ""
    termination: str | None = None
    exp_selections: tuple[Selection, ...] = ()
    is_correct: bool | None = Field(None, strict=True)
    judgement: JsonValue = None
    error: JsonValue = None


def read_rollouts(path: Path, reading: Reading) -> list[Trajectory]:
    """The episodes in a rollout.jsonl. Raises DataError naming file, line and field."""
    return list(episodes(path, json_values, read_rollout, Session(reading)))


def read_evaluation(path: Path, reading: Reading) -> list[Trajectory]:
    """The episodes in an iterN.jsonl. Raises DataError naming file, line and field."""
    return list(episodes(path, json_values, read_eval, Session(reading)))


def recognizes_rollout(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are of a rollout.jsonl."""
    return {"problem", "trajectories"} <= head[0].keys()


def recognizes_eval(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are of an iterN.jsonl."""
    return {"question", "messages", "prediction"} <= head[0].keys()


def read_rollout(value: Any, session: Session) -> Iterator[Trajectory]:
    """The trajectory of one line of rollout.jsonl. Raises DataError."""
    yield from_rollout(session.validated(RolloutLine, value), session.reading, session.attempts)


def read_eval(value: Any, session: Session) -> Iterator[Trajectory]:
    """The trajectory of one line of iterN.jsonl. Raises DataError."""
    yield from_evaluation(session.validated(EvalLine, value), session.reading, session.attempts)


def from_rollout(line: RolloutLine, reading: Reading, attempts: Counter[str]) -> Trajectory:
    """The trajectory of one line of rollout.jsonl. Raises DataError for an episode of several agents."""
    if line.trajectories and len(line.trajectories) > 1:
        raise DataError(f"trajectories: {len(line.trajectories)} agents in one episode; only one can be read")
    failure = _failure(line.error) or (None if line.trajectories else "not run")
    messages = line.trajectories[0].trajectory if line.trajectories else ()
    episode = episode_of(messages, reading, failed=failure is not None)
    prompt, shown = _without_experience(episode.prompt, line.problem)
    score = None if failure else reading.score if line.reward is None else line.reward
    outcome = _Outcome(line.problem, line.groundtruth, score, failure)
    return _trajectory(outcome, prompt, episode.steps, episode.termination, shown, reading, attempts)


def from_evaluation(line: EvalLine, reading: Reading, attempts: Counter[str]) -> Trajectory:
    """The trajectory of one line of iterN.jsonl."""
    failure = None if line.messages else _failure(line.error) or "no messages"
    episode = episode_of(line.messages, reading, failed=failure is not None)
    prompt, shown = _without_pool(episode.prompt)
    chosen = {s.round: s for s in line.exp_selections}
    steps = tuple(_parsed_step(step, chosen.get(number)) for number, step in enumerate(episode.steps, start=1))
    answered = bool(steps) and bool(_ANSWER.search(steps[-1].text))
    termination = _TERMINATIONS.get(line.termination or "", "answered" if answered else "max_steps")
    ungraded = failure or _failure(line.error) or line.judgement == "Error"
    score = None if ungraded or line.is_correct is None else float(line.is_correct)
    score = reading.score if score is None and not ungraded else score
    outcome = _Outcome(line.question, line.answer, score, failure)
    return _trajectory(outcome, prompt, steps, "failed" if failure else termination, shown, reading, attempts)


def to_rollout(trajectory: Trajectory, number: int = 0) -> RolloutLine:
    """A line of rollout.jsonl; its prompt includes the global experience as the released code writes it."""
    problem = question_of(trajectory.prompt)
    shown = trajectory.global_injection
    prompt = problem
    if shown:
        prompt = f"{'' if _POOL in shown.text else _POOL}{shown.text}{_PROBLEM}{problem}"
    messages = list(to_chat(trajectory).messages)
    user = [place for place, message in enumerate(trajectory.prompt) if message.role == "user"]
    if user:
        messages[user[-1]] = messages[user[-1]].model_copy(update={"content": prompt})
    last = trajectory.steps[-1].text if trajectory.steps else ""
    return RolloutLine(
        runid=number,
        prompt=prompt,
        problem=problem,
        response=trajectory.failure or last,
        trajectories=(AgentLog(trajectory=tuple(messages)),) if trajectory.steps else (),
        error=trajectory.failure,
        reward=trajectory.score,
        rollout_time=sum(step.seconds for step in trajectory.steps),
    )


def to_evaluation(trajectory: Trajectory) -> EvalLine:
    """A line of iterN.jsonl, with actions and observations as text; it is graded if the score is 0 or 1."""
    messages = [ChatMessage(role=m.role, content=m.text) for m in trajectory.prompt]
    for step in trajectory.steps:
        messages.append(ChatMessage(role="assistant", content=step.text))
        if step.observation is not None:
            text = f"<tool_response>\n{step.observation}\n</tool_response>"
            messages.append(ChatMessage(role="user", content=text))
    return EvalLine(
        question=question_of(trajectory.prompt),
        messages=tuple(messages) if trajectory.steps else (),
        prediction="No answer found." if trajectory.answer is None else trajectory.answer,
        termination=_OFFICIAL_TERMINATIONS[trajectory.termination],
        is_correct=trajectory.score == 1.0 if trajectory.score in {0.0, 1.0} else None,
        exp_selections=tuple(
            Selection(round=number, selected_ids=step.injection.item_ids)
            for number, step in enumerate(trajectory.steps, start=1)
            if step.injection
        ),
        error=trajectory.failure,
    )


class _Outcome(NamedTuple):
    """What a line says about an episode apart from its messages."""

    question: str
    answer: JsonValue
    score: float | None
    failure: str | None


def _trajectory(
    outcome: _Outcome,
    prompt: tuple[Message, ...],
    steps: tuple[Step, ...],
    termination: Termination,
    shown: Injection | None,
    reading: Reading,
    attempts: Counter[str],
) -> Trajectory:
    answer = outcome.answer if isinstance(outcome.answer, str) else json.dumps(outcome.answer, ensure_ascii=False)
    task = Task.new(reading.env, reading.split, outcome.question, answer).id
    stepwise = any(step.injection for step in steps)
    return Trajectory(
        id=content_hash([reading.env, task, attempts[task], [step.model_dump(mode="json") for step in steps]]),
        task_id=task,
        env=reading.env,
        split=reading.split,
        iteration=0,
        seed=0,
        attempt=attempts[task],
        pattern="global" if shown else "stepwise" if stepwise else "none",
        checkpoint="imported",
        prompt=prompt or (Message(role="user", content=outcome.question),),
        global_injection=shown,
        steps=steps,
        termination=termination,
        score=outcome.score,
        failure=outcome.failure,
    )


def _failure(error: JsonValue) -> str | None:
    if not error:
        return None
    return error.strip().splitlines()[-1] if isinstance(error, str) and error.strip() else json.dumps(error)


def _without_experience(prompt: tuple[Message, ...], problem: str) -> tuple[tuple[Message, ...], Injection | None]:
    """The prompt with only the problem as its last message, and the experience that preceded the problem."""
    if not prompt or not prompt[-1].text.endswith(_PROBLEM + problem) or _POOL not in prompt[-1].text:
        return prompt, None
    text = prompt[-1].text.removesuffix(_PROBLEM + problem)
    clean = (*prompt[:-1], prompt[-1].model_copy(update={"content": problem}))
    return clean, _global_injection(text)


def _without_pool(prompt: tuple[Message, ...]) -> tuple[tuple[Message, ...], Injection | None]:
    """The prompt without the pool at the end of its system message, and the pool; a date after the pool stays."""
    if not prompt or prompt[0].role != "system" or _POOL not in prompt[0].text:
        return prompt, None
    head, _, rest = prompt[0].text.partition(_POOL)
    body, _, lead = head.removesuffix("\n\n").rpartition("\n\n")
    date = match.group() if (match := re.search(r"\d{4}-\d\d-\d\d$", rest)) else ""
    clean = prompt[0].model_copy(update={"content": body + date})
    return (clean, *prompt[1:]), _global_injection(f"{lead}\n\n{_POOL}{rest.removesuffix(date)}")


def _global_injection(text: str) -> Injection | None:
    """A global injection of this text; None if the pool in it is empty."""
    items = text.partition(_POOL)[2].strip()
    if items in {"", "None"}:
        return None
    return Injection(item_ids=tuple(_ITEM.findall(items)), text=text, served_by="global")


def _parsed_step(step: Step, chosen: Selection | None) -> Step:
    """A step with the calls in its text and the chosen item ids; the log does not hold the texts of the items."""
    calls = _calls(step.text)
    results = tuple(result_of(calls, number, _unwrapped(result.text)) for number, result in enumerate(step.results))
    served = "fixed" if chosen and chosen.rationale.startswith(_FALLBACK) else "llm"
    injection = Injection(item_ids=chosen.selected_ids, text="", served_by=served) if chosen else None
    return step.model_copy(
        update={
            "message": step.message.model_copy(update={"content": "" if calls else step.text, "tool_calls": calls}),
            "results": results,
            "injection": injection,
        }
    )


def _unwrapped(observation: str) -> str:
    wrapped = _RESULT.fullmatch(observation)
    return wrapped[1] if wrapped else observation


def _calls(text: str) -> tuple[ToolCall, ...]:
    """The first call in a text, or else its answer as a call; empty if there is neither."""
    if block := _CALL.search(text):
        call = ToolCall(name="", arguments=block[1].partition("<code>")[0].strip()).values
        name, arguments = call.get("name"), call.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return ()
        code = _CODE.search(block[1])
        return (ToolCall.of(name, **({"code": code[1].strip()} if code else _bare(arguments))),)
    answer = _ANSWER.search(text)
    return (ToolCall.of("answer", answer=answer[1].strip()),) if answer else ()


def _bare(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Arguments with one-element lists replaced by the element, because that search tool takes lists of queries."""
    return {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in arguments.items()}

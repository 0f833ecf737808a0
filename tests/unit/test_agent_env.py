"""Environment `agent`: somebody's own agent plays the tasks, as a function and as a command, and what it breaks on."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("anthropic", reason="needs the extra 'serve'")
pytest.importorskip("starlette", reason="needs the extra 'serve'")

from internalize.config.schema import Config, RolloutConfig
from internalize.config.specs import RolloutSpec
from internalize.environments import registry
from internalize.environments.validate import validate
from internalize.errors import TaskError, UserError
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.judge.match import ExactJudge
from internalize.records import Checkpoint, Message, Trajectory
from internalize.report.episodes import column
from internalize.rollout.local import LocalRollouts
from internalize.stages.scripted import STARTER
from internalize.training.examples import build_example, conversations, weighted
from tests import lookers
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]
CALL = f"{ROOT}/tests/looking_agent.py:play"
COMMAND = [sys.executable, f"{ROOT}/tests/looking_agent.py"]
AGENTS = (
    pytest.param({"call": CALL}, id="call"),
    pytest.param(
        {"command": COMMAND}, id="command", marks=pytest.mark.slow
    ),  # a process takes seconds to import openai
)
RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])


class Scripted:
    """A policy and its loader: every episode goes through one script."""

    def __init__(self, replies: Sequence[str], **limits: Any) -> None:
        self.checkpoint = STARTER
        settings = RolloutConfig(**{"max_action_tokens": 50, **limits})
        self.engine = ScriptedEngine(lambda _, text: replies[text.count("<|im_start|>assistant") - 1], RENDERER)
        self.agent = TokenAgent(self.engine, RENDERER, settings, 4000, 4, ExactJudge())

    async def load(self, checkpoint: Checkpoint, root: Path) -> Scripted:
        return self

    def chat(self, name: str = "self") -> Any:
        raise AssertionError(name)


def questions(tmp_path: Path, *texts: str, answer: str = "42") -> str:
    file = tmp_path / "q.jsonl"
    rows = [{"question": text, "answer": answer, "split": "train"} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def played(policy: Scripted, attempts: int = 1, **options: Any) -> list[Trajectory]:
    """All episodes of the split train, in the order of their ids."""
    config = Config.model_validate({"env": {"name": "agent", "options": options}})
    env = registry.make("agent", options)
    spec = RolloutSpec(
        config=config, root=Path(), checkpoint=STARTER, env=config.env, stage="r", iteration=0, attempts=attempts
    )

    async def all_of() -> list[Trajectory]:
        backend = LocalRollouts(policy, lambda _: env)  # type: ignore[arg-type]
        return [one async for one in backend.run(spec, env.tasks("train"))]

    return sorted(asyncio.run(all_of()), key=lambda t: (t.task_id, t.attempt))


@pytest.mark.server
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_plays_the_tasks_and_its_calls_are_the_steps(agent: dict[str, Any], tmp_path: Path) -> None:
    policy = Scripted(["search[io]", "answer[42]"])
    file = questions(tmp_path, "What is in box 1?", "What is in box 2?")
    found = played(policy, attempts=2, tasks=file, at_once=4, **agent)
    assert [t.score for t in found] == [1.0] * 4
    assert len({t.id for t in found}) == 4
    for episode in found:
        assert episode.failure is None
        assert (episode.env, episode.split, episode.termination, episode.checkpoint) == (
            "agent", "train", "answered", STARTER.id
        )  # fmt: skip
        assert [step.token_ids for step in episode.steps] == [
            RENDERER.encode_text(text) for text in ("search[io]", "answer[42]")
        ]
        assert episode.steps[0].results == (Message(role="tool", content="Found: 42.", tool_call_id="call_0"),)
        assert episode.question in {"What is in box 1?", "What is in box 2?"}
        assert episode.answer == "42"
    again = played(policy, attempts=2, tasks=file, at_once=4, **agent)
    assert [untimed(t) for t in again] == [
        untimed(t) for t in found
    ]  # ids, seeds and samples are drawn from the recipe


def untimed(trajectory: Trajectory) -> Trajectory:
    steps = tuple(step.model_copy(update={"seconds": 0.0}) for step in trajectory.steps)
    return trajectory.model_copy(update={"steps": steps})


@pytest.mark.server
@pytest.mark.slow
def test_an_agent_that_breaks_is_unscored_unless_told_otherwise(tmp_path: Path) -> None:
    policy = Scripted(["search[io]", "answer[42]"])
    file = questions(tmp_path, "raise")
    (episode,) = played(policy, tasks=file, call=CALL)
    assert (episode.score, episode.termination) == (None, "failed")
    assert episode.failure == "the agent raised ValueError: a fault of the agent"
    assert len(policy.engine.prompts) == 3  # it was tried again
    (episode,) = played(policy, tasks=file, call=CALL, on_error="wrong")
    assert (episode.score, episode.failure) == (0.0, None)
    (episode,) = played(policy, tasks=file, command=COMMAND)
    assert str(episode.failure).startswith("the agent ended with code 1 (ValueError: a fault of the agent")


@pytest.mark.server
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_that_hangs_is_ended(agent: dict[str, Any], tmp_path: Path) -> None:
    policy = Scripted(["search[io]", "answer[42]"])
    (episode,) = played(policy, tasks=questions(tmp_path, "hang"), seconds=8 if "command" in agent else 1, **agent)
    assert str(episode.failure).startswith("the agent did not end within")


@pytest.mark.server
def test_limits_of_the_recipe_end_an_episode_and_are_a_score_of_zero(tmp_path: Path) -> None:
    looking = Scripted(["search[io]"] * 20, max_steps=3)
    (episode,) = played(looking, tasks=questions(tmp_path, "What is in box 1?"), call=CALL)
    assert (episode.termination, episode.score, len(episode.steps)) == ("max_steps", 0.0, 3)


HELPED = """
from openai import OpenAI


def play(task, base_url, api_key):
    client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0)

    def ask(*messages):
        return client.chat.completions.create(model="m", messages=list(messages)).choices[0].message.content

    def said(role, text):
        return {"role": role, "content": text}

    start = [said("system", "You lead."), said("user", task["question"])]
    plan = ask(*start)
    found = ask(said("system", "You search."), said("user", plan))
    more = ask(said("system", "You search."), said("user", plan), said("assistant", found), said("user", "Sure?"))
    draft = ask(*start, said("assistant", plan), said("user", more))
    other = ask(*start, said("assistant", plan), said("user", "Another way?"))
    ask(said("system", "You lead."), said("user", f"{task['question']} So far: {draft} {other}"))
"""


@pytest.mark.server
def test_sub_agents_and_compacted_histories_are_learnt_with_the_episode_each_turn_once(tmp_path: Path) -> None:
    """The answer is that of the last call, and what two conversations share is context in one of them."""
    said = iter(["plan", "found", "sure", "draft", "other", "42"])
    policy = Scripted([])
    policy.engine = ScriptedEngine(lambda *_: next(said), RENDERER)
    policy.agent = TokenAgent(policy.engine, RENDERER, RolloutConfig(max_action_tokens=50), 4000, 4, ExactJudge())
    agent = tmp_path / "helped.py"
    agent.write_text(HELPED)
    (episode,) = played(policy, tasks=questions(tmp_path, "What is in box 1?"), call=f"{agent}:play")
    assert (episode.failure, episode.score, episode.answer) == (None, 1.0, "42")
    own = [[step.text for step in part.steps if not step.left_out] for part in conversations(episode)]
    assert own[0] == ["42"]
    assert sorted(own[1:]) == [["found", "sure"], ["other"], ["plan", "draft"]]
    (second,) = [part for part in episode.branches if part.steps[-1].text == "other"]
    assert [(step.text, step.left_out) for step in second.steps] == [("plan", "copied context"), ("other", "")]
    assert len({part.id for part in conversations(episode)}) == 4
    kept = weighted([episode], "success")
    assert [weight for _, weight in kept] == [1.0] * 4
    assert weighted([episode.model_copy(update={"score": 0.0})], "success") == []
    learnt = []
    for part, weight in kept:
        example = build_example(part, RENDERER, weight=weight)
        assert example is not None
        learnt += [example.token_ids[span.start : span.end] for span in example.spans]
    sampled = [RENDERER.encode_text(text) for text in ("plan", "found", "sure", "draft", "other", "42")]
    assert sorted(learnt) == sorted(sampled)
    assert Trajectory.model_validate_json(episode.model_dump_json()) == episode
    assert column(episode, "starter").outcome == "score 1, 1 steps, 3 further conversations, answered"


@pytest.mark.server
def test_an_agent_that_never_asks_is_a_failure(tmp_path: Path) -> None:
    (episode,) = played(Scripted([]), tasks=questions(tmp_path, "silent"), call=CALL)
    assert episode.failure == "the agent made no call of the model"


@pytest.mark.server
def test_a_verifier_scores_and_without_one_the_judge_does(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tests.looking_agent import play as other\n"
        "def play(task, base_url, api_key):\n    other(task, base_url, api_key)\n"
        "def half(task, trajectory):\n    return len(trajectory.steps) / 4\n"
    )
    options = {"tasks": questions(tmp_path, "What is in box 1?"), "call": f"{tmp_path}/mine.py:play"}
    script = ["search[io]", "answer[41]"]
    (episode,) = played(Scripted(script), **options)
    assert episode.score == 0.0  # not what the reference says
    (episode,) = played(Scripted(script), **options, verifier=f"{tmp_path}/mine.py:half")
    assert episode.score == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "tasks"),
        ({"tasks": "q"}, "either a command or a call"),
        ({"tasks": "q", "call": "a:b", "command": ["x"]}, "either a command or a call"),
        ({"tasks": "q", "call": "nowhere_at_all:play"}, "env.options.call = 'nowhere_at_all:play' cannot be loaded"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    if "tasks" in options:
        options = options | {"tasks": questions(tmp_path, "x")}
    with pytest.raises(UserError, match=words):
        registry.make("agent", options)


def test_its_episodes_cannot_be_stepped(tmp_path: Path) -> None:
    env = registry.make("agent", {"tasks": questions(tmp_path, "x"), "call": CALL})
    with pytest.raises(TaskError, match="an agent plays its tasks"):
        next(validate(env, ("train",)))
    with pytest.raises(TaskError, match="played by the agent itself"):
        env.episode(env.tasks("train")[0])


@pytest.mark.server
def test_the_agent_of_the_how_to_works_as_it_stands_there(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to-own-agent.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code
    (tmp_path / "agent.py").write_text(code[1], encoding="utf-8")
    assert len(code[1].split("\ndef play", 1)[1].splitlines()) <= 30
    script = ["search[json decoder]", "visit[json.decoder]", "no action", "answer[42]"]
    file = questions(tmp_path, "What is it?")
    (episode,) = played(Scripted(script), tasks=file, call=f"{tmp_path}/agent.py:play")
    assert episode.score == 1.0, episode.failure
    assert [step.text for step in episode.steps] == script
    assert str(episode.steps[0].observation).startswith("Found:")


@pytest.mark.server
@pytest.mark.slow
def test_one_iteration_over_an_agent_raises_its_success(tmp_path: Path) -> None:
    """The loop learns through somebody's own agent what it learns through an environment of ours."""
    from internalize.evaluation.metrics import SuiteMetrics  # noqa: PLC0415
    from internalize.runs.store import read_jsonl  # noqa: PLC0415

    file = tmp_path / "boxes.jsonl"
    rows = [
        {"question": task.question, "answer": task.answer, "split": split}
        for split in ("train", "dev", "test")
        for task in lookers.Lookers().tasks(split)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    lookers.run(out, "env.name=agent", f'env.options={{tasks="{file}", call="{CALL}", at_once=8}}')
    found = read_jsonl(out / "metrics.jsonl", SuiteMetrics)
    success = {(m.iteration, m.suite, m.mode): m.success.mean for m in found if m.success}
    assert success[0, "dev", "in_context"] >= success[0, "dev", "internalized"] + 0.3
    assert success[1, "dev", "internalized"] >= success[0, "dev", "internalized"] + 0.3

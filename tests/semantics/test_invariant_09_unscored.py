"""Invariant 9: an infrastructure failure is unscored and owed again; it never counts as 0, never enters extraction.

A tool that fails is no infrastructure failure: its error is an observation.
"""

import asyncio
from pathlib import Path

import pytest

from internalize.config.schema import RolloutConfig
from internalize.environments.maths.env import Maths
from internalize.errors import Incomplete
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Trajectory
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.runs.store import read_jsonl
from tests.steps import act
from tests.tiny import tiny_tokenizer
from tests.toy import Toy

LABEL = Label("rollout", 1, 0, "c")


def agent(failures: range | tuple[int, ...] = ()) -> TokenAgent:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine(lambda _, text: "answer[2]", renderer, failures=failures)
    return TokenAgent(engine, renderer, RolloutConfig(max_steps=4), 4000, 4)


def play(env: Toy, who: TokenAgent, path: Path) -> list[Trajectory]:
    return asyncio.run(rollout(env.tasks("train"), env, who, Injector(), LABEL, path=path))


def test_a_broken_call_is_tried_again_and_leaves_no_trace(tmp_path: Path) -> None:
    found = play(Toy(), agent(failures=(0, 2, 5)), tmp_path / "a.jsonl")
    undisturbed = play(Toy(), agent(), tmp_path / "b.jsonl")
    assert [(t.id, t.score) for t in found] == [(t.id, t.score) for t in undisturbed]
    assert all(t.failure is None for t in found)
    assert len(read_jsonl(tmp_path / "a.jsonl", Trajectory)) == 12


def test_an_environment_that_stays_broken_is_unscored_not_zero(tmp_path: Path) -> None:
    tasks = Toy(size=30).tasks("train")
    found = play(Toy(size=30, broken=frozenset({tasks[3].id}), jams=99), agent(), tmp_path / "a.jsonl")
    assert found[3].score is None
    assert found[3].failure == "the box is jammed"
    assert found[3].termination == "failed"
    assert all(t.score is not None for t in found if t is not found[3])


def test_an_outage_stops_the_stage_and_a_resume_owes_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(Incomplete, match="played again"):
        play(Toy(), agent(failures=range(6, 400)), path)
    scored = {t.id for t in read_jsonl(path, Trajectory) if t.score is not None}
    assert 0 < len(scored) < 12
    found = play(Toy(), agent(), path)
    assert len(found) == 12
    assert all(t.score is not None for t in found)
    assert [t.id for t in read_jsonl(path, Trajectory)] == [t.id for t in found]


@pytest.mark.sandbox
def test_a_tools_own_error_is_an_observation_and_the_episode_is_scored(tmp_path: Path) -> None:
    pytest.importorskip("sympy", reason="needs the extra 'maths'")
    env = Maths(size=7, seconds=30.0)
    task = env.tasks("train")[0]
    calls = (act("python", '{"code": "1 / 0"}'), act("answer", task.answer or ""))
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine([renderer.tool_format.format(call, env.tools) for call in calls], renderer)
    who = TokenAgent(engine, renderer, RolloutConfig(max_steps=4, max_action_tokens=64), 4000, 4)
    (found,) = asyncio.run(rollout([task], env, who, Injector(), LABEL, path=tmp_path / "a.jsonl"))
    assert "ZeroDivisionError" in found.steps[0].results[0].text
    assert (found.failure, found.score) == (None, 1.0)

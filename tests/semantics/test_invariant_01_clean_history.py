"""Invariant 1: an injection is part of the step it served and of no later context."""

import asyncio
from pathlib import Path

from internalize.config.schema import RolloutConfig
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import Renderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Experience
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from tests.tiny import tiny_tokenizer
from tests.toy import Toy

ITEM = Experience.new("Look into the box that the question names before you answer.", "principle", "contrast")


def play(path: Path, injector: Injector) -> tuple[ScriptedEngine, Renderer, list]:
    renderer = Renderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine(["look[100]", "look[7]", "answer[2]"], renderer)
    agent = TokenAgent(engine, renderer, RolloutConfig(max_steps=5), 4000, 4)
    env = Toy(size=1)
    found = asyncio.run(rollout(env.tasks("train"), env, agent, injector, Label("r", 1, 0, "c"), path=path))
    return engine, renderer, found


def test_a_stepwise_hint_is_shown_once_and_never_again(tmp_path: Path) -> None:
    engine, renderer, (trajectory,) = play(tmp_path / "t.jsonl", Injector("stepwise", (ITEM,), 1))
    shown = [renderer.tokenizer.decode(list(ids)) for _, ids in engine.prompts]
    assert [text.count(ITEM.text) for text in shown] == [1, 1, 1]  # one in the newest message, none in the history
    assert all(text.rfind(ITEM.text) > text.rfind("<|im_start|>user") for text in shown)
    assert all(step.injection and step.injection.item_ids == (ITEM.id,) for step in trajectory.steps)
    for number in range(4):
        assert not any(ITEM.text in m.content for m in trajectory.context(number))


def test_a_global_hint_stands_in_the_system_message_and_not_in_the_record_of_the_prompt(tmp_path: Path) -> None:
    engine, renderer, (trajectory,) = play(tmp_path / "t.jsonl", Injector("global", (ITEM,)))
    for _, ids in engine.prompts:
        system = renderer.tokenizer.decode(list(ids)).split("<|im_end|>")[0]
        assert ITEM.text in system
    assert not any(ITEM.text in m.content for m in trajectory.prompt)
    assert trajectory.global_injection
    assert trajectory.score == 1.0


def test_without_experience_the_prompt_is_the_students(tmp_path: Path) -> None:
    plain, _, (trajectory,) = play(tmp_path / "a.jsonl", Injector())
    hinted, renderer, _ = play(tmp_path / "b.jsonl", Injector("stepwise", (ITEM,), 1))
    for (_, clean), (_, shown) in zip(plain.prompts, hinted.prompts, strict=True):
        assert shown != clean
    assert renderer.context(trajectory.prompt, ()).ids == plain.prompts[0][1]

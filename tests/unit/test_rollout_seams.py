"""What `rollout` asks of environments, judges and actors beside the plain path."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from internalize.config.schema import RolloutConfig
from internalize.errors import ContextError, Incomplete, InfrastructureError, UserError
from internalize.experience.inject import Injector
from internalize.inference.agent import ChatAgent, TokenAgent, chat_messages
from internalize.inference.policy_chat import PolicyChat
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import (
    ActionRequest,
    ChatRequest,
    Claim,
    Experience,
    Judgement,
    Message,
    Reply,
    Task,
    ToolCall,
    Trajectory,
)
from internalize.rollout.episode import Label
from internalize.rollout.local import TRIES
from internalize.rollout.ray import require_answer
from internalize.rollout.record import rollout
from internalize.runs.store import read_jsonl
from tests.real_servers import free_port
from tests.steps import step
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy, ToyEpisode

LABEL = Label("rollout", 1, 0, "c")
LIMITS = RolloutConfig(max_steps=3)


class Scripted:
    """A chat model that says what `say` makes of the messages."""

    name = "scripted"

    def __init__(self, say: Any) -> None:
        self.say, self.asked = say, []

    async def complete(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        return Reply(text=self.say(request.messages))


class Grader:
    """Gives each claim the next of `scores`."""

    def __init__(self, *scores: float | None) -> None:
        self.scores, self.claims = list(scores), []

    async def judge(self, claim: Claim) -> Judgement:
        self.claims.append(claim)
        score = self.scores.pop(0)
        return Judgement(score=score, judge="grader", reason="" if score is not None else "two of three disagree")


class OpenEpisode(ToyEpisode):
    """Cannot grade itself, breaks as told, and notes in which thread it runs."""

    def __init__(self, task: Task, world: Open) -> None:
        super().__init__(task, breaks=False)
        self.world = world

    def step(self, action: ToolCall | None) -> str | None:
        self.world.threads.add(threading.get_ident())
        if self.world.error is not None:
            raise self.world.error
        return super().step(action)

    def score(self) -> float | None:
        return None

    def claim(self) -> Claim | None:
        return Claim(question=self.task.question, reference=self.task.answer or "", answer=self.answer or "")

    def close(self) -> None:
        self.world.closed += 1


class Open(Toy):
    waits = False

    def __init__(self, size: int = 2, error: Exception | None = None, *, waits: bool = False) -> None:
        super().__init__(size)
        self.error, self.waits, self.closed = error, waits, 0
        self.threads: set[int] = set()

    def episode(self, task: Task) -> OpenEpisode:
        return OpenEpisode(task, self)


def play(env: Toy, who: TokenAgent | ChatAgent, path: Path, injector: Injector | None = None) -> list[Trajectory]:
    return asyncio.run(rollout(env.tasks("train"), env, who, injector or Injector(), LABEL, path=path))


def chat_actor(say: Any, **more: Any) -> ChatAgent:
    return ChatAgent(Scripted(say), TOOL_FORMATS["bracket"], LIMITS, 4000, 4, **more)


def answers(messages: list[Message]) -> str:
    return "answer[3]"


def test_a_judge_grades_what_the_environment_cannot(tmp_path: Path) -> None:
    grader = Grader(1.0, 0.0)
    found = play(Open(), chat_actor(answers, judge=grader), tmp_path / "a.jsonl")
    assert [t.score for t in found] == [1.0, 0.0]
    assert [(c.reference, c.answer) for c in grader.claims] == [("2", "3"), ("3", "3")]
    alone = play(Open(), chat_actor(answers), tmp_path / "b.jsonl")
    assert [(t.score, t.failure) for t in alone] == [(None, None)] * 2


def test_a_judge_without_a_verdict_leaves_the_episode_owed_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(Incomplete, match="two of three disagree"):
        play(Open(size=1), chat_actor(answers, judge=Grader(*[None] * TRIES)), path)
    (kept,) = read_jsonl(path, Trajectory)
    assert (kept.score, kept.failure, kept.termination) == (None, "two of three disagree", "failed")
    (found,) = play(Open(size=1), chat_actor(answers, judge=Grader(1.0)), path)
    assert found.score == 1.0


def test_what_a_foreign_environment_raises_breaks_its_episode_alone(tmp_path: Path) -> None:
    env = Open(size=1, error=KeyError("door"))
    with pytest.raises(Incomplete, match="toy raised KeyError: 'door'"):
        play(env, chat_actor(answers), tmp_path / "a.jsonl")
    (kept,) = read_jsonl(tmp_path / "a.jsonl", Trajectory)
    assert (kept.score, kept.failure) == (None, "toy raised KeyError: 'door'")
    assert env.closed == TRIES


@pytest.mark.parametrize("error", [StopIteration(), InfrastructureError("gone"), ValueError()])
@pytest.mark.parametrize("waits", [False, True])
def test_no_exception_of_an_environment_hangs_or_escapes(error: Exception, tmp_path: Path, *, waits: bool) -> None:
    with pytest.raises(Incomplete):
        play(Open(size=1, error=error, waits=waits), chat_actor(answers), tmp_path / "a.jsonl")


def test_wrong_use_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    def say(messages: list[Message]) -> str:
        if "box 102" in messages[1].content:
            raise UserError("no such key")
        return "answer[3]"

    with pytest.raises(UserError, match="no such key"):
        play(Toy(size=8), chat_actor(say), tmp_path / "a.jsonl")
    assert 2 <= len(read_jsonl(tmp_path / "a.jsonl", Trajectory)) < 8


def test_waiting_environments_run_in_threads_and_others_do_not(tmp_path: Path) -> None:
    slow, quick = Open(waits=True), Open()
    play(slow, chat_actor(answers, judge=Grader(1.0, 1.0)), tmp_path / "a.jsonl")
    play(quick, chat_actor(answers, judge=Grader(1.0, 1.0)), tmp_path / "b.jsonl")
    assert threading.get_ident() not in slow.threads
    assert quick.threads == {threading.get_ident()}
    assert (slow.closed, quick.closed) == (2, 2)


def test_a_chat_endpoint_sees_the_hint_last_and_the_history_clean(tmp_path: Path) -> None:
    item = Experience.new("Look into the box first.", "principle", "contrast")
    who = chat_actor(lambda m: "look[1]" if len(m) == 2 else "answer[1]")
    injector = Injector("stepwise", (item,), 1, _Everything())
    (trajectory,) = play(Toy(size=1), who, tmp_path / "a.jsonl", injector)
    first, second = (request.messages for request in who.chat.asked)
    settings = who.chat.asked[1]
    hint = "\nExperience:\n- Look into the box first."
    assert first[0].content.endswith(TOOL_FORMATS["bracket"].instructions(Toy.tools))
    assert [m.role for m in second] == ["system", "user", "assistant", "user"]
    assert first[-1].content.endswith(f"?{hint}")
    assert second[1].content.endswith("?")
    assert second[-1].content.endswith(hint)
    assert trajectory.text_only
    assert trajectory.context(1)[-1].content + hint == second[-1].content
    assert (settings.max_tokens, settings.temperature) == (LIMITS.max_action_tokens, LIMITS.temperature)


class _Everything:
    async def select(self, messages: Any, items: Any, k: int) -> tuple[tuple[str, ...], str]:
        return tuple(item.id for item in items), "all"


def test_chat_messages_are_those_of_local_rendering() -> None:
    """The same moment as token ids and as messages through the same chat template."""
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    prompt = (Message(role="system", content="s"), Message(role="user", content="q"))
    turns = [step("look[1]", seen="Inside: 4", token_ids=renderer.encode_text("look[1]"))]
    for hint in ("", "Experience:\n- Look first."):
        request = ActionRequest(episode="e", prompt=prompt, steps=tuple(turns), hint=hint)
        shown = [{"role": m.role, "content": m.content} for m in chat_messages(request, TOOL_FORMATS["bracket"])]
        text = renderer.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        assert renderer.tokenizer.decode(list(renderer.context(prompt, turns, hint).ids)) == text


def test_the_policy_answers_as_a_chat_model_of_its_own_engine() -> None:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine(lambda name, text: "forty two", renderer)
    chat = PolicyChat(engine, renderer)
    reply = asyncio.run(chat.complete(ChatRequest(messages=(Message(role="user", content="q"),), max_tokens=5)))
    assert (reply.text, reply.finish, reply.completion_tokens) == (
        "forty two",
        "stop",
        len(renderer.encode_text("forty two")),
    )
    assert engine.released == ["chat 0"]


def test_length_and_temperature_of_a_call_differ_from_those_of_actions() -> None:
    from internalize.inference.local import LocalEngine  # noqa: PLC0415 - torch

    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = LocalEngine(tiny_model(), renderer, max_action_tokens=4, temperature=1.0, batch=4, max_context=200)
    ask = (Message(role="user", content="q"),)
    ids = renderer.context(ask, ()).ids

    async def mixed() -> list[Any]:
        chat = PolicyChat(engine, renderer)
        return await asyncio.gather(
            engine.generate(ids, conversation="a", seed=1),
            *(chat.complete(ChatRequest(messages=ask, max_tokens=30, seed=seed)) for seed in range(2)),
        )

    action, one, two = asyncio.run(mixed())
    alone = asyncio.run(engine.generate(ids, conversation="b", seed=1))
    assert action.token_ids == alone.token_ids
    assert len(action.token_ids) <= 4
    assert one == two  # greedy, whatever the seed
    assert one.completion_tokens == 30
    long = ChatRequest(messages=(Message(role="user", content="word " * 300),))
    with pytest.raises(ContextError, match="no room"):
        asyncio.run(PolicyChat(engine, renderer).complete(long))


class OddEpisode(ToyEpisode):
    """Says odd things where `odd` names them."""

    def __init__(self, task: Task, odd: dict[str, Any]) -> None:
        super().__init__(task, breaks=False)
        self.odd = odd

    def prompt(self) -> Any:
        return self.odd.get("prompt", super().prompt())

    def step(self, action: ToolCall | None) -> Any:
        return self.odd.get("step", super().step(action))

    def score(self) -> Any:
        return self.odd.get("score", super().score())


class Odd(Toy):
    """The first task's episode is odd."""

    def __init__(self, odd: dict[str, Any]) -> None:
        super().__init__()
        self.odd = odd

    def episode(self, task: Task) -> Any:
        odd = self.odd if task == self.tasks("train")[0] else {}
        return odd.get("episode", OddEpisode(task, odd)) if "claim" not in odd else Claiming(task, odd)


class Claiming(OddEpisode):
    """Leaves its score to a judge."""

    def score(self) -> Any:
        return None

    def claim(self) -> Any:
        return self.odd["claim"]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"step": 7}, "its observation is not text (int '7')"),
        ({"step": b"seen"}, "its observation is not text (bytes"),
        ({"score": "yes"}, "its score is not a number from 0 to 1 (str 'yes')"),
        ({"score": float("nan")}, "its score is not a number from 0 to 1 (float 'nan')"),
        ({"score": 1.5}, "its score is not a number from 0 to 1 (float '1.5')"),
        ({"prompt": "Open the box."}, "its prompt is not a sequence of messages (str"),
        ({"prompt": ()}, "its prompt is not a sequence of messages (tuple"),
        ({"claim": "graded"}, "its claim is not a Claim (str 'graded')"),
        ({"episode": None}, "its episode is not an object with prompt, step and score (NoneType"),
    ],
)
def test_an_environment_that_says_odd_things_breaks_its_episode_alone(
    odd: dict[str, Any], words: str, tmp_path: Path
) -> None:
    found = play(Odd(odd), chat_actor(answers, judge=Grader()), tmp_path / "a.jsonl")
    assert [t.failure is None for t in found] == [False] + [True] * 11
    assert found[0].score is None
    assert words in (found[0].failure or "")


def test_half_a_character_reaches_no_tokenizer(tmp_path: Path) -> None:
    env = Odd({"step": "cut \ud83d here"})
    found = play(env, chat_actor(lambda messages: "look[1]"), tmp_path / "a.jsonl")
    assert found[0].failure is None
    assert found[0].steps[0].observation == "cut ? here"


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://127.0.0.1:{}/namespace"])
def test_a_cluster_of_ray_that_does_not_answer_is_told_at_once(form: str) -> None:
    address = form.format(free_port())
    with pytest.raises(UserError, match=r"^RAY_ADDRESS = '.*': no cluster of Ray answers \(.*refused\)$"):
        require_answer(address)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        require_answer(form.format(listening.getsockname()[1]))
    require_answer("")
    require_answer("auto")

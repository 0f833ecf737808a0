"""Which calls belong together and what of them is learnt: sub-agents, compaction, branches, repeats, other weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from internalize.config.redact import RedactConfig
from internalize.config.schema import RolloutConfig
from internalize.experience.redact import Redactor
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message, ToolCall, Trajectory
from internalize.serve.history import trajectories_of
from internalize.serve.records import Acting, AgentCall, RecordedCall
from internalize.serve.service import Model, Service
from internalize.training.examples import build_example
from tests.tiny import tiny_tokenizer

RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["json"])
START = (Message(role="system", content="Boxes."), Message(role="user", content="Which number?"))


class Desk:
    """A service whose n-th answer is `said n`, and all that it kept."""

    def __init__(self, remember: int = 1000, checkpoint: str = "a", *, same: bool = False) -> None:
        self.kept: list[RecordedCall] = []
        counter = iter(["said" if same else f"said {n}" for n in range(50)])
        self.engine = ScriptedEngine(lambda *_: next(counter), RENDERER)
        self.service = Service(self.model(checkpoint), Redactor.of(RedactConfig()), self._keep, remember)

    def model(self, checkpoint: str) -> Model:
        agent = TokenAgent(self.engine, RENDERER, RolloutConfig(max_action_tokens=50), 4000, 4)
        return Model(Acting(checkpoint=checkpoint), RENDERER.tool_format, agent=agent)

    async def _keep(self, call: RecordedCall) -> None:
        self.kept.append(call)

    def ask(self, messages: Sequence[Message], episode: str = "e") -> Message:
        async def one() -> Message:
            async with self.service.using() as model:
                located = await self.service.locate(model, episode, AgentCall(messages=tuple(messages)))
                return (await self.service.act(model, located)).turn.message

        return asyncio.run(one())

    def switch(self, checkpoint: str) -> None:
        async def load() -> Model:
            return self.model(checkpoint)

        asyncio.run(self.service.switch(load))

    def found(self) -> list[Trajectory]:
        return trajectories_of(self.kept)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def own(trajectory: Trajectory) -> list[str]:
    return [step.text for step in trajectory.steps if not step.left_out]


def test_a_growing_history_is_one_trajectory() -> None:
    desk, history = Desk(), list(START)
    for n in range(4):
        history += [desk.ask(history), user(f"and {n}")]
    (episode,) = desk.found()
    assert own(episode) == ["said 0", "said 1", "said 2", "said 3"]
    assert [call.place.prompt for call in desk.kept[1:]] == [()] * 3  # a line holds only what is new
    assert [call.place.results for call in desk.kept] == [(), *((user(f"and {n}"),) for n in range(3))]


def test_a_sub_agent_and_a_compacted_history_are_trajectories_of_their_own() -> None:
    desk = Desk()
    first = desk.ask(START)
    desk.ask((Message(role="system", content="You search."), user("find it")))
    desk.ask((*START, first, user("found")))
    desk.ask((Message(role="system", content="Boxes."), user("Summary: found it. Go on.")))
    assert sorted(map(own, desk.found())) == [["said 0", "said 2"], ["said 1"], ["said 3"]]


def test_two_ways_to_go_on_share_their_past_and_only_one_learns_it() -> None:
    desk = Desk()
    first = desk.ask(START)
    desk.ask((*START, first, user("left")))
    desk.ask((*START, first, user("right")))
    last, other = desk.found()
    assert own(last) == ["said 0", "said 2"]
    assert [step.text for step in other.steps] == ["said 0", "said 1"]
    assert own(other) == ["said 1"]
    # The copied step keeps its ids as context and carries no loss.
    example = build_example(other, RENDERER)
    assert example is not None
    (span,) = example.spans
    assert example.token_ids[span.start : span.end] == RENDERER.encode_text("said 1")
    assert RENDERER.encode_text("said 0") == other.steps[0].token_ids


def test_of_a_repeated_request_the_answer_counts_that_was_gone_on_from() -> None:
    desk = Desk()
    lost = desk.ask(START)
    assert desk.ask(START) != lost
    kept = desk.ask(START)
    desk.ask((*START, kept, user("and?")))
    (episode,) = desk.found()
    assert own(episode) == ["said 2", "said 3"]
    assert len(desk.kept) == 4  # all are kept


def test_equal_answers_to_repeated_requests_are_learnt_once_wherever_the_client_left() -> None:
    """Each of three turns is asked twice and answered alike, as by a client that left and called again."""
    desk = Desk(same=True)
    history = list(START)
    for _ in range(3):
        desk.ask(history)
        history += [desk.ask(history), user("more")]
    (episode,) = desk.found()
    assert own(episode) == ["said"] * 3
    # A first answer may be finished only after the second was gone on from.
    late = [*desk.kept[1:], desk.kept[0]]
    assert [own(t) for t in trajectories_of(late)] == [["said"] * 3]


def test_a_turn_that_the_agent_rewrote_is_learnt_as_sampled_and_shown_as_rewritten() -> None:
    desk = Desk()
    desk.ask(START)
    rewritten = Message(role="assistant", content="I SAID NOTHING")
    desk.ask((*START, rewritten, user("and?")))
    (episode,) = desk.found()
    assert own(episode) == ["said 0", "said 1"]
    assert episode.context(1)[2] == rewritten
    shown = [ids for _, ids in desk.engine.prompts]
    assert shown == [RENDERER.context(episode.prompt, episode.steps[:n]).ids for n in range(2)]
    example = build_example(episode, RENDERER)
    assert example is not None
    learnt = [example.token_ids[span.start : span.end] for span in example.spans]
    assert learnt == [step.token_ids for step in episode.steps]
    contexts = [example.token_ids[span.origin : span.start] for span in example.spans]
    assert contexts == shown


def test_turns_that_were_never_sampled_here_are_context() -> None:
    desk = Desk()
    foreign = Message(role="assistant", content="from elsewhere", tool_calls=(ToolCall.of("look", box="3"),))
    result = Message(role="tool", content="4", tool_call_id="x")
    desk.ask((*START, foreign, result))
    (episode,) = desk.found()
    assert own(episode) == ["said 0"]
    assert episode.steps[0].left_out == "copied context"
    assert episode.context(1)[2:] == (foreign, result)


def test_an_episode_that_goes_on_under_other_weights_is_two_trajectories() -> None:
    desk = Desk()
    history = [*START]
    history += [desk.ask(history), user("and?")]
    desk.switch("b")
    history += [desk.ask(history), user("and?")]
    desk.ask(history)
    found = {t.checkpoint: t for t in desk.found()}
    assert own(found["a"]) == ["said 0"]
    assert own(found["b"]) == ["said 1", "said 2"]
    assert [step.text for step in found["b"].steps] == ["said 0", "said 1", "said 2"]


def test_nameless_calls_are_told_apart_by_their_histories() -> None:
    desk = Desk()
    a, b = desk.ask(START, ""), desk.ask(START, "")
    desk.ask((*START, b, user("b goes on")), "")
    desk.ask((*START, a, user("a goes on")), "")
    episodes: dict[str, list[RecordedCall]] = {}
    for call in desk.kept:
        episodes.setdefault(call.episode, []).append(call)
    assert [own(t) for calls in episodes.values() for t in trajectories_of(calls)] == [
        ["said 0", "said 3"], ["said 1", "said 2"]
    ]  # fmt: skip


def test_a_named_episode_never_goes_on_from_another() -> None:
    desk = Desk()
    first = desk.ask(START, "one")
    desk.ask((*START, first, user("more")), "two")
    assert [(call.episode, call.place.parent) for call in desk.kept] == [("one", None), ("two", None)]
    (second,) = trajectories_of([desk.kept[1]])
    assert own(second) == ["said 1"]


def test_what_is_forgotten_comes_back_as_context_and_nothing_is_learnt_twice() -> None:
    desk, history = Desk(remember=2), list(START)
    for _ in range(5):
        history += [desk.ask(history, ""), user("more")]
    learnt = [text for call in desk.kept for text in [call.turn.text]]
    assert learnt == [f"said {n}" for n in range(5)]
    episodes: dict[str, list[RecordedCall]] = {}
    for call in desk.kept:
        episodes.setdefault(call.episode, []).append(call)
    assert sorted(text for calls in episodes.values() for t in trajectories_of(calls) for text in own(t)) == learnt


def test_secrets_are_out_of_the_record_and_the_episode_still_goes_on() -> None:
    desk = Desk()
    secret = "sk-" + "a1b2" * 8
    start = (*START[:1], user(f"my key is {secret}"))
    first = desk.ask(start)
    desk.ask((*start, first, user("again " + secret)))
    assert secret not in "".join(call.model_dump_json() for call in desk.kept)
    (episode,) = desk.found()
    assert len(own(episode)) == 2
    assert secret in str(RENDERER.tokenizer.decode(list(desk.engine.prompts[0][1])))  # the policy reads what was sent

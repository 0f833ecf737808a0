"""One file of replies: nothing answered is asked twice, nothing unanswered is taken for an answer."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from internalize.errors import DataError, InfrastructureError
from internalize.inference import cached
from internalize.inference.cached import CachedChat, CachedReply
from internalize.inference.scripted import ScriptedChat
from internalize.inference.structured import ask
from internalize.records import ChatRequest, Message, Reply
from internalize.runs.store import append_jsonl, read_jsonl


def request(text: str = "q", **fields: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), **fields)


def complete(chat: CachedChat, *requests: ChatRequest) -> list[str]:
    async def all_at_once() -> list[Reply]:
        return list(await asyncio.gather(*map(chat.complete, requests)))

    return [reply.text for reply in asyncio.run(all_at_once())]


def number(found: dict[str, Any]) -> int:
    if not isinstance(found.get("n"), int):
        raise ValueError('"n" is no number')  # noqa: TRY004 - as readers do
    return int(found["n"])


def question(chat: CachedChat, tries: int = 2) -> int | None:
    return asyncio.run(ask(chat, request("A number?"), number, tries=tries)).value


def test_a_reply_is_on_disk_before_it_is_returned_and_never_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    chat = CachedChat(ScriptedChat(["one", "two"]), path)
    assert complete(chat, request("a")) == ["one"]
    assert [line.reply and line.reply.text for line in read_jsonl(path, CachedReply)] == ["one"]
    assert complete(chat, request("a"), request("b"), request("a")) == ["one", "two", "one"]
    resumed = CachedChat(ScriptedChat([]), path)
    assert complete(resumed, request("b"), request("a")) == ["two", "one"]
    assert [reply.text for reply in resumed.replies] == ["one", "two"]


@pytest.mark.parametrize(
    "other",
    [
        request("b"),
        request("a", seed=1),
        request("a", temperature=0.7),
        request("a", max_tokens=5),
        request("a", response_schema={"type": "object"}),
        request("a", response_schema={}),
    ],
)
def test_whatever_can_change_a_reply_is_part_of_its_key(tmp_path: Path, other: ChatRequest) -> None:
    chat = CachedChat(ScriptedChat(["one", "two"]), tmp_path / "replies.jsonl")
    assert complete(chat, request("a"), other) == ["one", "two"]


def test_replies_belong_to_a_model_and_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    made = [("a", "c1"), ("b", "c1"), ("a", "c2")]
    for name, checkpoint in made:
        text = f"{name} {checkpoint}"
        assert complete(CachedChat(ScriptedChat([text], name), path, checkpoint=checkpoint), request()) == [text]
    for name, checkpoint in made:
        chat = CachedChat(ScriptedChat([], name), path, checkpoint=checkpoint)
        assert complete(chat, request()) == [f"{name} {checkpoint}"]


def test_a_failed_request_is_owed(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    chat = CachedChat(ScriptedChat([InfrastructureError("down"), "one"]), path)
    with pytest.raises(InfrastructureError):
        complete(chat, request())
    assert not path.exists()
    assert complete(chat, request()) == ["one"]


def test_equal_requests_at_the_same_time_are_one_and_share_its_failure() -> None:
    source = ScriptedChat(["one", InfrastructureError("down"), "two"])
    chat = CachedChat(source, None)
    assert complete(chat, *[request("a")] * 9) == ["one"] * 9
    with pytest.raises(InfrastructureError):
        complete(chat, *[request("b")] * 9)
    assert complete(chat, *[request("b")] * 9) == ["two"] * 9
    assert len(source.requests) == 3


def test_a_reply_outlives_whoever_asked_for_it(tmp_path: Path) -> None:
    class Slow(ScriptedChat):
        async def complete(self, request: ChatRequest) -> Reply:
            await asyncio.sleep(0.01)
            return await super().complete(request)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.complete(request()), 0.001)
        await asyncio.sleep(0.05)

    chat = CachedChat(Slow(["one"]), tmp_path / "replies.jsonl")
    asyncio.run(impatient())
    assert complete(CachedChat(ScriptedChat([]), tmp_path / "replies.jsonl"), request()) == ["one"]


def test_a_torn_last_line_is_cut_off_and_its_request_owed(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    complete(CachedChat(ScriptedChat(["one", "two"]), path), request("a"), request("b"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        source = ScriptedChat(lambda messages: {"a": "one", "b": "two"}[messages[0].content])
        assert complete(CachedChat(source, path), request("a"), request("b")) == ["one", "two"]
        assert len(source.requests) == 2 - (size >= first)
        assert len(read_jsonl(path, CachedReply)) == 2


def test_another_process_that_is_killed_while_it_writes_spoils_no_line(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    chat = CachedChat(ScriptedChat(["one", "two"]), path)
    complete(chat, request("a"))
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    assert complete(chat, request("b")) == ["two"]
    assert len(read_jsonl(path, CachedReply)) == 2


def test_a_line_that_is_no_reply_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('{"key": "a", "stage": "learn"}\n')
    with pytest.raises(DataError, match="unknown field stage"):
        CachedChat(ScriptedChat([]), path)


def test_no_answer_at_all_is_rejected_and_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    chat = CachedChat(ScriptedChat(["x", "y", '{"n": 3}']), path)
    assert question(chat) is None
    lines = read_jsonl(path, CachedReply)
    assert [(line.reply and line.reply.text, line.rejected) for line in lines] == [
        ("x", ""), ("y", ""), (None, "it is not JSON"), (None, "it is not JSON")
    ]  # fmt: skip
    assert question(CachedChat(ScriptedChat([]), path, replay_rejected=True)) is None
    assert len(read_jsonl(path, CachedReply)) == 4
    resumed = CachedChat(ScriptedChat(['{"n": 3}']), path)
    assert question(resumed) == 3
    assert question(CachedChat(ScriptedChat([]), path)) == 3
    assert [reply.text for reply in resumed.replies] == ["x", "y", '{"n": 3}']


def test_an_answer_at_the_second_try_is_found_again_by_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    assert question(CachedChat(ScriptedChat(["x", '{"n": 3}']), path)) == 3
    assert question(CachedChat(ScriptedChat([]), path)) == 3


def test_one_file_finds_the_replies_that_others_add_to_it(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    first, second = (CachedChat(ScriptedChat(replies), path) for replies in (["one"], ["two"]))
    assert complete(first, request("a")) == ["one"]
    assert complete(second, request("a"), request("b")) == ["one", "two"]
    assert complete(first, request("b")) == ["two"]


def test_of_two_replies_to_one_request_all_use_the_first(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    other = CachedChat(ScriptedChat(["first"]), path)

    class Overtaken(ScriptedChat):
        async def complete(self, request: ChatRequest) -> Reply:
            await other.complete(request)
            return await super().complete(request)

    chat = CachedChat(Overtaken(["second"]), path)
    assert complete(chat, request()) == ["first"]
    assert [reply.text for reply in chat.replies] == ["first", "second"]
    assert complete(CachedChat(ScriptedChat([]), path), request()) == ["first"]


def test_what_a_full_disk_refused_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replies.jsonl"
    chat = CachedChat(ScriptedChat(["one", "two"]), path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cached, "append_jsonl", full)
        with pytest.raises(OSError, match="No space"):
            complete(chat, request("a"))
    assert complete(chat, request("b")) == ["two"]
    assert complete(chat, request("a")) == ["one"]


def test_many_replies_at_once_share_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def counted(path: Path, lines: Sequence[CachedReply]) -> None:
        batches.append(len(lines))
        append_jsonl(path, lines)

    monkeypatch.setattr(cached, "append_jsonl", counted)
    chat = CachedChat(ScriptedChat(lambda messages: messages[0].content), tmp_path / "replies.jsonl")
    assert complete(chat, *(request(str(n)) for n in range(300))) == [str(n) for n in range(300)]
    assert sum(batches) == 300
    assert len(batches) < 100


def _ask_all(path: Path, worker: int, start: Callable[[], object]) -> None:
    chat = CachedChat(ScriptedChat(lambda messages: f"{messages[0].content} by {worker}"), path)
    start()
    found = [complete(chat, *(request(str(n)) for n in range(first, first + 25))) for first in range(0, 100, 25)]
    path.with_suffix(f".{worker}").write_text(json.dumps(found))


def test_processes_share_a_file_and_use_the_same_replies(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_ask_all, args=(path, worker, barrier.wait)) for worker in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
        assert process.exitcode == 0
    first, second = (json.loads(path.with_suffix(f".{worker}").read_text()) for worker in range(2))
    assert first == second
    assert len({line.key for line in read_jsonl(path, CachedReply)}) == 100

"""What error answers of servers mean, whichever server words them, and a success that holds an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")

from internalize.config.endpoint import EndpointConfig
from internalize.errors import ContextError, Declined, InfrastructureError, UserError
from internalize.inference.client import EndpointClient, Refused
from internalize.inference.retries import Retries
from internalize.inference.server import ServerChat
from internalize.inference.server_errors import read_error
from internalize.records import ChatRequest, Message, Reply
from tests.faulty_server import Answer, FaultyServer

LINES = (Path(__file__).parents[1] / "data" / "provider_errors.jsonl").read_text(encoding="utf-8").splitlines()
ERRORS = [json.loads(line) for line in LINES]
ASKED = ChatRequest(messages=(Message(role="user", content="Which number?"),))
QUICK = Retries(first=0.002, longest=0.01)


def complete(answer: Callable[[dict[str, Any]], Answer], asked: ChatRequest = ASKED, **settings: Any) -> Reply:
    """The reply of a server that answers so."""
    with FaultyServer(lambda m, s: "x") as server:
        server.extra["POST /v1/chat/completions"] = answer
        config = EndpointConfig(base_url=server.base_url, model="m", **{"tries": 2, "timeout": 5.0, **settings})
        return asyncio.run(ServerChat(EndpointClient("e", config, QUICK)).complete(asked))


def says(status: int, body: object) -> Callable[[dict[str, Any]], Answer]:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda _: (status, {}, text.encode())


def meaning(status: int, body: object) -> str:
    error = read_error(status, body if isinstance(body, str) else json.dumps(body))
    if error.too_long:
        return "too long"
    if error.declined:
        return "declined"
    return "transient" if error.status in (408, 409, 429) or error.status >= 500 else "refused"


@pytest.mark.parametrize("line", ERRORS, ids=lambda line: f"{line['provider']} {line['status']} {line['kind']}")
def test_every_answer_is_taken_for_what_it_is(line: dict[str, Any]) -> None:
    assert meaning(line["status"], line["body"]) == line["kind"]


def test_a_request_that_an_answer_repeats_is_not_read() -> None:
    repeated = {
        "detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": "prompt is too long"}]
    }
    error = read_error(422, json.dumps(repeated))
    assert not error.too_long
    assert error.named == {"seed"}
    assert error.message == "Extra inputs are not permitted"


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"x"', "[" * 5000, '{"error": {"message": {"message": 7}}}'])
def test_any_body_is_read(text: str) -> None:
    assert not read_error(400, text).too_long


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "error"),
    [("too long", ContextError), ("declined", Declined), ("refused", Refused), ("transient", InfrastructureError)],
)
def test_each_meaning_has_its_error(kind: str, error: type[Exception]) -> None:
    line = next(line for line in ERRORS if line["kind"] == kind)
    with pytest.raises(error) as raised:
        complete(says(line["status"], line["body"]))
    assert type(raised.value) is error


@pytest.mark.server
@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (
            {"error": {"message": "Upstream is busy", "code": 502}},
            InfrastructureError,
            r"HTTP 502 \(Upstream is busy\)",
        ),
        ({"error": {"message": "Out of capacity"}}, InfrastructureError, r"an error in an answer \(Out of capacity\)"),
        ({"error": "Out of capacity"}, InfrastructureError, r"\(Out of capacity\)"),
        ({"object": "error", "message": "no such model", "code": 404}, UserError, "HTTP 404.*no such model"),
        ({"error": {"message": "prompt is too long", "code": 400}}, ContextError, "too long for m"),
        ({"error": {"message": "flagged", "code": "content_filter"}}, Declined, "declines the request .flagged"),
    ],
)
def test_a_success_that_holds_an_error_keeps_its_reason(body: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        complete(says(200, body))

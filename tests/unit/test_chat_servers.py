"""Chat servers with rules of their own: fields they refuse, answers cut off or refused, headers they want."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config, load_config
from internalize.errors import ConfigError, UserError
from internalize.inference.capabilities import probe
from internalize.inference.client import EndpointClient, Refused
from internalize.inference.retries import Retries
from internalize.inference.server import ServerChat
from internalize.judge import ModelJudge
from internalize.records import ChatRequest, Claim, Judgement, Message
from tests.faulty_server import Answer, FaultyServer

pytestmark = pytest.mark.server

ASKED = ChatRequest(messages=(Message(role="user", content="Which number?"),), temperature=0.0, seed=7)
QUICK = Retries(first=0.002, longest=0.01)
FIELDS = ("max_tokens", "max_completion_tokens", "temperature", "seed", "response_format")
Rule = Callable[[dict[str, Any]], str | None]  # a request -> why it is refused


def says(message: dict[str, Any], finish: str = "stop") -> Answer:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def server(rule: Rule, status: int = 400) -> FaultyServer:
    def answer(body: dict[str, Any]) -> Answer:
        if refusal := rule(body):
            return status, {}, refusal.encode()
        return says({"content": "7"})

    return FaultyServer(lambda m, s: "7", extra={"POST /v1/chat/completions": answer})


def chat_with(running: FaultyServer, **settings: Any) -> ServerChat:
    config = EndpointConfig(base_url=running.base_url, model="m", **{"timeout": 5.0, "tries": 2, **settings})
    return ServerChat(EndpointClient("e", config, QUICK))


def error(message: str, **more: Any) -> str:
    return json.dumps({"error": {"message": message, **more}})


@pytest.mark.parametrize("times", [1, 4, 1000])
def test_a_server_that_fails_at_every_schema_has_none(times: int) -> None:
    left = iter(range(times))

    def answer(body: dict[str, Any]) -> Answer:
        if "response_format" in body and next(left, None) is not None:
            return 500, {}, error("Internal server error").encode()
        return says({"content": '{"ok": true}'})

    with FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer}) as running:
        found = asyncio.run(probe(chat_with(running, tries=20).client))
    assert found.schemas is (times < 5)


# -- fields that a server refuses --------------------------------------------------------------------------------------


def reasoning_model(body: dict[str, Any]) -> str | None:
    if "max_tokens" in body:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return error(words, param="max_tokens", code="unsupported_parameter")
    if body.get("temperature", 1) != 1:
        words = (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
        )
        return error(words, param="temperature", code="unsupported_value")
    return None


def forbids(*names: str) -> Rule:
    """A strict server that names all it does not know, with the request repeated."""

    def rule(body: dict[str, Any]) -> str | None:
        found = [name for name in names if name in body]
        detail = [
            {"type": "extra_forbidden", "loc": ["body", n], "msg": "Extra inputs are not permitted"} for n in found
        ]
        return (
            json.dumps({"object": "error", "message": {"detail": [d | {"input": body} for d in detail]}})
            if found
            else None
        )

    return rule


def names_in_words(words: str, name: str) -> Rule:
    return lambda body: error(words) if name in body else None


def both_limits_unknown(body: dict[str, Any]) -> str | None:
    found = next((name for name in ("max_completion_tokens", "max_tokens") if name in body), None)
    return error(f"Unknown field: {found}") if found else None


@pytest.mark.parametrize(
    ("rule", "status", "gone", "asked"),
    [
        (reasoning_model, 400, {"max_tokens", "temperature", "seed"} - {"seed"}, 3),
        (forbids("seed"), 422, {"seed"}, 2),
        (forbids("seed", "temperature"), 422, {"seed", "temperature"}, 3),
        (forbids("response_format"), 422, {"response_format"}, 2),
        (forbids("seed", "response_format"), 422, {"seed", "response_format"}, 3),
        (names_in_words("seed: Extra inputs are not permitted", "seed"), 400, {"seed"}, 2),
        (names_in_words("property 'seed' is unsupported", "seed"), 400, {"seed"}, 2),
        (names_in_words('Unknown name "seed": Cannot find field.', "seed"), 400, {"seed"}, 2),
        (names_in_words("`temperature` must be strictly positive", "temperature"), 422, {"temperature"}, 2),
        (names_in_words("This response_format is unavailable", "response_format"), 400, {"response_format"}, 2),
        (names_in_words("no", "response_format"), 501, {"response_format"}, 2),
        (both_limits_unknown, 400, {"max_tokens"}, 3),
    ],
)  # fmt: skip
def test_a_field_that_is_refused_by_name_is_left_out_from_then_on(
    rule: Rule, status: int, gone: set[str], asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    request = ASKED.model_copy(update={"response_schema": {"type": "object"}})
    with server(rule, status) as running:
        chat = chat_with(running)
        assert [asyncio.run(chat.complete(request)).text for _ in range(2)] == ["7", "7"]
        assert len(running.requests) == asked + 1  # what was learnt is not asked again
        served = running.requests[-1]
    assert {"max_tokens", "temperature", "seed", "response_format"} - served.keys() == gone
    assert ("max_completion_tokens" in served) is (rule is reasoning_model)
    assert served.get("max_completion_tokens", 1024) == 1024
    told = [record.getMessage() for record in caplog.records if "refuses the field" in record.getMessage()]
    assert len(told) == len(gone)
    assert chat.schemas is ("response_format" not in gone)


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 1024. This model supports at most 512 completion tokens.",  # a value, not the field
        "Invalid max_tokens value, the valid range of max_tokens is [1, 512]",
        "The model m does not exist",
        "Invalid value for messages[0].role",
    ],
)
def test_a_refusal_that_no_field_explains_stays_one(words: str) -> None:
    with server(lambda _: error(words)) as running:
        chat = chat_with(running)
        with pytest.raises(Refused, match=words.split(":", maxsplit=1)[0].replace("[", r"\[")):
            asyncio.run(chat.complete(ASKED))
        assert len(running.requests) == 1
        assert chat.changes == {}


def test_what_was_changed_in_vain_is_not_learnt() -> None:
    with server(lambda body: error("seed is unknown" if "seed" in body else "no such model")) as running:
        chat = chat_with(running)
        with pytest.raises(Refused, match="no such model"):
            asyncio.run(chat.complete(ASKED))
        assert chat.changes == {}


# -- what a recipe adds ------------------------------------------------------------------------------------------------


def test_a_recipe_adds_fields_headers_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "s3cret-value")
    seen: list[dict[str, str]] = []
    with server(
        lambda body: error("reasoning_effort of s3cret-value?") if body.get("temperature") == 0 else None
    ) as running:
        settings = {
            "body": {"reasoning_effort": "low", "temperature": 1},
            "headers": {"X-Title": "internalize", "api-key": "$GATEWAY_KEY"},
            "answer_tokens": 4000,
        }
        chat = chat_with(running, **settings)
        assert asyncio.run(chat.complete(ASKED)).text == "7"
        (body,) = running.requests
        assert {name: body[name] for name in ("reasoning_effort", "temperature", "max_tokens")} == {
            "reasoning_effort": "low", "temperature": 1, "max_tokens": 4000,
        }  # fmt: skip
        longer = ASKED.model_copy(update={"max_tokens": 5000})
        asyncio.run(chat.complete(longer))
        assert running.requests[-1]["max_tokens"] == 5000
        assert chat.client._headers() == {"X-Title": "internalize", "api-key": "s3cret-value"}
        assert chat.name.startswith("e/m#")  # a cache must not take the replies of other settings
        assert chat_with(running).name == "e/m"
        with pytest.raises(Refused) as raised:
            asyncio.run(chat_with(running, headers=settings["headers"]).complete(ASKED))
    assert "s3cret" not in str(raised.value)
    assert not seen
    monkeypatch.delenv("GATEWAY_KEY")
    with pytest.raises(UserError, match=r"GATEWAY_KEY is not set \(endpoints\.e\.headers\.api-key\)"):
        chat_with(running, **settings)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("body = { stream = true }", "body.stream cannot be set in a recipe"),
        ("body = { messages = [] }", "body.messages cannot be set in a recipe"),
        ('headers = { api-key = "abc" }', "headers.api-key would be a key in a recipe"),
        ('headers = { Authorization = "Bearer abc" }', "headers.Authorization would be a key in a recipe"),
    ],
)
def test_what_a_recipe_may_not_add(setting: str, told: str, tmp_path: Any) -> None:
    (tmp_path / "r.toml").write_text(f'[endpoints.e]\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n{setting}\n')
    with pytest.raises(ConfigError, match=told):
        load_config(tmp_path / "r.toml")


def test_a_run_stored_before_these_keys_existed_can_go_on() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    recipe = {"judge": {"kind": "model", "endpoint": "e"}, "endpoints": {"e": endpoint}}
    config = Config.model_validate(recipe)
    stored = config.dump()
    for name in ("body", "headers", "answer_tokens"):
        del stored["endpoints"]["e"][name]
    assert config.changed_from(stored) == []
    raised = Config.model_validate(
        recipe | {"endpoints": {"e": endpoint | {"answer_tokens": 9, "headers": {"X-Title": "t"}}}}
    )
    assert raised.changed_from(stored) == ["endpoints.e.answer_tokens"]


# -- answers that are no verdict ---------------------------------------------------------------------------------------

VERDICT = {"content": json.dumps({"reason": "the same city", "correct": True})}


def judged(answer: Callable[[dict[str, Any]], Answer], **settings: Any) -> Judgement:
    with FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer}) as running:
        judge = ModelJudge(chat_with(running, **settings))
        return asyncio.run(judge.judge(Claim(question="?", reference="Paris", answer="Lutetia")))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda _: says({"content": None, "refusal": "I cannot judge that."}), "refused: it is a refusal (I can"),
        (lambda _: says({"content": ""}, "content_filter"), "refused: "),
        (lambda _: (400, {}, error("flagged", code="content_filter").encode()), "refused: "),
        (lambda _: says({"content": ""}), "empty: "),
        (lambda _: says({"content": "<think>It is Paris.</think>"}), "empty: "),
        (lambda _: says({"content": None}, "length"), "cut off: "),
        (lambda _: says({"content": '{"correct": "yes"}'}), "invalid: "),
        (lambda _: says({"content": "[true]"}), "invalid: "),
        (lambda _: says({"content": "Correct."}), "invalid: "),
        (lambda _: (400, {}, error("prompt is too long").encode()), "too long: "),
        (lambda _: (500, {}, b""), "unreachable: "),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_verdict_is_unscored_with_its_kind(
    answer: Callable[[dict[str, Any]], Answer], kind: str
) -> None:
    found = judged(answer)
    assert found.score is None
    assert found.reason.startswith(kind)


def test_a_judge_that_reasons_gets_the_room_it_needs() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (
            says({"content": None, "reasoning_content": "hm"}, "length") if body["max_tokens"] < 3000 else says(VERDICT)
        )

    assert judged(answer).score == 1.0  # 256, 1,024, then 4,096 tokens
    assert judged(answer, answer_tokens=3000).score == 1.0


@pytest.mark.parametrize(
    ("most", "told"),
    [
        (10, "JSON schemas, reasons before it answers"),
        (100, "JSON schemas, reasons before it answers"),
        (
            2000,
            "answers were cut off at 256 tokens: raise endpoints.e.answer_tokens",
        ),
    ],
)
def test_the_probe_tells_of_a_model_that_reasons(most: int, told: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if body["max_tokens"] < most:
            return says({"content": None, "reasoning_content": "hm"}, "length")
        return says({"content": '{"ok": true}', "reasoning_content": "hm"})

    with FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer}) as running:
        assert asyncio.run(probe(chat_with(running).client)).text.endswith(f", {told}")


def test_the_probe_tells_which_fields_a_server_refuses() -> None:
    with server(forbids("seed", "temperature"), 422) as running:
        assert "takes no seed and no temperature" in asyncio.run(probe(chat_with(running).client)).text

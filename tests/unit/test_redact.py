"""Secrets go, harmless text stays, and no sampled id outlives the text it stood for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import internalize
from benchmarks.secrets import FORMATS, false_alarms, missed
from internalize.config.redact import RedactConfig
from internalize.config.schema import load_config
from internalize.errors import ConfigError
from internalize.experience.redact import (
    RedactionCount,
    Redactions,
    Redactor,
    note,
    require_no_secrets,
    without_secrets,
)
from internalize.records import Injection, Message, ToolCall, Trajectory
from internalize.runs.names import REDACTIONS
from tests.steps import act, step

REDACTOR = Redactor.of(RedactConfig(patterns=(r"ACME-\d+",)))
SECRETS = {
    "api key": ("sk-proj-abcdefghijklmnop1234", "AKIA" + "ABCDEFGHIJKLMNOP", "ghp_" + "a1B2" * 9, "hf_" + "Ab3d" * 8),
    "jwt": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij",),
    "private key": ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",),
    "email": ("a.b+c@example.co.uk",),
    "pattern": ("ACME-12",),
}
ALL = [(kind, secret) for kind, secrets in SECRETS.items() for secret in secrets]


@pytest.mark.parametrize(("kind", "secret"), ALL)
def test_a_secret_is_removed_and_counted(kind: str, secret: str) -> None:
    text, counts = REDACTOR.text(f"before {secret} after")
    assert text == f"before [{kind} removed] after"
    assert counts == {kind: 1}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("password=hunter2, next", "password=[password removed], next"),
        ("DB_PASSWORD: 'a b c' x", "DB_PASSWORD: [password removed] x"),
        ('{"api_key": "zzz", "q": 1}', '{"api_key": [password removed], "q": 1}'),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz0123", "Authorization: Bearer [bearer token removed]"),
        ("https://bob:pw123@host/x", "https://[url login removed]@host/x"),
    ],
)
def test_what_names_a_secret_stays(text: str, left: str) -> None:
    assert REDACTOR.text(text)[0] == left


@pytest.mark.parametrize(
    "text",
    [
        "the password is needed: ask for it", "getpass.getpass(prompt='Password: ')", "password: str = None",
        "The default value of secret= is None", "task-sk-learning-of-many-things",
        "login(user, password=None, *, port)",
        "What is the default of `password` of `imaplib.IMAP4.login`?", "https://docs.python.org:443/3/@x", "a @ b.c",
    ],
)  # fmt: skip
def test_harmless_text_stays(text: str) -> None:
    assert REDACTOR.text(text) == (text, {})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from([s for _, s in ALL]), st.just("pwd=x ")), max_size=8))
def test_redacting_twice_changes_nothing_more(parts: list[str]) -> None:
    once, _ = REDACTOR.text(" ".join(parts))
    assert REDACTOR.text(once)[0] == once
    assert not any(secret in once for _, secret in ALL)


@pytest.mark.parametrize(("pattern", "problem"), [("(", "is no regular expression"), ("x*", "matches the empty text")])
def test_a_bad_pattern_is_named(pattern: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"redact\.patterns: ") as caught:
        load_config(None, [f"redact.patterns=['fine', '{pattern}']"])
    assert f"{pattern!r} {problem}" in str(caught.value)


def episode(action: str, seen: str) -> Trajectory:
    call = ToolCall(id="1", name="login", arguments='{"user": "me", "password": "hunter2"}')
    send = step(
        injection=Injection(item_ids=("i",), text="Mail me@example.org.", served_by="x"),
        text=f"send[{action}]",
        call=act("send", action),
        token_ids=(1, 2, 3),
        logprobs=(0.0, 0.0, 0.0),
        seen=seen,
    )
    return Trajectory(
        id="t", task_id="q", env="e", split="train", iteration=1, seed=0, checkpoint="c",
        prompt=(
            Message(role="user", content="Ask you@example.org"),
            Message(role="assistant", content="", tool_calls=(call,)),
        ),
        steps=(send, step(text="end[]", token_ids=(4,))), termination="answered", score=1.0,
    )  # fmt: skip


def test_a_trajectory_is_redacted_everywhere_and_loses_the_ids_of_changed_actions_only() -> None:
    found, counts = REDACTOR.trajectory(episode("pwd=abc", "key sk-abcdefghij0123456789"))
    assert counts == {"email": 2, "password": 3, "api key": 1}  # of an action both text and argument
    text = found.model_dump_json()
    assert not any(secret in text for secret in ("example.org", "hunter2", "abc]", "sk-abc"))
    assert found.prompt[1].tool_calls[0].arguments == '{"user": "me", "password": "[password removed]"}'
    assert [step.token_ids for step in found.steps] == [(), (4,)]


def test_training_keeps_actions_as_sampled_or_not_at_all() -> None:
    clean, seen, acted = episode("x", "y"), episode("x", "a@b.org"), episode("to a@b.org", "y")
    kept, counts, dropped = REDACTOR.trainable([(clean, 1.0), (acted, 2.0), (seen, 3.0)])
    assert (len(kept), dropped) == (2, 1)
    assert all(step.token_ids for t, _ in kept for step in t.steps)
    assert kept[1][0].steps[0].observation == "[email removed]"
    assert kept[1][1] == 3.0
    assert counts["email"] == 5  # question and injection of both, one observation


def test_switched_off_it_removes_nothing() -> None:
    off = Redactor.of(RedactConfig(enabled=False))
    assert off.trainable([(episode("a@b.org", "y"), 1.0)]) == ([(episode("a@b.org", "y"), 1.0)], {}, 0)


def test_counts_are_noted_stage_by_stage_and_only_if_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / REDACTIONS
    harmless = episode("x", "y").model_copy(update={"prompt": (), "steps": ()})
    assert without_secrets([(harmless, 1.0)], RedactConfig(), path, "round 0") == [(harmless, 1.0)]
    assert not path.exists()
    note(path, "extract", RedactionCount(removed={"email": 2}))
    assert without_secrets([(episode("a@b.org", ""), 1.0)], RedactConfig(), path, "round 0") == []
    note(path, "extract", RedactionCount(removed={"email": 4}))
    found = Redactions.model_validate_json(path.read_bytes())
    assert found.stages == {"extract": RedactionCount(removed={"email": 4}), "round 0": RedactionCount(dropped=1)}


@pytest.mark.slow
def test_formats_of_many_makers_are_removed_and_harmless_lines_stay() -> None:
    assert len(FORMATS) >= 75
    assert missed(REDACTOR) == {}
    count, hit = false_alarms(REDACTOR)
    assert count > 40_000
    assert len(hit) < count / 10_000, hit


@pytest.mark.parametrize(
    "text",
    ["a." * 24_000, "eyJ-" * 12_000, "token=" * 8_000, "sk-" * 16_000, "a@" + "b." * 24_000, "curl " * 9_600,
     "-----BEGIN PRIVATE KEY-----" * 1_700, "password: " * 4_800, "cookie: " + "=" * 48_000],
)  # fmt: skip
def test_text_that_patterns_could_backtrack_over_is_redacted_like_any_other(text: str) -> None:
    once, _ = REDACTOR.text(text)  # 48 KB took 15 seconds where a pattern went back and forth
    assert REDACTOR.text(once)[0] == once


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("env.options.url='https://bob:pw123secret@host/mcp'", "env.options.url"),
        ("env.options.command=['npx', 'server', '--token', 'a8f3k2j4h5g6']", "env.options.command"),
        ("endpoints.e.base_url='https://host/v1?api_key=a8f3k2j4h5g6d7'", "endpoints.e.base_url"),
        ("evaluate.further.x.env.options.headers={a='Bearer abcdefghijklmnop12'}", "evaluate.further.x.env.options"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_by_its_key(change: str, key: str) -> None:
    config = load_config(None, [change, *(["endpoints.e.model=m"] if "endpoints" in change else [])])
    with pytest.raises(ConfigError, match=rf"^{key}.*: holds a secret \(.*environment variable") as caught:
        require_no_secrets(config)
    assert "a8f3" not in str(caught.value)


def test_recipes_of_the_package_and_names_of_variables_hold_none() -> None:
    for file in Path(internalize.__file__).parent.glob("config/recipes/*.toml"):
        require_no_secrets(load_config(file))
    require_no_secrets(load_config(None, ["env.name=web", "endpoints.e.key_env=OPENAI_API_KEY", "endpoints.e.model=m",
                                          "endpoints.e.base_url=http://127.0.0.1:8000/v1"]))  # fmt: skip

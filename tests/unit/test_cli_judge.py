"""`internalize judge`: files in and out, resumption, refusals, exit codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from internalize.cli.main import main
from internalize.judge.claims import Verdict
from internalize.runs.store import read_jsonl
from tests.faulty_server import NO_ANSWER, Answer, FaultyServer

CLAIMS = [("Paris", "paris."), ("Paris", "Rome"), ("1,000", "1000"), ("x", "y")]


def write(path: Path, rows: Sequence[tuple[str, str]] = CLAIMS) -> Path:
    lines = [json.dumps({"question": f"q{n}", "reference": r, "answer": a}) for n, (r, a) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["judge", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "v.jsonl"
    code, said, _ = run(capsys, write(tmp_path / "c.jsonl"), "--out", out)
    assert (code, [v.score for v in read_jsonl(out, Verdict)]) == (0, [1.0, 0.0, 1.0, 0.0])
    assert "4 answers, 50.0% accepted" in said
    before = out.read_bytes()
    assert run(capsys, tmp_path / "c.jsonl", "--out", out)[0] == 0
    assert out.read_bytes() == before


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims, out = write(tmp_path / "c.jsonl"), tmp_path / "v.jsonl"
    run(capsys, claims, "--out", out)
    before = out.read_bytes()
    for arguments, words in (
        ((claims, "--out", out, "--set", "judge.kind=maths"), "other claims or of another judge"),
        ((write(tmp_path / "d.jsonl", CLAIMS[:2]), "--out", out), "other claims or of another judge"),
        ((write(tmp_path / "e.jsonl", []), "--out", tmp_path / "w.jsonl"), "holds no claims"),
        ((tmp_path / "none.jsonl", "--out", tmp_path / "w.jsonl"), "cannot be read"),
        ((claims, "--out", tmp_path / "no" / "v.jsonl"), "does not exist"),
        ((claims, "--out", out, "--set", "judge.kind=model"), "judge.endpoint"),
        ((claims, "--out", out, "--set", "judge.kind=model", "--set", "judge.endpoint=self"), "name an endpoint"),
    ):
        code, _, error = run(capsys, *arguments)
        assert (code, len(error.strip().splitlines())) == (2, 1), error
        assert words in error
    assert out.read_bytes() == before


def test_repeated_samples_keep_their_names_and_are_judged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(1, "Paris"), ("b", "Rome"), (None, "Paris"), (1, "Paris")]
    lines = [{"question": "?", "reference": "Paris", "answer": a} | ({"id": i} if i else {}) for i, a in rows]
    claims, out = tmp_path / "c.jsonl", tmp_path / "v.jsonl"
    claims.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert run(capsys, claims, "--out", out)[0] == 0
    found = read_jsonl(out, Verdict)
    assert [(v.claim_id, v.score) for v in found] == [(1, 1.0), ("b", 0.0), (None, 1.0), (1, 1.0)]
    assert len({v.id for v in found}) == 4
    before = out.read_bytes()
    out.write_bytes(before[: before.index(b"\n", before.index(b"\n") + 1) + 1])
    assert run(capsys, claims, "--out", out)[0] == 0
    assert out.read_bytes() == before


def grades(messages: list[dict[str, object]], _: object) -> str:
    """Accepts what holds a P."""
    content = str(messages[1]["content"])
    answer = content.partition("<answer-")[2].partition("</answer-")[0].partition(">")[2]
    return json.dumps({"reason": "it holds a P" if "P" in answer else "no P", "correct": "P" in answer})


def recipe(path: Path, url: str, tries: int) -> Path:
    path.write_text(
        f'[judge]\nkind = "model"\nendpoint = "grader"\n'
        f'[endpoints.grader]\nbase_url = "{url}"\nmodel = "m"\ntries = {tries}\ntimeout = 2\n',
        encoding="utf-8",
    )
    return path


ROWS = [("Paris", f"{'P' if n % 2 else 'R'}{n}") for n in range(12)]


@pytest.mark.server
def test_no_failure_of_a_server_becomes_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    claims, out = write(tmp_path / "c.jsonl", ROWS), tmp_path / "v.jsonl"
    wanted = [float(n % 2) for n in range(12)]
    kinds = [kind for kind in NO_ANSWER if kind != "slow"]
    with FaultyServer(grades, share=0.7, seed=3, kinds=kinds) as server:
        settings = recipe(tmp_path / "r.toml", server.base_url, tries=1)
        code, said, error = run(capsys, claims, "--out", out, "--recipe", settings)
        assert server.faults.total() > 0
    found = read_jsonl(out, Verdict)
    unscored = sum(verdict.score is None for verdict in found)
    assert 0 < unscored <= 12
    assert all(verdict.score in (None, right) for verdict, right in zip(found, wanted, strict=True))
    assert (code, f"{unscored} unscored" in said) == (3, True), error
    with FaultyServer(grades) as server:
        lines = settings.read_text(encoding="utf-8").splitlines()
        same_name = [f'base_url = "{server.base_url}"' if line.startswith("base_url") else line for line in lines]
        settings.write_text("\n".join(same_name), encoding="utf-8")
        code, _, error = run(capsys, claims, "--out", tmp_path / "w.jsonl", "--recipe", settings)
        assert code == 0, error
        assert server.answered == 2 * len(ROWS)
    assert [verdict.score for verdict in read_jsonl(tmp_path / "w.jsonl", Verdict)] == wanted


def refuses(body: dict[str, Any]) -> Answer:
    """Answers by the claim: refuses R1, says nothing to R3, gives the wrong type to R5, and else accepts."""
    content = str(body["messages"])
    message: dict[str, object] = {"content": json.dumps({"reason": "", "correct": True})}
    if "R1" in content:
        message = {"content": None, "refusal": "I cannot grade that."}
    elif "R3" in content:
        message = {"content": ""}
    elif "R5" in content:
        message = {"content": '{"reason": "", "correct": "yes"}'}
    return 200, {}, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


@pytest.mark.server
def test_answers_that_are_no_verdict_are_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    claims = write(tmp_path / "c.jsonl", [("Paris", f"R{n}x") for n in (1, 1.5, 3, 5, 7)])
    with FaultyServer(grades, extra={"POST /v1/chat/completions": refuses}) as server:
        settings = recipe(tmp_path / "r.toml", server.base_url, tries=1)
        code, said, _ = run(capsys, claims, "--out", tmp_path / "v.jsonl", "--recipe", settings)
    assert code == 3
    assert "5 answers, 100.0% accepted" in said
    assert "4 unscored (2 refused, 1 empty, 1 invalid)" in said
    reasons = [verdict.reason.partition(":")[0] for verdict in read_jsonl(tmp_path / "v.jsonl", Verdict)]
    assert reasons == ["refused", "refused", "empty", "invalid", ""]


@pytest.mark.server
def test_only_what_is_unscored_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    claims, out = write(tmp_path / "c.jsonl", ROWS), tmp_path / "v.jsonl"
    with FaultyServer(grades, share=1.0, kinds=["dropped"], limit=5) as server:
        settings = recipe(tmp_path / "r.toml", server.base_url, tries=1)
        first, _, _ = run(capsys, claims, "--out", out, "--recipe", settings)
        unscored = sum(verdict.score is None for verdict in read_jsonl(out, Verdict))
        answered = server.answered
        second, _, error = run(capsys, claims, "--out", out, "--recipe", settings)
        assert (first, second) == (3, 0), error
        assert 0 < unscored <= 5
        assert 0 < server.answered - answered <= 2 * unscored
        assert server.answered == 2 * len(ROWS), "an asking that was answered is not paid for twice"
    assert [verdict.score for verdict in read_jsonl(out, Verdict)] == [float(n % 2) for n in range(12)]

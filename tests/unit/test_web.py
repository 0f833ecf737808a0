"""Environment `web` over a real site on loopback: pages that go wrong are seen, sites that go away are not zeros."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internalize.environments.question_files import Row
from internalize.environments.validate import replay, validate
from internalize.environments.web import exchange
from internalize.environments.web import sources as web_sources
from internalize.environments.web.pages import passages, pick
from internalize.environments.web.questions import decrypted, web_task
from internalize.errors import DataError, InfrastructureError, TaskError, UserError
from internalize.inference.retries import Retries
from internalize.inference.token_estimate import estimated_tokens
from internalize.records import ChatRequest, Claim, Reply, ToolCall
from tests.faulty_server import FaultyServer
from tests.site import Site
from tests.steps import act

pytest.importorskip("httpx", reason="needs the extra 'web'")

from internalize.environments.web import env as web_module
from internalize.environments.web.env import Web, WebEpisode
from internalize.environments.web.sources import HttpReader, Unreadable

ASKED = {"question": "What is the pressure of pump seven?", "answer": "4 bar", "split": "test"}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(web_sources, "RETRIES", Retries(first=0.0))
    monkeypatch.setenv("SERPER_API_KEY", "right")
    monkeypatch.setenv("JINA_API_KEY", "right")
    started = Site()
    yield started
    started.stop()


def file(folder: Path, *rows: object, name: str = "q.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def web(site: Site, tmp_path: Path) -> Iterator[Web]:
    env = Web(questions=file(tmp_path, ASKED), search=site.address, allow_hosts=[site.host], seconds=2, characters=600)
    yield env
    env.close()


def visit(url: str, goal: str = "") -> ToolCall:
    return act("visit", json.dumps({"url": url, "goal": goal} if goal else {"url": url}))


def search(query: str) -> ToolCall:
    return act("search", query)


def answer(text: str) -> ToolCall:
    return act("answer", text)


def start(env: Web) -> WebEpisode:
    return env.episode(env.tasks("test")[0])


# -- an episode --------------------------------------------------------------------------------------------------------


def test_search_follow_links_answer(web: Web, site: Site) -> None:
    episode = start(web)
    assert episode.step(search("pump")) == (
        f"1. P7: {site.address}/pumps/p7.html\nA pump.\n2. Set: https://huggingface.co/datasets/x"
    )
    home = str(episode.step(visit(site.address)))
    links = f"Links:\npump seven: {site.address}/pumps/p7.html\nthis: {site.address}"
    assert home == f"Home\n# Pumps\nAll about pumps.\nSee pump seven, nothing or this.\n{links}"
    link = home.splitlines()[5].partition(": ")[2]
    assert episode.step(visit(link, "pressure")) == (
        f"P7\nThe pressure of pump seven is 4 bar.\nhome\nLinks:\nhome: {site.address}/"
    )
    assert episode.step(act("python", '{"code": "print(4)"}')) == "4"
    assert episode.step(None) == "Unknown action."
    assert episode.score() == 0.0
    assert episode.claim() is None
    assert episode.step(answer("The answer is 4 bar.")) is None
    assert episode.score() == 1.0
    with pytest.raises(InfrastructureError, match="single-use"):
        episode.step(search("more"))


def test_encodings_damage_and_many_links(web: Web, site: Site) -> None:
    episode = start(web)
    assert episode.step(visit(f"{site.address}/gbk")) == "镕基"
    assert episode.step(visit(f"{site.address}/damaged")) == "Gr��e\n(2 characters of the page cannot be read.)"
    shown = str(episode.step(visit(f"{site.address}/links"))).partition("Links:\n")[2].split("\n")
    assert shown[0] == f"page 0: {site.address}/p0"
    assert len(shown) > 5
    assert shown[-1] == f"(and {500 - len(shown) + 1} more links)"
    assert all(line.startswith(f"page {n}: ") for n, line in enumerate(shown[:-1]))


def test_other_words_are_left_to_a_judge(web: Web) -> None:
    episode = start(web)
    episode.step(answer("four bars"))
    assert episode.score() is None
    assert episode.claim() == Claim(question=ASKED["question"], reference="4 bar", answer="four bars")


def test_an_empty_answer_needs_no_judge(web: Web) -> None:
    episode = start(web)
    episode.step(answer("  "))
    assert episode.score() == 0.0


def test_past_the_limits_only_an_answer_is_taken(site: Site, tmp_path: Path) -> None:
    env = Web(questions=file(tmp_path, ASKED), search=site.address, calls=2, allow_hosts=[site.host])
    episode = start(env)
    assert [str(episode.step(search("pump")))[:2] for _ in range(3)] == ["1.", "1.", "Th"]
    assert episode.step(answer("4 bar")) is None
    assert episode.score() == 1.0
    few = start(Web(questions=file(tmp_path, ASKED), search=site.address, tokens=10, allow_hosts=[site.host]))
    few.step(visit(site.address))
    assert str(few.step(visit(site.address))).startswith("The limit of this episode")


def test_an_ideograph_is_about_a_token(folder: Path) -> None:
    assert [estimated_tokens(text) for text in ("", "abcd", "abcde", "\u9600\u95e8", "\u9600\u95e8abcd")] == [
        0,
        1,
        2,
        2,
        3,
    ]
    (folder / "zh.md").write_text("\u9600" * 90)
    episode = start(local(folder, ASKED, tokens=85))
    episode.step(visit("zh.md"))
    assert str(episode.step(visit("zh.md"))).startswith("The limit of this episode")


def test_an_episode_ends_by_the_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, now = local(folder, ASKED), [0.0]
    monkeypatch.setattr(web_module.time, "monotonic", lambda: now[0])
    episode = start(env)
    now[0] = 149 * 60.0
    assert str(episode.step(visit("index.html"))).startswith("Start")
    now[0] = 150 * 60.0
    assert str(episode.step(visit("index.html"))).startswith("The limit of this episode")
    assert episode.step(answer("4 bar")) is None


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere", "The page cannot be read (HTTP 404)."),
        ("/broken", "The page cannot be read (HTTP 500)."),
        ("/circle", "The page leads in circles."),
        ("/to/pumps/p7.html", "P7\nThe pressure of pump seven is 4 bar.\nhome\nLinks:\nhome: ROOT/"),
        ("/away", "This address is private and may not be read."),
        ("/file", "Only http and https addresses can be read."),
        ("/picture.png", "This is no page of text (image/png)."),
        ("/data.json", '{"pressure": 5}'),
        ("/latin", "Größe"),
        ("/nonsense", "text"),
        ("/idna", "text"),
        ("/302", "The page cannot be read (HTTP 302)."),
        ("/300", "The page cannot be read (HTTP 300)."),
        ("/lost", "The page leads to what is no address."),
        ("/packed", "The page is packed in a way that cannot be read."),
        ("/a\x01b", "This is no address."),
        ("/\ud800", "This is no address."),
        ("/slow", "The page did not come within 2 s."),
        ("/drip", "The page did not come within 2 s."),
    ],
)
def test_what_a_page_shows(web: Web, site: Site, path: str, said: str) -> None:
    assert start(web).step(visit(site.address + path)) == said.replace("ROOT", site.address)


def test_a_huge_page_is_cut(web: Web, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_BYTES", 20_000)
    shown = str(start(web).step(visit(f"{site.address}/huge")))
    assert shown.startswith("start\nx\n")
    assert shown.endswith("(The page is longer than what was read.)")
    assert len(shown) < 700


def test_a_goal_finds_its_passage(web: Web, site: Site) -> None:
    shown = str(start(web).step(visit(f"{site.address}/long.html", "When does the boiler valve open?")))
    assert "ninety degrees" in shown
    assert "ninety degrees" not in str(start(web).step(visit(f"{site.address}/long.html")))
    assert len(shown) < 700


def test_no_cookie_is_kept_from_one_page_to_the_next(web: Web, site: Site) -> None:
    assert [start(web).step(visit(f"{site.address}/cookie")) for _ in range(2)] == ["no cookie", "no cookie"]


class Extractor:
    name = "extractor"

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def complete(self, request: ChatRequest) -> Reply:
        self.seen.append(request.messages[-1].content)
        return Reply(text="It says 4 bar.")


def test_a_language_model_may_extract_what_serves_the_goal(web: Web, site: Site) -> None:
    chat = Extractor()
    web.world = type(web.world)(**{**vars(web.world), "chat": chat})
    assert str(start(web).step(visit(f"{site.address}/pumps/p7.html", "pressure"))).startswith("P7\nIt says 4 bar.\n")
    assert "The pressure of pump seven" in chat.seen[0]
    assert "The pressure" in str(start(web).step(visit(f"{site.address}/pumps/p7.html")))  # no goal, no extract
    assert len(chat.seen) == 1


def reads(server: FaultyServer, **options: Any) -> dict[str, Any]:
    return {"summarizer": {"base_url": server.base_url, "model": "m", "tries": 1}, **options}


def test_the_summarizer_of_the_options_sees_no_secret(folder: Path) -> None:
    pytest.importorskip("openai", reason="needs the extra 'server'")
    (folder / "keys.md").write_text("Mail ann@example.org, code K-123, pressure 4 bar.")
    with FaultyServer(lambda messages, schema: "  It says 4 bar. ") as server:
        env = local(folder, ASKED, **reads(server, redact={"patterns": ["K-[0-9]+"]}))
        assert start(env).step(visit("keys.md", "pressure")) == "It says 4 bar."
        env.close()
    (request,) = server.requests
    shown = request["messages"][-1]["content"]
    assert "Mail [email removed], code [pattern removed], pressure 4 bar." in shown
    assert "pressure\n</goal" in shown
    assert request["max_tokens"] == 1000


@pytest.mark.parametrize(("room", "asked"), [(200_000, 1), (30_000, 2), (8_000, 3), (10, 3)])
def test_a_page_that_is_too_long_for_the_summarizer_is_shown_to_it_in_part(folder: Path, room: int, asked: int) -> None:
    pytest.importorskip("openai", reason="needs the extra 'server'")
    (folder / "long.md").write_text("Nothing of note.\n" * 9_000 + "The valve opens at ninety degrees.\n")
    too_long = b'{"error": {"message": "maximum context length is less", "code": "context_length_exceeded"}}'

    def answered(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if len(body["messages"][-1]["content"]) > room:
            return 400, {}, too_long
        said = {"role": "assistant", "content": "Ninety."}
        return 200, {}, json.dumps({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}).encode()

    with FaultyServer(lambda messages, schema: "", extra={"POST /v1/chat/completions": answered}) as server:
        env = local(folder, ASKED, **reads(server))
        said = str(start(env).step(visit("long.md", "When does the valve open?")))
        env.close()
    assert len(server.requests) == asked
    assert said == "Ninety." if room > 10 else "ninety degrees" in said
    assert asked == 1 or "ninety degrees" in server.requests[-1]["messages"][-1]["content"]


pytestmark = pytest.mark.server


# -- addresses a policy may not reach ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:PORT/", "private"),
        ("http://localhost:PORT/", "private"),
        ("http://127.1:PORT/", "private"),
        ("http://2130706433:PORT/", "private"),
        ("http://0x7f000001:PORT/", "private"),
        ("http://[::1]:PORT/", "private"),
        ("http://[::ffff:127.0.0.1]:PORT/", "private"),
        ("http://0.0.0.0:PORT/", "private"),
        ("http://169.254.169.254/latest/meta-data", "private"),
        ("http://10.0.0.1/", "private"),
        ("http://user:secret@127.0.0.1:PORT/", "private"),
        ("file:///etc/passwd", "Only http"),
        ("gopher://127.0.0.1:PORT/", "Only http"),
        ("127.0.0.1:PORT", "Only http"),
        ("/etc/passwd", "Only http"),
        ("", "Only http"),
        ("http://", "Only http"),
        ("http://127.0.0.1:99999/", "no address"),
        ("http://[bad/", "no address"),
        ("http://no-such-host.invalid/", "no such host"),
        ("https://huggingface.co/datasets/answers", "may not be read"),
        ("https://HuggingFace.co/datasets/answers", "may not be read"),
        ("https://huggingface.co./Datasets/answers", "may not be read"),
        ("https://huggingface.co//datasets/answers", "may not be read"),
        ("https://a:b@huggingface.co:443/./x/..//%64atasets/answers", "may not be read"),
        (r"https://huggingface.co\datasets\answers", "no address|may not be read|no such host"),
    ],
)
def test_private_addresses_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    real = socket.getaddrinfo

    def looked_up(host: str, *further: Any, **named: Any) -> Any:
        if "invalid" in host or "huggingface" in host:  # a machine without a network says that it cannot look up now
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real(host, *further, **named)

    monkeypatch.setattr(web_sources.socket, "getaddrinfo", looked_up)
    with pytest.raises(Unreadable, match=said):
        HttpReader(blocked=["huggingface.co/datasets"]).read(url.replace("PORT", site.host.partition(":")[2]))
    assert site.asked == []


def test_an_allowed_host_is_allowed_by_name_or_port(site: Site) -> None:
    for allowed in (site.host, "127.0.0.1"):
        assert HttpReader(allow=[allowed]).read(site.address).title == "Home"
    with pytest.raises(Unreadable, match="private"):
        HttpReader(allow=["127.0.0.1:1"]).read(site.address)


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, real = iter(["127.0.0.1", "10.0.0.1"]), web_sources.socket.getaddrinfo

    def rebound(host: str, port: int, *further: Any, **named: Any) -> list[Any]:
        return real(next(answers) if host == "pumps.example" else host, port, *further, **named)

    monkeypatch.setattr(web_sources.socket, "getaddrinfo", rebound)
    page = HttpReader(allow=["pumps.example"]).read(f"http://pumps.example:{site.host.partition(':')[2]}/")
    assert page.title == "Home"
    assert site.asked[0][1]["Host"] == f"pumps.example:{site.host.partition(':')[2]}"


# -- what breaks is unscored -------------------------------------------------------------------------------------------


def test_a_site_that_goes_away_is_no_observation(web: Web, site: Site) -> None:
    episode = start(web)
    episode.step(visit(site.address))
    site.stop()
    with pytest.raises(InfrastructureError, match="does not answer any more"):
        episode.step(visit(site.address))


def test_names_that_cannot_be_looked_up_now_are_no_observation(
    web: Web, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode, errors = start(web), [socket.EAI_AGAIN]
    episode.step(visit(site.address))
    real = socket.getaddrinfo

    def looked_up(host: str, *further: Any, **named: Any) -> Any:
        if errors:
            raise socket.gaierror(errors.pop(), "failure in name resolution")
        return real(host, *further, **named)

    monkeypatch.setattr(web_sources.socket, "getaddrinfo", looked_up)
    assert str(episode.step(visit(site.address))).startswith("Home")  # the second try
    errors[:] = [socket.EAI_AGAIN] * 3
    with pytest.raises(InfrastructureError, match=r"the name new\.example cannot be looked up now"):
        episode.step(visit("http://new.example/"))
    errors[:] = [socket.EAI_NONAME] * 3
    with pytest.raises(InfrastructureError, match="cannot be looked up now"):
        episode.step(visit(site.address))  # which had answered before
    errors[:] = [socket.EAI_NONAME]
    assert episode.step(visit("http://new.example/")) == "There is no such host."


def test_a_host_that_never_answered_is_seen(web: Web, site: Site) -> None:
    site.stop()
    assert start(web).step(visit(site.address)) == "The host does not answer."


def test_a_page_that_breaks_off_is_tried_again_then_infrastructure(web: Web, site: Site) -> None:
    with pytest.raises(InfrastructureError, match="does not answer any more"):
        start(web).step(visit(f"{site.address}/cut"))
    assert len(site.asked) == web_sources.RETRIES.tries


def test_a_search_api_is_asked_again_then_infrastructure(web: Web, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.refusals[:] = [500, 429]
    assert str(start(web).step(search("pump"))).startswith("1. P7")
    assert [asked[1]["body"] for asked in site.asked] == [{"q": "pump", "num": 10}] * 3
    monkeypatch.setattr(web_sources, "RETRIES", Retries(first=0.0, total=0.5))
    site.refusals[:], site.retry_after = [503], "30"
    with pytest.raises(InfrastructureError, match=r"fails \(HTTP 503\)"):  # at once: there is no time for what it asks
        start(web).step(search("pump"))
    site.refusals[:], site.retry_after = [503] * 3, "0"
    with pytest.raises(InfrastructureError, match=r"fails \(HTTP 503\)"):
        start(web).step(search("pump"))
    for query in ("malformed",):
        with pytest.raises(InfrastructureError, match="gave no list of results"):
            start(web).step(search(query))
    assert start(web).step(search("nothing")) == "Nothing found."
    site.stop()
    with pytest.raises(InfrastructureError, match="fails"):
        start(web).step(search("pump"))


def test_a_refused_or_missing_key_stops_the_run_and_is_not_shown(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "wrong-secret")
    env = Web(questions=file(tmp_path, ASKED), search=site.address)
    with pytest.raises(UserError, match="refuses the key in SERPER_API_KEY") as caught:
        start(env).step(search("pump"))
    assert "wrong-secret" not in str(caught.value)
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(UserError, match="SERPER_API_KEY is not set"):
        Web(questions=file(tmp_path, ASKED))


def test_a_reader_api_reads_public_addresses_alone(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = [(2, 1, 6, "", ("93.184.215.14", 80))]
    wanted = {"questions": file(tmp_path, ASKED), "search": site.address, "reader": f"{site.address}/reader"}
    env = Web(**wanted)
    assert start(env).step(visit(site.address)) == "This address is private and may not be read."
    real = web_sources.socket.getaddrinfo
    monkeypatch.setattr(
        web_sources.socket, "getaddrinfo", lambda host, *a, **k: public if "example" in host else real(host, *a, **k)
    )
    assert start(env).step(visit("https://example.org/a?b=c")) == "Read for you: https://example.org/a"
    assert start(env).step(visit("https://example.org/blocked")) == "The page cannot be read (HTTP 403)."
    monkeypatch.setenv("JINA_API_KEY", "wrong")
    with pytest.raises(UserError, match="refuses the key in JINA_API_KEY"):
        start(Web(**wanted)).step(visit("https://example.org"))


# -- a folder instead of the web ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "pumps").mkdir(parents=True)
    (root / "index.html").write_text("<title>Start</title><p>See <a href='pumps/p7.html'>seven</a>.")
    (root / "pumps" / "p7.html").write_text("<p>Pressure: 4 bar.<a href='../index.html'>up</a>")
    (root / "notes.md").write_text("# Notes\n\nValves are elsewhere. 阀门\n")
    return root


def local(folder: Path, *rows: object, **options: Any) -> Web:
    return Web(questions=file(folder.parent, *rows), folder=str(folder), **options)


def test_a_folder_is_searched_and_read(folder: Path) -> None:
    env = local(folder, {**ASKED, "pages": ["index.html", "pumps/p7.html"]})
    episode = start(env)
    assert str(episode.step(search("pressure"))).startswith("1. pumps/p7.html: pumps/p7.html\nPressure: 4 bar.")
    assert str(episode.step(search("阀门"))).startswith("1. notes.md")
    assert episode.step(search("zebra")) == episode.step(search(" ")) == "Nothing found."
    assert episode.step(visit("index.html")) == "Start\nSee seven.\nLinks:\nseven: pumps/p7.html"
    assert str(episode.step(visit("pumps/p7.html"))).endswith("up: index.html")
    for nowhere in ("../q.jsonl", "/etc/passwd", "pumps", "http://127.0.0.1"):
        assert episode.step(visit(nowhere)) == "There is no such page."
    rows = list(validate(env, ()))
    assert not any(row.failed for row in rows)
    assert rows[0].text.startswith("test: reference 1/1, 3-3 steps")


def test_without_named_pages_there_is_no_reference(folder: Path, web: Web) -> None:
    assert local(folder, ASKED).solve(local(folder, ASKED).tasks("test")[0]) == ()
    assert web.solve(web.tasks("test")[0]) == ()
    assert next(validate(web, ())).text.startswith("test: no reference for 1 tasks")


def test_a_wrong_page_is_found(folder: Path) -> None:
    env = local(folder, {**ASKED, "pages": ["index.html"], "answer": ""} | {"answer": "4 bar"})
    task = env.tasks("test")[0]
    assert replay(env, task, (answer("five"),)) == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"colour": 1}, "unknown field colour"), ({"calls": 0}, "calls: "), ({"summarizer": {"base_url": "x"}}, "model")],
)
def test_options_that_make_no_sense(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=rf"env\.options of web: .*{said}"):
        local(folder, ASKED, **options)


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    questions, empty = file(tmp_path, ASKED), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TaskError, match="empty holds no"):
        Web(questions=questions, folder=str(empty))
    with pytest.raises(TaskError, match=r"no folder .*none"):
        Web(questions=questions, folder=str(tmp_path / "none"))


# -- files of published benchmarks -------------------------------------------------------------------------------------


def test_webwalkerqa_gaia_and_plain_rows() -> None:
    info = {"difficulty_level": "hard", "source_website": ["https://x/y"], "golden_path": ["root->y"]}
    walker = web_task(
        Row("f, line 1", {"question": "When?", "answer": "May", "root_url": "https://x", "info": info}), "t"
    )
    assert (walker.answer, walker.family, walker.state) == ("May", "hard", {"root_url": "https://x"})
    capital = {"Question": "When?", "Answer": "May", "Root_Url": "https://x", "Info": {"Difficulty_Level": "Easy"}}
    assert web_task(Row("f", capital), "t").family == "Easy"
    gaia = {"task_id": "a", "Question": "Which?", "Final answer": "7", "Level": 2, "file_name": ""}
    assert (web_task(Row("f", gaia), "t").answer, web_task(Row("f", gaia), "t").family) == ("7", "level 2")
    with pytest.raises(DataError, match=r"f: needs the file 'x\.xlsx'"):
        web_task(Row("f", {**gaia, "file_name": "x.xlsx"}), "t")


def encrypted(text: str, canary: str) -> str:
    key = hashlib.sha256(canary.encode()).digest()
    return base64.b64encode(bytes(b ^ key[i % 32] for i, b in enumerate(text.encode()))).decode()


@given(question=st.text(st.characters(exclude_categories=["Cs", "C"]), min_size=1), canary=st.text(min_size=1))
def test_browsecomp_zh_is_decrypted(question: str, canary: str) -> None:
    if not question.strip() or not canary.strip():
        return
    canary = canary.strip()
    cells = {
        "Topic": encrypted("影视", canary),
        "Question": encrypted(question, canary),
        "Answer": encrypted("四", canary),
    }
    task = web_task(Row("f", {**cells, "canary": canary}), "test")
    assert (task.question, task.answer, task.family) == (question.strip(), "四", "影视")


@pytest.mark.parametrize(
    "names", [("problem", "answer"), ("Question", "Answer"), ("query", "groundtruth"), ("question", "solution")]
)
@pytest.mark.parametrize("column", ["canary", "Canary", "canary_string"])
def test_whatever_its_columns_are_called_an_encrypted_row_is_decrypted(names: tuple[str, str], column: str) -> None:
    clear = "Which pump has a pressure of four bar, and where does it stand?"
    cells = {
        names[0]: encrypted(clear, "key"), names[1]: encrypted("P7", "key"), column: "key", "split": "test",
        "problem_topic": "Art", "evidence": encrypted("page 7 of the manual, third table", "key"), "year": 1988,
    }  # fmt: skip
    task = web_task(Row("f", cells), "test")
    assert (task.question, task.answer, task.family) == (clear, "P7", "Art")
    row = decrypted(Row("f", cells))
    assert row.cells["evidence"] == "page 7 of the manual, third table"
    assert (row.cells["split"], row.cells["year"], row.cells[column]) == ("test", 1988, "key")


def test_a_row_in_clear_stays_so_though_it_has_a_canary() -> None:
    cells = {"problem": "Which pump?", "answer": "P7", "canary": "BENCHMARK DATA SHOULD NEVER APPEAR"}
    assert decrypted(Row("f", cells)).cells == cells


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"canary": "other"}, "f, line 3: the question is encrypted, and its canary does not open it"),
        ({}, "f, line 3: the question is encrypted, and no column `canary` has its key"),
        ({"canary": "key", "answer": "P7"}, "f, line 3: the question is encrypted with its canary, the answer is not"),
    ],
)
def test_what_stays_encrypted_is_told(cells: dict[str, str], told: str) -> None:
    question = encrypted("Which pump has a pressure of four bar?", "key")
    with pytest.raises(DataError, match=f"^{re.escape(told)}$"):
        web_task(Row("f, line 3", {"question": question, "answer": encrypted("P7", "key"), **cells}), "test")


def test_a_benchmark_stays_in_its_split(tmp_path: Path, folder: Path) -> None:
    files = {"test": file(tmp_path, {"question": "A?", "answer": "1"}, name="a.jsonl")}
    env = Web(questions=files, folder=str(folder))
    assert env.splits() == ("test",)
    assert env.tasks("test")[0].split == "test"


# -- text --------------------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=3000), goal=st.text(max_size=30), characters=st.integers(100, 1000))
def test_passages_lose_nothing_and_a_pick_is_in_bounds(text: str, goal: str, characters: int) -> None:
    assert "".join("".join(passages(text)).split()) == "".join(text.split())
    assert len(pick(text, goal, characters)) <= max(characters, 0)


# -- hostile hosts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True), ("2606:4700::1111", True), ("64:ff9b::101:101", True), ("2002:101:101::1", True),
        ("10.0.0.1", False), ("127.0.0.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("198.18.0.1", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1", False),
        ("fc00::1", False), ("fec0::1", False), ("ff02::1", False), ("ff0e::1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False), ("64:ff9b::7f00:1", False), ("64:ff9b:1::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::5", False), ("::127.0.0.1", False), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)  # fmt: skip
def test_what_counts_as_public(address: str, public: bool) -> None:  # noqa: FBT001
    assert exchange.is_public(address) is public


class Raw:
    """A server on loopback that sends given bytes, piece by piece, whatever is asked."""

    def __init__(self, pieces: Iterable[bytes], pause: float = 0.0) -> None:
        self._pieces, self._pause = pieces, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                for piece in self._pieces:
                    connection.sendall(piece)
                    time.sleep(self._pause)

    def read(self, seconds: float = 5.0) -> Any:
        with closing(self._socket):
            return HttpReader(allow=["127.0.0.1"], seconds=seconds).read(self.address)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def test_a_page_that_unpacks_to_gigabytes_takes_its_bound_of_memory() -> None:
    packed = gzip.compress(bytes(200_000_000), 9)
    page = Raw([HEAD + b"Content-Encoding: gzip\r\n\r\n", packed]).read()
    assert page.cut
    with pytest.raises(Unreadable, match="packed in a way"):
        Raw([HEAD + b"Content-Encoding: gzip, gzip\r\n\r\n", gzip.compress(packed)]).read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Raw([HEAD + b"Content-Encoding: gzip\r\n\r\n", packed]).read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the page is twice that


@pytest.mark.parametrize("packing", ["gzip", "x-gzip", "deflate", "raw deflate", "identity", "br"])
def test_packed_pages_are_read(packing: str) -> None:
    text = "plain words " * 100
    data = text.encode()
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {
        "gzip": gzip.compress(data), "x-gzip": gzip.compress(data), "deflate": zlib.compress(data),
        "raw deflate": raw.compress(data) + raw.flush(), "identity": data, "br": b"x",
    }[packing]  # fmt: skip
    server = Raw([HEAD + f"Content-Encoding: {packing.rpartition(' ')[2]}\r\n\r\n".encode(), packed[:5], packed[5:]])
    if packing == "br":
        with pytest.raises(Unreadable, match="packed"):
            server.read()
    else:
        assert server.read().text.strip() == text.strip()


def test_a_host_that_sends_a_byte_now_and_then_is_given_up_in_time() -> None:
    endless = (b"X" for _ in range(10_000))
    with pytest.raises(Unreadable, match=r"did not come within 0\.5 s"):
        Raw([b"HTTP/1.1 200 OK\r\nX-Slow: ", *endless], pause=0.05).read(seconds=0.5)


def test_the_robots_txt_of_a_host_is_obeyed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "is_public", lambda address: True)
    monkeypatch.setattr(web_sources, "is_public", lambda address: True)
    rules = "User-agent: *\nDisallow: /huge\n"
    reader = HttpReader()
    root = site.address.rstrip("/")
    parser = web_sources.RobotFileParser()
    parser.parse(rules.splitlines())
    reader._robots[root] = parser
    assert reader.read(f"{root}/").title == "Home"
    with pytest.raises(Unreadable, match=r"robots\.txt"):
        reader.read(f"{root}/huge")
    assert HttpReader(robots=False).read(f"{root}/huge")
    other = HttpReader()
    assert other.read(f"{root}/").title == "Home"  # the site has no robots.txt: everything is allowed
    assert [path for path, _ in site.asked].count("/robots.txt") == 1

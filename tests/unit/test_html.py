"""HTML as text: nothing a page says is lost or glued, whatever its tags; folders of pages; encodings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.html_text import PAGES, Page, holds
from internalize.environments import bounded_html, site
from internalize.environments.docs.corpus import folder_pages
from internalize.environments.html import Html, read
from internalize.environments.site import Site, decoded, plain, unreadable
from internalize.environments.web.sources import Folder
from internalize.errors import TaskError

URL = "http://x.example/a/b.html"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_lost_or_glued(page: Page) -> None:
    assert holds(page, read(page.html, URL).text) == []


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a<p>b", "a\nb"),
        ("<style>x</style>a<script>if (1 < 2) b</script>", "a"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "a | b\nc"),
        ("a <b>bold</b> word", "a bold word"),
        ("&lt;b&gt; &amp; &eacute;", "<b> & é"),
        ("<script>open", ""),
        ("</p></script></svg>a", "a"),
        ("<!doctype html><!-- a --><![CDATA[x]]>b", "b"),
        ("<p>text<p>b<![foo[ more", "text\nb"),
        ("", ""),
        ("<h1>a</h1><h2></h2><h4>b</h4>c", "# a\n#### b\nc"),
        ("<ul><li>a<ol start=3><li>b<li><p>c</p><p>d</p></ol><li></ul>e", "- a\n  3. b\n  4. c\nd\ne"),
        ("<li>a</li><dl><dt>b<dd>c</dl>", "- a\nb\n  c"),
        ("<table><tr><td>a<td><pre>b\n c</pre><tr><td>d<td>e</table>", "a\nb\n c\nd | e"),
        ("<pre>\n\n  a\r\n\r\n  b  \n</pre>c", "  a\n\n  b\nc"),
        ("<pre><div>a</div><div>  b</div>c<br><br>d</pre>", "a\n  b\nc\n\nd"),
        ("<a href=a>One</a><a href=b>Two</a>, <a href=c>three</a>.", "One Two, three."),
        ("<?xml version='1.0'?><html><title/><script src='a'/><body>b", "b"),
        ("<frameset><frame src=a><noframes><p>b</p></noframes></frameset>", "b"),
        ("<dialog>a</dialog><dialog open>b</dialog>", "b"),
        ("<math><mi>x</mi><annotation>y</annotation></math>", "x"),
    ],
)
def test_html_as_text(html: str, text: str) -> None:
    assert read(html, URL).text == text


def test_a_title_is_the_pages_own() -> None:
    svg = "<body><svg><title>Close menu</title></svg><p>a"
    assert read(svg, URL).title == ""
    assert read(f"<head><title> Valve \n V3 </title>{svg}", URL).title == "Valve V3"
    assert read("<title>T<p>never closed", URL) == Html("T<p>never closed", "", ())


def test_links_are_absolute_named_and_those_of_the_navigation_come_last() -> None:
    page = """<nav><a href="/all">Everything</a> <a href="c.html">C in the menu</a></nav>
        <a href="c.html#part"><svg><title>x</title></svg></a> <a href=" ../d.html ">the  <b>D</b></a>
        <a href="c.html">C</a> <a href="mailto:a@b">m</a>
        <a href="JavaScript:x()">j</a> <a href="//[bad">b</a> <a href="">s</a> <a>none</a>
        <a href="e"><img src="e.png" alt="E picture"></a> <a href="f" aria-label="F"></a>
        <iframe src="g" title="G"></iframe> <a href="h"></a>"""
    root = "http://x.example"
    assert read(page, URL).links == (
        ("C", f"{root}/a/c.html"), ("the D", f"{root}/d.html"), ("b", URL), ("E picture", f"{root}/a/e"),
        ("F", f"{root}/a/f"), (f"{root}/a/h", f"{root}/a/h"), ("Everything", f"{root}/all"), ("G", f"{root}/a/g"),
    )  # fmt: skip
    assert read('<base href="/other/"><a href="c">C</a>', URL).links == (("C", f"{root}/other/c"),)
    assert read("<nav><a href=c>C</a></nav>", URL).links == (("C", f"{root}/a/c"),)


def test_what_stands_before_a_link() -> None:
    shown = read("See <a href=c>C</a><td><pre><a href=c>code</a></pre>", URL, lambda address: f"[{address[-1]}] ").text
    assert shown == "See [c] C\ncode"


@given(st.text(st.sampled_from("<>/ab='\"!-[]&;:# \n?tdrpule")))
def test_any_html_is_read(html: str) -> None:
    found = read(html, URL)
    assert all(isinstance(text, str) for text in (found.title, found.text))


@given(st.lists(st.sampled_from(["pre", "td", "tr", "table", "li", "ul", "ol", "a", "h1", "p", "nav", "select"])))
def test_however_tags_nest_the_text_stays(tags: list[str]) -> None:
    html = "".join(f"<{tag} href=x>w{n}" for n, tag in enumerate(tags))
    text = read(html, URL).text if "select" not in tags else read(html.replace("<select", "<div"), URL).text
    assert all(f"w{n}" in text for n, tag in enumerate(tags) if "nav" not in tags)


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["div", "table><tr><td", "ul><li", "span", "b><p"])
def test_a_page_that_nests_without_end_is_read_in_time(tag: str) -> None:
    began = time.perf_counter()
    assert "x" in read(f"<{tag}>" * 50_000 + "x", URL).text
    assert time.perf_counter() - began < 10


# -- a folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "index.html": "<title>Home</title><p><a href='setup/'>Setup</a>",
        "setup/index.html": "<title>Setup</title><nav><a href=/pump>Pump</a></nav><p>Net <a href='../notes.md'>n</a>",
        "with space/a b.html": "<a href='a%20b.html#top'>itself</a> <a href='../D%C3%9CSE.html'>nozzle</a>",
        "pump.html": "<pre>def f():\n    return 1</pre>",
        "du\u0308se.html": "nozzle",
        "notes.md": "\ufeff# Notes\n\n    code\n\n[setup](setup/#net) and [out](https://example.org/), [gone](gone)\n",
        "100%#?.txt": "odd\n\n  name\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("setup/", "setup/index.html"),
        ("setup", "setup/index.html"),
        ("./setup/index.html#net", "setup/index.html"),
        ("/setup/index.html", "setup/index.html"),
        ("setup/../pump.html", "pump.html"),
        ("with%20space/a%20b.html", "with space/a b.html"),
        ("with space/a b.html", "with space/a b.html"),
        ("pump.html?v=2", "pump.html"),
        ("pump", "pump.html"),
        ("Pump.HTML", "pump.html"),
        ("d%C3%BCse.html", "du\u0308se.html"),
        ("d\u00fcse", "du\u0308se.html"),
        ("notes.md", "notes.md"),
        ("", "index.html"),
        ("/", "index.html"),
        ("100%#?.txt", "100%#?.txt"),
        ("100%25%23%3F.txt", "100%#?.txt"),
        ("https://example.org/pump.html", None),
        ("//example.org/pump.html", None),
        ("../../etc/passwd", None),
        ("with space", None),
        ("http://[bad", None),
        ("gone.md", None),
    ],
)
def test_a_link_leads_where_a_web_server_would_lead_it(folder: Path, address: str, path: str | None) -> None:
    assert Site(folder).resolve(address) == path


def test_pages_of_a_folder_and_their_links(folder: Path) -> None:
    pages = Site(folder, lambda path: f"[{path}] ").pages
    assert pages["index.html"] == Html("Home", "[setup/index.html] Setup", (("Setup", "setup/index.html"),))
    assert pages["setup/index.html"].text == "Net [notes.md] n"
    assert pages["setup/index.html"].links == (("n", "notes.md"), ("Pump", "pump.html"))
    assert pages["with space/a b.html"].links == (("nozzle", "du\u0308se.html"),)
    assert pages["notes.md"].text.startswith("# Notes\n    code\n[setup](setup/#net)")
    assert pages["notes.md"].links == (("setup", "setup/index.html"), ("out", "https://example.org/"))
    assert pages["100%#?.txt"].text == "odd\n  name"
    with pytest.raises(TaskError, match="there is no folder"):
        Site(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no"):
        Site(folder / "empty")


def test_what_lies_in_a_folder_and_is_no_page(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = set(Site(folder).pages)
    (folder / ".#notes.md").symlink_to("somebody@host.4711:1700000000")  # the lock of an editor
    (folder / "dangling.md").symlink_to(folder / "gone.md")
    (folder / "node.md").mkdir()
    for name in (".git/HEAD.txt", "node_modules/x/README.md", "setup/__pycache__/a.txt", "node.md/.hidden.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "node.md" / "inside.markdown").write_text("a page")
    assert set(Site(folder).pages) == pages | {"node.md/inside.markdown"}
    assert not caplog.records


def test_files_that_cannot_be_read_are_named_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.txt").write_bytes(b"\xff".join([GERMAN.encode()] * 3) + "\ufffd is meant".encode())
    read_bytes = Path.read_bytes

    def guarded(file: Path) -> bytes:
        if file.name == "pump.html":
            raise PermissionError(13, "Permission denied")
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    site = Site(folder)
    assert "pump.html" not in site.pages
    assert site.resolve("pump") is None
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 8 files cannot be read and are no pages: pump.html (Permission denied)",
        f"{folder}: 1 of 7 pages hold characters that cannot be read, such as broken.txt with 2",
    ]


def test_lines_are_cut_between_words(tmp_path: Path) -> None:
    sentence = "The pressure of the pump is four bar, and it never falls below three. " * 9
    (tmp_path / "a.txt").write_text(f"{sentence}\n{'x' * 450}")
    parts = folder_pages(tmp_path)["a.txt"].parts
    lines = [line for part in parts for line in part.split("\n") if not line.startswith(("a.txt", "More: "))]
    assert max(map(len, lines)) <= 200
    assert " ".join(lines).split()[: len(sentence.split())] == sentence.split()
    assert "".join(lines).count("x") == 450


def test_both_environments_show_them(folder: Path) -> None:
    docs = folder_pages(folder)
    assert docs["index.html"].parts == ("index.html\nHome\n[setup/index.html] Setup",)
    assert docs["pump.html"].parts == ("pump.html\ndef f():\n    return 1",)
    web = Folder(folder)
    assert web.read("setup/").url == "setup/index.html"
    assert web.read("pump").text == "def f():\n    return 1"


# -- encodings ---------------------------------------------------------------------------------------------------------

GERMAN = "Die Größe des Ventils beträgt fünf Zentimeter."
FRENCH = "La température de la chaudière est réglée à l’année, ça coûte très cher."  # noqa: RUF001
RUSSIAN = "Давление насоса составляет четыре бара."  # noqa: RUF001
JAPANESE = "ポンプの圧力は四バールです。"
CHINESE = "水泵的压力为四巴，锅炉的阀门在九十度时打开。"  # noqa: RUF001


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-8"), (GERMAN, "utf-8-sig"), (GERMAN, "utf-16"), (GERMAN, "cp1252"), ("Größe", "cp1252"),
        (FRENCH, "cp1252"), (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"), (CHINESE, "gb18030"), ("5 €", "cp1252"), ("", "utf-8"), ("plain", "ascii"),
    ],
)  # fmt: skip
def test_an_encoding_that_nobody_names_is_found(text: str, encoding: str) -> None:
    assert decoded(text.encode(encoding)) == text
    page = f"<html><body><p>{text}</p></body></html>"
    assert decoded(page.encode(encoding)) == page


@pytest.mark.parametrize(
    ("label", "encoding", "text"),
    [
        ("iso-8859-1", "cp1252", "“Größe”"),  # as browsers read it
        ("latin1", "cp1252", "5 €"),
        ("gb2312", "gb18030", "镕"),
        ("Shift_JIS", "cp932", "①"),
        (" UTF-8 ", "utf-8", "Größe"),
        ("iso-8859-1", "utf-8-sig", "Größe"),  # a byte order mark says more than a server
        ("idna", "utf-8", "Größe"),  # codecs of Python that are no encodings of pages
        ("klingon", "utf-8", "Größe"),
        ("rot13", "utf-8", "Größe"),
    ],
)
def test_labels_of_servers(label: str, encoding: str, text: str) -> None:
    assert decoded(text.encode(encoding), label) == text


def test_what_a_page_declares_and_what_breaks_off() -> None:
    assert "Даль" in decoded('<meta charset="koi8-r"><p>Даль</p>'.encode("koi8-r"))
    assert "€" in decoded('<?xml version="1.0" encoding="iso-8859-15"?><p>€</p>'.encode("iso-8859-15"))
    assert decoded(GERMAN.encode() + b"\xff" + GERMAN.encode()) == f"{GERMAN}\ufffd{GERMAN}"
    assert decoded((GERMAN * 9 + "ö").encode()[:-1]).startswith(GERMAN)
    assert decoded(b"\0\1\2abc\xff").endswith("abc\ufffd")
    assert decoded(f'In HTML: <meta charset="latin1"> {GERMAN}'.encode()).endswith(GERMAN)
    assert decoded(b'<meta charset="utf-16"><p>text') == '<meta charset="utf-16"><p>text'


@pytest.mark.parametrize(
    ("data", "label", "count"),
    [
        (GERMAN.encode(), "", 0),
        ("\ufffd".encode(), "", 0),  # it stands in the page itself
        (GERMAN.encode("cp1252"), "utf-8", 4),
        (b"\xff", "utf-8", 1),
        ("水".encode("shift_jis") + b"\x81", "shift_jis", 1),
    ],
)
def test_characters_that_cannot_be_read_are_counted(data: bytes, label: str, count: int) -> None:
    assert unreadable(decoded(data, label), data) == count


def test_plain_text_keeps_its_columns() -> None:
    assert plain("a\r\n\r\n    b   c \n") == "a\n    b   c"


@pytest.mark.parametrize("text", ["<" + "a" * 300_000, "<svg>" + "<a href=x>" * 30_000], ids=["no end", "nested links"])
def test_no_part_of_a_page_is_read_again_and_again(text: str) -> None:
    """Each of these took minutes or hours, in proportion to the square of its length."""
    assert read(text, URL).text == ""


def test_a_link_around_another_says_nothing_itself() -> None:
    assert read("<svg><a href=c><g><a href=d>x</a></g></a></svg><a href=e>y</a>", URL).links == (
        ("y", "http://x.example/a/e"),
        ("http://x.example/a/c", "http://x.example/a/c"),
        ("x", "http://x.example/a/d"),
    )


def test_a_page_that_takes_a_parser_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which the system ends at its limit of processor time."""
    monkeypatch.setattr(bounded_html, "_SECONDS", 1)
    page = "<p>" + "<a href=x>one</a> words " * 10_000
    assert bounded_html.read_bounded(page, URL) == read(page, URL)
    with pytest.raises(bounded_html.CostlyPageError):
        bounded_html.read_bounded("<p " + " ".join(f"a{n}" for n in range(200_000)) + ">", URL)


def test_a_costly_or_huge_page_of_a_folder_is_told_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bounded_html, "_SECONDS", 1)
    monkeypatch.setattr(site, "_LARGEST", 3_000_000)
    (tmp_path / "costly.html").write_text("<p " + " ".join(f"a{n}" for n in range(200_000)) + ">")
    (tmp_path / "huge.txt").write_text("x" * 3_000_001)
    (tmp_path / "long.html").write_text("<a href=small.txt>s</a> words " * 5_000)
    (tmp_path / "small.txt").write_text("one")
    pages = Site(tmp_path, lambda path: f"[{path}] ").pages
    assert pages.keys() == {"costly.html", "long.html", "small.txt"}
    assert pages["costly.html"].text == ""
    assert pages["long.html"].text.startswith("[small.txt] s words")
    assert pages["long.html"].links == (("s", "small.txt"),)
    assert "costly.html takes too long to read" in caplog.text
    assert "huge.txt (more than 3,000,000 bytes)" in caplog.text

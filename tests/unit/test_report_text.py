import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from internalize.evaluation.stats import Interval
from internalize.report.text import code_span, duration, fenced, markdown_text, one_line, percent, plain, points

# What untrusted text is made of when somebody wants it to do something.
HOSTILE = st.lists(
    st.sampled_from([
        "<b>", "</td>", "[a](http://b.c)", "![i](x)", "`", "```", "~~~", "|", "*", "_", "\\", "&lt;", "#1", "@all",
        "\n", "\n\n# h", "\n- ", "www.b.c", "http://b.c", ":smile:", "\x1b[2J", "\u202e", "\x00", "\x85", "\u2028",
        "$x$", " ",
    ])
    | st.text(max_size=4),
    max_size=8,
).map("".join)  # fmt: skip
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def test_numbers():
    interval = Interval(mean=0.4167, low=0.25, high=0.5, n=48)
    assert percent(interval) == "41.7 [25, 50]"
    assert points(interval) == "+41.7 [+25.0, +50.0]"
    assert percent(None) == points(None) == "-"
    assert [duration(s) for s in (None, 48, 270, 9000)] == ["-", "48 s", "4.5 min", "2.5 h"]


def test_plain_takes_out_what_a_terminal_obeys_and_says_what_it_cuts():
    assert plain("a\x1b[31mb\u202ec\r\nd\te\x85") == "a[31mbc\nd e"
    assert plain("x" * 12, limit=10) == "xxxxxxxxxx [... 2 characters cut]"
    assert one_line(" a\n\n b\t") == "a b"


def test_ordinary_sentences_stay_readable():
    assert markdown_text("Rose to 70.0 % (n = 40): good, isn't it?") == "Rose to 70.0 % (n = 40): good, isn't it?"


@pytest.mark.parametrize(
    "text", ["http://evil.example", "www.evil.example", "WWW.evil.example", "a@b.example", "@all", "#12", ":x:"]
)
def test_nothing_that_readers_turn_into_links_is_left(text):
    escaped = markdown_text(text)
    assert text not in escaped
    assert "@" not in escaped
    assert not any(link in escaped.lower() for link in ("http:", "www."))
    assert rendered(escaped) == text


def rendered(markdown: str) -> str:
    """The text a Markdown reader shows for one line; fails if it finds anything but text in it."""
    (inline,) = [token for token in PARSER.parse(f"x {markdown} x") if token.type == "inline"]
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special"}, [child.type for child in children]
    return "".join(child.content for child in children)[2:-2]


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_any_text_in_a_line_is_shown_as_it_is(text):
    assert rendered(markdown_text(text)) == one_line(text)


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_any_text_in_a_cell_stays_in_its_cell(text):
    table = f"| a | b | c |\n|:--|:--|:--|\n| {markdown_text(text)} | {code_span(text)} | end |"
    tokens = PARSER.parse(table)
    assert sum(token.type == "tr_open" for token in tokens) == 2
    cells = [token.content for token in tokens if token.type == "inline"]
    assert len(cells) == 6
    assert cells[-1] == "end"
    assert not any(token.type == "html_inline" for cell in tokens for token in cell.children or [])


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_any_text_in_a_fence_stays_in_the_fence(text):
    fence, paragraph, *_ = PARSER.parse(f"{fenced(text)}\n\nafter")
    assert fence.type == "fence"
    assert fence.content == plain(text) + "\n"
    assert paragraph.type == "paragraph_open"


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_plain_leaves_no_control_character_but_newlines(text):
    assert all(c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in plain(text))

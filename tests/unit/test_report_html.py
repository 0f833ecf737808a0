"""report.html: it holds what the run holds, loads nothing, and shows hostile text as text."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from internalize.records import Experience
from internalize.report import html
from internalize.report import run_report as data
from internalize.report.run_page import run_page
from internalize.report.run_report import IterationReport, changes
from tests.unit.report_run import make_run

pytest.importorskip("jinja2", reason="the page needs jinja2")

HOSTILE = '</script><img src=x onerror=alert(1)>"\u202ered'
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Open tags, every tag's name and attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def report(tmp_path: Path) -> data.RunReport:
    return data.load(make_run(tmp_path / "run"))


def page_of(report: data.RunReport) -> Page:
    text = html.render(run_page(report))
    assert text is not None
    return Page(text)


def test_the_page_is_whole_and_loads_nothing(report: data.RunReport) -> None:
    page = page_of(report)
    assert page.open == []
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags}
    links = [attrs.get(key) for _, attrs in page.tags for key in ("src", "href", "xlink:href") if attrs.get(key)]
    assert all(link and link.startswith("#") for link in links)


@pytest.mark.slow
def test_hostile_text_stays_text(report: data.RunReport) -> None:
    first, *rest = report.iterations
    item = report.samples[0].episodes[0].trajectory.steps[0].model_copy(update={"text": HOSTILE})
    shown = report.samples[0].episodes[0]
    hostile = shown.model_copy(update={"trajectory": shown.trajectory.model_copy(update={"steps": (item,)})})
    sample = report.samples[0].model_copy(update={"episodes": (hostile,), "title": HOSTILE})
    page = page_of(report.model_copy(update={"samples": (sample,), "iterations": (first, *rest)}))
    assert "img" not in {tag for tag, _ in page.tags}
    assert '</script><img src=x onerror=alert(1)>"' in page.text
    assert "\u202e" not in page.text


def test_the_experience_that_was_shown_is_visible(report: data.RunReport) -> None:
    shown = [
        step.injection.text
        for sample in report.samples
        for episode in sample.episodes
        for step in episode.trajectory.steps
        if step.injection and step.injection.item_ids
    ]
    text = page_of(report).text
    assert all(hint in text for hint in shown)


def test_what_came_and_went_in_the_pool() -> None:
    a, b = (Experience.new(f"When you see {n}, visit it.", "principle", "contrast") for n in "ab")
    iterations = [
        IterationReport(number=0),
        IterationReport(number=1, pool=(a,)),
        IterationReport(number=2, pool=(b,)),
    ]
    found = changes(iterations)
    assert [(c.number, c.added, c.removed, c.health.items) for c in found] == [(1, (a,), (), 1), (2, (b,), (a,), 1)]


def test_a_reader_with_any_screen_and_theme_can_read_it(report: data.RunReport) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    page = page_of(report)
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers
    assert all(attributes.get("scope") == "col" for attributes in headers)
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 4, "each figure for a wide and for a narrow screen"
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in figures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = html.render(run_page(report)) or ""
    assert "#374151" not in text.partition("<body>")[2], "a colour that a dark page does not show"
    assert {f"#{i}" for i in ids} >= {a["href"] for tag, a in page.tags if tag == "a"}


def test_a_browser_reads_the_page_of_a_run_that_works_again(report: data.RunReport) -> None:
    refreshes = [a for tag, a in page_of(report).tags if tag == "meta" and a.get("http-equiv") == "refresh"]
    assert bool(refreshes) == (report.finished < report.planned)

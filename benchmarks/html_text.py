"""How well readers of HTML keep the text of pages: `python -m benchmarks.html_text`, with whatever is installed.

A page is a few lines of HTML and what must hold of its text: `together` (in one line, and not glued), `apart` (in
different lines), `verbatim` (as it stands), `absent`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from internalize.environments.html import read


@dataclass(frozen=True)
class Page:
    name: str
    html: str
    together: tuple[tuple[str, ...], ...] = ()
    apart: tuple[tuple[str, str], ...] = ()
    verbatim: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


NAV = '<nav><ul><li><a href="/">Start</a></li><li><a href="/all">Everything</a></li></ul></nav>'
PAGES = (
    Page("two sentences", "<p>The valve opens.</p><p>It closes.</p>", apart=(("valve opens.", "It closes."),)),
    Page(
        "table",
        "<table><tr><th>Name</th><th>Value</th></tr><tr><td>flow</td><td>12</td></tr><tr><td>head</td><td>4</td></tr></table>",
        together=(("Name", "Value"), ("flow", "12"), ("head", "4")),
        apart=(("flow", "head"), ("Name", "flow")),
    ),
    Page(
        "table with paragraphs",
        "<table><tr><td><p>flow</p></td><td><p>12</p><p>l/min</p></td></tr><tr><td><p>head</p></td><td><p>4</p></td></tr></table>",
        together=(("flow", "12"), ("head", "4")),
        apart=(("flow", "head"),),
    ),
    Page(
        "layout table",
        "<table><tr><td><table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table></td><td><h2>Big</h2>"
        "<pre>x = 1\n  y</pre></td></tr></table>",
        together=(("a", "b"), ("c", "d")),
        apart=(("a", "c"), ("d", "Big")),
        verbatim=("x = 1\n  y",),
    ),
    Page(
        "code",
        '<div class="highlight"><pre><span></span><span class="k">def</span> <span>f</span>():\n    if x:\n        '
        "return 1\n\n    return 2\n</pre></div><p>after</p>",
        verbatim=("def f():\n    if x:\n        return 1\n\n    return 2",),
        apart=(("return 2", "after"),),
    ),
    Page(
        "code by the line",
        '<pre><code><span class="line">a = 1</span><br><span class="line">  b</span></code></pre>',
        verbatim=("a = 1\n  b",),
    ),
    Page(
        "inline elements",
        "<p>Press <kbd>Ctrl</kbd>+<kbd>C</kbd> to <em>stop</em>, H<sub>2</sub>O at <time>nine</time> o<span>'</span>clock.</p>",
        verbatim=("H2O", "o'clock", "Ctrl+C"),
        together=(("Press", "stop", "nine"),),
    ),
    Page("breaks", "<p>one<br>two<br/>three</p>", apart=(("one", "two"), ("two", "three"))),
    Page(
        "lists",
        "<ul><li>one<ul><li>inner</li></ul></li><li>two</li></ul><ol><li>first</li><li>second</li></ol>",
        apart=(("one", "inner"), ("inner", "two"), ("two", "first"), ("first", "second")),
    ),
    Page(
        "definitions",
        "<dl><dt>torque</dt><dd>9 Nm</dd><dt>weight</dt><dd>3 kg</dd></dl>",
        apart=(("9 Nm", "weight"), ("torque", "weight")),
        verbatim=("torque", "9 Nm", "weight", "3 kg"),
    ),
    Page(
        "options",
        "<select><option>red</option><option>blue</option></select>",
        verbatim=("red", "blue"),
        absent=("redblue",),
    ),
    Page("sections", "<section>Alpha</section><section>Beta</section><div>C</div><div>D</div>", absent=("AlphaBeta", "CD")),
    Page(
        "script in a script",
        "<head><script>document.write('<script src=\"a.js\"></script>');</script></head><body><p>The torque is 12.</p>",
        verbatim=("The torque is 12.",),
        absent=("a.js",),
    ),
    Page(
        "hidden by the browser",
        '<nav><svg><title>Close menu</title></svg></nav><style>p {color: red}</style><p>Shown.</p><noscript>Enable it'
        "</noscript><template><p>Later</p></template>",
        verbatim=("Shown.",),
        absent=("Close menu", "Enable it", "Later", "color"),
    ),
    Page("navigation", f"{NAV}<main><h1>Pump</h1><p>It has 4 bar.</p></main>", verbatim=("It has 4 bar.",), absent=("Everything",)),
    Page("only navigation", NAV, verbatim=("Start", "Everything"), apart=(("Start", "Everything"),)),
    Page("only noscript", "<noscript><p>The pressure is 4 bar.</p></noscript>", verbatim=("The pressure is 4 bar.",), absent=("<p>",)),
    Page("only a template", "<template><p>The pressure is 4 bar.</p></template>", verbatim=("The pressure is 4 bar.",)),
    Page("no tags", "The pressure is 4 bar.", verbatim=("The pressure is 4 bar.",)),
    Page("misnested", "<p><b>bold <i>both</b> slant</i></p></div></span><p>end", verbatim=("bold both slant", "end")),
    Page("entities", "<p>&lt;b&gt; &amp; &eacute; &#8364; 5&nbsp;bar &madeup;</p>", verbatim=("<b> & é €", "&madeup;")),
    Page("comment", "<p>a</p><!-- <p>hidden</p> --><p>b</p><![CDATA[ x ]]>", verbatim=("a", "b"), absent=("hidden",)),
    Page("alternative text", '<p>The formula <img src="a.png" alt="E = mc^2"> holds.</p>', verbatim=("E = mc^2",)),
    Page("headings", "<h1>Pump</h1><h5>Torque</h5><p>12 Nm</p>", apart=(("Pump", "Torque"), ("Torque", "12 Nm"))),
    Page("short page", "<html><body><p>4 bar</p></body></html>", verbatim=("4 bar",)),
    Page(
        "boilerplate heavy",
        f"{NAV}<div><p>Version 3.2</p></div><footer><a href=/i>Imprint</a></footer>" + "<div><a href=x>more</a></div>" * 30,
        verbatim=("Version 3.2",),
    ),
    Page("empty cells", "<table><tr><td>a</td><td></td><td>c</td></tr></table>", together=(("a", "c"),), absent=("ac",)),
    Page("preformatted text area", "<textarea>\n  a\n  b</textarea>", verbatim=("  a\n  b",)),
)  # fmt: skip


def holds(page: Page, text: str) -> list[str]:
    """What does not hold."""
    lines = text.split("\n")
    wrong = [f"not together: {words}" for words in page.together if not any(_in(line, words) for line in lines)]
    wrong += [f"not apart: {pair}" for pair in page.apart if not _apart(lines, *pair)]
    wrong += [
        f"missing: {piece!r}" for piece in page.verbatim if piece.replace("\xa0", " ") not in text.replace("\xa0", " ")
    ]
    return wrong + [f"there: {piece!r}" for piece in page.absent if piece in text]


def _in(line: str, words: tuple[str, ...]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line) for word in words)


def _apart(lines: list[str], first: str, second: str) -> bool:
    places = [[n for n, line in enumerate(lines) if piece in line] for piece in (first, second)]
    return all(places) and not set(places[0]) & set(places[1])


def readers() -> dict[str, Callable[[str], str]]:
    """By name; what is not installed is left out."""
    found: dict[str, Callable[[str], str]] = {"ours (selectolax)": lambda html: read(html, "http://x/").text}
    for make in (_trafilatura, _resiliparse, _inscriptis, _markdownify, _soup, _selectolax):
        try:
            found |= make()
        except ImportError as error:
            print(f"left out: {error.name}")
    return found


def _trafilatura() -> dict[str, Callable[[str], str]]:
    import trafilatura  # noqa: PLC0415

    recall = {"favor_recall": True, "include_tables": True, "output_format": "markdown"}
    return {
        "trafilatura": lambda html: trafilatura.extract(html) or "",
        "trafilatura, recall": lambda html: trafilatura.extract(html, **recall) or "",
        "trafilatura.html2txt": trafilatura.html2txt,
    }


def _resiliparse() -> dict[str, Callable[[str], str]]:
    from resiliparse.extract.html2text import extract_plain_text  # noqa: PLC0415

    return {"resiliparse": lambda html: extract_plain_text(html, preserve_formatting=True)}


def _inscriptis() -> dict[str, Callable[[str], str]]:
    from inscriptis import get_text  # noqa: PLC0415

    return {"inscriptis": get_text}


def _markdownify() -> dict[str, Callable[[str], str]]:
    from bs4 import BeautifulSoup  # noqa: PLC0415
    from markdownify import MarkdownConverter  # noqa: PLC0415

    def convert(html: str, parser: str) -> str:
        return str(MarkdownConverter(heading_style="atx").convert_soup(BeautifulSoup(html, parser)))

    return {f"markdownify, {parser}": lambda html, p=parser: convert(html, p) for parser in ("lxml", "html5lib")}  # type: ignore[misc]


def _soup() -> dict[str, Callable[[str], str]]:
    from bs4 import BeautifulSoup  # noqa: PLC0415

    return {f"bs4, {p}": lambda html, p=p: BeautifulSoup(html, p).get_text("\n") for p in ("lxml", "html5lib")}  # type: ignore[misc]


def _selectolax() -> dict[str, Callable[[str], str]]:
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415

    return {"selectolax.text": lambda html: LexborHTMLParser(html).text(separator="\n")}


def main() -> None:
    """A line a reader: pages of which all holds, statements that hold, and the time of a page of one megabyte."""
    big = "<p>The <b>valve</b> opens at <a href='x'>ninety</a> degrees.</p>" * 16_000
    total = sum(len((*p.together, *p.apart, *p.verbatim, *p.absent)) for p in PAGES)
    for name, reader in readers().items():
        wrong = {page.name: holds(page, reader(page.html)) for page in PAGES}
        began = time.perf_counter()
        reader(big)
        seconds = time.perf_counter() - began
        failed = [page for page, found in wrong.items() if found]
        held = total - sum(map(len, wrong.values()))
        print(
            f"{name:24} {len(PAGES) - len(failed)}/{len(PAGES)} pages, {held}/{total}, {seconds:.2f} s; wrong: {', '.join(failed)}"
        )


if __name__ == "__main__":
    main()

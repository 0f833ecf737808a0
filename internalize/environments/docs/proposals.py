"""Proposes questions about a folder of documents, each with a verbatim span of a page that code checks.

Without a model they come from the structure of documents: rows of tables, values after labels, definitions, headings.
An environment refuses proposals until somebody has reviewed them (`internalize questions`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple

from internalize.environments.site import HTML, Site
from internalize.records import Record

from .corpus import Page, folder_pages
from .questions import ANSWER_SHARE, rank

LONGEST_ANSWER = 80
_LONGEST_CELL = 60
_LABEL_WORDS, _VALUE_WORDS = 4, 8
_HEADING = re.compile(r"#{1,6} +(?P<text>\S.*)")
_LABEL = re.compile(r"(?:[-*+] +)?\**(?P<label>[^\W\d][\w /()-]{1,39}?)\**(?: *\**[:=]\**) +(?P<value>\S.{0,79})")
_RULE = re.compile(r"[\s|:=-]+")
_LINK = re.compile(r"\[(?P<text>[^|\n]+?)\]\([^)\n]*\)")
_TERM = re.compile(
    r"(?:[-*+] +)?\**(?:An? |The )?(?P<term>[^\W\d][\w -]{2,39}?)\** "
    r"(?P<said>(?:is|are) (?:an? |the |any |every )[^.]{20,200}\.)"
)
_SENTENCE = re.compile(r"[A-Z\"'(][^.!?\n]{40,160}[.!?]")


class Proposal(Record):
    """One proposed question. `evidence` is a span of the last page of `pages`, and holds the answer."""

    question: str
    answer: str
    pages: tuple[str, ...]
    family: str
    evidence: str
    proposed: Literal[True] = True


class Question(Record):
    """A reviewed question with its evidence, as in a file of questions."""

    question: str
    answer: str
    pages: tuple[str, ...]
    family: str
    evidence: str

    @staticmethod
    def of(proposal: Proposal) -> Question:
        """The question of an accepted proposal."""
        return Question(**proposal.model_dump(exclude={"proposed"}))


class Draft(NamedTuple):
    """A question before it is checked; it is about one page."""

    family: str
    question: str
    answer: str
    evidence: str


class Documents:
    """The pages of a folder: their text, and the numbered parts that the environment shows."""

    def __init__(self, folder: Path) -> None:
        self.texts = {path: page.text for path, page in Site(folder).pages.items()}
        self._parts: Mapping[str, Page] = folder_pages(folder)

    def checked(self, path: str, draft: Draft) -> Proposal | str:
        """The proposal, or the reason against it: its evidence is not on the page, or the question has the answer."""
        evidence, answer = draft.evidence.strip(), draft.answer.strip()
        if not evidence or evidence not in self.texts[path]:
            return "its evidence is not on the page"
        if _plain(answer) not in _plain(evidence) or not _plain(answer):
            return "its evidence does not hold the answer"
        if len(answer) > LONGEST_ANSWER:
            return f"its answer is longer than {LONGEST_ANSWER} characters"
        if f" {_plain(answer)} " in f" {_plain(draft.question)} ":
            return "its question holds the answer"
        route = self._route(path, evidence)
        if not route:
            return "its evidence is in no part of the page that is shown"
        return Proposal(question=draft.question, answer=answer, pages=route, family=draft.family, evidence=evidence)

    def _route(self, path: str, evidence: str) -> tuple[str, ...]:
        """The parts to visit, up to the one in which the evidence ends."""
        ending = _plain(evidence)[-60:]
        shown = [_plain(part) for part in self._parts[path].parts]
        last = next((number for number, part in enumerate(shown, start=1) if ending in part), 0)
        return tuple(path if number == 1 else f"{path}#{number}" for number in range(1, last + 1))


def by_rules(folder: Path, per_page: int) -> tuple[list[Proposal], Counter[str]]:
    """At most `per_page` proposals a page, and how many drafts were dropped for which reason. Raises TaskError."""
    documents = Documents(folder)
    pages = Counter(heading for text in documents.texts.values() for heading in _headings(text))
    shared = {heading for heading, count in pages.items() if count > 1}
    drafts = {path: list(_drafts(path, text, shared)) for path, text in documents.texts.items()}
    return chosen(documents, drafts, per_page)


def _headings(text: str) -> set[str]:
    return {heading for line in text.split("\n") if (heading := _heading(line))}


def _heading(line: str) -> str:
    """The text of a heading, or ""."""
    found = _HEADING.fullmatch(line.strip())
    return found["text"].strip("# *") if found else ""


def chosen(
    documents: Documents, drafts: Mapping[str, Sequence[Draft]], per_page: int
) -> tuple[list[Proposal], Counter[str]]:
    """The drafts that pass the checks, without ambiguous ones, and the numbers of dropped drafts by reason."""
    dropped: Counter[str] = Counter()
    found: list[tuple[str, Proposal]] = []
    for path, written in drafts.items():
        for result in (documents.checked(path, draft) for draft in written):
            if isinstance(result, str):
                dropped[result] += 1
            else:
                found.append((path, result))
    answers: dict[str, set[str]] = defaultdict(set)
    for _, proposal in found:
        answers[_plain(proposal.question)].add(_plain(proposal.answer))
    kept: dict[str, list[Proposal]] = defaultdict(list)
    asked: set[str] = set()
    for path, proposal in found:
        question = _plain(proposal.question)
        if len(answers[question]) > 1:
            dropped["it has several answers in the folder"] += 1
        elif question not in asked:
            asked.add(question)
            kept[path].append(proposal)
    best = [proposal for path in kept for proposal in _spread(kept[path], per_page)]
    return _without_easy_guesses(best, dropped), dropped


def _spread(proposals: Sequence[Proposal], count: int) -> list[Proposal]:
    """`count` proposals of as many families as possible, in a fixed order."""
    families: dict[str, list[Proposal]] = defaultdict(list)
    for proposal in sorted(proposals, key=lambda p: rank(p.question)):
        families[proposal.family].append(proposal)
    turns = sorted(((place, name) for name, own in families.items() for place in range(len(own))))
    return [families[name][place] for place, name in turns[:count]]


def _without_easy_guesses(proposals: Sequence[Proposal], dropped: Counter[str]) -> list[Proposal]:
    """The proposals without those whose answer is too common in the family, so that guessing fails."""
    sizes = Counter(proposal.family for proposal in proposals)
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for proposal in proposals:
        key = (proposal.family, _plain(proposal.answer))
        if seen[key] < max(1, int(sizes[proposal.family] * ANSWER_SHARE)):
            seen[key] += 1
            kept.append(proposal)
        else:
            dropped["too many of its family have this answer"] += 1
    return kept


def _drafts(path: str, text: str, shared: Set[str]) -> Iterator[Draft]:
    """Questions from the structure of a page; code in Markdown has no such structure.

    A heading that other pages have too does not identify the place; the name of the page replaces it.
    """
    lines, place, code = text.split("\n"), path, False
    html = path.lower().endswith(HTML)
    for number, line in enumerate(lines):
        code = code != line.strip().startswith("```")
        if code or (line.startswith("    ") and not html):
            continue
        if heading := _heading(line):
            place = path if heading in shared else heading
            yield from _under(heading, "\n".join(lines[number : number + 2]))
        elif (label := _LABEL.fullmatch(line.strip())) and len(label["label"].split()) <= _LABEL_WORDS:
            if len(label["value"].split()) <= _VALUE_WORDS:
                yield _value(label["label"], label["value"], place, line.strip())
        elif html and line[:1].strip() and number + 1 < len(lines) and re.match(r"  \S", lines[number + 1]):
            yield _value(line.strip(), lines[number + 1].strip(), place, f"{line.strip()}\n{lines[number + 1]}")
        elif term := _TERM.match(line.strip()):
            question = f'Which term is explained with: "{term["said"]}"?'
            yield Draft("term", question, term["term"].strip("* "), term[0])
    yield from _tables(path, lines, shared)


def _value(label: str, value: str, place: str, evidence: str) -> Draft:
    return Draft("value", f"What is the {label.strip('* ')} of {place}?", value.strip().rstrip(".;,"), evidence)


def _under(heading: str, evidence: str) -> Iterator[Draft]:
    """The heading above a sentence."""
    first = _SENTENCE.match(evidence.partition("\n")[2])
    if first:
        yield Draft("heading", f'Under which heading does it say: "{first[0]}"?', heading, evidence)


def _tables(path: str, lines: Sequence[str], shared: Set[str]) -> Iterator[Draft]:
    """A question for each row: the value of one column, identified by the first column and a heading."""
    place = path
    table: list[tuple[str, list[str]]] = []
    for line in (*lines, ""):
        cells = _cells(line, len(table[0][1]) if table else 0)
        if cells and (not table or len(table[0][1]) == len(cells)):
            table.append((line, cells))
            continue
        yield from _rows(place, [row for row in table if not _RULE.fullmatch(row[0])])
        table = [(line, cells)] if cells else []
        if heading := _heading(line):
            place = path if heading in shared else heading


def _cells(line: str, width: int) -> list[str]:
    """The cells of a row in a table of `width` columns (0 for its first row); outer bars enclose no cell."""
    if "|" not in line:
        return []
    cells = [_cell(cell) for cell in line.strip().removeprefix("|").split("|")]
    return cells if cells[-1] or len(cells) == width else cells[:-1]


def _cell(text: str) -> str:
    """A cell without the markup of links, code and emphasis around it."""
    return _LINK.sub(lambda link: link["text"].strip("*`[]"), text).strip("*` ")


def _rows(place: str, table: Sequence[tuple[str, list[str]]]) -> Iterator[Draft]:
    if len(table) < 3 or len(table[0][1]) < 2 or not all(table[0][1]):
        return
    header = table[0][1]
    keys = Counter(cells[0] for _, cells in table[1:])
    for line, cells in table[1:]:
        columns = [n for n in range(1, len(header)) if cells[n] and len(cells[n]) <= _LONGEST_CELL]
        if columns and cells[0] and keys[cells[0]] == 1:
            column = min(columns, key=lambda n: rank(f"{cells[0]} {header[n]}"))
            yield Draft("table", f"What is the {header[column]} of {cells[0]} in {place}?", cells[column], line.strip())


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[*`_]", "", text).split()).casefold()


def families(proposals: Iterable[Proposal]) -> Counter[str]:
    """The number of proposals of each family."""
    return Counter(proposal.family for proposal in proposals)

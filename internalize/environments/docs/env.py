"""Environment `docs`: answer questions by searching and visiting pages of documentation.

Pages come from installed Python packages (default: the standard library, an out-of-domain split from numpy) or
from any folder with a JSON Lines file of questions. Splits of packages share no page: each has its own search index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from internalize.environments.base import UNKNOWN, AnswerEpisode, checked
from internalize.environments.question_files import ANSWER, QUESTION, Columns, Row, tasks_of
from internalize.errors import DataError, TaskError
from internalize.experience.words import words_of
from internalize.records import Task, ToolCall, ToolSpec

from . import cues
from .corpus import Page, folder_pages, package_pages
from .questions import SPLITS, build_tasks, rank, split_of

RESULTS = 4
SYSTEM = "You answer questions from documentation."


class Search:
    """BM25 over page names (weighted) and first sentences."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        import bm25s  # noqa: PLC0415 - half a second to import, and only needed here

        self._names = list(pages)
        self._index = bm25s.BM25()
        corpus = [
            words_of(name, names=True, singles=True) * 2 + words_of(page.about, names=True, singles=True, most=40)
            for name, page in pages.items()
        ]
        self._index.index([tokens or ["-"] for tokens in corpus], show_progress=False)
        self._exact = {name.lower(): name for name in self._names}

    def __call__(self, query: str, limit: int = RESULTS) -> list[str]:
        """The best page names, an exact name first; empty if no word is known."""
        tokens = [w for w in words_of(query, names=True) if w in self._index.vocab_dict]
        found: list[str] = []
        if tokens:
            ids, scores = self._index.retrieve([tokens], k=min(limit, len(self._names)), show_progress=False)
            found = [self._names[i] for i, s in zip(ids[0], scores[0], strict=True) if s > 0]
        exact = self._exact.get(query.strip().lower())
        return ([exact] + [n for n in found if n != exact])[:limit] if exact else found


def normalize(text: str) -> str:
    """The compared form of an answer: no outer quotes or back-ticks, single spaces, lower case."""
    return " ".join(text.strip().strip("`\"'").split()).lower()


class DocsEpisode(AnswerEpisode):
    """One question. Ends with `answer`."""

    def __init__(self, task: Task, pages: Mapping[str, Page], search: Search) -> None:
        super().__init__("docs", SYSTEM, task)
        self._pages, self._search = pages, search

    def observe(self, call: ToolCall | None) -> str:
        """The list of pages found, or the text of a page."""
        if call is None:
            return UNKNOWN
        if call.name == "search":
            found = self._search(call.argument)
            lines = [f"{i}. {name}" for i, name in enumerate(found, 1)]
            return "\n".join(["Found:", *lines]) if found else "No page found."
        return page_text(self._pages, call.argument) or "No such page."

    def score(self) -> float | None:
        """1.0 for the right answer, else 0.0; None for a task without an answer to compare with."""
        if self._task.answer is None:
            return None
        if self._answer is None:
            return 0.0
        return float(normalize(self._answer) == normalize(self._task.answer))


def page_text(pages: Mapping[str, Page], name: str) -> str | None:
    """The text of `name` or of `name#n`, or None."""
    base, _, number = name.strip().partition("#")
    page = pages.get(base)
    if page is None or (number and not number.isdecimal()):
        return None
    part = int(number) if number else 1
    return page.parts[part - 1] if 1 <= part <= len(page.parts) else None


class Docs:
    """The environment. `folder` and `questions` replace the packages.

    `question` and `answer` name the fields of that file, if they do not have common names.
    """

    name = "docs"
    tools = (
        ToolSpec(name="search", argument="words", description="Find pages by name."),
        ToolSpec(name="visit", argument="page", description="Read one page."),
        ToolSpec(name="answer", argument="value", description="Give the answer; ends the episode."),
    )
    evidence_actions = frozenset({"visit"})
    final_actions = frozenset({"answer"})
    cues = cues.CUES

    @checked
    def __init__(
        self,
        packages: Sequence[str] = ("stdlib",),
        ood: Sequence[str] = ("numpy",),
        folder: str | None = None,
        questions: str | None = None,
        question: str = "",
        answer: str = "",
    ) -> None:
        if (folder is None) != (questions is None):
            raise TaskError("docs: options folder and questions go together")
        self._packages, self._ood = tuple(packages), tuple(ood)
        self._folder = Path(folder) if folder else None
        self._questions = Path(questions) if questions else None
        self._columns = Columns(question, answer)
        self._pages = cache(self._load_pages)
        self._search = cache(lambda split: Search(self._pages(split)))
        self.tasks = cache(self._load_tasks)  # type: ignore[method-assign]

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown or empty split."""
        raise NotImplementedError  # replaced in __init__ by a cached version

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return SPLITS if self._folder or not self._ood else (*SPLITS, "ood")

    def _load_pages(self, split: str) -> dict[str, Page]:
        if split not in self.splits():
            raise TaskError(f"docs: no split {split!r} (there are {', '.join(self.splits())})")
        if self._folder:
            return folder_pages(self._folder)
        if split == "ood":
            return package_pages(self._ood)
        return {n: p for n, p in package_pages(self._packages).items() if split_of(p.module) == split}

    def _load_tasks(self, split: str) -> tuple[Task, ...]:
        pages = self._pages(split)
        tasks = (
            _file_tasks(self._questions, split, pages, self._columns) if self._questions else build_tasks(pages, split)
        )
        if not tasks:
            raise TaskError(f"docs: split {split!r} holds no tasks")
        return tasks

    def episode(self, task: Task) -> DocsEpisode:
        """A fresh episode over the pages of the task's split."""
        return DocsEpisode(task, self._pages(task.split), self._search(task.split))

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The reference solution: search the names in the question, visit the pages, answer."""
        found = self._search(task.split)
        actions: list[ToolCall] = []
        for subject, *names in legs(task):
            actions.append(ToolCall.of("search", words=subject))
            if names and names[0] not in found(subject) and names[0] != subject:
                actions.append(ToolCall.of("search", words=names[0]))
            actions += [ToolCall.of("visit", page=name) for name in names]
        return (*actions, ToolCall.of("answer", value=task.answer or ""))


def legs(task: Task) -> list[list[str]]:
    """For each name that the question asks about: the search, then the pages to visit."""
    found = task.state.get("legs", [])
    return [[str(name) for name in leg] for leg in found if isinstance(leg, list)] if isinstance(found, list) else []


def _file_tasks(path: Path, split: str, pages: Mapping[str, Page], columns: Columns) -> tuple[Task, ...]:
    """The tasks of `split`. Raises DataError naming file and line of an invalid question."""

    def task_of(row: Row, named: str) -> Task:
        if named not in SPLITS:
            raise DataError(f"{row.where}: split: {named!r} is none of {', '.join(SPLITS)}")
        names = _page_names(row)
        if unknown := [name for name in names if page_text(pages, name) is None]:
            raise DataError(f"{row.where}: no page {unknown[0]!r} in the folder")
        route: list[JsonValue] = [[row.need(QUESTION), *names]]
        return Task.new("docs", named, row.need(QUESTION), row.need(ANSWER), row.get(("family",)), legs=route)

    return tasks_of(str(path), task_of, columns, lambda question: split_of(rank(question))).get(split, ())


def _page_names(row: Row) -> list[str]:
    """The pages that the reference solution visits: a list, or one text with semicolons between them."""
    pages = row.cells.get("pages") or []
    if isinstance(pages, str):
        pages = [name.strip() for name in pages.split(";") if name.strip()]
    if not isinstance(pages, list | tuple) or not all(isinstance(name, str) for name in pages):
        raise DataError(f"{row.where}: pages: holds {str(pages)[:60]}, which is no list of names")
    return list(pages)

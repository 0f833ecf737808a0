"""Questions over package documentation, in families that need different strategies, with their page paths.

    function, method   search, visit, answer
    class              the constructor's parameters, often some parts further on ("More:")
    paged              a function or method whose parameter stands on a later part
    alias              the page only names where the thing is defined
    inherited          the method has no page of its own: climb the bases, find the part that lists it
    deep               an alias whose target is paged, or a class reached by alias
    pair               two names, two searches, one answer
    long               a pair whose second name is an alias, paged or a class

All pages of a question are in one split, and the split of a module depends only on its name. No answer has more
than a small share of its family, so that guessing fails.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from internalize.records import Task

from .corpus import Page

SPLITS = ("train", "dev", "test")
ANSWER_SHARE = 0.12  # largest share of a family with the same answer
_PER_NAME = 2  # most questions about one name
_PER_FAMILY = {"function": 60, "method": 60, "pair": 40, "long": 40}
_PER_FAMILY_ELSE = 110
_SHORT = frozenset({"function", "method"})
_FURTHER = frozenset({"alias", "class", "paged", "deep"})
_LONGEST_PATH = 6  # pages
_SALT = 137  # chosen so that every family occurs in every split of the standard library
_TRIVIAL = frozenset({"*args", "**kwargs", "**kwds", "args", "kwargs"})


class Draft(NamedTuple):
    """A question before balancing. A leg is the name that the question states and the pages to walk, in order."""

    family: str
    question: str
    answer: str
    legs: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def pages(self) -> int:
        """Pages on the path."""
        return sum(len(names) for _, names in self.legs)


def split_of(module: str) -> str:
    """train, dev or test by the hash of the top-level module's name (60 / 20 / 20)."""
    number = int(hashlib.sha256(f"{module.partition('.')[0]} {_SALT}".encode()).hexdigest()[:8], 16) % 10
    return SPLITS[0 if number < 6 else 1 if number < 8 else 2]


def rank(text: str) -> str:
    """A fixed pseudo-random order that does not depend on the run."""
    return hashlib.sha256(text.encode()).hexdigest()


def build_tasks(pages: Mapping[str, Page], split: str, env: str = "docs") -> tuple[Task, ...]:
    """The balanced tasks over `pages`, in a fixed pseudo-random order."""
    single = [d for d in _drafts(pages) if d.answer.strip() and d.pages <= _LONGEST_PATH]
    drafts = [*single, *_pairs(single, _SHORT, "pair"), *_pairs(single, _FURTHER, "long")]
    return tuple(
        Task.new(env, split, d.question, d.answer, d.family, legs=[[subject, *names] for subject, names in d.legs])
        for d in _balanced(drafts)
    )


def _drafts(pages: Mapping[str, Page]) -> Iterator[Draft]:
    for page in pages.values():
        if page.kind == "alias" and page.target in pages:
            for draft in _own(pages[page.target], page.name):
                family = "deep" if draft.pages > 1 else "alias"
                yield draft._replace(family=family, legs=((page.name, (page.name, *draft.legs[0][1])),))
        elif page.kind == "class":
            yield from _own(page, page.name)
            yield from _inherited(pages, page)
        elif page.kind in {"function", "method"}:
            yield from _own(page, page.name)


def _own(page: Page, name: str) -> Iterator[Draft]:
    """Questions whose answer is on `page`, stated about `name`."""
    made = 0
    order = sorted(range(len(page.params)), key=lambda i: rank(f"{name} {i}"))
    for index in order:
        parameter, default = page.params[index]
        if parameter in _TRIVIAL or made == _PER_NAME:
            continue
        part = _part_with(page, parameter)
        path = tuple(page.name if n == 1 else f"{page.name}#{n}" for n in range(1, part + 1))
        family = page.kind if part == 1 or page.kind == "class" else "paged"
        where = f"the {page.kind} {name}"
        following = page.params[index + 1][0] if index + 1 < len(page.params) else None
        if default is not None and default != "...":
            yield Draft(family, f"What is the default of {parameter} in {where}?", default, ((name, path),))
            made += 1
        elif following and following not in _TRIVIAL and _part_with(page, following) == part:
            yield Draft(family, f"What comes after {parameter} in {where}?", following, ((name, path),))
            made += 1


def _part_with(page: Page, parameter: str) -> int:
    for number, text in enumerate(page.parts, 1):
        line = next((x for x in text.splitlines() if x.startswith("Parameters: ")), "")
        if parameter in {item.split("=")[0] for item in line.removeprefix("Parameters: ").split(", ")}:
            return number
    return 1


def _inherited(pages: Mapping[str, Page], page: Page) -> Iterator[Draft]:
    """Methods that `page` gets from its first bases, at most two levels up."""
    climbed: list[str] = [page.name]
    hidden = set(page.methods)
    current = page
    while current.bases and len(climbed) <= 2:
        current = pages.get(current.bases[0], current)
        if current.name in climbed:
            return
        climbed.append(current.name)
        methods = sorted((m for m in current.methods if m not in hidden), key=lambda m: rank(f"{page.name}.{m}"))
        for method in methods[:2]:
            found = pages.get(f"{current.name}.{method}")
            part = next((n for n, text in enumerate(current.parts, 1) if method in _listed(text)), 0)
            if found is None or not part or part > 2:
                continue
            further = [f"{current.name}#{n}" for n in range(2, part + 1)]
            for draft in _own(found, f"{page.name}.{method}"):
                if draft.family == "method":
                    subject, names = draft.legs[0]
                    yield draft._replace(family="inherited", legs=((subject, (*climbed, *further, *names)),))
        hidden |= set(current.methods)


def _listed(text: str) -> set[str]:
    line = next((x for x in text.splitlines() if x.startswith("Methods: ")), "")
    return set(line.removeprefix("Methods: ").split(", "))


def _pairs(drafts: Sequence[Draft], seconds: frozenset[str], family: str) -> Iterator[Draft]:
    """Two default questions in one: a short one, then one of the families `seconds`."""
    defaults = sorted((d for d in drafts if "default" in d.question), key=lambda d: rank(family + d.question))
    first = [d for d in defaults if d.family in _SHORT]
    second = [d for d in reversed(defaults) if d.family in seconds]
    for a, b in zip(first, second, strict=False):
        if a.legs[0][0] != b.legs[0][0] and a.pages + b.pages <= _LONGEST_PATH:
            question = f"{a.question[:-1]}, and also {b.question[len('What is the default ') : -1]}?"
            yield Draft(family, question, f"{a.answer}, {b.answer}", (*a.legs, *b.legs))


def _balanced(drafts: Iterable[Draft]) -> list[Draft]:
    """At most `_PER_FAMILY` questions a family, no answer above its share of what is kept."""
    families: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        families[draft.family].append(draft)
    kept: list[Draft] = []
    for family in sorted(families):
        size = _PER_FAMILY.get(family, _PER_FAMILY_ELSE)
        kept += _capped(sorted(families[family], key=lambda d: rank(d.question)), size)
    return sorted(kept, key=lambda d: rank("order " + d.question))


def _capped(drafts: Sequence[Draft], size: int) -> list[Draft]:
    size = min(size, len(drafts))
    while True:
        cap = max(1, int(size * ANSWER_SHARE))
        seen: Counter[str] = Counter()
        chosen: list[Draft] = []
        for draft in drafts:
            if len(chosen) < size and seen[draft.answer] < cap:
                seen[draft.answer] += 1
                chosen.append(draft)
        if len(chosen) >= size or cap == 1:
            return chosen
        size = len(chosen)

"""Environment `docs`: every task is solvable and hard to guess, splits do not leak, pages and search behave."""

from __future__ import annotations

import inspect
import json
import math
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from internalize.environments import registry
from internalize.environments.docs.corpus import Page, with_more
from internalize.environments.docs.env import Docs, DocsEpisode, Search, legs, normalize, page_text
from internalize.environments.docs.python_api import facts
from internalize.environments.docs.questions import ANSWER_SHARE, build_tasks, split_of
from internalize.environments.validate import replay, validate
from internalize.errors import DataError, InfrastructureError, TaskError
from internalize.records import Task
from tests.steps import act

SPLITS = ("train", "dev", "test", "ood")


@pytest.fixture(scope="module")
def docs() -> Docs:
    return Docs()


def families(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    found = defaultdict(list)
    for task in tasks:
        found[task.family].append(task)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_solution_scores_one(docs: Docs, split: str) -> None:
    tasks = docs.tasks(split)
    assert len(tasks) >= 100
    assert [task.id for task in tasks if replay(docs, task, docs.solve(task)) != 1.0] == []


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_is_common_in_its_family(docs: Docs, split: str) -> None:
    for family, tasks in families(docs.tasks(split)).items():
        ((answer, count),) = Counter(task.answer for task in tasks).most_common(1)
        assert count <= max(1, math.ceil(ANSWER_SHARE * len(tasks))), (family, answer)


def test_guessing_without_reading_fails(docs: Docs) -> None:
    """The guesser knows the commonest answer of each family of the training split."""
    common = {
        family: Counter(task.answer for task in tasks).most_common(1)[0][0]
        for family, tasks in families(docs.tasks("train")).items()
    }
    for split in SPLITS:
        tasks = docs.tasks(split)
        assert sum(task.answer == common.get(task.family) for task in tasks) < 0.15 * len(tasks), split


@pytest.mark.parametrize("split", SPLITS)
def test_some_tasks_need_five_steps_and_more(docs: Docs, split: str) -> None:
    lengths = [len(docs.solve(task)) for task in docs.tasks(split)]
    assert min(lengths) >= 3
    assert sum(length >= 5 for length in lengths) >= 0.1 * len(lengths)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_family_is_in_every_split(docs: Docs, split: str) -> None:
    expected = {"function", "method", "class", "paged", "alias", "inherited", "deep", "pair", "long"}
    assert families(docs.tasks(split)).keys() == expected


def test_splits_share_no_task_and_no_question(docs: Docs) -> None:
    tasks = [task for split in SPLITS for task in docs.tasks(split)]
    assert len({task.id for task in tasks}) == len({task.question for task in tasks}) == len(tasks)


def test_pages_of_another_split_cannot_be_read(docs: Docs) -> None:
    for split in SPLITS:
        episode = docs.episode(docs.tasks(split)[0])
        for other in SPLITS:
            page = legs(docs.tasks(other)[0])[0][1]
            seen = episode.step(act("visit", page))
            assert (seen == "No such page.") == (other != split), (split, page)


def test_search_finds_no_page_of_another_split(docs: Docs) -> None:
    episode = docs.episode(docs.tasks("dev")[0])
    for task in docs.tasks("train")[:50]:
        page = legs(task)[0][1]
        assert page not in [line.partition(" ")[2] for line in str(episode.step(act("search", page))).splitlines()]


def test_the_same_tasks_come_in_the_same_order(docs: Docs) -> None:
    assert Docs().tasks("dev") == docs.tasks("dev")


def test_an_unknown_split_is_named(docs: Docs) -> None:
    with pytest.raises(TaskError, match=r"no split 'nowhere' \(there are train, dev, test, ood\)"):
        docs.tasks("nowhere")


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TaskError, match="no_such_package_at_all"):
        Docs(packages=["no_such_package_at_all"]).tasks("train")
    assert not (tmp_path / "cache").exists()


def test_the_cause_is_told_when_a_package_cannot_be_inspected() -> None:
    with pytest.raises(TaskError, match=r"json, no_such_package \(ModuleNotFoundError: .*'no_such_package'\)"):
        Docs(packages=["json", "no_such_package"]).tasks("train")


class _Builtin:
    """Like `select.epoll.register` in Python 3.13: its signature names a default that cannot be found."""

    __module__ = "odd_module"
    __text_signature__ = "($self, fd, /, mask=sys.no_such_name)"

    def __init__(self) -> None:
        self.__qualname__ = "register"

    def __get__(self, instance: object, owner: type) -> _Builtin:
        return self

    def __call__(self) -> None: ...


def test_a_builtin_whose_signature_cannot_be_read_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain() -> None: ...

    plain.__module__, plain.__qualname__ = "odd_module", "plain"
    odd, builtin = types.ModuleType("odd_module"), _Builtin()
    vars(odd).update(register=builtin, plain=plain)
    monkeypatch.setitem(sys.modules, "odd_module", odd)
    with pytest.raises(AttributeError):
        inspect.signature(builtin)
    assert [row["name"] for row in facts(["odd_module"])] == ["odd_module.plain"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated where they are defined")
def test_a_function_whose_annotations_name_nothing_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = types.ModuleType("odd_module")
    exec(compile("def plain(file: OnlyForTypeCheckers = None): pass", "odd_module", "exec"), vars(odd))  # noqa: S102
    monkeypatch.setitem(sys.modules, "odd_module", odd)
    assert [row["params"] for row in facts(["odd_module"])] == [[["file", "None"]]]


def test_options_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(TaskError, match=r"env\.options of docs: .*colour"):
        registry.make("docs", {"colour": "red"})
    with pytest.raises(TaskError, match="no such environment"):
        registry.make("nothing", {})
    with pytest.raises(TaskError, match="go together"):
        Docs(folder="somewhere")


# -- pages and search over a small corpus ------------------------------------------------------------------------------


def page(name: str, about: str = "", parts: tuple[str, ...] = ("text",)) -> Page:
    return Page(name=name, kind="function", module=name.partition(".")[0], parts=parts, about=about)


SMALL = {
    p.name: p
    for p in (
        page("json.load", "Read a file."),
        page("json.load.fast.json.load", "Read json load json load."),
        page("JSONDecoder.rawDecode", "Decode."),
        page("io.open", "Open a file.", with_more("io.open", ["first", "second", "third"])),
    )
}


def episode(answer: str = "42") -> DocsEpisode:
    return DocsEpisode(Task.new("docs", "train", "What?", answer), SMALL, Search(SMALL))


def test_search_puts_an_exact_name_first_whatever_else_matches() -> None:
    assert Search(SMALL)("json.load")[:2] == ["json.load", "json.load.fast.json.load"]
    assert Search(SMALL)(" JSON.load ")[0] == "json.load"


def test_search_knows_the_words_inside_camel_case() -> None:
    assert Search(SMALL)("raw decode") == ["JSONDecoder.rawDecode"]


def test_search_shows_at_most_four_names() -> None:
    many = {name: page(name) for name in (f"box.item{i}" for i in range(20))}
    assert len(Search(many)("box")) == 4
    assert len(Search(many)("box.item7")) == 4


def test_what_search_and_visit_say() -> None:
    run = episode()
    assert run.step(act("search", "io.open")) == "Found:\n1. io.open"
    assert run.step(act("search", "zebra")) == "No page found."
    assert run.step(act("search", "")) == "No page found."
    assert run.step(act("visit", "io.open")) == "first\nMore: io.open#2"
    assert run.step(act("visit", "io.open#2")) == "second\nMore: io.open#3"
    assert run.step(act("visit", "io.open#3")) == "third"
    assert run.step(None) == "Unknown action."


@pytest.mark.parametrize("name", ["zebra", "io.open#4", "io.open#0", "io.open#-1", "io.open#x", "io.open#²", "", "#1"])
def test_a_page_that_is_not_there(name: str) -> None:
    assert episode().step(act("visit", name)) == "No such page."


def test_every_part_of_every_page_names_the_next(docs: Docs) -> None:
    long = 0
    for name, found in docs._pages("dev").items():
        for number, text in enumerate(found.parts, 1):
            last = number == len(found.parts)
            assert last or text.endswith(f"\nMore: {name}#{number + 1}")
            assert not last or "More: " not in text.splitlines()[-1]
            assert page_text({name: found}, f"{name}#{number}") == text
        long += len(found.parts) > 1
    assert long > 20


def test_an_episode_ends_with_its_answer_and_is_single_use() -> None:
    run = episode("Read Only")
    assert run.score() == 0.0
    assert run.step(act("answer", " `read  only` ")) is None
    assert run.score() == 1.0
    with pytest.raises(InfrastructureError, match="single-use"):
        run.step(act("visit", "io.open"))
    wrong = episode()
    wrong.step(act("answer", "43"))
    assert wrong.score() == 0.0


@pytest.mark.parametrize(
    ("given", "compared"),
    [
        ("True", "true"), (" 'utf-8' ", "utf-8"), ('"a  b"', "a b"), ("`x`\n", "x"), ("", ""), ("''", ""),
        ("it's", "it's"), ("ÄB", "äb"), ("1, 2", "1, 2"),
    ],
)  # fmt: skip
def test_normalize(given: str, compared: str) -> None:
    assert normalize(given) == compared
    assert normalize(normalize(given)) == compared


def test_no_question_without_a_page_to_answer_it() -> None:
    assert build_tasks({}, "train") == ()
    assert build_tasks(SMALL, "train") == ()


# -- a folder of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "guide").mkdir(parents=True)
    (site / "guide" / "install.md").write_text("# Install\n\nRun pip.\n\nThe port is 8080.\n")
    (site / "index.html").write_text(
        "<html><head><style>p {color: red}</style><script>var secret = 1</script></head><body><h1>Start</h1>"
        "<p>See <a href='guide/install.md#top'>the guide</a> or <a href='https://else.where'>this</a>.</p></body></html>"
    )
    (site / "long.txt").write_text("".join(f"line {i}\n" for i in range(14)))
    (site / "empty.md").write_text("")
    (site / "picture.png").write_bytes(b"\x89PNG")
    return site


def questions(folder: Path, *rows: object) -> Docs:
    file = folder.parent / "questions.jsonl"
    file.write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows))
    return Docs(folder=str(folder), questions=str(file))


PORT = {"question": "Which port?", "answer": "8080", "pages": ["index.html", "guide/install.md"], "split": "train"}
LINE = {"question": "Which is the last line?", "answer": "line 13", "pages": ["long.txt", "long.txt#2", "long.txt#3"],
        "split": "dev", "family": "far"}  # fmt: skip


def test_markdown_html_and_text_are_pages(folder: Path) -> None:
    env = questions(folder, PORT)
    run = env.episode(env.tasks("train")[0])
    assert run.step(act("visit", "guide/install.md")) == "guide/install.md\n# Install\nRun pip.\nThe port is 8080."
    html = run.step(act("visit", "index.html"))
    assert html == "index.html\n# Start\nSee [guide/install.md] the guide or this."
    assert str(run.step(act("visit", "long.txt"))).endswith("line 5\nMore: long.txt#2")
    assert run.step(act("visit", "long.txt#3")) == "line 12\nline 13"
    assert run.step(act("visit", "empty.md")) == "empty.md\n"
    assert run.step(act("visit", "picture.png")) == "No such page."


def test_questions_of_a_file_are_proved_and_split(folder: Path) -> None:
    env = questions(folder, PORT, LINE)
    assert env.splits() == ("train", "dev", "test")
    (train,), (dev,) = env.tasks("train"), env.tasks("dev")
    assert (train.question, train.family) == ("Which port?", "")
    assert (dev.answer, dev.family, dev.split) == ("line 13", "far", "dev")
    assert not any(row.failed for row in validate(env, ("train", "dev")))
    with pytest.raises(TaskError, match="split 'test' holds no tasks"):
        env.tasks("test")


def test_without_a_split_field_the_question_decides(folder: Path) -> None:
    rows = [{"question": f"Question {i}?", "answer": "8080"} for i in range(200)]
    env = questions(folder, *rows)
    parts = {split: {task.question for task in env.tasks(split)} for split in ("train", "dev", "test")}
    assert sum(len(part) for part in parts.values()) == 200
    assert len(parts["train"]) > 80
    assert all(len(part) > 15 for part in parts.values())


def test_the_split_of_a_module_is_that_of_its_package() -> None:
    assert split_of("json") == split_of("json.decoder") == split_of("json.decoder.x")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{not json\n", "line 2"),
        ({"question": "Which?"}, "line 2.*answer"),
        (["a", "list"], "line 2"),
        ({**PORT, "pages": ["gone.md"]}, "line 2: no page 'gone.md'"),
        ({**PORT, "pages": ["long.txt#9"]}, "line 2: no page 'long.txt#9'"),
        ({**PORT, "split": "trian"}, "line 2: split: "),
        ({**PORT, "answer": " "}, "line 2: no field 'answer'"),
        ({**PORT, "pages": 5}, "line 2: pages: "),
        ({**PORT, "split": "dev"}, "line 2: asks the question of line 1 again"),
    ],
)  # fmt: skip
def test_a_bad_question_is_named_by_file_and_line(folder: Path, bad: object, said: str) -> None:
    with pytest.raises(DataError, match=rf"questions\.jsonl, {said}"):
        questions(folder, PORT, bad).tasks("train")


def test_empty_lines_between_questions_are_no_questions(folder: Path) -> None:
    assert len(questions(folder, PORT, "\n").tasks("train")) == 1


def test_a_folder_or_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no folder"):
        Docs(folder=str(folder / "nowhere"), questions="q.jsonl").tasks("train")
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        Docs(folder=str(folder), questions=str(folder / "gone.jsonl")).tasks("train")

"""Words of texts in any script: what search and selection compare, and how many there are."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scripts import STATEMENTS, found_in_docs, found_in_folder, selected
from internalize.experience.extract.proposals import same_words
from internalize.experience.lint import near_duplicates
from internalize.experience.words import word_count, words_of
from internalize.records import Experience

NAME_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


@given(st.text(string.printable))
def test_words_of_ascii_are_runs_of_letters_digits_and_underscores(text: str) -> None:
    assert words_of(text) == re.findall(r"\w+", text.lower())
    assert words_of(text, names=True) == [part.lower() for part in NAME_PARTS.findall(text)]
    assert word_count(text) == len(text.split())


@given(st.text(), st.sampled_from([{}, {"names": True}, {"singles": True}]))
def test_any_text_has_words(text: str, how: dict[str, bool]) -> None:
    found = words_of(text, **how)
    assert all(found)
    assert found[: len(words_of(text, most=1, **how))] == words_of(text, most=1, **how)
    assert word_count(text) >= 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Düse", ["düse"]),
        ("Du\u0308se", ["düse"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("Όνομα ΌΝΟΜΑΣ", ["όνομα", "όνομασ"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("水泵的压力", ["水泵", "泵的", "的压", "压力"]),
        ("水", ["水"]),
        ("90度 ABC", ["90", "度", "abc"]),
        ("ポンプ", ["ポン", "ンプ"]),
        ("\uff46\uff49\uff4c\uff45\uff11", ["file1"]),
        ("x_1 io.open", ["x_1", "io", "open"]),
    ],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_names_are_split_and_single_characters_are_found() -> None:
    assert words_of("ДлинаПути maxLength_2 größeÄndern", names=True) == [
        "длина", "пути", "max", "length", "2", "grösse", "ändern",
    ]  # fmt: skip
    assert words_of("水泵", singles=True) == ["水泵", "水", "泵"]
    assert words_of("a b c 水泵压力 d", most=5) == ["a", "b", "c", "水泵", "泵压", "压力"]


@pytest.mark.parametrize("script", STATEMENTS)
def test_what_stands_in_a_text_is_found_in_every_script(script: str) -> None:
    assert (found_in_docs(script), found_in_folder(script), selected(script)) == (3, 3, 3)


def test_items_without_spaces_are_compared_and_measured_too() -> None:
    a, b = "如果搜索没有结果,请使用更短的词再搜索一次。", "如果搜索没有结果,请用更短的词再搜索一次。"
    items = [Experience.new(text, "principle", "self") for text in (a, b, "读完整页再回答问题。")]
    assert set(near_duplicates(items)) == {items[1].id}
    assert same_words("请先搜索。", "请先搜索")
    assert not same_words("请先搜索", "请先阅读")
    assert word_count(a) == 10
    assert word_count("Search 水泵压力 first.") == 4

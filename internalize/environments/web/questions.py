"""Questions of the published web benchmarks, from files that the user has.

    WebWalkerQA      question, answer, root_url, info {difficulty_level, ...}   (or with capital letters)
    GAIA             Question, "Final answer", Level, file_name: those that need a file are refused
    BrowseComp-ZH    Topic, Question, Answer; with a column `canary` they are encrypted, and decrypted here
    any other        question, answer; optional split, family, pages

Decrypted rows must not be published. What is known about a task beyond its question stays in its state and out
of every prompt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from itertools import cycle
from typing import Any

from pydantic import JsonValue

from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, Row
from internalize.errors import DataError
from internalize.records import Task

_SECRET = ("Topic", "Question", "Answer", "question", "answer", "topic")


def web_task(row: Row, split: str) -> Task:
    """The task of one row. Raises DataError for a row that cannot be asked."""
    row = decrypted(row)
    if row.get(("file_name",)):
        raise DataError(f"{row.where}: needs the file {row.get(('file_name',))!r}; keep questions of text alone")
    info = row.cells.get("info") or row.cells.get("Info")
    state: dict[str, JsonValue] = {}
    if root := row.get(("root_url", "Root_Url")):
        state["root_url"] = root
    pages = row.cells.get("pages")
    if isinstance(pages, list | tuple):
        state["pages"] = [str(page) for page in pages]
    return Task.new("web", split, row.need(QUESTION), row.need(ANSWER), _family(row, info), **state)


def _family(row: Row, info: Any) -> str:
    known = Row(row.where, info) if isinstance(info, dict) else row
    level = row.get(("Level", "level"))
    return row.get(FAMILY) or known.get(("difficulty_level", "Difficulty_Level")) or (f"level {level}" if level else "")


def decrypted(row: Row) -> Row:
    """The row as it is, or in clear if its `canary` is the key of its cells (XOR with its repeated SHA-256)."""
    canary = row.get(("canary",))
    if not canary:
        return row
    key = hashlib.sha256(canary.encode()).digest()
    cells = {
        name: _clear(row.where, str(cell), key) if name in _SECRET and cell else cell
        for name, cell in row.cells.items()
    }
    return Row(row.where, cells)


def _clear(where: str, text: str, key: bytes) -> str:
    try:
        return bytes(a ^ b for a, b in zip(base64.b64decode(text, validate=True), cycle(key))).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be decrypted with its canary") from error

"""Questions of the published web benchmarks, from files that the user has.

    WebWalkerQA      question, answer, root_url, info {difficulty_level, ...}   (or with capital letters)
    GAIA             Question, "Final answer", Level, file_name: those that need a file are refused
    BrowseComp       problem, answer, problem_topic (BrowseComp-ZH: Topic, Question, Answer); with a column `canary`
                     they are encrypted, and decrypted here
    any other        question, answer; optional split, family, pages

Decrypted rows must not be published. Everything about a task but its question stays in its state and out of
every prompt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from itertools import cycle
from typing import Any

from pydantic import JsonValue

from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, Row
from internalize.errors import DataError
from internalize.records import Task

_CANARY = "canary"  # a column with this in its name has the key of the others
_CIPHERTEXT = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")  # longer than any word of a question


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
    """The row in clear: cells are encrypted with the SHA-256 of its canary, repeated, if its question is.

    Other cells are decrypted if they look encrypted and that gives text, the topic if it gives letters. Raises
    DataError for a question or answer that stays encrypted.
    """
    canary = next((str(cell) for name, cell in row.cells.items() if _CANARY in name.lower() and cell), "")
    key = hashlib.sha256(canary.encode()).digest() if canary else b""
    question = _clear(row.get(QUESTION), key)
    if question is None:
        if _CIPHERTEXT.fullmatch(row.get(QUESTION)):
            found = "its canary does not open it" if canary else "no column `canary` has its key"
            raise DataError(f"{row.where}: the question is encrypted, and {found}")
        return row
    if _clear(row.get(ANSWER), key) is None:
        raise DataError(f"{row.where}: the question is encrypted with its canary, the answer is not")
    cells = dict(row.cells)
    for name, cell in row.cells.items():
        clear = _clear(str(cell).strip(), key)
        is_topic = name in FAMILY and clear is not None and not re.search(r"[^\w\s&/,.-]|\d", clear)
        if clear and (name in (*QUESTION, *ANSWER) or is_topic or _CIPHERTEXT.fullmatch(str(cell).strip())):
            cells[name] = clear
    return Row(row.where, cells)


def _clear(text: str, key: bytes) -> str | None:
    """A cell decrypted; None if that gives no text, because it is not encrypted or the key is another."""
    try:
        data = base64.b64decode(text, validate=True)
        found = bytes(a ^ b for a, b in zip(data, cycle(key))).decode()
    except (binascii.Error, ValueError):
        return None
    return found if found and all(c.isprintable() or c.isspace() for c in found) else None

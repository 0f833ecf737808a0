"""The cues of questions about documentation: the names in a question and the words that it asks about.

The packaged starter was trained to follow rules in these words, so they must not change.
"""

from __future__ import annotations

import re

from internalize.interfaces import CueExtractor, Situation

_NAME = re.compile(r"[\w#-]+(?:[./][\w#-]+)+")
_ASKED = re.compile(r"\b(?:of|after|for) (\S+) in\b")


def _name(situation: Situation, number: int) -> dict[str, str]:
    """A name in the question: a word with a dot or a slash inside."""
    names = _NAME.findall(situation.question)
    return {"": names[number]} if names else {}


def asked_state(situation: Situation) -> str:
    """`there` if the observation has a word that the question asks about, else `missing`; "" without such a word."""
    asked, seen = _ASKED.findall(situation.question), situation.observation
    if not asked or seen is None:
        return ""
    there = any(word in seen and re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", seen) for word in asked)
    return "there" if there else "missing"


def _state(situation: Situation) -> dict[str, str]:
    state = asked_state(situation)
    return {state: ""} if state else {}


def _is_beside(situation: Situation, value: str) -> bool:
    """Whether `value` follows an asked word, as `word=value` or as the next item of its list."""
    text = situation.observation or ""
    if value not in text:
        return False
    value = re.escape(value)
    return any(
        re.search(rf"(?<![\w.]){re.escape(word)}(?:={value}|(?:=[^,\n]*)?, {value})(?![\w.])", text)
        for word in _ASKED.findall(situation.question)
    )


FIRST_NAME = CueExtractor(lambda s: _name(s, 0), value="the first name in the question", in_question=True)
LAST_NAME = CueExtractor(lambda s: _name(s, -1), value="the last name in the question", in_question=True)
ASKED = CueExtractor(_state, state="the asked word is {}")
BESIDE = CueExtractor(
    lambda s: {"": "there"} if asked_state(s) == "there" else {},
    value="the value beside the asked word",
    accepts=_is_beside,
)
CUES = (FIRST_NAME, LAST_NAME, BESIDE, ASKED)

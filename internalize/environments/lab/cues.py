"""The cues of questions of `lab`: the two names to look for, and the season.

The packaged policy was trained to follow rules in these words, so they must not change.
"""

from __future__ import annotations

import re

from internalize.interfaces import CueExtractor, Situation

_NAMES = re.compile(r"Seek (\w+), else (\w+),")
_SEASON = re.compile(r", in (\w+)$")


def _name(situation: Situation, number: int) -> dict[str, str]:
    found = _NAMES.search(situation.question)
    return {"": found[number]} if found else {}


def _season(situation: Situation) -> dict[str, str]:
    found = _SEASON.search(situation.question)
    return {found[1]: ""} if found else {}


FIRST_NAME = CueExtractor(lambda s: _name(s, 1), value="the first name in the question", in_question=True)
LAST_NAME = CueExtractor(lambda s: _name(s, 2), value="the last name in the question", in_question=True)
SEASON = CueExtractor(_season, state="the season is {}")
CUES = (FIRST_NAME, LAST_NAME, SEASON)

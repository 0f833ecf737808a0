"""The cue extractors with which rules can name things in any environment.

Every environment has the extractors of BASE; one without extractors of its own also has those of GENERIC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache

from pydantic import JsonValue

from internalize.interfaces import CueExtractor, Situation
from internalize.records import ToolCall, json_value

LONGEST = 80  # characters of a line or of a field's value that can be a cue
ENTRIES = 10  # entries of a JSON list that are read
_WORD = re.compile(r"\w(?:[\w./#@:-]*\w)?")


class _Said(CueExtractor):
    """Words of the question, at every decision after the first."""

    def find(self, situation: Situation, keys: Collection[str]) -> Mapping[str, str]:
        return {key: "" for key in keys if key in situation.question} if situation.results else {}


class _Line(CueExtractor):
    """The beginning of a line, or a whole line. The value is the rest of the first such line up to a comma."""

    def find(self, situation: Situation, keys: Collection[str]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        longest = max(map(len, keys), default=0)
        for line in (situation.observation or "").splitlines():
            if line in keys:
                found.setdefault(line, "")
            end = line.find(" ")
            while 0 <= end <= longest:
                if (key := line[:end]) in keys and key not in found:
                    found[key] = line[end + 1 :].split(", ")[0].strip()
                end = line.find(" ", end + 1)
        return found


def arguments(call: ToolCall) -> tuple[str, ...]:
    """The arguments of a call as texts. Unless they are a single text, the last one is the JSON text of all of them."""
    return _texts(call.arguments)


@lru_cache(maxsize=16384)
def _texts(arguments: str) -> tuple[str, ...]:
    call = ToolCall(name="", arguments=arguments)
    texts = [value if isinstance(value, str) else _json(value) for value in call.values.values()]
    return tuple(texts) if texts == [call.argument] else (*texts, _json(call.values) if texts else call.argument)


def _json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _unlisted(_: Situation) -> dict[str, str]:
    """No keys of its own: any text may be a key, and contrast chooses keys that many tasks share."""
    return {}


@lru_cache(maxsize=1024)
def _fields(results: tuple[str, ...]) -> Mapping[str, str]:
    """The values of the fields of JSON results by their dotted paths. "path: value" is a key as well, for cues."""
    found: dict[str, str] = {}
    for result in results:
        with suppress(ValueError):  # no JSON, or nested too deeply: no fields
            for path, value in _leaves(json_value(result)):
                text = value if isinstance(value, str) else _json(value)
                found.setdefault(path, text)
                if len(text) <= LONGEST:
                    found.setdefault(f"{path}: {text}", "")
    return found


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value[:ENTRIES])
        for key, entry in entries:
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif path:  # a result that is a bare number or text has no fields
        yield path, value


def _shared(situation: Situation) -> dict[str, str]:
    """The first word of the question that is also in the results and was no argument of a call yet."""
    used, shown = {argument for _, argument in situation.taken}, set(_WORD.findall(situation.observation or ""))
    words = [word for word in _WORD.findall(situation.question) if _tells(word) and word in shown - used]
    return {"": words[0]} if words else {}


def _is_shared(situation: Situation, text: str) -> bool:
    """Whether the question and the results both have `text`, as whole words."""
    places = situation.question, situation.observation or ""
    whole = rf"(?<!\w){re.escape(text)}(?!\w)"
    return _tells(text) and all(text in place and re.search(whole, place) for place in places)


def _tells(word: str) -> bool:
    """Whether a word can name something: articles and prepositions are short and have no digits."""
    return len(word) > 3 or any(map(str.isdigit, word))


START = CueExtractor(lambda situation: {} if situation.results else {"": ""}, cue="At the start")
SAID = _Said(_unlisted, cue='When the question says "{}"')
LINE = _Line(_unlisted, cue='When you see "{}"', value='the name after "{}"')
GIVEN = CueExtractor(_unlisted, value="[{}]")  # the key is the argument itself, so no situation needs to be read
BASE = (LINE, SAID, START, GIVEN)

FIELD = CueExtractor(lambda s: _fields(s.results), cue='When the result has "{}"', value='the value of "{}"')
EARLIER = CueExtractor(lambda situation: dict(situation.taken), value="the argument of the last {} call")
SHARED = CueExtractor(_shared, value="a word that the result shares with the question", accepts=_is_shared)
GENERIC = (FIELD, EARLIER, SHARED)

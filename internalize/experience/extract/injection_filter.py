"""The filter of all extracted items: keeps text that pages address to a model, and orders of pages, out of a pool.

An item is kept out if it addresses a model (role markers, tool-call markup, special tokens, "ignore previous
instructions"), repeats an order that stands in an observation, or, as a principle, holds an address; texts are compared
as a reader sees them (disguise.py). A trajectory in which a page addresses a model may suggest new items, which are
filtered, but no change of existing items, because a DELETE has no text to filter. False advice passes: a
page's claim in a model's own words is no order, and only evidence (support, lift, origins, the gate) can refute it.
The word lists are English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from internalize.inference.control_tokens import inert
from internalize.records import Granularity, Trajectory, content_hash

from .disguise import invisible, undisguised, without_digits

GRAM = 5  # words in a row that an item must share with an order to repeat it; a shorter order is compared whole
_SHORTEST = 3  # fewest words of an order that is compared
_TLD = "com|net|org|edu|gov|io|xyz|ru|cn|info|biz|top|dev|app|ai|me|co|uk|de|eu|onion|site|online|shop|club|link|zip"
_URL = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,15}:/|\b(?:data|javascript|mailto):\S|\bwww\.\w|\b[\w-]+\.(?:com|net|org)\b|"
    rf"\b[\w-]+(?:\.[a-z]{{2,24}}/[a-z]|\.(?:{_TLD})[/:]|\s?(?:\[\.?\]|\(\.?\)|\[dot\]|\(dot\)|\sdot\s)\s?(?:{_TLD})\b)|"
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)|(?<![\w:])(?:[0-9a-f]{1,4}:){2,7}:?[0-9a-f]{0,4}(?![\w:])|"
    r"\b[\w.+-]+@[\w-]+\.\w{2,}|\bxn--\w",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"<\|[^>]{0,40}\|>|<\uff5c|</?s>|\[/?INST\]|<<\s*/?\s*SYS|</?(?:tool_call|tool_response|function|think|system|"
    r"assistant|user|im_start|im_end|start_of_turn|end_of_turn|invoke|data-[0-9a-f]{8})\b|<(?:start|end)_of_turn>|"
    r"(?:^|[\n.:;!?\"'(]\s*)(?:#+\s*|\*\*|\[)?(?:system|assistant|developer|human)(?:\s+(?:message|prompt|note))?\]?\s*:"
    r"|\{\s*\"(?:name|op|tool|function|edits)\"\s*:",
    re.IGNORECASE,
)
_WHO = (
    r"(?:language model|llm|ai model|ai agent|ai assistant|assistant|chatbot|extractor|summari[sz]er|critic|curator)s?"
)
_OLD = r"(?:previous|prior|above|earlier|preceding|foregoing|existing|original|system)"
_SAID = r"(?:instructions?|prompts?|rules?|guidelines?|directions?|orders|experiences?|items?)"
_FORGET = (
    r"(?:ignore|disregard|forget|override|bypass|discard|drop|delete|erase|wipe|remove|replace|neglect|do not follow)"
)
_OBEY = (
    r"(?:add|store|record|save|remember|insert|include|output|reply|respond|write|delete|remove|update|merge|emit|reveal"
    r"|say|print|send|forget|ignore)"
)
_MUST = r"(?:must|shall|should|have to|need to|are (?:required|instructed|ordered|asked|told) to|will)"
# Words without which a pattern cannot match (searched first, which is many times faster), then the pattern.
_SPEECH: tuple[tuple[str, str], ...] = (
    (
        "ignore|disregard|forget|override|bypass|discard|drop|delete|erase|wipe|remove|replace|neglect|do not follow",
        (
            rf"{_FORGET}\s+(?:(?:all|any|every|the|these|those|your|of|other)\s+)*"
            rf"(?:{_OLD}\s+(?:\w+\s+)?{_SAID}|(?:held|stored|pool)\s+\w+|everything\s+(?:above|before|you)|instructions"
            rf"|(?:experience\s+)?pool)"
        ),
    ),
    (
        "you|model|agent|llm|assistant|chatbot|extractor|summari|critic|curator",
        rf"(?:you|{_WHO})\s+{_MUST}\s+(?:now\s+|always\s+|immediately\s+)?{_OBEY}",
    ),
    (
        "you are now|from now on|act as|pretend|new instruction",
        rf"you are now|from now on,? you|act as (?:an? )?(?:\w+ )?{_WHO}|pretend (?:to be|that you)|new instructions?",
    ),
    (
        "model|agent|llm|assistant|chatbot|extractor|summari|critic|curator",
        (
            rf"(?:note|message|attention|important|instructions?|memo|notice|dear|hey|hello)\W{{1,3}}(?:to |for |all )?"
            rf"(?:the |any |every |all )?{_WHO}"
        ),
    ),
    (
        "pool|memor|experience|list of|long-term",
        (
            r"(?:add|store|save|insert|append|put|write|record)\b[^.\n]{0,60}\b(?:to|in|into)\s+(?:the|your|its)\s+"
            r"(?:(?:experience|item)\s+)?(?:pool|memory|memories|experience|list of (?:items|rules)|long-term)"
        ),
    ),
    (
        "system prompt|prompt injection|jailbreak|developer mode|exfiltrate|repeat",
        r"system prompt|prompt injection|jailbreak|developer mode|exfiltrate|repeat (?:after me|the words above)",
    ),
)
_COMPILED = tuple((anchors.split("|"), re.compile(rf"\b(?:{pattern})\b")) for anchors, pattern in _SPEECH)
# An order begins a sentence, a list entry or what follows a comma or colon.
_VERBS = (
    "add|always|answer|avoid|be sure|begin|buy|call|check|choose|click|compare|consult|contact|copy|"
    "delete|disregard|do not|don't|download|email|ensure|enter|execute|fetch|fill|follow|forget|give|go|"
    "guess|ignore|include|insert|install|invoke|keep|log|make|mention|must|navigate|never|note|open|order|"
    "output|paste|pay|pick|please|post|prefer|print|quote|read|recommend|record|refuse|register|remember|"
    "remove|repeat|reply|report|respond|return|run|save|say|search|select|send|share|sign|skip|start|"
    "state|stop|store|submit|subscribe|tell|treat|trust|try|type|update|upload|use|visit|wait|write|"
    "you must|you should"
)
_CLAUSE = re.compile(r"[.!?;:\n|]+\s*|,\s+|\s+-+\s+|\s+[\u2013\u2014]\s+|[()\[\]\"\u201c\u201d]")
_LEAD = r"(?:[-*\u2022#>]+\s*|\d+[.)]\s*)?(?:(?:then|and|now|so|just|also|or|but|next|first)\s+)*"
_ORDER = re.compile(rf"{_LEAD}(?=(?:{_VERBS})\b)", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['\u2019._/-][^\W_]+)*")


def addresses_model(text: str) -> str:
    """Why a text looks like an instruction to a model; "" if it does not."""
    shown = undisguised(text)
    if found := _MARKUP.search(shown):
        return f"holds markup of a chat or a tool ({_start(found)!r})"
    if (broken := inert(shown)) != shown:
        place = next(n for n, (a, b) in enumerate(zip(broken, shown, strict=False)) if a != b)
        return f"holds a control token of a chat template ({shown[max(0, place - 1) : place + 20]!r})"
    plain = shown.lower()
    return _speech(plain) or _speech(without_digits(plain))


def _speech(plain: str) -> str:
    for anchors, pattern in _COMPILED:
        if any(anchor in plain for anchor in anchors) and (found := pattern.search(plain)):
            return f"holds an instruction to a model ({_start(found)!r})"
    return ""


def _start(found: re.Match[str]) -> str:
    return " ".join(found[0].split())[:60]


@dataclass(frozen=True)
class InjectionFilter:
    """Orders of pages as runs of words, trajectories in which a page addresses a model, and barred items."""

    orders: frozenset[tuple[str, ...]]
    addressed: frozenset[str]
    barred: frozenset[str] = frozenset()  # ids of items

    @staticmethod
    def of(trajectories: Iterable[Trajectory], barred: frozenset[str] = frozenset()) -> InjectionFilter:
        """A filter for the observations of these trajectories, except text of their questions."""
        orders: set[tuple[str, ...]] = set()
        addresses: dict[str, bool] = {}  # observations recur: each is read once
        addressed: set[str] = set()
        for trajectory in trajectories:
            for seen in (result.text for step in trajectory.steps for result in step.results):
                if seen not in addresses:
                    addresses[seen] = bool(addresses_model(seen))
                    orders.update(run for order in _orders(seen) for run in _runs(order))
                if addresses[seen]:
                    addressed.add(trajectory.id)
        return InjectionFilter(frozenset(orders), frozenset(addressed), barred)

    def problem(self, text: str, granularity: Granularity) -> str:
        """Why an item is kept out of the pool; "" if it may go in."""
        if content_hash(text) in self.barred:
            return "it was deleted for good"
        if unseen := invisible(text):
            return f"holds an invisible character (U+{ord(unseen):04X})"
        if reason := addresses_model(text):
            return reason
        if granularity == "principle" and (found := _URL.search(undisguised(text)) or _URL.search(text)):
            return f"holds an address ({found[0]!r}), though it is a principle"
        words = _words(text)
        for length in range(_SHORTEST, GRAM + 1):
            for start in range(len(words) - length + 1):
                run = tuple(words[start : start + length])
                if run in self.orders:
                    return f"repeats an order of a page ({' '.join(run)!r})"
        return ""

    def change_problem(self, evidence: Iterable[str]) -> str:
        """Why a change of existing items is rejected; "" if it may be made."""
        poisoned = sorted(self.addressed.intersection(evidence))
        return f"rests on trajectory {poisoned[0]}, in which a page speaks to a model" if poisoned else ""


def _orders(observation: str) -> Iterator[list[str]]:
    for clause in _CLAUSE.split(undisguised(observation)):
        if found := _ORDER.match(clause.strip()):
            yield _words(clause.strip()[found.end() :])


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    """All runs of GRAM words; a shorter order is one run."""
    if _SHORTEST <= len(words) < GRAM:
        yield tuple(words)
    for start in range(len(words) - GRAM + 1):
        yield tuple(words[start : start + GRAM])


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(undisguised(text))]

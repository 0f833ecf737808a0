"""Finds secrets of known form in a text: by the rules of gitleaks, and by rules for forms that gitleaks leaves out.

gitleaks/gitleaks.toml is the file of that project at commit b58d3f1 (2026-07-22), unchanged, under the MIT licence
beside it. A rule is tried only where one of its keywords occurs. Its patterns run in RE2, as in gitleaks, whose time is
linear in the length of any text. Rules for files with certain names are left out.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

# The value of a key with a vendor's prefix: long, with both cases and digits, unlike names in code.
_PREFIX = r"\b([a-z][a-z0-9]{1,11}[_-](?:\w{1,8}[_-])?"
_MORE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("telegram-bot", (":aa",), r"\b[0-9]{8,10}:AA[\w-]{32,34}\b"),
    ("discord-bot", (".",), r"\b[MNO][\w-]{22,27}\.[\w-]{6}\.[\w-]{27,40}\b"),
    ("discord-webhook", ("webhooks/",), r"\bdiscord(?:app)?\.com/api/webhooks/[0-9]+/([\w-]{40,})"),
    ("teams-webhook", ("webhook.office.com",), r"\bwebhook\.office\.com/webhookb2/([\w@/-]{40,})"),
    ("docker", ("dckr_",), r"\bdckr_[po]at_[\w-]{20,}"),
    ("google-oauth", ("gocspx-", "ya29."), r"\b(?:GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,})"),
    ("bitbucket", ("atbb",), r"\bATBB[\w=]{24,}"),
    ("nuget", ("oy2",), r"\boy2[a-z0-9]{43}\b"),
    ("mailgun", ("key-",), r"\bkey-[0-9a-f]{32}\b"),
    ("mailchimp", ("-us",), r"\b[0-9a-f]{32}-us[0-9]{1,2}\b"),
    ("nvidia", ("nvapi-",), r"\bnvapi-[\w-]{40,}"),
    ("new-relic", ("nrak-", "nrii-"), r"\bNR(?:AK|II)-[\w-]{20,}"),
    ("sentry", ("sntrys_",), r"\bsntrys_[\w+/=-]{40,}"),
    ("airtable", ("pat",), r"\bpat[A-Za-z0-9]{14}\.[0-9a-f]{64}\b"),
    ("langsmith", ("lsv2_",), r"\blsv2_[a-z]{2}_[0-9a-f]{32}_[0-9a-f]{10}\b"),
    ("figma", ("figd_",), r"\bfigd_[\w-]{30,}"),
    ("dropbox", ("sl.",), r"\bsl\.[\w-]{60,}"),
    ("mapbox", ("sk.eyj",), r"\bsk\.eyJ[\w-]{40,}\.[\w-]{20,}"),
    ("npm", ("_authtoken",), r"_authToken\s*=\s*([\w-]{20,})"),
    ("prefixed-hex", ("_", "-"), _PREFIX + r"[0-9a-f]{32,})(?:[^\w-]|$)"),
    ("prefixed", ("_", "-"), _PREFIX + r"[A-Za-z0-9]{20,})(?:[^\w-]|$)"),
)
_HASHES = (r"^(?:sha|md|blake|crc|sri|hash|digest|commit|rev|etag|uuid|id)[0-9]*[_-]",)


@dataclass(frozen=True)
class SecretRule:
    """One form of secret. `group` is the secret's group in the match, 0 = the first group that holds something."""

    name: str
    words: tuple[str, ...]
    regex: str
    group: int = 0
    entropy: float = 0.0  # bits per character that the secret must exceed
    harmless: tuple[str, ...] = ()  # patterns of false alarms
    stopwords: tuple[str, ...] = ()
    mixed: bool = False  # whether the last part must have digits and letters of both cases

    @cached_property
    def pattern(self) -> Any:
        """The compiled pattern."""
        return _compiled(self.regex)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """The places of secrets in `text`."""
        for found in self.pattern.finditer(text):
            groups = [self.group] if self.group else [*range(1, self.pattern.groups + 1)]
            number = next((g for g in groups if found.group(g)), 0)
            if self._is_secret(found.group(number)):
                yield found.span(number)

    def _is_secret(self, secret: str) -> bool:
        last = re.split("[_-]", secret)[-1]
        if self.mixed and not all(any(map(is_kind, last)) for is_kind in (str.isdigit, str.isupper, str.islower)):
            return False
        if self.entropy and _entropy(secret) <= self.entropy:
            return False
        low = secret.lower()
        if any(word in low for word in self.stopwords):
            return False
        return not any(_compiled(pattern).search(secret) for pattern in self.harmless)


def secret_spans(text: str) -> list[tuple[int, int]]:
    """The places of secrets in `text`, in order and without overlap."""
    low, found = text.lower(), list[tuple[int, int]]()
    present = {word for word in _words() if word in low}
    for rule in _rules() if present else ():
        if not present.isdisjoint(rule.words):
            found += rule.spans(text)
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


@cache
def _rules() -> Sequence[SecretRule]:
    stored = tomllib.loads((files(__package__) / "gitleaks" / "gitleaks.toml").read_text(encoding="utf-8"))
    everywhere = stored["allowlist"]
    found = [_rule(one, everywhere) for one in stored["rules"] if "regex" in one and "path" not in one]
    return [*found, *(SecretRule(*one, harmless=_HASHES, mixed=one[0] == "prefixed") for one in _MORE)]


def _rule(stored: dict[str, Any], everywhere: dict[str, Any]) -> SecretRule:
    # An allowlist for paths is about repositories, and one for lines or matches about files of one kind.
    allowed = [one for one in stored.get("allowlists", ()) if one.get("regexTarget", "secret") == "secret"]
    return SecretRule(
        name=stored["id"],
        words=tuple(stored["keywords"]),
        regex=stored["regex"],
        group=stored.get("secretGroup", 0),
        entropy=stored.get("entropy", 0.0),
        harmless=tuple(pattern for one in (everywhere, *allowed) for pattern in one.get("regexes", ())),
        stopwords=tuple(word.lower() for one in (everywhere, *allowed) for word in one.get("stopwords", ())),
    )


@cache
def _words() -> frozenset[str]:
    return frozenset(word for rule in _rules() for word in rule.words)


@cache
def _compiled(pattern: str) -> Any:
    import re2  # noqa: PLC0415 - loaded only if something is redacted

    return re2.compile(pattern)


def _entropy(text: str) -> float:
    """Shannon entropy, in bits per character."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)

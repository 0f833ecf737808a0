"""Removes secrets from texts before they reach somebody else's endpoint, a pool or training data.

Removed are API keys and tokens of known form (secret_rules.py), private-key blocks, cookies, logins in addresses,
assignments such as password=..., e-mail addresses, and matches of the recipe's own patterns; a marker such as [email
removed] takes their place, so redacting twice changes nothing. Secrets of unknown form stay, and so does personal data,
unless `redact.persons` asks for it (persons.py).
Token ids are dropped with the text they encode: a trajectory whose own actions hold a secret is not trained on, because
the edited action was never sampled.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field

from internalize.config.redact import RedactConfig
from internalize.config.schema import Config
from internalize.errors import ConfigError
from internalize.records import Injection, Message, Record, Step, Trajectory, json_value
from internalize.runs.readers import record
from internalize.runs.store import write_json

from . import persons
from .secret_rules import secret_spans

# The order matters: a pattern that may match inside a longer one comes after it. A word that names a secret must be
# followed by a sign of assignment, so that prose about passwords and tokens stays as it is.
_NAMES = (
    r"password|passwd|pwd|pass[_-]?phrase|secret|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|"
    r"auth[_-]?token|access[_-]?token|refresh[_-]?token|client[_-]?secret|connection[_-]?string"
)
_WEAK = r"token|auth|session(?:[_-]?id)?|sid|sig(?:nature)?|key|credentials?|secret[_-]?\w{1,8}"  # with random values
_HARMLESS = (  # values that are types, variables and calls in code, or words of a sentence
    r"(?:None|True|False|null|true|false|str|bytes|int|object|Optional\w*|Union\w*|is|are|was|self)\b|"
    rf"""[\[<$*{{.(]|["'][$%{{<]|[a-z_]{{1,60}}(?:\.[a-z_]{{1,60}}){{0,6}}\(|"""
    rf"""\w{{0,60}}(?:{_NAMES}|key|token)(?=[\s,)}}\]]|$)|(?<=: )[A-Za-z]{{1,60}} {{1,8}}[A-Za-z]"""
)
_VALUE = r"""(?:\\"[^"\\\n]+\\"|"[^"\n]+"|'[^'\n]+'|[^\s"'\[\],;&\\]+)"""
_SIGN = r"""\\?["']?\s{0,8}(?:=|:(?!//))\s{0,8}"""
_RANDOM = r"""\\?["']?(?=[\w.~+/%-]{0,99}\d)(?=[\w.~+/%-]{0,99}[A-Za-z])[\w.~+/%-]{16,4000}={0,2}"""
_KINDS: tuple[tuple[str, str], ...] = (
    (
        "private key",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    ),
    (
        "cookie",
        (
            r"(?i:(?<=\bcookie: )|(?<=\bcookie\": \")|(?<=\bcookie:))"
            r"(?=[^\r\n\"']{0,200}=[\w%.~+/-]{0,40}\d[\w%.~+/-]{12})[^\r\n\"']+"
        ),
    ),
    ("jwt", r"(?<![\w-])eyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]{6,4000}"),
    ("api key", r"(?<![\w-])sk-(?=[\w-]{0,200}\d)[A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}"),
    (
        "api key",
        (
            r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bhf_[A-Za-z0-9]{20,}|"
            r"\bxox[abeprs]-[\w-]{10,}|\bxapp-[\w-]{10,}"
        ),
    ),
    ("bearer token", r"(?i:(?<=\bbearer )|(?<=\bbasic )|(?<=\bauthorization: token ))[A-Za-z0-9._~+/-]{16,}=*"),
    ("url login", r"(?<=://)[^\s/:@\[\]]*:[^\s/@\[\]]+(?=@)"),
    ("password", rf"""(?i:\bpass[ _-]?phrase{_SIGN})(?!{_HARMLESS})(?!["'\\])[^\n"',;\[]+"""),
    ("password", rf"""(?i:\b\w{{0,40}}(?:{_NAMES})\b{_SIGN})(?!{_HARMLESS}){_VALUE}"""),
    ("password", rf"""(?i:(?<![\w-])--(?:{_NAMES}|token|pass)(?:\s|=)\s{{0,4}})(?!{_HARMLESS}|-){_VALUE}"""),
    ("password", rf"""(?i:(?:\b|_)(?:{_WEAK}){_SIGN}){_RANDOM}"""),
    (
        "email",
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}\b",
    ),
)
_RULES_AFTER = "jwt"  # this kind and earlier ones precede the rules of secret_rules.py
Weighted = tuple[Trajectory, float]  # with its weight in training
_ASSIGNED = re.compile(r"(?:[=:]|\s(?=\S+$))\s*")  # also the blank after an option of a command


class RedactionCount(Record):
    """Removed secrets of one stage, by kind; `dropped` trajectories have a secret in an action."""

    removed: dict[str, int] = Field(default_factory=dict)
    dropped: int = 0


class Redactions(Record):
    """redactions.json: the counts of an iteration, "extract" and each round of training."""

    stages: dict[str, RedactionCount] = Field(default_factory=dict)


def note(path: Path, stage: str, count: RedactionCount, write: Callable[[Path, BaseModel], None] = write_json) -> None:
    """Write the count of a stage, if it is not empty, into the file; counts of other stages stay."""
    if count == RedactionCount():
        return
    path.parent.mkdir(exist_ok=True)
    held = record(path, Redactions) or Redactions()
    write(path, Redactions(stages=held.stages | {stage: count}))


def without_secrets(
    weighted: Sequence[Weighted],
    config: RedactConfig,
    path: Path,
    stage: str,
    write: Callable[[Path, BaseModel], None] = write_json,
) -> list[Weighted]:
    """`Redactor.trainable`; its counts go to `path` by `write`."""
    kept, counts, dropped = Redactor.of(config).trainable(weighted)
    note(path, stage, RedactionCount(removed=dict(counts), dropped=dropped), write)
    return kept


def require_no_secrets(config: Config) -> None:
    """Raises ConfigError naming a key that holds a secret, because run.json and the report show the whole recipe."""
    redactor = Redactor.of(RedactConfig())
    for key, text in _recipe_texts(
        "", config.model_dump(mode="json", include={"env", "evaluate", "endpoints", "model"})
    ):
        if kinds := sorted(set(redactor.text(text)[1]) - {"email"}):
            raise ConfigError(
                f"{key}: holds a secret ({kinds[0]}), and recipes are stored in run.json and shown by the report; "
                "put it into an environment variable (key_env, env)"
            )


def _recipe_texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    """The texts of a section by their keys; a list of texts, such as a command, counts as one text."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _recipe_texts(f"{key}.{name}".lstrip("."), inner)
    elif isinstance(value, list):
        yield key, " ".join(one for one in value if isinstance(one, str))
        for inner in value:
            yield from _recipe_texts(key, inner if isinstance(inner, dict | list) else None)


@dataclass(frozen=True)
class Redactor:
    """Patterns by kind. `Redactor()` removes nothing."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...] = field(default=())
    persons: persons.Find | None = None

    @staticmethod
    def of(config: RedactConfig) -> Redactor:
        """The configured redactor. Raises UserError for a package or model that is not installed."""
        if not config.enabled:
            return Redactor()
        built_in = tuple((kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _KINDS)
        of_persons = persons.finder(config.persons, config.names_by) if config.persons else None
        return Redactor((*built_in, *(("pattern", re.compile(pattern)) for pattern in config.patterns)), of_persons)

    def text(self, text: str) -> tuple[str, Counter[str]]:
        """`text` without secrets, and how many of each kind were removed."""
        counts: Counter[str] = Counter()
        for kind, pattern in self.patterns:
            text, found = pattern.subn(_marker(kind), text)
            if found:
                counts[kind] += found
            if kind == _RULES_AFTER:
                text = _without_spans(text, counts)
        for start, end, kind in reversed(self.persons(text) if self.persons else []):
            counts[kind] += 1
            text = f"{text[:start]}[{kind} removed]{text[end:]}"
        return text, counts

    def clean(self, text: str) -> str:
        """`text` without secrets."""
        return self.text(text)[0]

    def trajectory(self, trajectory: Trajectory) -> tuple[Trajectory, Counter[str]]:
        """The trajectory without secrets in any of its texts; steps whose action changed lose their token ids."""
        if not self.patterns:
            return trajectory, Counter()
        counts: Counter[str] = Counter()
        clean = self._counting(counts)
        changed = trajectory.model_copy(
            update={
                "prompt": tuple(_message(message, clean) for message in trajectory.prompt),
                "global_injection": _injection(trajectory.global_injection, clean),
                "steps": tuple(_step(step, clean) for step in trajectory.steps),
                "failure": clean(trajectory.failure) if trajectory.failure else trajectory.failure,
                "origin": None,  # holds parts of the texts before redaction
                "branches": (),  # each branch is a conversation of its own here
            }
        )
        return (changed if counts else trajectory), counts

    def message(self, message: Message) -> Message:
        """The message without secrets."""
        return _message(message, self.clean) if self.patterns else message

    def step(self, step: Step) -> Step:
        """The step without secrets; one whose action changed loses its token ids."""
        return _step(step, self.clean) if self.patterns else step

    def injection(self, injection: Injection | None) -> Injection | None:
        """The injection without secrets."""
        return _injection(injection, self.clean)

    def trajectories(self, trajectories: Iterable[Trajectory]) -> tuple[list[Trajectory], Counter[str]]:
        """`trajectory` of each, and the total counts."""
        pairs = [self.trajectory(trajectory) for trajectory in trajectories]
        return [kept for kept, _ in pairs], sum((counts for _, counts in pairs), Counter[str]())

    def trainable(self, weighted: Sequence[Weighted]) -> tuple[list[Weighted], Counter[str], int]:
        """Trajectories fit for training, the counts of their redacted observations, and how many were dropped.

        Observations carry no loss, but their ids are stored and read as context, so they are redacted. Actions are
        trained on as sampled or not at all.
        """
        safe = [
            (t, weight) for t, weight in weighted if not any(self._holds(step) for step in t.steps if not step.left_out)
        ]
        kept, counts = self.trajectories(t for t, _ in safe)
        return list(zip(kept, (weight for _, weight in safe), strict=True)), counts, len(weighted) - len(safe)

    def _holds(self, step: Step) -> bool:
        texts = [step.text, *(call.argument for call in step.calls)]
        return any(self.text(text)[1] for text in texts)

    def _counting(self, counts: Counter[str]) -> Callable[[str], str]:
        def clean(text: str) -> str:
            text, found = self.text(text)
            counts.update(found)
            return text

        return clean


def _without_spans(text: str, counts: Counter[str]) -> str:
    spans = [
        (a, b) for a, b in secret_spans(text) if not text[a:b].endswith(" removed") and "removed]" not in text[a:b]
    ]
    if spans:
        counts["api key"] += len(spans)
    for start, end in reversed(spans):
        text = f"{text[:start]}[api key removed]{text[end:]}"
    return text


def _marker(kind: str) -> Callable[[re.Match[str]], str]:
    marker = f"[{kind} removed]"

    def replace(found: re.Match[str]) -> str:
        if kind != "password":
            return marker
        sign = _ASSIGNED.search(found[0])  # the name of the secret stays; only its value is removed
        return found[0][: sign.end()] + marker if sign else marker

    return replace


def _message(message: Message, clean: Callable[[str], str]) -> Message:
    calls = tuple(
        call.model_copy(update={"arguments": _arguments(call.arguments, clean)}) for call in message.tool_calls
    )
    return message.model_copy(
        update={"content": clean(message.text), "reasoning": clean(message.reasoning), "tool_calls": calls}
    )


def _arguments(text: str, clean: Callable[[str], str]) -> str:
    """Clean the strings of JSON text one by one, so that the result is still valid JSON."""
    try:
        value = json_value(text)
    except ValueError:
        return clean(text)
    cleaned = _strings(value, clean)
    return text if cleaned == value else json.dumps(cleaned, ensure_ascii=False)


def _strings(value: object, clean: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_strings(entry, clean) for entry in value]
    if isinstance(value, dict):
        return {key: _value_of(key, entry, clean) for key, entry in value.items()}
    return value


def _value_of(key: str, entry: object, clean: Callable[[str], str]) -> object:
    if not isinstance(entry, str):
        return _strings(entry, clean)
    cleaned = clean(f"{key}: {entry}")  # the argument's name may tell that its value is a secret
    return cleaned.removeprefix(f"{key}: ")


def _injection(injection: Injection | None, clean: Callable[[str], str]) -> Injection | None:
    return injection and injection.model_copy(update={"text": clean(injection.text)})


def _step(step: Step, clean: Callable[[str], str]) -> Step:
    text, message = clean(step.text), _message(step.message, clean)
    update: dict[str, object] = {
        "injection": _injection(step.injection, clean),
        "text": text,
        "message": message,
        "results": tuple(_message(result, clean) for result in step.results),
        "shown": step.shown and _message(step.shown, clean),
    }
    if text != step.text or message != step.message:
        update |= {"token_ids": (), "logprobs": (), "forced": (0, 0)}
    return step.model_copy(update=update)

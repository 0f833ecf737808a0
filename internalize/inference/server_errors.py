"""Reads error answers of servers: the explanation, and whether the prompt is too long or a filter declines it.

Servers share no status or code for this, so their words decide, by common phrases rather than whole messages. Only
fields that hold a server's own words are read, because some answers repeat the request.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_MESSAGES = frozenset({"message", "msg", "error", "errors", "detail", "details", "title", "raw", "metadata"})
_CODES = frozenset({"code", "type", "error_type", "error_code", "status", "innererror"})
_DEEPEST = 6  # levels; some servers put the JSON text of another server's answer into their message
_LONGEST = 20_000  # characters that are searched

_INPUT = r"\b(?:prompts?|inputs?|messages?|requests?|conversation|context|contents?|tokens?|body|prompt_tokens)\b"
_MOST = r"\b(?:exceed\w*|too (?:long|large|big|many)|(?:longer|larger|greater|more|must be less) than|over the)"
_SIZE = r"(?:\b(?:length|size|tokens?|window|model|max\w*|limit)\b|\d)"
_TOO_LONG = re.compile(
    "|".join(
        (
            r"context[ _-]?(?:length|size|window|limit|overflow)|max(?:imum)? context",
            rf"{_INPUT}(?: \(.{{0,30}}\))?.{{0,60}}?{_MOST}.{{0,60}}?{_SIZE}",
            r"(?:prompt|input|sequence|model)[ _](?:token )?(?:length|limit)\b.{0,40}(?:should|must|exceed|max|\d)",
            r"max(?:imum)?[ _](?:prompt|input|sequence|model|content|message)[ _-]?(?:length|size|tokens)",
            r"exceed\w* (?:the )?max\w* (?:allowed )?(?:content|input|prompt|message)|exceed\w* (?:model )?token limit",
            r"too many (?:input |prompt )?tokens|(?:prompt|input|request) (?:is |body |entity )?too (?:long|large)",
            r"token count is \d+|string_above_max_length|tokens?_limit_reached|request_too_large",
            r"(?:reduce|shorten|decrease) (?:the )?(?:length|size) of|shorter (?:prompt|input)",
            r"\binputs?\b.{0,10} must have (?:less|fewer)|\binputs?\b.{0,3} tokens \+|expected maxlength: \d+, actual",
            r"(?:prompt|tokens?|输入|上下文|请求|文本|消息).{0,12}(?:超长|过长|太长|超过|超出|超限)",
        )
    ),
    re.IGNORECASE,
)
_INPUT_WORD = re.compile(r"\b(?:prompt|inputs?|messages|request)\b", re.IGNORECASE)
_OUTPUT_LIMIT = re.compile(
    r"max_(?:completion_|new_|output_)?tokens\W+(?:is|must|should|value|exceeds?)\b", re.IGNORECASE
)
_RATE = re.compile(r"quota|rate[ _-]?limit|per ?(?:minute|min|hour|day)|throttl|\b[TR]P[MD]\b|速率|频率", re.IGNORECASE)
_REQUEST_TOO_LARGE = re.compile(
    r"request (?:body |entity )?too large", re.IGNORECASE
)  # for the rate, however long one waits
_DECLINED = re.compile(
    r"content[ _-]?(?:filter|policy|management|moderation)|data_?inspection|responsible_?ai|inappropriate content"
    r"|(?:prompt|input|content|request|messages?) (?:was|were|is|has been) (?:flagged|blocked)|safety (?:system|filter)"
    r"|usage polic|high risk|content exists risk|敏感内容|不安全|违规",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:supported|permitted|allowed)|unknown|(?:not |un)recogni[sz]ed|unexpected|extra|deprecated",
    re.IGNORECASE,
)
_NAMED = re.compile(r"[`'\"]([a-z_]+)[`'\"]|\b([a-z]+(?:_[a-z]+)+|temperature|seed)\b")


class ServerError(NamedTuple):
    """One error answer. `fields` are those it calls wrong; `named` are words in it that may be fields."""

    status: int  # 0 = the answer had the status of a success and no other
    message: str
    codes: str = ""
    fields: tuple[str, ...] = ()

    @property
    def too_long(self) -> bool:
        """Whether the prompt is longer than the server reads, which no later try changes."""
        text = f"{self.message} {self.codes}"[:_LONGEST]
        if self.status == 413 or _REQUEST_TOO_LARGE.search(text):
            return True
        if self.status in (401, 402, 403, 429) or _RATE.search(text):
            return False
        if _OUTPUT_LIMIT.search(text) and not _INPUT_WORD.search(text):
            return False
        return _TOO_LONG.search(text) is not None

    @property
    def declined(self) -> bool:
        """Whether a filter of the server declines the content of the request."""
        return self.status in (0, 400, 403, 422, 451) and bool(_DECLINED.search(f"{self.message} {self.codes}"))

    @property
    def unsupported(self) -> bool:
        """Whether the fields it names are unknown to the server, rather than their values wrong."""
        return bool(_UNSUPPORTED.search(f"{self.message} {self.codes}"))

    @property
    def named(self) -> frozenset[str]:
        """Names of fields in the answer: those it points to, else those in its words."""
        words = {quoted or plain for quoted, plain in _NAMED.findall(self.message)}
        return frozenset(self.fields) | words


def read_error(status: int, text: str) -> ServerError:
    """The error in the body of an answer, JSON or not."""
    messages: dict[str, None] = {}
    codes: list[str] = []
    fields: list[str] = []

    def walk(value: Any, depth: int) -> None:
        if isinstance(value, str):
            inner = _parsed(value) if value.lstrip()[:1] in ("{", "[") and depth else None
            if inner is not None:
                walk(inner, depth - 1)
            elif value.strip():
                messages[" ".join(value.split())] = None
        elif isinstance(value, list) and depth:
            for each in value:
                walk(each, depth - 1)
        elif isinstance(value, dict) and depth:
            if isinstance(place := value.get("loc"), list) and place:
                fields.append(str(place[-1]))
            fields.extend([value["param"]] if isinstance(value.get("param"), str) else [])
            codes.extend(str(said) for key, said in value.items() if key in _CODES)
            for key, said in value.items():
                walk(said if key in _MESSAGES else None, depth - 1)

    walk(_parsed(text) or text, _DEEPEST)
    return ServerError(status, "; ".join(messages), " ".join(codes), tuple(fields))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

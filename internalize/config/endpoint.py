"""One server of a recipe: its address, how requests are made, and what they may cost."""

from __future__ import annotations

import re

from pydantic import Field, JsonValue, field_validator

from .regime import Section

_OURS = ("model", "messages", "stream", "response_format", "n")  # fields of a request that a recipe may not set
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)


class EndpointConfig(Section):
    """One OpenAI-compatible server, as [endpoints.NAME]. Its key is read from the environment, never from a recipe."""

    base_url: str = Field(description="Such as https://api.deepseek.com/v1 or http://127.0.0.1:8000/v1.")
    model: str = Field(description="The model's name there.")
    replicas: tuple[str, ...] = Field(
        (), description="Addresses of further servers with the same weights: a conversation stays on one."
    )
    key_env: str = Field("", description="Environment variable that holds the key; '' = no key.")
    concurrency: int = Field(8, ge=1, le=1024, description="Most requests at once.")
    timeout: float = Field(120.0, gt=0, le=3600, description="Seconds a request may take.")
    tries: int = Field(6, ge=1, le=100, description="Tries of a request before a resume has to repeat it.")
    max_tokens: int = Field(0, ge=0, description="Budget of a command, prompt and completion tokens; 0 = none.")
    max_cost: float = Field(0.0, ge=0, description="Budget of a command, in the currency of the prices; 0 = none.")
    price_in: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    price_out: float = Field(0.0, ge=0, description="Price of a million completion tokens.")
    adapters: str = Field("", description="Folder of the server's LoRA resolver, on a disk both see; '' = none.")
    answer_tokens: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Least limit of an answer, tokens: raise it for a model that reasons; 0 = none.",
    )
    body: dict[str, JsonValue] = Field(
        default_factory=dict, description="Further fields of a chat request, such as { reasoning_effort = 'low' }."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, description="Further headers; a value '$NAME' is read from the environment variable NAME."
    )

    @field_validator("body")
    @classmethod
    def _body_leaves_our_fields(cls, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if found := [name for name in _OURS if name in body]:
            raise ValueError(f"body.{found[0]} cannot be set in a recipe; every request sets it")
        return body

    @field_validator("headers")
    @classmethod
    def _headers_hold_no_key(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _SECRET_HEADER.search(name) and not value.startswith("$"):
                raise ValueError(f"headers.{name} would be a key in a recipe; name a variable instead: '$NAME'")
        return headers

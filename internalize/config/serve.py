"""The endpoint for users' own agents. It cannot change a result, so the recipe's digest leaves it out."""

from __future__ import annotations

from pydantic import Field

from .regime import Section


class ServeConfig(Section):
    """`internalize serve`: its address, who may call, and how many calls at once."""

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs token_env.")
    port: int = Field(8400, ge=0, le=65535, description="Port; 0 = a free one.")
    token_env: str = Field("", description="Environment variable with the token callers send as their key; '' = none.")
    endpoint: str = Field("", description="Endpoint that answers; '' = the policy.")
    concurrency: int = Field(64, ge=1, le=4096, description="Most calls answered at once.")
    queue: int = Field(
        512, ge=0, le=100_000, description="Most calls that wait for that; further ones get HTTP status 429."
    )
    max_bytes: int = Field(16_000_000, ge=1000, le=1_000_000_000, description="Longest request, bytes.")
    remember: int = Field(
        20_000, ge=1, le=10_000_000, description="Finished calls in memory, for later ones to continue."
    )
    verifier: str = Field("", description="'module:function' or 'file.py:function' that scores episodes; '' = none.")

"""A double of vLLM for tests of who starts it: takes its arguments and answers as it does, one by one.

python -m tests.vllm_double -m vllm.entrypoints.openai.api_server --model FOLDER --port PORT ...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from internalize.inference.loading import load_policy
from tests.adapter_server import AdapterServer, Answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-lora-rank", type=int, default=0)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    given, _ = parser.parse_known_args()
    asked = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True"  # only then vLLM asks its resolver
    resolver = Path(os.environ["VLLM_LORA_RESOLVER_CACHE_DIR"]) if asked else None
    loaded = load_policy(given.model, "none", "cpu")
    places = {"resolver": resolver, "base": given.model, "port": given.port}
    server = AdapterServer(max_rank=given.max_lora_rank, loaded=loaded, **places)

    def told(what: str) -> Answer:
        print(what, flush=True)
        return 200, {}, b"{}"

    def answer(body: dict[str, Any]) -> Answer:
        print(f"answers {body['model']}", flush=True)
        return server._complete(body)

    server.extra |= {"GET /health": lambda _: (200, {}, b""), "POST /v1/completions": answer}
    if given.enable_sleep_mode and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
        server.extra |= {"POST /sleep?level=1": lambda _: told("sleeps"), "POST /wake_up": lambda _: told("wakes")}
    with server:
        print(f"pid {os.getpid()}", flush=True)
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())

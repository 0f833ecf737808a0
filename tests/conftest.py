"""Fixtures every test may use. The torch ones load lazily, so that the light half is tested without torch."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command import Call, Ended
from tests.real_servers import NEEDED, RealServer, llama_cpp_server, transformers_server

# One thread: the kill tests fork, and a fork of a process whose OpenMP threads run would wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> None:
    """A training begins with a collection of garbage; walking through all imports took most of its time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was() -> Iterator[None]:
    """A command that is called in this process sets up logging, which later tests of the process would inherit."""
    package = logging.getLogger("internalize")
    level, last_resort = package.level, logging.lastResort
    yield
    package.setLevel(level)
    logging.lastResort = last_resort


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    from tests.tiny import tiny_tokenizer  # noqa: PLC0415 - needs transformers

    return tiny_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    from tests.tiny import tiny_model  # noqa: PLC0415 - needs torch

    return tiny_model()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Calls the entry point in this process, in an empty folder."""
    from internalize.cli.main import main  # noqa: PLC0415 - after the threads are set

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


def _skip_without(server: str) -> None:
    missing = [package for package in NEEDED[server] if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (extras server and serving)")


@pytest.fixture(scope="session")
def transformers_serve() -> Iterator[RealServer]:
    """`transformers serve` with the built-in model, on loopback."""
    _skip_without("transformers")
    with transformers_server() as server:
        yield server


@pytest.fixture(scope="session")
def llama_server() -> Iterator[RealServer]:
    """llama.cpp's server with the built-in model, on loopback."""
    _skip_without("llama.cpp")
    tried = subprocess.run([sys.executable, "-c", "import xllamacpp"], capture_output=True, text=True, check=False)
    if "libgomp" in tried.stderr:
        pytest.skip("xllamacpp needs the system's libgomp.so.1 (Debian: libgomp1)")
    with llama_cpp_server() as server:
        yield server

"""The tool `python` with real processes: what programs see, what they cannot do, and that nothing of them stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from internalize.environments.python_tool.sandbox import SANDBOXES, Limits
from internalize.environments.python_tool.tool import PythonTool
from internalize.errors import InfrastructureError
from tests import old_kernel

LIMITS = Limits(seconds=20)
TOOL = PythonTool(SANDBOXES["landlock"], LIMITS)
TOOLS = [PythonTool(sandbox, LIMITS) for sandbox in SANDBOXES.values()]


@pytest.fixture(scope="module", params=TOOLS, ids=list(SANDBOXES))
def tool(request: pytest.FixtureRequest) -> PythonTool:
    found: PythonTool = request.param
    if reason := found.problem():
        pytest.skip(f"{found.sandbox.name} does not work here: {reason}")
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("None", "(no output)"),
        ("", "(no output)"),
        ("print('a'); 'b'", "a\n'b'"),
        ("import sys; print('to stderr', file=sys.stderr)", "to stderr"),
        ("import sys; print(1); sys.exit(3)", "1"),
        ("x = 1\n1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("x = (", "line 1: SyntaxError: '(' was never closed (<program>, line 1)"),
        ("def f():\n    raise ValueError\nf()", "line 2: ValueError"),
        ("input()", "line 1: EOFError: EOF when reading a line"),
        ("from fractions import Fraction\nFraction(1, 3) + 1", "Fraction(4, 3)"),
        ("print('\\udc80é')", "\ufffdé"),
    ],
)
def test_what_a_program_shows(tool: PythonTool, code: str, shown: str) -> None:
    assert tool.run(code).startswith(shown)


def test_a_program_that_hangs_is_stopped_and_what_it_said_is_shown(tool: PythonTool) -> None:
    brief = PythonTool(tool.sandbox, Limits(seconds=0.5))
    assert brief.run("print('on my way', flush=True)\nwhile True: pass") == "on my way\nStopped after 0.5 s."


def test_a_program_that_closes_its_output_is_stopped_too(tool: PythonTool) -> None:
    assert PythonTool(tool.sandbox, Limits(seconds=0.5)).run("import os\nos.close(1), os.close(2)\nwhile 1: pass") in {
        "Stopped after 0.5 s.",
        "(no output)",
        "Killed: the program used more than it may.",  # on a busy machine its processor time is used up first
    }


def test_memory_is_bounded(tool: PythonTool) -> None:
    assert tool.run("x = 'a' * 10**10") == "line 1: MemoryError"


def test_output_is_bounded() -> None:
    shown = PythonTool(TOOL.sandbox, LIMITS, characters=50).run("while True: print('x' * 1000)")
    assert shown == "x" * 50 + "\n(cut: more than 50 characters)"


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock"])
def test_a_crash_is_named(sandbox: str) -> None:
    tool = PythonTool(SANDBOXES[sandbox], LIMITS)
    if reason := tool.problem():
        pytest.skip(f"{sandbox} does not work here: {reason}")
    assert tool.run("import ctypes; ctypes.string_at(0)") == "Crashed (Segmentation fault)."


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 15)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    ],
)
def test_no_network_no_processes_no_signals_no_secrets(tool: PythonTool, code: str) -> None:
    import socket  # noqa: PLC0415 - the tool's own use of it is what is tested

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        shown = tool.run(code.replace("PORT", str(server.getsockname()[1])))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "not permitted" in shown or "not allowed" in shown or "Permission denied" in shown


def test_the_environment_is_refused_where_programs_cannot_be_confined() -> None:
    pytest.importorskip("sympy", reason="needs the extra 'maths'")
    command = [sys.executable, old_kernel.__file__, "Landlock", sys.executable, "-c"]
    command += ["from internalize.cli.main import main; main()", "env", "validate", "maths", "--split", "test"]
    command += ["--set", "env.options={size=3}"]
    path = {"PATH": "/nowhere"}  # no bwrap
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | path)
    assert refused.returncode == 2
    assert "bwrap is not installed" in refused.stderr
    assert "lacks Landlock" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    command[-1] = 'env.options={size=3, sandbox="unsafe"}'
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "sandbox 'unsafe'" in done.stdout


pytestmark = pytest.mark.sandbox


def test_threads_and_libraries_work(tool: PythonTool) -> None:
    assert tool.run("import threading as t\nx = t.Thread(target=print, args=['in it'])\nx.start(); x.join()") == "in it"
    assert tool.run("import numpy\nprint(int(numpy.arange(10).sum()))") == "45"


def test_nothing_stays_behind(tool: PythonTool, temporary: Path) -> None:
    assert tool.run("import os; open('a', 'w').write('x'); os.mkdir('b'); print(os.getcwd())") == "."
    tool.run("import os, shutil\nos.mkdir('b'); os.chmod('.', 0o500)")
    tool.run("import os, shutil; shutil.rmtree(os.getcwd(), ignore_errors=True)")
    assert not list(temporary.iterdir())


def test_the_environment_is_empty(tool: PythonTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hidden")
    assert "hidden" not in tool.run("import os; print(dict(os.environ))")


def test_the_same_program_prints_the_same(tool: PythonTool) -> None:
    assert len({tool.run("print({'a', 'b', 'c', 'd'}, hash('a'))") for _ in range(3)}) == 1


def test_a_process_that_outlives_its_program_is_killed(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\nprintf '\\006'\nsleep 300 & echo $! > {tmp_path}/child\nexit 0\n")
    stub.chmod(0o700)
    PythonTool(TOOL.sandbox, Limits(seconds=0.5), interpreter=str(stub)).run("")
    child = (tmp_path / "child").read_text().strip()
    until = time.monotonic() + 10  # a busy machine takes a moment to end what was killed
    while (state := state_of(child)) not in {"", "Z"} and time.monotonic() < until:
        time.sleep(0.01)
    assert state in {"", "Z"}


def state_of(pid: str) -> str:
    """The letter that Linux gives the state of a process; '' = there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("script", "said"), [(None, "No such file"), ("exit 1", "no answer"), ("echo no libpython; exit 1", "no libpython")]
)
def test_a_tool_that_cannot_start_is_no_observation(tmp_path: Path, script: str | None, said: str) -> None:
    stub = tmp_path / "python"
    if script is not None:
        stub.write_text(f"#!/bin/sh\n{script}\n")
        stub.chmod(0o700)
    with pytest.raises(InfrastructureError, match=f"python: the tool does not start.*{said}"):
        PythonTool(TOOL.sandbox, interpreter=str(stub)).run("print(1)")


def test_no_room_for_a_folder_is_no_observation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InfrastructureError, match="the tool does not start"):
        TOOL.run("print(1)")

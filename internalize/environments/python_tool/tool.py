"""The tool `python`: run a program in a process of its own and show what it prints.

The process gets an empty environment, a temporary folder that is removed afterwards, limits of time, memory and
output, and the kernel's Landlock and seccomp (child.py says what they refuse). It does not run without these
two unless `unsafe` says so. A program that fails, hangs or prints too much is an observation; a tool that cannot start
is an InfrastructureError. Nothing is kept from one call to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from internalize.errors import InfrastructureError, TaskError, UserError
from internalize.records import Action, ToolSpec

from . import child

TOOL = ToolSpec(
    name="python",
    argument="code",
    description="Run a Python program and read what it prints.",
    parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)
Sandbox = Literal["auto", "unsafe"]
STARTING = 60.0  # seconds an interpreter may take to start, on a machine that is busy
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}

_UNPROTECTED = (
    "the tool python runs programs that a model wrote, and this machine lacks {} to confine them; env.options.sandbox"
    ' = "unsafe" runs them unconfined, with all rights of your user'
)


def code_of(action: Action) -> str:
    """The program in an action of the tool `python`."""
    return str(json.loads(action.argument)["code"])


@dataclass(frozen=True)
class PythonTool:
    """Limits of one program. With `unsafe` a program can read and change whatever the user who runs it can."""

    seconds: float = 5.0
    memory: int = 512 << 20  # bytes
    characters: int = 2000  # of output shown
    unsafe: bool = False
    interpreter: str = sys.executable

    @classmethod
    def of(cls, sandbox: Sandbox, seconds: float = 5.0) -> PythonTool:
        """The tool, tried once.

        Raises UserError where it would have to run programs unconfined, TaskError for an unknown `sandbox`.
        """
        if sandbox not in get_args(Sandbox):
            raise TaskError(f"sandbox = {sandbox!r}: there are {', '.join(get_args(Sandbox))}")
        tool = cls(seconds=seconds, unsafe=sandbox == "unsafe")
        tool.run("")
        return tool

    def run(self, code: str) -> str:
        """What the program printed, as an observation.

        Raises InfrastructureError if it could not be started, UserError if the kernel does not protect from it.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="internalize-", ignore_cleanup_errors=True) as folder:
                return self._run(code, Path(folder)).replace(folder, ".")  # its name differs from run to run
        except OSError as error:
            raise InfrastructureError(f"python: the tool does not start ({error})") from error

    def _run(self, code: str, folder: Path) -> str:
        with tempfile.TemporaryFile() as program:
            program.write(code.encode("utf-8", "replace"))
            program.seek(0)
            limits = json.dumps({"seconds": self.seconds, "memory": self.memory, "unsafe": self.unsafe})
            process = subprocess.Popen(  # noqa: S603 - the limits of that process are the point
                # As isolated as -I, but for the one variable that makes sets print in the same order again.
                [self.interpreter, "-P", "-s", "-B", "-X", "utf8", child.__file__, limits],
                stdin=program,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        try:
            return self._watched(process)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()

    def _watched(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout
        pipe = process.stdout.fileno()
        first = _read(pipe, 1, time.monotonic() + STARTING)
        if first == child.REFUSED:
            missing = _read(pipe, 100, time.monotonic() + 1) or b""
            raise UserError(_UNPROTECTED.format(missing.decode()))
        if first != child.READY:
            said = (first or b"") + (_read(pipe, 2000, time.monotonic() + 1) or b"")
            raise InfrastructureError(f"python: the tool does not start ({_last_line(said) or 'no answer'})")
        deadline = time.monotonic() + self.seconds
        most = 4 * self.characters + 4  # bytes
        output = b""
        while len(output) < most:
            piece = _read(pipe, most - len(output), deadline)
            if not piece:
                return self._shown(output, "" if piece is not None else f"Stopped after {self.seconds:g} s.", process)
            output += piece
        return self._shown(output, "", process)

    def _shown(self, output: bytes, stopped: str, process: subprocess.Popen[bytes]) -> str:
        text = output.decode("utf-8", "replace").rstrip()
        if len(text) > self.characters:
            text = f"{text[: self.characters].rstrip()}\n(cut: more than {self.characters} characters)"
        elif not stopped:
            stopped = _death(process)
        return "\n".join(filter(None, (text, stopped))) or "(no output)"


def _read(pipe: int, most: int, deadline: float) -> bytes | None:
    """What comes next, b"" at the end, None when the time is over."""
    left = max(0.0, deadline - time.monotonic())
    return os.read(pipe, most) if select.select([pipe], [], [], left)[0] else None


def _death(process: subprocess.Popen[bytes]) -> str:
    """Which signal ended a process that has closed its output, or ''."""
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return ""
    if code >= 0:
        return ""
    return "Killed: the program used more than it may." if -code in {9, 24} else f"Crashed ({signal.strsignal(-code)})."


def _last_line(output: bytes) -> str:
    return (output.decode("utf-8", "replace").strip().splitlines() or [""])[-1]

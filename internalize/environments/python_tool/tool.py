"""The tool `python`: runs a program in its own process and shows its output.

The process has an empty environment, a temporary folder that is removed afterwards, limits of time, memory and output,
and a sandbox (sandbox.py). A program that fails, hangs or prints too much is an observation; a tool that cannot start
is an InfrastructureError. Calls share no state.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from internalize.errors import InfrastructureError, TaskError, UserError
from internalize.records import ToolCall, ToolSpec

from . import child
from .sandbox import SANDBOXES, Choice, Limits, Sandbox, Unsafe

TOOL = ToolSpec(
    name="python",
    argument="code",
    description="Run a Python program and read what it prints.",
    parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)
STARTING = 60.0  # seconds an interpreter may take to start, on a machine that is busy
_LOOKS = 0.1  # seconds between two looks at the files of a program
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
_LOG = logging.getLogger(__name__)
_LIMITS = Limits()
# Prints a line for everything that a sandbox should have prevented.
_PROBE = """
import os, socket
for attempt in (lambda: open({outside!r}), socket.socket, os.fork):
    try:
        attempt()
    except OSError:
        continue
    print("it does not hold")
"""


def code_of(call: ToolCall) -> str:
    """The program in a call of the tool `python`."""
    return str(call.values["code"])


@dataclass(frozen=True)
class PythonTool:
    """Runs programs in `sandbox`."""

    sandbox: Sandbox
    limits: Limits = _LIMITS
    characters: int = 2000  # of output shown
    interpreter: str = sys.executable

    @classmethod
    def of(cls, choice: Choice, limits: Limits = _LIMITS) -> PythonTool:
        """The tool with the first sandbox that works on this machine; "auto" tries all but "unsafe".

        Raises UserError if there is none, TaskError for an unknown choice.
        """
        if choice not in get_args(Choice):
            raise TaskError(f"sandbox = {choice!r}: there are {', '.join(get_args(Choice))}")
        reasons = []
        for name, sandbox in SANDBOXES.items():
            if choice == name or (choice == "auto" and name != Unsafe.name):
                tool = cls(sandbox, limits)
                if (reason := tool.problem()) is None:
                    _LOG.info(tool.note)
                    return tool
                reasons.append(f"{name}: {reason}")
        raise UserError(
            f"the programs of the tool python cannot be confined on this machine ({'; '.join(reasons)});"
            ' env.options.sandbox = "unsafe" runs them with all rights of your user'
        )

    @property
    def note(self) -> str:
        """One line about the sandbox in use."""
        return f"programs run in the sandbox {self.sandbox.name!r}"

    def problem(self) -> str | None:
        """Why this sandbox fails a trial on this machine; None if it works."""
        try:
            with tempfile.NamedTemporaryFile() as outside:
                shown = self._run(_PROBE.format(outside=outside.name))
        except OSError as error:
            return str(error)
        return None if shown == "(no output)" or self.sandbox.name == Unsafe.name else shown.splitlines()[-1]

    def run(self, code: str) -> str:
        """The program's output, as an observation. Raises InfrastructureError if it could not be started."""
        try:
            return self._run(code)
        except OSError as error:
            raise InfrastructureError(f"python: the tool does not start ({error})") from error

    def _run(self, code: str) -> str:
        with (
            tempfile.TemporaryDirectory(prefix="internalize-", ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as program,
        ):
            program.write(code.encode("utf-8", "replace"))
            program.seek(0)
            process = subprocess.Popen(  # noqa: S603 - the limits of that process are the point
                self.sandbox.command(self.interpreter, self.limits, folder),
                stdin=program,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
            try:
                return self._watch(process, folder).replace(folder, ".")  # its name differs from run to run
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if process.stdout:
                    process.stdout.close()

    def _watch(self, process: subprocess.Popen[bytes], folder: str) -> str:
        assert process.stdout
        pipe = process.stdout.fileno()
        first = _read(pipe, 1, time.monotonic() + STARTING)
        if first != child.READY:
            reply = (first or b"") + (_read(pipe, 2000, time.monotonic() + 1) or b"")
            lines = reply.removeprefix(child.REFUSED).decode("utf-8", "replace").strip().splitlines()
            raise ChildProcessError(lines[-1] if lines else "no answer")
        deadline = time.monotonic() + self.limits.seconds
        limit = 4 * self.characters + 4  # bytes: enough for one more character than is shown
        output, end = b"", ""
        while len(output) < limit:
            piece = _read(pipe, limit - len(output), min(deadline, time.monotonic() + _LOOKS))
            if _more_than(self.limits.files, folder):
                end = f"Killed: the program's files are larger than {self.limits.files >> 20} MB."
                break
            if piece is None and time.monotonic() < deadline:
                continue
            if not piece:
                end = "" if piece is not None else f"Stopped after {self.limits.seconds:g} s."
                break
            output += piece
        text = output.decode("utf-8", "replace").rstrip()
        if len(text) > self.characters:
            text = f"{text[: self.characters].rstrip()}\n(cut: more than {self.characters} characters)"
        else:
            end = end or _signal(process)
        return "\n".join(filter(None, (text, end))) or "(no output)"


def _read(pipe: int, most: int, deadline: float) -> bytes | None:
    """The next bytes; b"" at the end, None after the deadline."""
    left = max(0.0, deadline - time.monotonic())
    return os.read(pipe, most) if select.select([pipe], [], [], left)[0] else None


def _more_than(size: int, folder: str) -> bool:
    """Whether the files of a folder take more than `size` bytes. One that goes away meanwhile takes none."""
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size -= Path(root, name).lstat().st_blocks * 512
            if size < 0:
                return True
    return False


def _signal(process: subprocess.Popen[bytes]) -> str:
    """Which signal ended a process that has closed its output, or ""."""
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return ""
    number = code - 128 if code > 128 else -code  # bwrap exits with 128 plus the signal
    if number in {signal.SIGKILL, signal.SIGXCPU}:
        return "Killed: the program used more than it may."
    return f"Crashed ({signal.strsignal(number)})." if number > 0 else ""

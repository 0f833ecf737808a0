"""The process of the tool `python`: it gives up its rights, then runs the program from its standard input.

A sandbox (sandbox.py) starts it as a file with one JSON argument, so it imports nothing of this package. It reads the
program only after it has given up its rights, and its first output byte says whether it has lost all of them. In the
sandbox "unsafe" the argument has no filter; an audit hook then refuses the usual calls for network and processes, which
stops accidents only.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import json
import os
import resource
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

READY, REFUSED = b"\x06", b"\x15"  # the first byte of the output
SOURCE = "<program>"
# Landlock's rights: to read files and folders, to write files, to change folders; the last two need newer kernels.
_READ, _WRITE, _CHANGE, _REFER, _TRUNCATE = 0xC, 0x2, 0x1FF0, 1 << 13, 1 << 14
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's calls, on every architecture
_SET_SECCOMP, _NO_NEW_PRIVS = 22, 38  # of prctl
_FORBIDDEN = ("socket.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
              "subprocess.", "ctypes.", "pty.spawn", "resource.setrlimit")  # fmt: skip


def limit(seconds: float, memory: int, processes: int) -> None:
    """Bound processor time (seconds), memory and each file (bytes), open files and the user's processes."""
    for what, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CORE, 0),
    ):
        allowed = resource.getrlimit(what)[1]
        bound = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(what, (bound, bound))


def restrict_files(libc: Any, readable: list[str]) -> bool:
    """Allow changes only in the working folder, and reading only there and in `readable`; False if that fails."""
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if abi < 1:
        return False
    rights = _READ | _WRITE | _CHANGE | (_REFER if abi > 1 else 0) | (_TRUNCATE if abi > 2 else 0)
    ruleset = libc.syscall(_CREATE_RULESET, struct.pack("Q", rights), 8, 0)
    allowed = {".": rights, "/dev/null": 4 | _WRITE, "/dev/urandom": 4}
    allowed |= {path: _READ if Path(path).is_dir() else 4 for path in readable}
    rules = [struct.pack("=Qi", right, os.open(path, os.O_PATH)) for path, right in allowed.items()]
    applied = [libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) == 0 for rule in rules]
    applied += [libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0]
    return all(applied)


def filter_calls(libc: Any, instructions: bytes) -> bool:
    """Load a seccomp filter; False if that fails."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(code))
    return bool(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.prctl(_SET_SECCOMP, 2, program, 0, 0) == 0)


def audit(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook against accidents. It stops no attacker: native code and the file system bypass it."""
    if event.startswith(_FORBIDDEN):
        raise PermissionError(errno.EPERM, f"{event} is not allowed here")


def run(program: str) -> None:
    """Run it as a notebook does: the value of a last expression is printed; an error is one line with its place."""
    names = {"__name__": "__main__"}
    try:
        tree = ast.parse(program, SOURCE)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, SOURCE, "exec"), names)  # noqa: S102 - the purpose of this process
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), SOURCE, "eval"), names)  # noqa: S307
            if value is not None:
                sys.stdout.write(f"{value!r}\n")
    except SystemExit:
        pass
    except BaseException as error:  # noqa: BLE001 - the policy sees whatever its program raises
        sys.stdout.write(f"{_place(error)}{type(error).__name__}: {error}".rstrip(": ") + "\n")


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE]
    return f"line {lines[-1]}: " if lines else ""


def main() -> None:
    """Give up rights, report with one byte whether all are lost, then run the program."""
    settings = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    limit(settings["seconds"], settings["memory"], settings["processes"])
    if "filter" not in settings:
        sys.addaudithook(audit)
    elif "readable" in settings and not restrict_files(libc, settings["readable"]):
        _refuse("the kernel lacks Landlock")
    elif not filter_calls(libc, bytes.fromhex(settings["filter"])):
        _refuse("the kernel lacks seccomp")
    program = sys.stdin.buffer.read().decode("utf-8", "replace")
    os.write(1, READY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 64)
    run(program)
    sys.stdout.flush()
    os._exit(0)  # skips the program's exit handlers and does not wait for its threads


def _refuse(reason: str) -> None:
    os.write(1, REFUSED + reason.encode())
    os._exit(1)


if __name__ == "__main__":
    main()

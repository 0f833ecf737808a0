"""The process of the tool `python`: give up rights, then run the program that stands on standard input.

Started as a file by tool.py with one JSON argument {"seconds", "memory", "unsafe"}; imports nothing of this
package. In this order it limits resources, confines files to the working folder, Python and the system's libraries
(Landlock), and refuses network, processes, signals, tracing and raised limits (seccomp). If either is not available
the process ends before it reads the program. With "unsafe" both are left out and an audit hook refuses the usual calls
for network and processes: that stops accidents only, a program can read and change whatever its user can.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

READY, REFUSED = b"\x06", b"\x15"  # the first byte of the output
SOURCE = "<program>"
_READ, _CHANGE, _REFER, _TRUNCATE = 0xC, 0x1FF2, 1 << 13, 1 << 14  # Landlock's rights; the last two came later
_READABLE = ("/usr", "/lib", "/lib64", "/etc", "/dev/null", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo",
             "/sys/devices/system/cpu")  # fmt: skip
_FORBIDDEN = ("socket.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
              "subprocess.", "ctypes.", "pty.spawn", "resource.setrlimit")  # fmt: skip
# socket connect clone fork vfork execve execveat clone3 unshare setns ptrace kill tkill tgkill rt_sigqueueinfo
# rt_tgsigqueueinfo pidfd_open pidfd_send_signal process_vm_readv process_vm_writev io_uring_setup setrlimit prlimit64
_CALLS = {
    "x86_64": (0xC000003E, 56, 302, (41, 42, 57, 58, 59, 322, 272, 308, 101, 62, 200, 234, 129, 297, 434, 424, 310,
                                     311, 425, 160)),
    "aarch64": (0xC00000B7, 220, 261, (198, 203, 221, 281, 97, 268, 117, 129, 130, 131, 138, 240, 434, 424, 270, 271,
                                       425, 164)),
}  # fmt: skip
_CLONE3, _CLONE_THREAD = 435, 0x10000
_LOAD, _EQUAL, _ANY, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _DENY, _ABSENT = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def limit(seconds: float, memory: int) -> None:
    """Bound processor time (seconds), memory and files (bytes), open files and processes."""
    for what, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def keep_to_folder(libc: Any) -> bool:
    """Allow changes in the working folder alone, reading there and in Python's folders; False if it cannot be done."""
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        return False
    rights = _READ | _CHANGE | (_REFER if abi > 1 else 0) | (_TRUNCATE if abi > 2 else 0)
    ruleset = libc.syscall(444, struct.pack("Q", rights), 8, 0)
    readable = {*_READABLE, sys.prefix, sys.base_prefix, *sys.path}
    held = [_allow(libc, ruleset, ".", rights)]
    held += [_allow(libc, ruleset, path, _READ if Path(path).is_dir() else 4) for path in sorted(readable)]
    return all(held) and libc.prctl(38, 1, 0, 0, 0) == 0 and bool(libc.syscall(446, ruleset, 0) == 0)


def _allow(libc: Any, ruleset: int, path: str, rights: int) -> bool:
    if not Path(path).exists():
        return True
    rule = struct.pack("=Qi", rights, os.open(path, os.O_PATH))
    return bool(libc.syscall(445, ruleset, 1, rule, 0) == 0)


def filter_calls(libc: Any) -> bool:
    """Refuse network, processes, signals and tracing in the kernel; False where it cannot be done."""
    if platform.machine() not in _CALLS or libc.prctl(38, 1, 0, 0, 0) != 0:
        return False
    machine, clone, prlimit, refused = _CALLS[platform.machine()]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _DENY)]  # the other numbering of x86_64
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ABSENT)]  # the C library then asks with clone
    for number in refused:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    lines += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, 16), (_ANY, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _DENY)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    lines += [(_EQUAL, 0, 5, prlimit), (_LOAD, 0, 0, 32), (_EQUAL, 0, 2, 0), (_LOAD, 0, 0, 36), (_EQUAL, 1, 0, 0)]
    lines += [(_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]  # limits may be read: the new limit is a null pointer
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    return bool(libc.prctl(22, 2, program, 0, 0) == 0)


def ask_python(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook against accidents. It holds off no attacker: native code and the file system get around it."""
    if event.startswith(_FORBIDDEN):
        raise PermissionError(errno.EPERM, f"{event} is not allowed here")


def run(program: str) -> None:
    """Run it as a notebook does: the value of a last expression is printed; an error is one line with its place."""
    names = {"__name__": "__main__"}
    try:
        tree = ast.parse(program, SOURCE)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, SOURCE, "exec"), names)  # noqa: S102 - that is what this process is for
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), SOURCE, "eval"), names)  # noqa: S307
            if value is not None:
                sys.stdout.write(f"{value!r}\n")
    except SystemExit:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is what the policy sees
        sys.stdout.write(f"{_place(error)}{type(error).__name__}: {error}".rstrip(": ") + "\n")


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE]
    return f"line {lines[-1]}: " if lines else ""


def main() -> None:
    """Give up rights, report with one byte whether all are gone, then run the program."""
    wanted = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    limit(wanted["seconds"], wanted["memory"])
    if wanted["unsafe"]:
        sys.addaudithook(ask_python)
    else:
        held = {"Landlock": keep_to_folder(libc), "seccomp": filter_calls(libc)}
        if missing := " and ".join(name for name, holds in held.items() if not holds):
            os.write(1, REFUSED + missing.encode())
            os._exit(1)
    program = sys.stdin.buffer.read().decode("utf-8", "replace")
    os.write(1, READY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run(program)
    sys.stdout.flush()
    os._exit(0)  # no exit handlers of the program, no waiting for its threads


if __name__ == "__main__":
    main()

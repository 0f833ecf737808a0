"""Run a command as on a kernel that lacks Landlock or seccomp: `python old_kernel.py Landlock,seccomp COMMAND...`.

A seccomp filter, which the command inherits, refuses the calls that set these up. The refusal is the kernel's own, so
nothing of the package has to be replaced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

LANDLOCK = 444  # landlock_create_ruleset
SECCOMP, PRCTL = {"x86_64": (317, 157), "aarch64": (277, 167)}.get(platform.machine(), (0, 0))
_SET_SECCOMP, _NO_NEW_PRIVS = 22, 38  # of prctl
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ABSENT = 0x7FFF0000, 0x50000 | errno.ENOSYS


def hide(names: str) -> None:
    """Refuse in this process and its children what is named."""
    lines = [(_LOAD, 0, 0, 0)]
    if "Landlock" in names:
        lines += [(_EQUAL, 0, 1, LANDLOCK), (_RETURN, 0, 0, _ABSENT)]
    if "seccomp" in names:
        lines += [(_EQUAL, 0, 1, SECCOMP), (_RETURN, 0, 0, _ABSENT), (_EQUAL, 0, 3, PRCTL), (_LOAD, 0, 0, 16)]
        lines += [(_EQUAL, 0, 1, _SET_SECCOMP), (_RETURN, 0, 0, _ABSENT)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel has no seccomp itself")


if __name__ == "__main__":
    hide(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a test's own command

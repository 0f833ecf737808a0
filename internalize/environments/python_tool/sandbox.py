"""Sandboxes for the programs of the tool `python`: commands that start child.py with fewer rights than the user.

None of them protects against errors of the kernel itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from . import child
from .syscalls import filter_program

Choice = Literal["auto", "bubblewrap", "landlock", "unsafe"]
_PYTHON = (
    "-P",
    "-s",
    "-B",
    "-X",
    "utf8",
)  # as isolated as -I, but PYTHONHASHSEED is read, so that sets print in the same order
# Not all of sys.path: an editable install would expose the project's folder, with its runs and keys.
_READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo", "/proc/meminfo",
             "/sys/devices/system/cpu")  # fmt: skip


class Limits(NamedTuple):
    """The resources that one program may use."""

    seconds: float = 5.0  # wall-clock seconds; processor time may be one second more
    memory: int = 512 << 20  # bytes
    files: int = 64 << 20  # bytes of all its files


class Sandbox(Protocol):
    """One way to start programs with limited rights."""

    name: str

    def command(self, interpreter: str, limits: Limits, folder: str) -> list[str]:
        """Runs the program that stands on its standard input, with `folder` as its working folder.

        Raises OSError if the machine lacks what it needs.
        """


class Landlock:
    """Landlock and seccomp: needs no rights and no installation but libseccomp.

    A program changes files only in its working folder, and reads only there and in the libraries of Python and the
    system. It has no network, starts and signals no process, and makes only the calls that syscalls.py lists. It can
    still see whether a file elsewhere exists, with size and times, if it knows the name. Disk space is limited for each
    file, and in total by who runs it, who looks ten times a second. Threads of root are limited only by memory.
    """

    name = "landlock"

    def command(self, interpreter: str, limits: Limits, folder: str) -> list[str]:  # noqa: ARG002 - not needed here
        """The interpreter, which gives up its rights itself."""
        rights = {"readable": _readable(), "filter": _filter()}
        return [interpreter, *_PYTHON, child.__file__, _argument(limits, rights)]


class Bubblewrap:
    """The command bwrap: as Landlock, and other files, processes and users are invisible to the program.

    It has namespaces of its own, a read-only root with nothing but the libraries of Python and the system, and 64 MiB
    for files, which are in memory. The filter of system calls is the same.
    """

    name = "bubblewrap"

    def command(self, interpreter: str, limits: Limits, folder: str) -> list[str]:
        """`bwrap` puts an empty folder in place of `folder`."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise FileNotFoundError("the command bwrap is not installed")
        paths = [*_readable(), child.__file__]
        binds = [part for path in paths for part in ("--ro-bind-try", path, path)]
        binds += [part for path in ("/dev/null", "/dev/urandom") for part in ("--dev-bind", path, path)]
        scratch = ["--size", str(limits.files), "--tmpfs", folder, "--remount-ro", "/", "--chdir", folder]
        ids = ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
        wrapped = [interpreter, *_PYTHON, child.__file__, _argument(limits, {"filter": _filter()})]
        return [bwrap, *ids, "--die-with-parent", *binds, *scratch, "--", *wrapped]


class Unsafe:
    """Only limits of time and memory. A program can do anything that its user can; an audit hook stops accidents."""

    name = "unsafe"

    def command(self, interpreter: str, limits: Limits, folder: str) -> list[str]:  # noqa: ARG002 - not needed here
        """The interpreter without a sandbox."""
        return [interpreter, *_PYTHON, child.__file__, _argument(limits, {})]


SANDBOXES: dict[str, Sandbox] = {one.name: one for one in (Bubblewrap(), Landlock(), Unsafe())}


def _argument(limits: Limits, rights: dict[str, Any]) -> str:
    """The argument of child.py. The limit of processes counts all of the user's, who may have many already."""
    tasks = Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[2]
    return json.dumps({"seconds": limits.seconds, "memory": limits.memory, "processes": int(tasks) + 256, **rights})


def _readable() -> list[str]:
    return [path for path in dict.fromkeys((*_READABLE, sys.prefix, sys.base_prefix)) if Path(path).exists()]


def _filter() -> str:
    try:
        return filter_program().hex()
    except (ImportError, RuntimeError) as error:
        raise FileNotFoundError(f"no filter of system calls: {error}") from error

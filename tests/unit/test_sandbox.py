"""Attacks on the sandboxes of the tool `python`, each in a real process and in a harmless form, and what must work."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import internalize
from internalize.environments.python_tool.sandbox import SANDBOXES, Bubblewrap, Landlock, Limits, Sandbox, Unsafe
from internalize.environments.python_tool.tool import PythonTool
from internalize.errors import TaskError, UserError
from tests import old_kernel

seccomp = pytest.importorskip("pyseccomp", reason="needs the extra 'maths' or 'web', and libseccomp")

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def tool(request: pytest.FixtureRequest) -> PythonTool:
    found = PythonTool(SANDBOXES[request.param], Limits(seconds=20))
    if reason := found.problem():
        pytest.skip(f"{request.param} does not work here: {reason}")
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside.txt"
    file.write_text("kept")
    file.chmod(0o640)
    return file


def fails(shown: str) -> bool:
    """Whether the program ended with an error of the system at its only or last line."""
    return re.search(r"^line \d+: (\w*Error)\b", shown.splitlines()[-1]) is not None


def test_another_process_can_be_neither_read_nor_written(tool: PythonTool) -> None:
    program = f"""
import itertools, os
os.chdir("/")
folders, files = ["/proc", "//proc", "/./proc", "proc"], ["environ", "mem", "maps", "fd", "root"]
for folder, pid, file in itertools.product(folders, [{os.getpid()}, 1], files):
    path = f"{{folder}}/{{pid}}/{{file}}".encode()
    for attempt in (lambda: os.open(path, os.O_RDONLY), lambda: os.open(path, os.O_RDWR), lambda: os.listdir(path)):
        try:
            attempt()
        except OSError:
            continue
        print(path)
"""
    assert tool.run(program) == "(no output)"


@pytest.mark.parametrize(
    "attempt",
    [
        "os.kill(PARENT, 0)",
        "os.killpg(PARENT, 0)",
        "os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
        "os.sched_setaffinity(PARENT, {0})",
        "os.sched_setscheduler(PARENT, os.SCHED_BATCH, os.sched_param(0))",
        "resource.prlimit(PARENT, resource.RLIMIT_CORE, (0, 0))",
        "os.pidfd_open(PARENT)",
        "fcntl.fcntl(1, fcntl.F_SETOWN, PARENT)",  # then the kernel sends it a signal when there is input
        "fcntl.fcntl(1, fcntl.F_SETSIG, 9)",
        "fcntl.ioctl(1, 0x8901, PARENT.to_bytes(4, 'little'))",  # FIOSETOWN, the same
        "fcntl.ioctl(0, 0x5412, b'x')",  # TIOCSTI types into a terminal
    ],
)
def test_another_process_is_out_of_reach(tool: PythonTool, attempt: str) -> None:
    assert fails(tool.run(f"import fcntl, os, resource\n{attempt.replace('PARENT', str(os.getpid()))}"))


@pytest.mark.parametrize(
    "attempt",
    [
        "open(OUTSIDE)",
        "open(OUTSIDE, 'w')",
        "open(OUTSIDE, 'a')",
        "os.truncate(OUTSIDE, 0)",
        "os.remove(OUTSIDE)",
        "os.rename(OUTSIDE, 'mine')",
        "os.link(OUTSIDE, 'mine'); open('mine')",
        "os.symlink(OUTSIDE, 'mine'); open('mine')",
        "open(os.path.relpath(OUTSIDE))",
        "os.listdir(os.path.dirname(OUTSIDE))",
        "os.mkdir(OUTSIDE + 'x')",
        "os.chown(OUTSIDE, 1, 1)",
        "os.setxattr(OUTSIDE, 'user.x', b'x')",
        "os.chmod(OUTSIDE, 0o777); open(OUTSIDE)",
        "os.utime(OUTSIDE, (1, 1)); open(OUTSIDE)",
        "os.chroot(os.path.dirname(OUTSIDE))",
        "os.mkdir('x'); os.chroot('x')",
        "os.mknod('x', 0o60600, os.makedev(1, 1))",
    ],
)
def test_files_outside_are_out_of_reach(tool: PythonTool, outside: Path, attempt: str) -> None:
    before = outside.stat()
    assert fails(tool.run(f"import os\n{attempt.replace('OUTSIDE', repr(str(outside)))}"))
    assert outside.read_text() == "kept"
    after = outside.stat()
    for name in ("st_mode", "st_uid", "st_mtime_ns", "st_nlink", "st_size"):
        assert getattr(before, name) == getattr(after, name)
    assert [path.name for path in outside.parent.iterdir()] == [outside.name]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/hosts", "/etc/ssl", "/var/log", "/home", "/root", "/dev", "/run"]
)
def test_the_system_is_not_laid_open(tool: PythonTool, path: str) -> None:
    if Path(path).exists():
        shown = tool.run(
            f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
        )
        assert fails(shown) or set(eval(shown)) <= {"null", "urandom", ".pyenv"}  # noqa: S307 - what bwrap must bind


def test_a_project_that_is_installed_for_editing_is_not_laid_open(tool: PythonTool) -> None:
    for path in (Path(internalize.__file__).parents[1] / "pyproject.toml", Path(internalize.__file__)):
        if not path.is_relative_to(sys.prefix):
            assert fails(tool.run(f"open({str(path)!r})"))


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair(type=socket.SOCK_DGRAM)",  # could send to the socket of a service, by its path
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
        "multiprocessing.shared_memory.SharedMemory('left', create=True, size=1)",
        "open('/dev/shm/left', 'w')",
        "open('/left', 'w')",
        "open('/dev/left', 'w')",
        "os.memfd_create('left')",
        "open('big', 'wb').write(bytes(17 << 20))",
        "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "time.clock_settime(time.CLOCK_REALTIME, time.time())",
        "socket.sethostname('x')",
    ],
)
def test_nothing_is_left_and_no_limit_passed(tool: PythonTool, attempt: str) -> None:
    modules = "import multiprocessing.shared_memory, os, resource, socket, time"
    assert fails(tool.run(f"{modules}\n{attempt}"))


# With these arguments each call does nothing; unfiltered they say that an argument is wrong, or succeed.
CALLS = """
accept4 acct add_key adjtimex bpf chroot clone3 create_module delete_module execve execveat fanotify_init finit_module
fork fsconfig fsopen get_mempolicy init_module inotify_init1 io_setup io_uring_setup ioperm iopl ioprio_set kcmp
kexec_load keyctl kill landlock_create_ruleset lookup_dcookie mbind memfd_create memfd_secret migrate_pages mlockall
mount mount_setattr move_mount move_pages mq_open mq_unlink msgget name_to_handle_at nfsservctl open_by_handle_at
open_tree perf_event_open personality pidfd_getfd pidfd_open pidfd_send_signal pivot_root pkey_alloc process_madvise
process_vm_readv process_vm_writev ptrace quotactl reboot request_key rt_sigqueueinfo rt_tgsigqueueinfo
sched_setaffinity sched_setattr sched_setparam sched_setscheduler seccomp semget semop setdomainname setfsuid setgid
setgroups sethostname setns setpgid setpriority setresuid setsid settimeofday setuid shmat shmctl shmget socket
swapoff swapon sysfs syslog tgkill timer_settime64 tkill truncate umount2 unshare uselib userfaultfd ustat vhangup
vmsplice
"""


def test_other_calls_of_the_kernel_are_refused(tool: PythonTool) -> None:
    numbers = {name: seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) for name in CALLS.split()}
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in { {name: number for name, number in numbers.items() if number >= 0} }.items():
    ctypes.set_errno(0)
    if libc.syscall(number, -1, -1, -1, -1, -1, -1) != -1 or ctypes.get_errno() not in (1, 38):
        print(name, ctypes.get_errno())
"""
    assert tool.run(program) == "(no output)"


def test_the_other_numbering_of_calls_is_closed_too(tool: PythonTool) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x86_64 alone has two")
    assert tool.run("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 41, 1, 1, 0)").startswith("Crashed")


def test_every_limit_is_set(tool: PythonTool) -> None:
    shown = tool.run("""
import resource
for name in ("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"):
    print(resource.getrlimit(getattr(resource, "RLIMIT_" + name)))
""")
    limits = [eval(line) for line in shown.splitlines()]  # noqa: S307 - pairs of numbers
    assert len(limits) == 6
    assert all(0 <= soft == hard < 1 << 40 for soft, hard in limits)


@pytest.mark.parametrize("name", ["bubblewrap", "landlock"])
@pytest.mark.parametrize("then", ["", "import time; time.sleep(60)"])
def test_files_are_bounded_in_all(name: str, then: str) -> None:
    tool = PythonTool(SANDBOXES[name], Limits(seconds=20))
    if reason := tool.problem():
        pytest.skip(f"{name} does not work here: {reason}")
    code = f"for n in range(5): open(str(n), 'wb').write(bytes(15 << 20))\n{then}"
    assert re.search("No space left on device|larger than 64 MB", tool.run(code))


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import asyncio\nasync def f():\n  await asyncio.sleep(0.01); return 3\nasyncio.run(f())", "3"),
        ("import concurrent.futures as c\nwith c.ThreadPoolExecutor(4) as p: print(sum(p.map(abs, range(9))))", "36"),
        ("import sqlite3\nc = sqlite3.connect('a.db'); c.execute('create table t(x)'); c.commit(); c.close(); 1", "1"),
        ("import shutil; open('a', 'w').write('x'); shutil.copy2('a', 'b'); open('b').read()", "'x'"),
        ("import tempfile\nwith tempfile.NamedTemporaryFile() as f: print(f.write(b'abc'))", "3"),
        ("import mmap; len(mmap.mmap(-1, 4096))", "4096"),
        ("import os; open(os.devnull, 'w').write('x'); len(os.urandom(3))", "3"),
        ("import datetime, zoneinfo; datetime.datetime.now().astimezone().tzinfo is None", "False"),
        ("import random, secrets, uuid, platform, getpass, locale, ssl, decimal; platform.system()", "'Linux'"),
        ("import numpy as np; float(np.linalg.inv(np.eye(200)).sum())", "200.0"),
        ("import sympy; sympy.factorint(10**18 + 9)", "{1000000000000000009: 1}"),
        ("import os; os.cpu_count() > 0 and len(os.sched_getaffinity(0)) > 0", "True"),
        ("import time; a = time.monotonic(); time.sleep(0.01); time.monotonic() > a", "True"),
        ("import signal\nsignal.signal(14, lambda *_: print('rang'))\nsignal.alarm(1)\nsignal.pause()", "rang"),
    ],
)  # fmt: skip
def test_usual_programs_work(tool: PythonTool, code: str, shown: str) -> None:
    assert tool.run(code) == shown


def test_auto_takes_bubblewrap_where_it_works() -> None:
    works = PythonTool(Bubblewrap()).problem() is None
    assert PythonTool.of("auto").sandbox.name == ("bubblewrap" if works else "landlock")


@pytest.mark.parametrize(
    "script",
    [
        "echo 'bwrap: No permissions to create a new namespace' >&2; exit 1",
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',  # it starts the program as it is
        "sleep 0.1",
    ],
)
def test_a_bwrap_that_does_not_hold_is_not_used(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "bwrap"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert PythonTool.of("auto").sandbox.name == "landlock"
    with pytest.raises(UserError, match=r"\(bubblewrap: .*\); .*unsafe"):
        PythonTool.of("bubblewrap")


@pytest.mark.parametrize("missing", ["Landlock", "seccomp", "Landlock and seccomp"])
@pytest.mark.parametrize("sandbox", [Bubblewrap(), Landlock()], ids=["bubblewrap", "landlock"])
def test_a_kernel_that_cannot_confine(sandbox: Sandbox, missing: str) -> None:
    class Old:
        name = sandbox.name

        def command(self, interpreter: str, limits: Limits, folder: str) -> list[str]:
            hidden = [sys.executable, old_kernel.__file__, missing]
            return [*hidden, *sandbox.command(interpreter, limits, folder)]

    tool = PythonTool(sandbox, Limits(seconds=20))
    if tool.problem():
        pytest.skip(f"{sandbox.name} does not work here")
    reason = PythonTool(Old()).problem()
    needed = {"Landlock", "seccomp"} if sandbox.name == "landlock" else {"seccomp"}
    assert (reason is None) == needed.isdisjoint(missing.split())
    assert reason is None or reason.removeprefix("the kernel lacks ") in needed


def test_no_other_sandbox_is_known() -> None:
    with pytest.raises(TaskError, match="sandbox = 'docker': there are auto, bubblewrap, landlock, unsafe"):
        PythonTool.of("docker")  # type: ignore[arg-type]


def test_unsafe_has_to_be_asked_for(tmp_path: Path) -> None:
    tool = PythonTool.of("unsafe")
    assert isinstance(tool.sandbox, Unsafe)
    assert "unsafe" in tool.note
    assert tool.run(f"open({str(tmp_path / 'written')!r}, 'w').write('x')") == "1"

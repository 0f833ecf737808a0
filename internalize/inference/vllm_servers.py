"""Servers of vLLM that a run starts for itself: `compute.engine = "vllm"`.

Each runs in vLLM's own environment under a guard, which ends it when this process ends, however that happens. A thread
watches the servers and restarts one that ended or does not answer, with one line in the log. Adapters lie in a folder
in which vLLM's resolver finds them, so a restarted server has them again. The servers' output is in the run's folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import weakref
from contextlib import suppress
from pathlib import Path

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config
from internalize.errors import Incomplete, InternalizeError, UserError

from . import guard

NAME = "compute.vllm"  # name of the servers' endpoint
_LOG = logging.getLogger(__name__)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # largest ranks that vLLM accepts
_LOOKS = 0.5  # seconds
_ANSWERS = 10.0  # seconds of a health check
_SILENT = 300.0  # seconds without an answer after which a server counts as stuck
_STARTS = 5  # failed starts in a row; a server that ends by itself at its first start will do so again
_KILLED = 128  # exit codes from here on are signals
_ENDS = 100  # restarts of one server in a run
# The resolver is asked only where adapters may be loaded at run time.
_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_PLUGINS": "lora_filesystem_resolver",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}  # fmt: skip
_ON_CPU = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}


class Server:
    """One of the servers, for the thread that watches it."""

    def __init__(self, name: str, port: int, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.name, self.port, self.log = name, port, log
        self._command, self._variables = command, variables
        self.healthy = False
        self.failed = self.ended = 0
        self.start()

    def start(self) -> None:
        """Start a process that appends to the log."""
        self.healthy, self.since = False, time.monotonic()
        run = [sys.executable, guard.__file__, str(os.getpid()), *self._command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the recipe's own
                run, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._variables, start_new_session=True
            )

    def end(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    def gone(self) -> None:
        """Wait until it has ended."""
        try:
            self.process.wait(guard.PATIENCE + 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path: str) -> None:
        """Ask for an effect. Raises OSError."""
        with urllib.request.urlopen(self._request(path, b""), timeout=_SILENT):  # noqa: S310 - http
            pass

    def health(self) -> bool | None:
        """Whether it reports to be healthy; None = it does not answer."""
        try:
            with urllib.request.urlopen(self._request("/health"), timeout=_ANSWERS) as answer:  # noqa: S310 - http
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False
        except OSError:
            return None

    def _request(self, path: str, data: bytes | None = None) -> urllib.request.Request:
        return urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)

    def last_words(self) -> str:
        """The last line of its log that names an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        errors = [line for line in lines[-400:] if re.search(r"Error\b|error:", line)]
        return " ".join((errors or lines or ["it printed nothing"])[-1].split())[-300:]


class VllmServers:
    """`compute.vllm.servers` servers of a model (folder or name). They start at once and are healthy later."""

    def __init__(self, config: Config, model: str, folder: Path, *, cpu: bool) -> None:
        self._settings = config.compute.vllm
        self._problem: InternalizeError | None = None
        self._stopped = threading.Event()
        adapters = folder / "adapters"
        shutil.rmtree(adapters, ignore_errors=True)
        adapters.mkdir(parents=True)
        ports = free_ports(self._settings.servers)
        self.endpoint = EndpointConfig(
            base_url=f"http://127.0.0.1:{ports[0]}/v1",
            replicas=tuple(f"http://127.0.0.1:{port}/v1" for port in ports[1:]),
            model=model,
            concurrency=min(1024, config.compute.batch * self._settings.servers),
            timeout=600.0,
            tries=40,
            adapters=str(adapters) if config.distill.lora_r else "",
        )
        self.servers = [
            Server(
                f"vLLM server {number}" if len(ports) > 1 else "vLLM",
                port,
                self.command(config, model, port),
                self._variables(adapters, number, cpu=cpu),
                folder / f"server-{number}.log",
            )
            for number, port in enumerate(ports)
        ]
        weakref.finalize(self, _end, self.servers, self._stopped)
        watch = (self.servers, self._settings.starts_within, self._stopped, weakref.ref(self))
        threading.Thread(target=_watch, args=watch, daemon=True).start()

    def command(self, config: Config, model: str, port: int) -> list[str]:
        """The command that starts one server."""
        settings = self._settings
        python = str(Path(settings.python).expanduser()) if settings.python else sys.executable
        options = ["--model", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", config.model.dtype]
        options += ["--max-model-len", str(config.model.max_context)]
        if config.distill.lora_r:
            rank = next((rank for rank in _RANKS if rank >= config.distill.lora_r), config.distill.lora_r)
            options += ["--enable-lora", "--max-lora-rank", str(rank)]
        if settings.devices > 1:
            options += ["--tensor-parallel-size", str(settings.devices)]
        if settings.sleep:
            options += ["--enable-sleep-mode"]
        return [python, "-m", "vllm.entrypoints.openai.api_server", *options, *settings.options]

    def _variables(self, adapters: Path, number: int, *, cpu: bool) -> dict[str, str]:
        settings = self._settings
        found = (_ON_CPU if cpu else {}) | dict(os.environ) | _ALWAYS | {"VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters)}
        found.pop("PYTHONPATH", None)  # vLLM has packages of its own
        if settings.python:  # its compilers are beside its Python
            found["PATH"] = f"{Path(settings.python).expanduser().absolute().parent}{os.pathsep}{found.get('PATH', '')}"
        if settings.servers > 1 and not cpu:
            own = range(number * settings.devices, (number + 1) * settings.devices)
            found["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        if settings.sleep:
            found["VLLM_SERVER_DEV_MODE"] = "1"
        return found | settings.variables

    def require(self) -> None:
        """Raise the error for which the servers were given up, if there is one."""
        if self._problem:
            raise self._problem

    async def ready(self) -> None:
        """Wait until all servers answer. Raises UserError if one cannot be started."""
        while not all(server.healthy for server in self.servers):
            self.require()
            await asyncio.sleep(_LOOKS)

    def give_up(self, problem: InternalizeError) -> None:
        """Keep the reason why there are no servers any more."""
        self._problem = problem

    async def sleep(self) -> None:
        """With `compute.vllm.sleep`, have the servers free the memory of their GPUs."""
        await self._each("/sleep?level=1")

    async def wake(self) -> None:
        """Have the servers take that memory again."""
        await self._each("/wake_up")

    async def _each(self, path: str) -> None:
        if self._settings.sleep:
            for server in self.servers:
                try:
                    await asyncio.to_thread(server.post, path)
                except OSError as error:
                    _LOG.warning("%s refuses %s (%s)", server.name, path, error)

    def close(self) -> None:
        """End the servers."""
        _end(self.servers, self._stopped)


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens now."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _end(servers: list[Server], stopped: threading.Event) -> None:
    stopped.set()
    for server in servers:
        server.end()
    for server in servers:
        server.gone()


def _watch(
    servers: list[Server], within: float, stopped: threading.Event, owner: weakref.ReferenceType[VllmServers]
) -> None:
    """Watch the servers until `stopped`, or until one is given up."""
    while not stopped.wait(_LOOKS):
        for server in servers:
            if (problem := _look(server, within, stopped)) is None:
                continue
            if mine := owner():
                mine.give_up(problem)
            return


def _look(server: Server, within: float, stopped: threading.Event) -> InternalizeError | None:
    """Restart a server that has ended or is stuck; returns why it is given up, if it is."""
    now, code = time.monotonic(), server.process.poll()
    if code is None:
        well = server.health()
        if well:
            server.healthy, server.since, server.failed = True, now, 0
            return None
        limit = _SILENT if server.healthy else within
        if (well is None or not server.healthy) and now - server.since < limit:
            return None
        reason = "it does not answer" if well is None else "its engine is dead"
        server.end()
        server.gone()
    else:
        reason = f"exit code {code}"
    if stopped.is_set():
        return None
    server.failed += not server.healthy
    server.ended += server.healthy
    by_itself = code is None or code < _KILLED
    if server.failed and ((by_itself and not server.ended) or server.failed == _STARTS):
        return UserError(f"{server.name} cannot be started ({reason}): {server.last_words()} (all of it: {server.log})")
    if server.ended == _ENDS:
        return Incomplete(f"{server.name} has ended {_ENDS} times ({reason}); its log is {server.log}")
    _LOG.warning("%s was lost (%s) and is started again; its log: %s", server.name, reason, server.log)
    server.start()
    return None

"""Processes of one machine: started, watched, started again when they die, stopped together.

`agentprm train` runs here what compose runs as containers. Logs go to files; `processes.json` in
the run directory says what runs where.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import structlog

from agentprm.registry import write_atomic

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 15.0
_MAX_RESTARTS = 5
"""Restarts of one process within `_WINDOW` seconds after which the machine gives up."""
_WINDOW = 300.0


class ProcessFailed(Exception):
    """A process ended that must not, or does not come up."""


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class _Process:
    name: str
    argv: list[str]
    url: str | None
    output: Path | None
    handle: subprocess.Popen[bytes]
    starts: list[float] = field(default_factory=list)


class Machine:
    """A group of processes. Use it as a context manager: leaving it stops them all."""

    def __init__(self, run: Path, environment: Mapping[str, str] | None = None) -> None:
        self.run = run
        self.logs = run / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
        self._processes: dict[str, _Process] = {}

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, module: str, *flags: str, port: int | None = None, log_file: bool = True
    ) -> str:
        """Run `python -m module` with flags; with a `port` it is a service. Returns its URL or ''.

        Without `log_file` the process writes to this terminal.
        """
        argv = [sys.executable, "-m", module, *flags]
        url = None
        if port is not None:
            argv += ["--port", str(port)]
            url = f"http://127.0.0.1:{port}"
        output = self.logs / f"{name}.log" if log_file else None
        handle = self._spawn(argv, output)
        self._processes[name] = _Process(name, argv, url, output, handle, [time.monotonic()])
        self._publish()
        return url or ""

    def wait_reachable(self, names: Sequence[str], timeout: float = 300.0) -> None:
        """Wait until the services answer `/health`, be it that they have no checkpoint yet.

        Raises:
            ProcessFailed: one ended, or did not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        for name in names:
            process = self._processes[name]
            while not _reachable(process.url):
                if process.handle.poll() is not None:
                    raise ProcessFailed(f"{name} ended while starting.\n{self._tail(process)}")
                if time.monotonic() > deadline:
                    raise ProcessFailed(f"{name} is not up after {timeout:.0f} s; {process.output}")
                time.sleep(0.1)

    def watch(self, name: str) -> int:
        """Until `name` exits by itself, restart every other process that dies; its exit code.

        `name` itself is restarted where a signal killed it.

        Raises:
            ProcessFailed: a process dies again and again.
        """
        while True:
            for process in self._processes.values():
                code = process.handle.poll()
                if code is None:
                    continue
                if process.name == name and code >= 0:
                    return code
                self._restart(process, code)
            time.sleep(0.2)

    def watch_all(self) -> None:
        """Restart every process that dies, for ever."""
        self.watch("")

    def stop(self) -> None:
        """SIGTERM to all, the last started first; SIGKILL to what is left after 15 s."""
        running = [p for p in reversed(self._processes.values()) if p.handle.poll() is None]
        for process in running:
            process.handle.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in running:
            try:
                process.handle.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("killing a process that does not stop", process=process.name)
                process.handle.kill()
                process.handle.wait()

    def _restart(self, process: _Process, code: int) -> None:
        now = time.monotonic()
        process.starts = [t for t in process.starts if now - t < _WINDOW]
        if len(process.starts) > _MAX_RESTARTS:
            raise ProcessFailed(
                f"{process.name} ended {len(process.starts)} times within {_WINDOW:.0f} s, "
                f"last with code {code}.\n{self._tail(process)}"
            )
        log.warning("restarting a process that ended", process=process.name, code=code)
        process.handle = self._spawn(process.argv, process.output)
        process.starts.append(now)
        self._publish()

    def _spawn(self, argv: list[str], output: Path | None) -> subprocess.Popen[bytes]:
        if output is None:
            return subprocess.Popen(argv, env=self._environment, preexec_fn=_die_with_parent)
        with output.open("ab") as file:
            return subprocess.Popen(
                argv,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=_die_with_parent,
            )

    def _publish(self) -> None:
        processes = {p.name: {"pid": p.handle.pid, "url": p.url} for p in self._processes.values()}
        content = orjson.dumps(processes, option=orjson.OPT_INDENT_2)
        write_atomic(self.run / "processes.json", content)

    def _tail(self, process: _Process, lines: int = 15) -> str:
        if process.output is None or not process.output.exists():
            return ""
        text = process.output.read_text(errors="replace").splitlines()
        return "\n".join([f"The end of {process.output}:", *text[-lines:]])


def _reachable(url: str | None) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0).status_code in (200, 503)
    except httpx.TransportError:
        return False


def _die_with_parent() -> None:
    """Leave no orphans where the parent is killed (Linux only), nor share its Ctrl-C."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""Processes of one machine: started, watched, started again when they die, stopped together.

`agentprm train` runs here what compose runs as containers. Logs go to files; `processes.json` in
the run directory says what runs where.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import orjson
import structlog
from pydantic import ValidationError

from agentprm.calls import HEALTH_SECONDS
from agentprm.cli.log_file import LogFile
from agentprm.cli.ports import answers, local_url, require_free
from agentprm.cli.restarts import Restarts
from agentprm.files import write_atomic
from agentprm.keys import SENT, own_key
from agentprm.lineage import bound
from agentprm.protocol import Health
from agentprm.redis_server import RedisServer
from agentprm.settings import LoadSettings
from agentprm.validation import first_error

log = structlog.get_logger()

_START_SECONDS = 1200.0
"""Until a service must be up, beside its load: imports take seconds, SGLang servers up to 900 s."""
_STOP_SECONDS = 15.0
"""Seconds until a process that was told to end is killed."""
_WINDOW = 300.0
"""Seconds within which restarts of a process are counted."""
_WINDOW_OF_WATCHED = 24 * 3600.0
"""The same for what `watch` waits for: a trainer that memory does not suffice for is killed late,
in a fit."""
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    # Tensors from the heap, which keeps what is freed: else every large one is new pages, zeroed.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
"""What every process gets: torch computes a tenth to a fourth faster by it on a CPU."""


class ProcessFailed(Exception):
    """A process ended that must not, or does not come up."""


@dataclass
class _Process:
    name: str
    argv: list[str]
    url: str | None
    log: LogFile | None
    """None of one that prints to this terminal."""
    handle: subprocess.Popen[bytes]
    stdout: int | None
    starts: Restarts

    def tail(self) -> str:
        """The last that its last start has logged."""
        return "" if self.log is None else self.log.tail()


class Machine:
    """A group of processes. Use it as a context manager: leaving it stops them all.

    Services listen on `host`, and call one another with one of their own keys where they have any.
    """

    def __init__(
        self,
        run: Path,
        environment: Mapping[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
    ) -> None:
        self.run = run
        self.logs = run / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._host = host
        try:
            keys = own_key()
        except ValueError as error:
            raise ProcessFailed(str(error)) from None
        given = {**keys, **(environment or {})}
        self._environment = {**_ENVIRONMENT, **os.environ, **given}
        self._processes: dict[str, _Process] = {}
        self._redis: RedisServer | None = None
        self._redis_starts = Restarts(_WINDOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_redis(self, server: RedisServer) -> str:
        """Run a Redis beside the processes; returns its URL."""
        self._redis = server
        server.start()
        return server.url

    def use_redis(self, url: str) -> None:
        """Have the processes that are started from now on use the Redis at `url`.

        It is told in the environment: the URL may hold a password, and everyone can read flags.
        """
        self._environment["AGENTPRM_REDIS_URL"] = url

    def start(
        self,
        name: str,
        module: str,
        *flags: str,
        port: int | None = None,
        in_terminal: bool = False,
        quiet: bool = False,
    ) -> str:
        """Run `python -m module` with flags; with a `port` it is a service. Returns its URL or ''.

        Output goes to `logs/name.log`, or to this terminal: with `quiet` only its stderr.

        Raises:
            ProcessFailed: another process listens at `port`.
        """
        argv = [sys.executable, "-m", module, *flags]
        if port is None:
            return self._start(name, argv, None, in_terminal=in_terminal, quiet=quiet)
        _require_free(name, self._host, port)
        argv += ["--host", self._host, "--port", str(port)]
        return self._start(name, argv, self.url_at(port), in_terminal=in_terminal, quiet=quiet)

    def start_command(self, name: str, argv: list[str], *, port: int) -> str:
        """Run a command that listens at `port` on loopback. Returns its URL.

        Raises:
            ProcessFailed: there is no such command, or another process listens at `port`.
        """
        _require_free(name, "127.0.0.1", port)
        return self._start(name, argv, f"http://127.0.0.1:{port}")

    def _start(
        self,
        name: str,
        argv: list[str],
        url: str | None,
        *,
        in_terminal: bool = False,
        quiet: bool = False,
    ) -> str:
        output = None if in_terminal else LogFile(self.logs / f"{name}.log")
        stdout = subprocess.DEVNULL if quiet else None
        try:
            handle = self._spawn(argv, output, stdout)
        except OSError as error:
            raise ProcessFailed(f"{name} cannot be started: {error}") from error
        self._processes[name] = _Process(name, argv, url, output, handle, stdout, Restarts(_WINDOW))
        self._publish()
        return url or ""

    def url_at(self, port: int) -> str:
        """How processes of this machine reach a service that listens on `port`."""
        return local_url(self._host, port)

    def url(self, name: str) -> str:
        """Where a service listens."""
        return self._processes[name].url or ""

    def wait_reachable(self, names: Sequence[str], timeout: float | None = None) -> None:
        """Wait until the services answer `/health`, be it that they have no checkpoint yet.

        They do once they have loaded what they are to serve; `timeout`, in seconds, is by default
        more than that may take.

        Raises:
            ProcessFailed: one ended, or did not answer in time; with the end of its log.
        """
        if timeout is None:
            timeout = _START_SECONDS + _load_timeout()
        deadline = time.monotonic() + timeout
        for name in names:
            process = self._processes[name]
            while True:
                # Before it is asked: where another process has its port, it ends.
                if process.handle.poll() is not None:
                    raise ProcessFailed(f"{name} ended while starting.\n{process.tail()}")
                if process.url and answers(process.url, process.handle.pid):
                    break
                if time.monotonic() > deadline:
                    raise ProcessFailed(
                        f"{name} is not up after {timeout:.0f} s.\n{process.tail()}"
                    )
                time.sleep(0.1)

    def require_serving(self, name: str, version: str) -> None:
        """Go on only where `name`, which is up, serves the checkpoint `version`.

        Raises:
            ProcessFailed: it serves none, or another, with the reason that it gives; or it does
                not answer.
        """
        key = self._environment.get(SENT)
        headers = {"Authorization": f"Bearer {key}"} if key else {}  # details need one
        url = f"{self.url(name)}/health"
        try:
            answer = httpx.get(url, headers=headers, timeout=HEALTH_SECONDS, trust_env=False)
            health = Health.model_validate_json(answer.raise_for_status().content)
        except httpx.HTTPError as error:
            tail = self._processes[name].tail()
            raise ProcessFailed(f"{name} does not say what it serves: {error}\n{tail}") from error
        if health.version != version:
            reason = health.details.get("refused") or self._processes[name].tail()
            raise ProcessFailed(f"{name} does not serve {version}: {reason}")

    def finish(self, name: str, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """`watch` until `name` has ended well; False as soon as `unless` holds.

        Raises:
            ProcessFailed: it failed, or a process dies again and again.
        """
        code = self.watch(name, unless=unless)
        if code:
            raise ProcessFailed(f"{name} ended with code {code}; its messages say why")
        return code is not None

    def watch(self, name: str, *, unless: Callable[[], bool] = lambda: False) -> int | None:
        """Until `name` exits by itself, restart every other process that dies; its exit code.

        `name` itself is restarted where a signal killed it. None as soon as `unless` holds.

        Raises:
            ProcessFailed: a process dies again and again.
        """
        if name in self._processes:
            self._processes[name].starts.window = _WINDOW_OF_WATCHED
        while not unless():
            if self._redis is not None and self._redis.pid is None:
                self._restart_redis(self._redis)
            for process in self._processes.values():
                if process.log is not None:
                    process.log.bound()
                code = process.handle.poll()
                if code is None:
                    continue
                if process.name == name and code >= 0:
                    return code
                self._restart(process, code)
            time.sleep(0.2)
        return None

    def watch_all(self) -> None:
        """Restart every process that dies, for ever."""
        self.watch("")  # no process has this name, so it waits for none to end

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
        if self._redis is not None:
            self._redis.close()

    def _restart_redis(self, redis: RedisServer) -> None:
        if not self._redis_starts.another():
            raise ProcessFailed(
                f"redis-server ended {len(self._redis_starts)} times within {_WINDOW:.0f} s, as it "
                f"does where the disk is full; {redis.log} says why"
            )
        log.warning("restarting a redis-server that ended")
        redis.start()
        self._publish()

    def _restart(self, process: _Process, code: int) -> None:
        if not process.starts.another():
            killed = (
                " (killed, as happens where memory runs out)" if code == -signal.SIGKILL else ""
            )
            raise ProcessFailed(
                f"{process.name} ended {len(process.starts)} times within "
                f"{process.starts.window:.0f} s, last with code {code}{killed}.\n"
                f"{process.tail()}"
            )
        log.warning("restarting a process that ended", process=process.name, code=code)
        process.handle = self._spawn(process.argv, process.log, process.stdout)
        self._publish()

    def _spawn(
        self, argv: list[str], output: LogFile | None, stdout: int | None
    ) -> subprocess.Popen[bytes]:
        with ExitStack() as stack:
            file = stack.enter_context(output.open()) if output else None
            return subprocess.Popen(
                bound(argv, self._environment),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file or stdout,
                stderr=file,
                start_new_session=True,  # a Ctrl-C is for this process, which stops the others
            )

    def _publish(self) -> None:
        processes: dict[str, dict[str, int | str | None]] = {
            p.name: {"pid": p.handle.pid, "url": p.url} for p in self._processes.values()
        }
        if self._redis is not None:
            processes["redis"] = {"pid": self._redis.pid, "url": self._redis.url}
        content = orjson.dumps(processes, option=orjson.OPT_INDENT_2)
        try:
            write_atomic(self.run / "processes.json", content)
        except OSError as error:  # it is for people to look at
            log.warning("what runs where is not written down", why=str(error))


def _load_timeout() -> float:
    try:
        return LoadSettings().load_timeout
    except ValidationError as error:
        raise ProcessFailed(f"in the environment: {first_error(error)}") from None


def _require_free(name: str, host: str, port: int) -> None:
    try:
        require_free(host, port)
    except OSError as error:
        raise ProcessFailed(
            f"{name} cannot listen on {host}:{port}: {error.strerror}. End what listens there, "
            "such as another `agentprm up`, or choose other ports by --port."
        ) from error

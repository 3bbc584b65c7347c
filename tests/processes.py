"""The services as processes, for tests that load, limit and kill them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from agentprm.cli.ports import free_port

STARTED = 90.0
"""Seconds in which a service has to answer; imports take most of it on a busy machine."""


@contextmanager
def service(name: str, *flags: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m services.<name>` on a port of its own, once it listens, and its address."""
    port = free_port()
    command = [sys.executable, "-m", f"services.{name}", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(process, url)
        yield process, url
    finally:
        process.kill()
        process.wait(20)


def wait_until_up(process: subprocess.Popen[bytes], url: str) -> None:
    """Until the service at `url`, which `process` runs or starts, answers."""
    deadline = time.monotonic() + STARTED
    while True:
        assert process.poll() is None, "the service ended"
        try:
            httpx.get(f"{url}/health", timeout=5)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the service does not come up"
            time.sleep(0.1)
        else:
            return

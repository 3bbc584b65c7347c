"""The PRM service as a process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from agentprm.registry import Registry


@contextmanager
def prm_server(registry: Registry, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A PRM process that listens, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "services.prm", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([*command, "--registry", str(registry.root), *flags])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert process.poll() is None, "the service ended"
                time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.wait(10)

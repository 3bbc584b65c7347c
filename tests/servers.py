"""The services that serve checkpoints, as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from agentprm.registry import Registry


@contextmanager
def model_server(
    name: str, registry: Registry, *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`services.prm` or `services.policy` as a process that listens, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", f"services.{name}", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--registry", str(registry.root), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
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


@contextmanager
def prm_server(registry: Registry, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The PRM service."""
    with model_server("prm", registry, *flags) as running:
        yield running

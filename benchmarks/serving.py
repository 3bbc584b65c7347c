"""A service as a process of its own, for what is measured over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil

from agentprm.cli.ports import free_port
from agentprm.cli.processes import Machine
from agentprm.protocol import Health


@contextmanager
def served(service: str, *flags: object) -> Iterator[str]:
    """The address of `services.<service>` with these flags, once it has loaded what it serves."""
    with (
        TemporaryDirectory() as directory,
        Machine(Path(directory), {"OMP_NUM_THREADS": "1"}) as machine,
    ):
        url = machine.start(service, f"services.{service}", *map(str, flags), port=free_port())
        machine.wait_reachable([service])
        yield url


def process_at(url: str) -> psutil.Process:
    """The process of this machine that answers there."""
    answer = httpx.get(f"{url}/health").raise_for_status()
    return psutil.Process(Health.model_validate_json(answer.content).pid)

"""The services that serve checkpoints, as processes."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager

from agentprm.registry import Registry
from tests.processes import service

Running = AbstractContextManager[tuple[subprocess.Popen[bytes], str]]


def model_server(name: str, registry: Registry, *flags: str) -> Running:
    """`services.prm` or `services.policy` as a process that listens, and its address."""
    return service(name, "--device", "cpu", "--registry", registry.root, *flags)


def prm_server(registry: Registry, *flags: str) -> Running:
    """The PRM service."""
    return model_server("prm", registry, *flags)

"""AgentPRM on one machine: the processes of a training run, of an evaluation, and of serving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from agentprm.cli.processes import Machine, ProcessFailed, free_port
from agentprm.config import Config, Evaluation
from agentprm.registry import Registry

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Options:
    """What the services of a machine have in common."""

    prompt: str = "chat"
    device: str = "auto"
    engine: str = "textworld"


@dataclass(frozen=True)
class Endpoints:
    """Where the services of a machine listen."""

    env: str
    policy: str
    prm: str

    def flags(self) -> list[str]:
        """The flags that tell a worker or the trainer."""
        return ["--env-url", self.env, "--policy-url", self.policy, "--prm-url", self.prm]

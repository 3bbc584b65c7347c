"""The trainer as a process: its settings, and its connections to the other services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import Field

from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.files import DamagedFile
from agentprm.queue import Queue, QueueError, QueueSettings
from agentprm.registry import Registry
from agentprm.settings import LoadSettings
from services.trainer.collect import Services
from services.trainer.exclusive import RunTaken, exclusive
from services.trainer.fleet import Fleet
from services.trainer.inbox import JobsFailed
from services.trainer.records import Records

STOPS = (DamagedFile, JobsFailed, QueueError, RunTaken, ServiceError)
"""What ends the work on a run and is mended outside of it, as its message says. The same command
goes on then."""

_SPARE = 300.0
"""Seconds that the answer to a load may take beyond the time to load: it waits for requests."""


class TrainerSettings(LoadSettings):
    """Where the run is, and where the services are."""

    run: Path = Field(description="run directory, with its config.json")
    queue: str | None = Field(
        default=None, description="name of the run in Redis; default the directory's"
    )
    redis_url: str = Field(description="redis://host:port/0")
    env_url: str = Field(description="the environment service")
    policy_url: str = Field(description="the policy service; of several replicas a,b,...")
    prm_url: str = Field(description="the PRM service; of several replicas a,b,...")
    max_jobs: int = Field(
        default=QueueSettings().max_jobs,
        ge=1,
        description="jobs that may be outstanding, those being played among them",
    )
    num_processes: int | None = Field(
        default=None, ge=1, description="processes that share a fit; default the preset's"
    )
    accelerate: str | None = Field(
        default=None, description="ddp, fsdp, or an accelerate file; default the preset's"
    )


@contextmanager
def open_run(settings: TrainerSettings) -> Iterator[tuple[Services, Records]]:
    """Connections and records, for the one process that works on the run.

    The records are opened under the lock: opening cuts off a torn line, which in a file that
    another is writing may be half of a whole one.

    Raises:
        RunTaken: another process works on it.
    """
    with exclusive(settings.run), connect(settings) as services:
        Registry(settings.run / "checkpoints").drop_drafts()
        yield services, Records(settings.run / "records")


@contextmanager
def connect(settings: TrainerSettings) -> Iterator[Services]:
    """Connections to everything the trainer talks to; for it, and for the processes of its fits."""
    name = settings.queue or settings.run.name
    deadline = settings.load_timeout + _SPARE
    with ExitStack() as stack:
        yield Services(
            env=stack.enter_context(EnvClient(settings.env_url)),
            policy=Fleet(
                [
                    stack.enter_context(PolicyClient(url, deadline=deadline))
                    for url in settings.policy_url.split(",")
                ]
            ),
            prm=Fleet(
                [
                    stack.enter_context(PRMClient(url, deadline=deadline))
                    for url in settings.prm_url.split(",")
                ]
            ),
            queue=stack.enter_context(
                Queue(
                    settings.redis_url,
                    run=name,
                    settings=QueueSettings(max_jobs=settings.max_jobs),
                )
            ),
        )

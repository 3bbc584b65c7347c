"""A run opened for work: its lock, its records, and connections to the services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from safetensors import SafetensorError

from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.files import DamagedFile
from agentprm.queue import Queue, QueueError, QueueSettings
from agentprm.registry import CheckpointError, Registry
from services.trainer.exclusive import RunTaken, exclusive
from services.trainer.rollouts.collect import NoGames, Services, WrongVersion
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.inbox import JobsFailed
from services.trainer.rollouts.records import Records
from services.trainer.settings import TrainerSettings
from services.trainer.training.rows import NothingToTrainOnError

STOPS = (
    CheckpointError,
    DamagedFile,
    JobsFailed,
    NoGames,
    NothingToTrainOnError,
    QueueError,
    RunTaken,
    ServiceError,
    WrongVersion,
    OSError,
    SafetensorError,
)
"""What ends the work on a run and is mended outside of it, as its message says. The same command
goes on then. The last two are what a full disk raises: safetensors has an error of its own."""

_SPARE = 300.0
"""Seconds that the answer to a load may take beyond the time to load: it waits for requests."""


@contextmanager
def open_run(settings: TrainerSettings) -> Iterator[tuple[Services, Records]]:
    """Connections and records, for the one process that works on the run.

    The records are opened under the lock: opening cuts off a torn line, which in a file that
    another is writing may be half of a whole one.

    Raises:
        RunTaken: another process works on it.
        DamagedFile: as `Records`.
        QueueError, ValueError: as `connect`.
    """
    with exclusive(settings.run), connect(settings) as services:
        Registry(settings.run / "checkpoints").drop_drafts()
        yield services, Records(settings.run / "records")


@contextmanager
def connect(settings: TrainerSettings) -> Iterator[Services]:
    """Connections to everything the trainer talks to; for it, and for the processes of its fits.

    Raises:
        QueueError: there is no Redis at `redis_url`.
        ValueError: one of the URLs is not that of a service.
    """
    name = settings.queue or settings.run.name
    deadline = settings.load_timeout + _SPARE
    registry = Registry(settings.run / "checkpoints")
    with ExitStack() as stack:
        yield Services(
            env=stack.enter_context(EnvClient(settings.env_url)),
            policy=Fleet(
                [
                    stack.enter_context(PolicyClient(url, deadline=deadline))
                    for url in _replicas(settings.policy_url)
                ],
                registry,
            ),
            prm=Fleet(
                [
                    stack.enter_context(PRMClient(url, deadline=deadline))
                    for url in _replicas(settings.prm_url)
                ],
                registry,
            ),
            queue=stack.enter_context(
                Queue(
                    settings.redis_url,
                    run=name,
                    settings=QueueSettings(max_jobs=settings.max_jobs),
                )
            ),
        )


def _replicas(urls: str) -> list[str]:
    return urls.split(",") if urls else []

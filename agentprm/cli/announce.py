"""How a run is made known to services and workers that run already."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agentprm.files import write_atomic
from agentprm.queue import CurrentRun, Queue

QUEUE_NAME = "AGENTPRM_QUEUE_NAME"
"""Names the run in Redis, for what has to know its streams before it starts, such as an
autoscaler. Unset, every run has a name of its own."""


@contextmanager
def announced(run: Path, redis_url: str) -> Iterator[Queue]:
    """Tell services and workers of the run, and hold its name in Redis for this block; its queue.

    Services serve the checkpoints of `current`, a link beside the run directory; workers follow the
    run that is announced in Redis.

    The name is what `QUEUE_NAME` says, else the run's own. No other run gets it meanwhile, except
    where this process sleeps for longer than a lease; see `Queue.lost`.

    Raises:
        QueueError: another run has the name, or Redis does not answer.
    """
    own = queue_name(run)
    name = os.environ.get(QUEUE_NAME) or own
    with Queue(redis_url, name) as queue:
        queue.adopt(own)
        _make_current(run)
        with closing(CurrentRun(redis_url)) as current:
            current.announce(name)
            yield queue


def queue_name(run: Path) -> str:
    """The run's name in Redis. It is the run's own, also where many share one Redis."""
    file = run / "queue-name"
    if not file.exists():
        write_atomic(file, f"{run.resolve().name}-{uuid.uuid4().hex[:8]}".encode())
    return file.read_text()


def _make_current(run: Path) -> None:
    """Point the link `current` beside the run directory to it, whatever it pointed to before."""
    run = run.resolve()  # it may be given as that very link
    draft = run.parent / f".current-{uuid.uuid4().hex}"
    draft.symlink_to(run.name)
    draft.replace(run.parent / "current")

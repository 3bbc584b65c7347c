"""How a run is made known to services and workers that run already."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agentprm.files import write_atomic
from agentprm.queue import CurrentRun, Queue
from agentprm.runs import QUEUE_NAME_FILE

QUEUE_NAME = "AGENTPRM_QUEUE_NAME"
"""Names the runs of these services in Redis, one after the other; an autoscaler has to know it."""
_SHARED = "train"
"""Their name where none is given: services and workers are of one run at a time."""


@contextmanager
def announced(run: Path, redis_url: str) -> Iterator[Queue]:
    """Tell services and workers of the run, and hold its name in Redis for this block; its queue.

    Services serve the checkpoints of `current`, a link beside the run directory; workers follow the
    run that is announced in Redis.

    No other run gets the name meanwhile, except where this process sleeps for longer than a lease;
    see `Queue.lost`.

    Raises:
        QueueError: another run has the name, or Redis does not answer.
    """
    own = queue_name(run)
    name = os.environ.get(QUEUE_NAME) or _SHARED
    with Queue(redis_url, name) as queue:
        queue.adopt(own)
        _make_current(run)
        with closing(CurrentRun(redis_url)) as current:
            current.announce(name)
            yield queue


def queue_name(run: Path) -> str:
    """The run's own name in Redis, also where many share one Redis. A copy of a run has another."""
    file, place = run / QUEUE_NAME_FILE, str(run.stat().st_ino)
    name, _, named_at = file.read_text().partition(" ") if file.exists() else ("", "", "")
    if not name or named_at not in ("", place):
        name = f"{run.resolve().name}-{uuid.uuid4().hex[:8]}"
        write_atomic(file, f"{name} {place}".encode())
    return name


def _make_current(run: Path) -> None:
    """Point the link `current` beside the run directory to it, whatever it pointed to before."""
    run = run.resolve()  # it may be given as that very link
    draft = run.parent / f".current-{uuid.uuid4().hex}"
    draft.symlink_to(run.name)
    draft.replace(run.parent / "current")

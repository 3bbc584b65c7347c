"""Results in: taken from a stream, recorded, and only then acknowledged."""

from __future__ import annotations

import time
from collections.abc import Collection

import structlog

from agentprm.protocol import JobResult
from agentprm.queue import Queue, Results
from services.trainer.rollouts.records import Records

_TAKE = 16
"""Most results taken at once."""
_WAIT = 2.0
"""Seconds of one wait; between two, dead letters are looked for."""
_QUIET = 10.0
"""Seconds without any result after which jobs are looked for that nobody has any more."""
_STALLED = 1800.0
"""Seconds of waiting without any result after which a run is given up, if no worker had a job in as
many."""
_LONGEST = 6 * 3600.0
"""Seconds of waiting for a job that a worker has, after which a run is given up."""

log = structlog.get_logger()


class JobsFailed(Exception):
    """A job was given up by the workers, or none of them answers."""


class Inbox:
    """The trainer's end of the result streams."""

    def __init__(self, queue: Queue, records: Records) -> None:
        self._queue = queue
        self._records = records
        self._heard = self._looked = time.monotonic()

    def receive(self, stream: Results, waiting: Collection[str]) -> list[JobResult]:
        """Results that were not recorded before; waits a moment for the first.

        Raises:
            JobsFailed: one of the jobs `waiting` failed for good, or nothing came in half an hour
                of waiting, or in six hours where workers had jobs.
            QueueError: Redis is gone for good.
        """
        entries = self._queue.results(stream, count=_TAKE, timeout=_WAIT)
        new = [entry.record for entry in entries if self._records.append(entry.record)]
        self._queue.acknowledge(stream, entries)
        if entries:
            self._heard = time.monotonic()
            return new
        for dead in self._queue.dead():
            if dead.job_id in waiting:
                raise JobsFailed(f"job {dead.job_id} was given up: {dead.reason}")
        silent = time.monotonic() - self._heard
        if silent > _STALLED and not self._may_come(stream, silent):
            jobs = self._queue.lengths()["jobs"]
            raise JobsFailed(
                f"no result for {silent / 60:.0f} minutes, with {jobs} jobs in the queue: are "
                "rollout workers running, and do they reach Redis and the services? Their "
                "logs say what they wait for."
            )
        return []

    def _may_come(self, stream: Results, silent: float) -> bool:
        """Whether to wait on, `silent` seconds after the last result."""
        if silent <= _LONGEST and self._queue.held(_STALLED) > 0:
            return True
        return self._queue.lengths()[stream] > 0  # of a job that was finished just now

    def lost(self, stream: Results, published: Collection[str]) -> list[str]:
        """Those of the jobs `published` that nobody has any more, to be published again.

        They are looked for when nothing came in for a while, and again after as long.

        Raises:
            QueueError: Redis is gone for good.
        """
        now = time.monotonic()
        if not published or now - max(self._heard, self._looked) < _QUIET:
            return []
        self._looked = now
        lost = self._queue.forget_lost(stream, published)
        if lost:
            log.warning("jobs that nobody has are published again", jobs=len(lost), first=lost[0])
        return lost

    def expect(self) -> None:
        """A stage begins: forget its earlier failures, and start the clock.

        Raises:
            QueueError: Redis is gone for good.
        """
        self._queue.clear_dead()
        self.listen()

    def listen(self) -> None:
        """Start the clock: what was done with the results until now was no waiting."""
        self._heard = time.monotonic()

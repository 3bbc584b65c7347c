"""The worker: takes jobs one after the other, plays them, pushes what happened."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from prometheus_client import Counter, Histogram

from agentprm import request_id
from agentprm.client import ServiceError
from agentprm.protocol import JobResult, PreferenceJob, RolloutJob
from agentprm.queue import Entry, Queue, QueueError, WaitEnded
from services.rollout.game import PlayError
from services.rollout.player import Played, Player
from services.rollout.shutdown import Interrupted, Shutdown

_TAKE = 5.0
"""Seconds of one wait for a job."""

JOBS = Counter("agentprm_rollout_jobs_total", "Jobs by how they ended", ["result"])
JOB_SECONDS = Histogram(
    "agentprm_rollout_job_seconds", "Time to play a job", buckets=[2**k for k in range(-3, 12)]
)
EPISODES = Counter("agentprm_rollout_episodes_total", "Episodes played")

_log = structlog.get_logger()


class Worker:
    """One consumer of the jobs of a run. Any number may work at a time, and come and go.

    A job's id is the request id of all that is asked of the services for it.
    """

    def __init__(self, queue: Queue, player: Player, shutdown: Shutdown) -> None:
        self._queue = queue
        self._player = player
        self._shutdown = shutdown

    def run(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Work until the shutdown, or while the run is `wanted`.

        That is asked between jobs, and while a result waits for room.

        Raises:
            QueueError: Redis is gone for good.
        """
        _log.info("worker ready", worker=self._queue.consumer)
        while not self._shutdown.requested.is_set() and wanted():
            if entry := self._queue.take(_TAKE):
                with request_id.named(entry.record.id):
                    self._work(entry, wanted)

    def _work(self, entry: Entry[RolloutJob | PreferenceJob], wanted: Callable[[], bool]) -> None:
        job = entry.record
        log = _log.bind(job=job.id, delivery=entry.deliveries)
        started = time.monotonic()
        try:
            with self._shutdown.interrupting():
                played = self._player.play(job, self._queue.run)
        except Interrupted:
            self._give_back(entry)
            return
        except (PlayError, ServiceError) as error:
            log.warning("job failed", error=str(error))
            self._fail(entry, str(error))
            return
        except Exception as error:
            # Whatever is wrong with one job must not take the worker from the others.
            log.error("job failed", exc_info=error)
            self._fail(entry, f"{type(error).__name__}: {error}")
            return
        seconds = time.monotonic() - started
        try:
            counted = self._queue.finish(entry, self._result(job.id, seconds, played), wanted)
        except QueueError as error:
            if not (isinstance(error, WaitEnded) or self._shutdown.requested.is_set()):
                raise
            self._give_back(entry)
            return
        JOBS.labels("done" if counted else "late").inc()
        JOB_SECONDS.observe(seconds)
        EPISODES.inc(len(played.episodes))
        log.info(
            "job done",
            seconds=round(seconds, 2),
            episodes=len(played.episodes),
            won=sum(episode.won for episode in played.episodes),
            preferences=len(played.preferences),
            groups=len(played.groups),
            dropped=played.dropped,
            counted=counted,
        )

    def _fail(self, entry: Entry[RolloutJob | PreferenceJob], reason: str) -> None:
        JOBS.labels("failed").inc()
        self._queue.fail(entry, reason)

    def _give_back(self, entry: Entry[RolloutJob | PreferenceJob]) -> None:
        self._queue.give_back(entry)
        JOBS.labels("given back").inc()
        _log.info("job given back", job=entry.record.id)

    def _result(self, job_id: str, seconds: float, played: Played) -> JobResult:
        return JobResult(
            job_id=job_id,
            worker=self._queue.consumer,
            seconds=seconds,
            episodes=played.episodes,
            preferences=played.preferences,
            groups=played.groups,
            dropped=played.dropped,
        )

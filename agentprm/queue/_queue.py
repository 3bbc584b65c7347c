"""The queue: one object for both sides, workers and trainer."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Self

import orjson
import structlog
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentprm.protocol import Job, JobResult, PreferenceJob, RolloutJob
from agentprm.queue import _scripts
from agentprm.queue._heartbeat import Heartbeat
from agentprm.queue._lease import Lease
from agentprm.queue._link import QueueError, WaitEnded
from agentprm.queue._streams import GROUPS, Row, Streams
from agentprm.queue._values import DeadJob, Entry, Offer, QueueSettings, Results
from agentprm.validation import first_error

_CONSUMER = "trainer"
"""Results have one consumer, always of this name, so that a restarted trainer finds at once what
it had taken and not acknowledged."""

_job: TypeAdapter[RolloutJob | PreferenceJob] = TypeAdapter(Job)
_log = structlog.get_logger()


class Queue:
    """The streams of one run. Safe to share between threads.

    Every call raises `QueueError` where Redis stays away for `settings.patience` seconds.

    Args:
        url: of Redis.
        run: names the run; its keys are `agentprm:<run>:*`.
        name: names this process in Redis and in the logs; made unique by a suffix.
        stopped: set it to end all waiting: `take` and `results` then give nothing, and calls that
            wait for Redis or for room raise `QueueError`.
    """

    def __init__(
        self,
        url: str,
        run: str,
        *,
        name: str = "queue",
        settings: QueueSettings | None = None,
        stopped: threading.Event | None = None,
    ) -> None:
        self.run = run
        self.settings = settings or QueueSettings()
        self.consumer = f"{name}-{uuid.uuid4().hex[:8]}"
        self._stopped = stopped or threading.Event()
        self._streams = Streams(url, run, patience=self.settings.patience, stopped=self._stopped)
        self._redis = self._streams.redis
        self._publish = self._redis.register_script(_scripts.PUBLISH)
        self._forget_lost = self._redis.register_script(_scripts.FORGET_LOST)
        self._finish = self._redis.register_script(_scripts.FINISH)
        self._set_idle = self._redis.register_script(_scripts.SET_IDLE)
        self._bury = self._redis.register_script(_scripts.BURY)
        self._lease = Lease(self._streams, run)
        self._heartbeat = Heartbeat(self._touch, self.settings.claim_after / 3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the heartbeat, leave the name to others and close the connections."""
        self._heartbeat.close()
        self._lease.close()
        self._streams.close()

    # --- jobs: the trainer's side ---------------------------------------------------------------

    def offer(self, job: RolloutJob | PreferenceJob) -> Offer:
        """Queue the job unless its id is known or the stream is full. Does not wait.

        Who also consumes results must offer, not publish: workers wait while results are full.
        """
        bound = self.settings.max_jobs
        fields = (job.id, job.attempt, _dump(job))
        return Offer(self._streams.run(self._publish, ["ids", "jobs"], bound, *fields).decode())

    def publish(self, job: RolloutJob | PreferenceJob) -> bool:
        """Queue the job unless its id is known; wait while the stream is full.

        Returns:
            Whether the id was new.

        Raises:
            WaitEnded: there was no room until the queue was stopped.
        """
        return self._until_room("jobs", lambda: self.offer(job)) == Offer.QUEUED

    def forget_lost(self, stream: Results, job_ids: Iterable[str]) -> list[str]:
        """Forget those of the ids whose jobs nobody has, so that they can be published again.

        A Redis that came back without its data, or with older data, has lost jobs; and it knows
        the ids of jobs whose records were deleted. None is taken for lost while results wait in
        `stream`, where theirs would be.

        Returns:
            The ids that were forgotten.
        """
        lost = self._streams.run(self._forget_lost, ["ids", "jobs", stream], *job_ids)
        return [job_id.decode() for job_id in lost]

    def dead(self) -> list[DeadJob]:
        """The dead letters, oldest first. Their ids are forgotten: publishing runs them again."""
        rows = self._streams.rows("dead")
        return [DeadJob(r.job_id, r.fields[b"reason"].decode()) for r in rows]

    def clear_dead(self) -> None:
        """Drop the dead letters."""
        key = self._streams.keys["dead"]
        self._streams.call(lambda: self._redis.delete(key))

    # --- jobs: the worker's side ----------------------------------------------------------------

    def take(self, timeout: float) -> Entry[RolloutJob | PreferenceJob] | None:
        """The next job, held by a heartbeat until finish, fail or give_back.

        Abandoned and failed jobs come before new ones. None after `timeout` seconds or when
        stopped.
        """
        deadline = time.monotonic() + timeout
        while not self._stopped.is_set():
            left = deadline - time.monotonic()
            row = self._streams.claim("jobs", self.consumer, self.settings.claim_after)
            rows = [row] if row else self._streams.read("jobs", self.consumer, 1, left)
            for entry in filter(None, map(self._open, rows)):
                self._heartbeat.hold(entry.id)
                return entry
            if left <= 0:
                return None
        return None

    def finish(
        self,
        entry: Entry[RolloutJob | PreferenceJob],
        result: JobResult,
        wanted: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Push the result and acknowledge the job, at once; wait while the results are full.

        Returns:
            False if the job was no longer open: finished by another, or dropped. Then nothing is
            pushed.

        Raises:
            WaitEnded: there was no room until the queue was stopped, or the run no more `wanted`,
                which is asked while it waits. The job is still held.
        """
        job = entry.record
        stream: Results = "episodes" if isinstance(job, RolloutJob) else "preferences"
        bound = self._bound(stream)
        fields = (job.id, job.attempt, _dump(result))

        def once() -> str:
            done = self._streams.run(
                self._finish, ["jobs", stream], GROUPS["jobs"], entry.id, bound, *fields
            )
            return str(done.decode())

        outcome = self._until_room(stream, once, wanted)
        self._heartbeat.release(entry.id)
        return outcome == "finished"

    def fail(self, entry: Entry[RolloutJob | PreferenceJob], reason: str) -> None:
        """Have the job tried again, after a pause that grows, or put it to the dead letters."""
        self._heartbeat.release(entry.id)
        if entry.deliveries >= self.settings.max_deliveries:
            data = _dump(entry.record)
            self._to_dead_letters("jobs", entry.id, entry.record.id, reason, data)
            return
        pause = min(2.0**entry.deliveries - 1, self.settings.claim_after)
        self._release(entry.id, self.settings.claim_after - pause, entry.deliveries)

    def give_back(self, entry: Entry[RolloutJob | PreferenceJob]) -> None:
        """Leave the job to the next worker, as if it had not been taken."""
        self._heartbeat.release(entry.id)
        self._release(entry.id, self.settings.claim_after, entry.deliveries - 1)

    # --- results: the trainer's side ------------------------------------------------------------

    def results(self, stream: Results, count: int, timeout: float) -> list[Entry[JobResult]]:
        """Up to `count` results: those taken and not acknowledged first, else new ones.

        Waits up to `timeout` seconds for the first. Make them durable, then acknowledge them,
        then ask for more. A result is delivered again if it could not be acknowledged: count
        by `JobResult.job_id`.

        A result that cannot be read is a dead letter of its job: it would come first for ever.
        """
        deadline = time.monotonic() + timeout
        rows = self._streams.unacknowledged(stream, _CONSUMER, count)
        while not rows and not self._stopped.is_set():
            left = deadline - time.monotonic()
            rows = self._streams.read(stream, _CONSUMER, count, left)
            if left <= 0:
                break
        return list(filter(None, (self._open_result(stream, row) for row in rows)))

    def acknowledge(self, stream: Results, entries: Iterable[Entry[JobResult]]) -> None:
        """Delete results that are durable."""
        self._streams.delete(stream, [entry.id for entry in entries])

    # --- housekeeping ---------------------------------------------------------------------------

    def lengths(self) -> dict[str, int]:
        """What is outstanding, by stream, and the dead letters."""
        return {name: self._streams.length(name) for name in (*GROUPS, "dead")}

    def held(self, seconds: float) -> int:
        """Jobs that a worker held, or gave back, in the last `seconds`, and nobody has finished."""
        return self._streams.held("jobs", seconds)

    def purge(self, keep_attempt: str) -> int:
        """Drop the jobs and results of every attempt at a fit but one; forget their ids.

        What no fit asked for stays.

        Returns:
            How many entries were dropped.
        """
        dropped = 0
        kept = (b"", keep_attempt.encode())
        for stream in GROUPS:
            rows = self._streams.rows(stream)
            old = [row for row in rows if row.fields.get(b"attempt", b"") not in kept]
            if old:
                jobs = [row.job_id for row in old]
                forget = partial(self._redis.srem, self._streams.keys["ids"], *jobs)
                self._streams.call(forget)
                self._streams.delete(stream, [row.id for row in old])
                dropped += len(old)
        return dropped

    def adopt(self, owner: str) -> bool:
        """Take this name for `owner`, a run's own name: drop what any other run left under it.

        Jobs of two runs may have the same ids, so a name serves one after the other only so. Until
        this object is closed no other run gets it, but where this process sleeps too long (`lost`).

        Returns:
            Whether it was another's, or nobody's, before.

        Raises:
            QueueError: another run has it now.
        """
        self._lease.take(owner)
        key = self._streams.keys["owner"]
        if self._streams.call(partial(self._redis.get, key)) == owner.encode():
            return False
        self._streams.clear()
        self._streams.call(partial(self._redis.set, key, owner))
        return True

    @property
    def lost(self) -> bool:
        """Whether another run has taken the name since `adopt`: what is here is that run's."""
        return self._lease.lost

    # --- below ----------------------------------------------------------------------------------

    def _bound(self, stream: str) -> int:
        return int(getattr(self.settings, f"max_{stream}"))

    def _until_room(
        self, stream: str, push: Callable[[], str], wanted: Callable[[], bool] = lambda: True
    ) -> str:
        """Call `push` until it finds room in `stream`; what it answered then."""
        waiting_since: float | None = None
        while (outcome := push()) == Offer.FULL:
            if waiting_since is None:
                waiting_since = time.monotonic()
                _log.info("stream full, waiting", stream=stream, bound=self._bound(stream))
            # By the length alone: a push carries the whole record, and many may wait.
            while self._streams.length(stream) >= self._bound(stream):
                if self._stopped.wait(0.5) or not wanted():
                    raise WaitEnded(f"stopped while waiting for room in {stream}")
        if waiting_since is not None:
            seconds = round(time.monotonic() - waiting_since, 1)
            _log.info("stream has room", stream=stream, seconds=seconds)
        return outcome

    def _open(self, row: Row) -> Entry[RolloutJob | PreferenceJob] | None:
        """The job of an entry; one that cannot be read or be tried again is dead."""
        entry_id, fields, deliveries = row
        job_id, data = row.job_id, fields.get(b"data", b"")
        if deliveries > self.settings.max_deliveries:
            reason = f"delivered {deliveries - 1} times and never answered"
            self._to_dead_letters("jobs", entry_id, job_id, reason, data)
            return None
        try:
            return Entry(entry_id, _job.validate_json(data), deliveries)
        except ValidationError as error:
            reason = f"not a job that a worker of this version can read: {first_error(error)}"
            self._to_dead_letters("jobs", entry_id, job_id, reason, data)
            return None

    def _open_result(self, stream: Results, row: Row) -> Entry[JobResult] | None:
        """The result of an entry; one that cannot be read makes its job dead."""
        try:
            return Entry(row.id, JobResult.model_validate_json(row.fields.get(b"data", b"")))
        except ValidationError as error:
            reason = (
                "its result cannot be read, as that of a worker of another version; have workers "
                f"of the trainer's version, and the job is played again: {first_error(error)}"
            )
            # Without the data: results are large, and this one is of no use.
            self._to_dead_letters(stream, row.id, row.job_id, reason, b"")
            return None

    def _to_dead_letters(
        self,
        stream: Results | Literal["jobs"],
        entry_id: str,
        job_id: str,
        reason: str,
        data: bytes,
    ) -> None:
        _log.error("job given up", job=job_id, reason=reason)
        holder = self.consumer if stream == "jobs" else _CONSUMER
        fields = (GROUPS[stream], holder, entry_id, self.settings.max_dead, job_id, reason, data)
        self._streams.run(self._bury, [stream, "dead", "ids"], *fields)

    def _release(self, entry_id: str, idle: float, deliveries: int) -> None:
        fields = (self.consumer, entry_id, round(idle * 1000), deliveries)
        self._streams.run(self._set_idle, ["jobs"], GROUPS["jobs"], *fields)

    def _touch(self, entry_id: str) -> bool:
        fields = (GROUPS["jobs"], self.consumer, entry_id, 0, "same")
        try:
            # One attempt a beat: the next beat is the retry.
            held = self._streams.run(self._set_idle, ["jobs"], *fields, patience=0.0)
        except QueueError:
            return True
        return bool(held)


def _dump(record: BaseModel) -> bytes:
    return orjson.dumps(record.model_dump(mode="json"))

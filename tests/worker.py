"""A rollout worker in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentprm.protocol import JobResult, RolloutJob
from agentprm.queue import Queue
from services.rollout.player import Player


@contextmanager
def working(redis_url: str, player: Player) -> Iterator[list[RolloutJob]]:
    """A worker; the jobs that it played."""
    stopped = threading.Event()
    played: list[RolloutJob] = []

    def work() -> None:
        with Queue(redis_url, "run", name="test", stopped=stopped) as queue:
            while not stopped.is_set():
                if (entry := queue.take(timeout=0.5)) is None:
                    continue
                assert isinstance(entry.record, RolloutJob)
                job_id, episodes = entry.record.id, player.play(entry.record).episodes
                played.append(entry.record)
                result = JobResult(job_id=job_id, worker="test", seconds=0, episodes=episodes)
                queue.finish(entry, result)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield played
    finally:
        stopped.set()
        thread.join()

"""A bounded queue before the model, and waiting requests merged into batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from prometheus_client import Gauge, Histogram

from agentprm.models.serving import Serving
from agentprm.service import ProblemError
from services.policy.engine.wanted import NobodyWaits, while_wanted

log = structlog.get_logger()
W = TypeVar("W")

BATCH = Histogram(
    "agentprm_policy_batch_items", "Conversations in a batch", buckets=[2**k for k in range(11)]
)
WAITING = Gauge("agentprm_policy_waiting_samples", "Samples asked for that wait for the model")

MAX_ITEMS = 256
"""Most conversations of a batch."""

Work = Callable[[W, Sequence[Any]], Sequence[Any]]


@dataclass
class _Job(Generic[W]):
    """Items of one request. Jobs of equal `kind` may be computed together by either's `work`."""

    kind: Hashable
    work: Work[W]
    items: Sequence[Any]
    cost: int
    answer: asyncio.Future[tuple[str, Sequence[Any]]]


class Batcher(Generic[W]):
    """Computes jobs in the order of their arrival, on the weights that serve when their turn comes.

    While `concurrency` batches are computed, what arrives waits; then all that waits and is of the
    first one's kind goes into one batch of at most `MAX_ITEMS`. So a lone request never waits for
    company. Once all requests of a batch are given up, so is the batch, where an engine asks
    (`require_wanted`).
    """

    def __init__(
        self,
        serving: Serving[W],
        *,
        max_waiting: int,
        concurrency: int = 1,
    ) -> None:
        self._serving = serving
        self._max_waiting = max_waiting
        self._free = asyncio.Semaphore(concurrency)
        self._jobs: deque[_Job[W]] = deque()
        self.waiting = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(concurrency, "model")
        self._beside = ThreadPoolExecutor(1, "beside")

    async def submit(
        self, kind: Hashable, work: Work[W], items: Sequence[Any], cost: int
    ) -> tuple[str, Sequence[Any]]:
        """The version that computed, and a result for each item.

        `work(weights, items)` runs in a thread and gives one result an item. `cost` is
        the number of samples, which the queue's bound counts.

        Raises:
            ProblemError: 429, the queue is full; 503, nothing is loaded; or what `work` raises.
        """
        self._serving.current()
        if self.waiting and self.waiting + cost > self._max_waiting:
            detail = f"{self.waiting} samples wait already"
            raise ProblemError(429, "Too many requests", detail, retry_after=1)
        answer: asyncio.Future[tuple[str, Sequence[Any]]]
        answer = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(kind, work, items, cost, answer))
        self._count(cost)
        self._arrived.set()
        return await answer

    async def ahead(self, work: Callable[[W], None]) -> None:
        """Run `work(weights)` now, in a thread beside the model's, on the weights that serve now.

        Raises:
            ProblemError: 503, nothing is loaded; or what `work` raises.
        """
        weights = self._serving.current().weights
        await asyncio.get_running_loop().run_in_executor(self._beside, work, weights)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute what is asked for inside this block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as computing:
                while True:
                    await self._free.acquire()
                    await self._arrived.wait()
                    computing.create_task(self._compute_and_free(self._take()))
        finally:
            for job in self._jobs:
                job.answer.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._beside.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[_Job[W]]:
        """The job that waited longest and those of its kind. Requests given up are passed over."""
        batch: list[_Job[W]] = []
        rest: deque[_Job[W]] = deque()
        items = 0
        for job in self._jobs:
            if job.answer.done():
                self._count(-job.cost)
            elif not batch or (job.kind == batch[0].kind and items + len(job.items) <= MAX_ITEMS):
                self._count(-job.cost)
                batch.append(job)
                items += len(job.items)
            else:
                rest.append(job)
        self._jobs = rest
        if not rest:
            self._arrived.clear()
        return batch

    async def _compute_and_free(self, batch: Sequence[_Job[W]]) -> None:
        try:
            if batch:
                await self._compute(batch)
        finally:
            self._free.release()

    async def _compute(self, batch: Sequence[_Job[W]]) -> None:
        items = [item for job in batch for item in job.items]
        BATCH.observe(len(items))

        def work(weights: W) -> Sequence[Any]:
            with while_wanted(lambda: not all(job.answer.done() for job in batch)):
                return batch[0].work(weights, items)

        try:
            async with self._serving.using() as served:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(self._thread, work, served.weights)
        except NobodyWaits:
            return
        except Exception as error:
            if len(batch) > 1:  # one request's fault must not be the others'
                log.warning("a batch failed; its requests alone", count=len(batch), exc_info=error)
                for job in batch:
                    if not job.answer.done():  # given up meanwhile
                        await self._compute([job])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        start = 0
        for job in batch:
            end = start + len(job.items)
            if not job.answer.done():
                job.answer.set_result((served.version, results[start:end]))
            start = end

    def _count(self, change: int) -> None:
        self.waiting += change
        WAITING.set(self.waiting)

"""Requests that arrive together are computed together, in a fair order.

What waits is a heap of rows. A row's place is the amount of work (in tokens to compute) done when
its request came, plus the work of the request up to and including the row: fair queueing by token
count. So a short request overtakes long episodes and large requests, by no more than their own
length, and nothing waits for ever. What the scorer knows from earlier requests is no work. A few
threads plan (tokenise), so that large requests do not hold up small ones there either; one
computes, or several where it is others that compute.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter, Gauge, Histogram

from agentprm.models.serving import Served
from agentprm.protocol import ScoreRequest, ScoreResponse
from agentprm.service import ProblemError
from services.prm.packing import Row
from services.prm.planning import Plan
from services.prm.scorer import BaseScorer

log = structlog.get_logger()

MAX_REQUESTS = 512
"""Most requests between admission and answer."""
MAX_WAITING = 4 * 2**20
"""Most tokens that wait."""
MAX_WAIT = 100.0
"""Seconds after which a request is given up."""

_POWERS = [2**k for k in range(18)]
BATCH_ROWS = Histogram("agentprm_prm_batch_rows", "Rows computed together", buckets=_POWERS)
BATCH_TOKENS = Histogram("agentprm_prm_batch_tokens", "Tokens computed together", buckets=_POWERS)
BATCH_SECONDS = Histogram("agentprm_prm_batch_seconds", "Time to compute what was taken together")
ROWS = Counter("agentprm_prm_rows_total", "Rows computed")
SCORES = Counter("agentprm_prm_scores_total", "Scores answered")
WAITING_ROWS = Gauge("agentprm_prm_waiting_rows", "Rows that wait")
WAITING_TOKENS = Gauge("agentprm_prm_waiting_tokens", "Tokens of the rows that wait")


@dataclass
class _Job:
    """A request under way: the weights it is answered from, and the scores there are so far.

    `held` is what a swap waits for: while a row of the request may still be computed, nothing that
    is known of its weights is taken for gone.
    """

    served: Served[BaseScorer]
    plan: Plan
    costs: list[int]
    done: asyncio.Future[None]
    scores: list[list[float]]
    missing: int
    held: object = None


@dataclass(order=True, frozen=True)
class _Waiting:
    place: int
    order: int
    job: _Job = field(compare=False)
    index: int = field(compare=False)

    @property
    def row(self) -> Row:
        return self.job.plan.rows[self.index]

    @property
    def cost(self) -> int:
        return self.job.costs[self.index]


class Batcher:
    """Answers score requests. Use it from one event loop, within `running()`."""

    def __init__(
        self,
        max_requests: int = MAX_REQUESTS,
        max_waiting: int = MAX_WAITING,
        *,
        concurrency: int = 1,
    ) -> None:
        self._max_requests = max_requests
        self._max_waiting = max_waiting
        self._requests = 0
        self._heap: list[_Waiting] = []
        self._tokens = 0
        self._clock = 0
        self._pushed = 0
        self._arrived = asyncio.Event()
        self._planning = ThreadPoolExecutor(4, "plan")
        self._concurrency = concurrency
        self._computing = ThreadPoolExecutor(concurrency, "compute")

    @property
    def waiting(self) -> tuple[int, int]:
        """Rows and tokens that wait."""
        return len(self._heap), self._tokens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute what is asked for inside this block."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            self._planning.shutdown(wait=False, cancel_futures=True)
            self._computing.shutdown(wait=False, cancel_futures=True)

    async def score(
        self, served: Served[BaseScorer], request: ScoreRequest, held: object = None
    ) -> ScoreResponse:
        """Q for everything in `request`, all of it from `served`; `held` is kept until then.

        Raises:
            ProblemError: 422 too long for the model, refused by its chat template or empty, 413
                more than may ever wait, 429 too much waits already, 503 not computed in time, 500
                the weights gave no number.
        """
        if self._requests >= self._max_requests:
            raise _busy(f"{self._requests} requests are under way")
        self._requests += 1
        try:
            async with asyncio.timeout(MAX_WAIT):
                return await self._score(served, request, held)
        except TimeoutError as error:
            raise ProblemError(
                503, "Not in time", f"no answer after {MAX_WAIT:.0f} s", retry_after=5
            ) from error
        finally:
            self._requests -= 1

    async def _score(
        self, served: Served[BaseScorer], request: ScoreRequest, held: object
    ) -> ScoreResponse:
        loop = asyncio.get_running_loop()
        plan, costs = await loop.run_in_executor(self._planning, _plan, served.weights, request)
        if plan.tokens > self._max_waiting:
            limits = f"{plan.tokens} tokens in one request, at most {self._max_waiting}"
            raise ProblemError(413, "Too much at once", limits)
        if self._tokens + plan.tokens > self._max_waiting:
            raise _busy(f"{self._tokens} tokens wait already")
        scores: list[list[float]] = [[] for _ in plan.rows]
        job = _Job(served, plan, costs, loop.create_future(), scores, len(scores), held)
        self._push(job)
        await job.done
        SCORES.inc(sum(map(len, scores)))
        return plan.answer(scores, version=served.version, template_hash=served.weights.prompt.hash)

    def _push(self, job: _Job) -> None:
        place = self._clock
        for index in range(len(job.plan.rows)):
            place += job.costs[index]
            self._pushed += 1
            heapq.heappush(self._heap, _Waiting(place, self._pushed, job, index))
        self._tokens += job.plan.tokens
        self._measure()
        self._arrived.set()

    def _take(self) -> list[_Waiting]:
        """The next rows of one version, up to the work of one forward pass; at least one row."""
        taken: list[_Waiting] = []
        work = 0
        while self._heap:
            head = self._heap[0]
            if taken and (
                head.job.served is not taken[0].job.served
                or work + head.cost > head.job.served.weights.forward_tokens
            ):
                break
            heapq.heappop(self._heap)
            self._tokens -= len(head.row)
            if not head.job.done.done():  # else it has failed, or was given up
                taken.append(head)
                work += head.cost
        self._clock += work
        self._measure()
        return taken

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._step()

    async def _step(self) -> None:
        """Compute the next rows. They hold weights, so nobody keeps them when this returns."""
        taken = self._take()
        if not self._heap:
            self._arrived.clear()
        if not taken:
            return
        with BATCH_SECONDS.time():
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._computing, _compute, taken)
        for waiting, result in zip(taken, results, strict=True):
            _settle(waiting, result)

    def _measure(self) -> None:
        WAITING_ROWS.set(len(self._heap))
        WAITING_TOKENS.set(self._tokens)


def _plan(scorer: BaseScorer, request: ScoreRequest) -> tuple[Plan, list[int]]:
    plan = scorer.plan(request)
    return plan, [scorer.cost(row) for row in plan.rows]


def _compute(taken: Sequence[_Waiting]) -> list[list[float] | Exception]:
    """Scores of rows of one version, in one batch."""
    BATCH_ROWS.observe(len(taken))
    BATCH_TOKENS.observe(sum(len(waiting.row) for waiting in taken))
    ROWS.inc(len(taken))
    return _scores(taken)


def _scores(taken: Sequence[_Waiting]) -> list[list[float] | Exception]:
    """Where rows fail together each is computed alone: one's fault must not be the others'."""
    scorer = taken[0].job.served.weights
    try:
        return list(scorer.score([waiting.row for waiting in taken]))
    except Exception as error:
        if len(taken) == 1:
            return [error]
        log.warning("a batch failed; its rows alone", rows=len(taken), exc_info=error)
    return [result for waiting in taken for result in _scores([waiting])]


def _settle(waiting: _Waiting, result: list[float] | Exception) -> None:
    job = waiting.job
    if job.done.done():
        return
    if isinstance(result, Exception):
        job.done.set_exception(result)
        return
    if not all(map(math.isfinite, result)):
        detail = f"{job.served.version} gave a score that is not a number"
        job.done.set_exception(ProblemError(500, "No score", detail))
        return
    job.scores[waiting.index] = result
    job.missing -= 1
    if job.missing == 0:
        job.done.set_result(None)


def _busy(detail: str) -> ProblemError:
    return ProblemError(429, "Too many requests", detail, retry_after=1)

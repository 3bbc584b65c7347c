"""Hot swap: what a service that serves a checkpoint does when it is told to serve another.

Verify the files against their mark, build the new weights beside the old, try them on a canary, and
only then put them in place. Requests in flight keep the weights they took; on any failure the old
weights go on serving and the answer says why.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from fastapi import FastAPI, Response
from prometheus_client import Counter, Histogram

from agentprm.protocol import LoadCheckpoint, Loaded
from agentprm.registry import CheckpointError, NoCheckpointError, Registry
from agentprm.service import ADMIN, Limits, ProblemError, json_response, problems

W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)

LOAD_ROUTE = "/v1/checkpoints/load"
MAX_LOADS = 8
"""Loads under way or waiting for their turn; more are refused."""

DRAIN_SECONDS = 150.0
"""How long a load waits for requests that use weights replaced before: longer than any may take."""
COLLECT_SECONDS = 1.0
"""Seconds between two garbage collections while it waits: a cycle of references may be all that
still holds them."""

SWAPS = Counter("agentprm_checkpoint_swaps_total", "Swaps by result", ["service", "result"])
LOAD_SECONDS = Histogram(
    "agentprm_checkpoint_load_seconds",
    "Time to verify, build and try a checkpoint, while the old one serves",
    ["service"],
    buckets=[0.01 * 2**k for k in range(17)],
)
PAUSE = Histogram(
    "agentprm_checkpoint_swap_pause_seconds",
    "Time in which no request could begin to be computed, per swap",
    ["service"],
    buckets=[1e-6 * 4**k for k in range(13)],
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Served(Generic[W_co]):
    """Weights and the version they are. Taken as one, so that no answer mixes two."""

    version: str
    weights: W_co


class Serving(Generic[W]):
    """The checkpoint that `service` (`policy` or `prm`) serves.

    `build` makes weights of a directory and raises on an unfit one; `canary` raises where the
    weights of a directory do not compute what they should. Both run in a thread, which cannot be
    ended: of a load that takes longer than `timeout` seconds, or whose request is given up,
    nothing is used, whenever it ends, and until then no other is begun.
    """

    def __init__(
        self,
        service: str,
        registry: Registry,
        build: Callable[[Path], W],
        canary: Callable[[W, Path], None],
        *,
        timeout: float = 600.0,
    ) -> None:
        self.service = service
        self.registry = registry
        self._build = build
        self._canary = canary
        self._timeout = timeout
        self.refused: str | None = None
        """Why the last load was refused, or None where it was not."""
        self._served: Served[W] | None = None
        self._lock = asyncio.Lock()
        self._loads = 0
        self._late: threading.Thread | None = None
        self._replaced: Callable[[], Served[W] | None] = lambda: None

    @property
    def limits(self) -> Limits:
        """Those of its service: the answer to a load may take as long as the load."""
        return Limits(slower={LOAD_ROUTE: self._longest})

    @property
    def _longest(self) -> float:
        """Seconds that a load may take in all, once it is its turn, and some to spare."""
        return self._timeout + 2 * DRAIN_SECONDS

    @property
    def version(self) -> str | None:
        """What serves now, or None before the first load."""
        return self._served.version if self._served else None

    def current(self) -> Served[W]:
        """What serves now.

        Raises:
            ProblemError: 503, nothing is loaded yet.
        """
        if self._served is None:
            raise ProblemError(
                503, "No checkpoint", "POST /v1/checkpoints/load first", retry_after=1
            )
        return self._served

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Served[W]]:
        """What serves now, to compute an answer with inside the block.

        Raises:
            ProblemError: as `current`.
        """
        yield self.current()

    async def load(self, version: str, mark: str | None = None) -> Loaded:
        """Serve `version`; with a `mark` (`Registry.mark`) none but the one that has it.

        Loads run one after the other, in the order in which they came.

        Raises:
            ProblemError: it is refused and nothing is changed. 404, there is no such checkpoint;
                409, it is damaged, does not compute or has another mark; 429, too many loads wait;
                503, it was not loaded in time, or one that was not is still under way; 507, no
                memory for it beside what serves.
        """
        if self._loads >= MAX_LOADS:
            raise ProblemError(
                429, "Too many requests", f"{self._loads} loads wait already", retry_after=1
            )
        self._loads += 1
        try:
            async with self._lock:
                if mark is not None:
                    await self._require_mark(version, mark)
                return await self._load(version)
        finally:
            self._loads -= 1

    async def resume(self, version: str | None = None) -> None:
        """At start: serve `version`, or the one served last where it is still what it was.

        Raises:
            ProblemError: `version` was given and is refused; or there was no time or no memory for
                the one served last, so that what started this service should start it again.
        """
        if version is not None:
            await self.load(version)
            return
        last = self.registry.serving(self.service)
        if last is None:
            return
        try:
            await self.load(last)
        except ProblemError as error:
            if error.problem.status not in (404, 409):
                raise
            # `refused` tells why; what to serve is told anew

    async def _require_mark(self, version: str, mark: str) -> None:
        with self._refusing(version):
            found = await asyncio.to_thread(self.registry.mark, version)
            if found not in (None, mark):  # where there is none the load says so
                raise CheckpointError(
                    f"{version} in {self.registry.root} is not the one that is meant: this service "
                    "reads the checkpoints of another run"
                )

    async def _load(self, version: str) -> Loaded:
        started = time.perf_counter()
        with self._refusing(version):
            await self._drained()
            weights = await self._staged(version)
        ready = time.perf_counter()
        replaced, self._served = self._served, Served(version, weights)
        paused = time.perf_counter() - ready
        previous = None
        if replaced is not None:
            previous, self._replaced = replaced.version, weakref.ref(replaced)
            del replaced
        return await self._done(version, previous, ready - started, paused)

    async def _done(
        self, version: str, previous: str | None, seconds: float, paused: float
    ) -> Loaded:
        """Measure, remember and log a swap; the answer to the load."""
        self._measure(seconds, paused)
        # In a thread, as it waits for the disk; after the swap, as it says what has served.
        await asyncio.to_thread(self._remember, version)
        log.info("serving", version=version, previous=previous, seconds=seconds)
        return Loaded(
            version=version, previous=previous, load_seconds=seconds, pause_seconds=paused
        )

    @contextmanager
    def _refusing(self, version: str) -> Iterator[None]:
        """What is raised in the block refuses the load: it is counted, logged, and a problem."""
        try:
            yield
        except Exception as error:
            problem = self._refusal(version, error)
            self.refused = str(problem)
            SWAPS.labels(self.service, "refused").inc()
            log.warning("checkpoint refused", version=version, reason=str(problem))
            raise problem from error
        self.refused = None

    async def _drained(self) -> None:
        """Wait until no request uses what the last swap replaced.

        So there are never more than two sets of weights in memory, however fast swaps follow. A
        request that failed may hold them by its own traceback, which refers to itself.
        """
        started = collected = time.perf_counter()
        while self._replaced() is not None:
            now = time.perf_counter()
            if now - started > DRAIN_SECONDS:
                raise TimeoutError("requests still use what the swap before replaced")
            if now - collected > COLLECT_SECONDS:
                gc.collect()
                collected = time.perf_counter()
            await asyncio.sleep(0.01)

    async def _staged(self, version: str) -> W:
        """The weights of `version`, verified and tried, unless it takes too long."""
        if self._late is not None and self._late.is_alive():
            raise TimeoutError("a load that was not done in time is still under way")
        future: Future[W] = Future()
        future.set_running_or_notify_cancel()  # running: it cannot be cancelled, nor can the thread
        thread = threading.Thread(
            target=_settle, args=(future, lambda: self._stage(version)), name="load", daemon=True
        )  # a daemon, so that the process ends without waiting for it
        thread.start()
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            self._late = thread
            raise TimeoutError(f"it was not loaded within {self._timeout:g} s") from error
        except asyncio.CancelledError:  # nobody waits for it any more, and it goes on all the same
            self._late = thread
            raise

    def _stage(self, version: str) -> W:
        path = self.registry.open(version)
        weights = self._build(path)
        self._canary(weights, path)
        return weights

    def _refusal(self, version: str, error: Exception) -> ProblemError:
        """The answer to a load that failed."""
        if isinstance(error, ProblemError):
            return error
        if isinstance(error, TimeoutError):
            return ProblemError(503, "Checkpoint not loaded", f"{version}: {error}", retry_after=10)
        if _out_of_memory(error):
            detail = f"{version} does not fit beside what serves: {error}"
            return ProblemError(507, "Not enough memory", detail)
        if isinstance(error, NoCheckpointError):
            return ProblemError(404, "Checkpoint refused", str(error))
        if isinstance(error, CheckpointError):
            return ProblemError(409, "Checkpoint refused", str(error))
        return ProblemError(409, "Checkpoint refused", f"{version} does not load: {error}")

    def _measure(self, seconds: float, paused: float) -> None:
        SWAPS.labels(self.service, "done").inc()
        LOAD_SECONDS.labels(self.service).observe(seconds)
        PAUSE.labels(self.service).observe(paused)

    def _remember(self, version: str) -> None:
        try:
            self.registry.set_serving(self.service, version)
        except OSError as error:  # such as a registry that is mounted read-only
            log.warning("not remembered across restarts", version=version, reason=str(error))


def add_checkpoint_routes(app: FastAPI, serving: Serving[W]) -> None:
    """`POST /v1/checkpoints/load`: swap; repeating the load of what serves already is harmless."""

    @app.post(
        LOAD_ROUTE,
        response_model=Loaded,
        responses=problems(403, 404, 409, 429, 503, 507),
        dependencies=[ADMIN],
    )
    async def _load(request: LoadCheckpoint) -> Response:
        return json_response(await serving.load(request.version, request.mark))


def _settle(future: Future[W], call: Callable[[], W]) -> None:
    try:
        result = call()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _out_of_memory(error: Exception) -> bool:
    """Of Python, of the operating system, or of torch, which has no type of its own on a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text

"""Hot swap where the weights live in SGLang servers, which replace them in place.

As `agentprm.serving`, but nothing can be loaded beside the old weights. So answers under way are
awaited and new ones wait while the servers are put on the new checkpoint; where one of them fails,
all are put back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from agentprm.protocol import Loaded
from agentprm.registry import CheckpointError, NoCheckpointError, Registry
from agentprm.replicas import Replicas, ReplicasError, Weights
from agentprm.service import ProblemError
from agentprm.serving import SWAPS, Served, Serving

DRAIN_SECONDS = 150.0
"""How long a swap waits for answers under way: longer than an engine's request may take."""
START_SECONDS = 900.0
"""How long a start waits for the servers: large models take minutes."""
MEND_SECONDS = 5.0
"""How often replicas that were set aside are tried again."""

W = TypeVar("W", bound=Weights)

log = structlog.get_logger()


class InPlaceServing(Serving[W]):
    """The checkpoint that `replicas` serve for `service`.

    `build` reads of a directory what the service itself needs, and touches no server; it raises
    on an unfit checkpoint. It runs in a thread, after the files were verified.
    """

    def __init__(
        self, service: str, registry: Registry, build: Callable[[Path], W], replicas: Replicas
    ) -> None:
        super().__init__(service, registry, build, canary=lambda _: None)
        self.replicas = replicas
        self._gate = _Gate()

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Served[W]]:
        """What serves now; it goes on serving until the block ends."""
        async with self._gate.shared():
            yield self.current()

    async def load(self, version: str) -> Loaded:
        """Have every replica serve `version`, or raise a `ProblemError` that says why not.

        Then all replicas serve what they served before, or are set aside until they do.
        """
        async with self._lock:
            started = time.perf_counter()
            try:
                weights = await asyncio.to_thread(self._stage, version)
                await asyncio.to_thread(self.replicas.compare, weights)
                async with self._gate.exclusive(DRAIN_SECONDS):
                    drained = time.perf_counter()
                    await self._put(weights)
                    previous = self.version
                    self._served = Served(version, weights)
            except (CheckpointError, ReplicasError, TimeoutError) as error:
                raise self._refused(version, error) from error
            done = time.perf_counter()
            self._remember(version)
            SWAPS.labels(self.service, "done").inc()
            log.info("serving", version=version, previous=previous, seconds=done - started)
            return Loaded(
                version=version,
                previous=previous,
                load_seconds=done - started,
                pause_seconds=done - drained,
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Wait for the servers; while the block runs, put those that were set aside back.

        Raises:
            TimeoutError: a server takes no requests, after a time that is enough to start it.
        """
        async with asyncio.timeout(START_SECONDS):
            while missing := await asyncio.to_thread(self.replicas.missing):
                log.info("waiting for SGLang", servers=missing)
                await asyncio.sleep(1.0)
        task = asyncio.create_task(self._mend())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self.replicas.close()

    async def _mend(self) -> None:
        while True:
            await asyncio.sleep(MEND_SECONDS)
            if self._served is not None:
                async with self._lock:
                    await asyncio.to_thread(self.replicas.mend, self._served.weights)

    async def _put(self, weights: W) -> None:
        try:
            await asyncio.to_thread(self.replicas.put, weights)
        except ReplicasError:
            if self._served is not None:
                with suppress(ReplicasError):  # which has set the replica aside, and logged why
                    await asyncio.to_thread(self.replicas.put, self._served.weights)
            raise

    def _refused(self, version: str, error: Exception) -> ProblemError:
        SWAPS.labels(self.service, "refused").inc()
        log.warning("checkpoint refused", version=version, reason=str(error))
        if isinstance(error, TimeoutError):
            detail = f"answers under way did not end within {DRAIN_SECONDS:.0f} s"
            return ProblemError(503, "Busy", detail, retry_after=1)
        if isinstance(error, ReplicasError) and not error.refused:
            return ProblemError(503, "Engine unavailable", str(error), retry_after=1)
        status = 404 if isinstance(error, NoCheckpointError) else 409
        return ProblemError(status, "Checkpoint refused", str(error))


class _Gate:
    """Many at once, or one alone. Who wants to be alone goes before those who come later."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def exclusive(self, timeout: float) -> AsyncIterator[None]:
        """For one caller at a time, which a lock of theirs ensures.

        Raises:
            TimeoutError: those inside did not leave in time.
        """
        self._open.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
            yield
        finally:
            self._open.set()

"""Hot swap where the weights live in SGLang servers, which replace them in place.

As `agentprm.models.serving`, but nothing can be loaded beside the old weights. So answers under way
are awaited and new ones wait while the servers are put on the new checkpoint; where one of them
fails, all are put back. Once that has begun it goes on to its end, whoever waits for it or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

from agentprm.models.replicas import Replicas, ReplicasError
from agentprm.models.serving import DRAIN_SECONDS, Served, Serving
from agentprm.models.sglang_weights import Weights
from agentprm.protocol import Loaded
from agentprm.registry import Registry
from agentprm.service import ProblemError

START_SECONDS = 900.0
"""How long a start waits for the servers: large models take minutes."""
MEND_SECONDS = 5.0
"""How often replicas that were set aside are tried again."""

T = TypeVar("T")
W = TypeVar("W", bound=Weights)

log = structlog.get_logger()


class InPlaceServing(Serving[W]):
    """The checkpoint that `replicas` serve for `service`.

    `build` reads of a directory what the service itself needs, and touches no server; it raises
    on an unfit checkpoint. `canary` is asked once the servers hold the weights. Both run in a
    thread, after the files were verified.
    """

    def __init__(
        self,
        service: str,
        registry: Registry,
        build: Callable[[Path], W],
        canary: Callable[[W, Path], None],
        replicas: Replicas,
        *,
        timeout: float = 600.0,
    ) -> None:
        super().__init__(service, registry, build, canary, timeout=timeout)
        self.replicas = replicas
        self._gate = _Gate()

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Served[W]]:
        """What serves now; it goes on serving until the block ends.

        Raises:
            ProblemError: as `current`.
        """
        async with self._gate.shared():
            yield self.current()

    @property
    def _longest(self) -> float:
        # Files are read up to three times: to be verified, by the servers, and where one of them
        # fails the old ones again.
        return 3 * self._timeout + 2 * DRAIN_SECONDS

    async def _load(self, version: str) -> Loaded:
        started = time.perf_counter()
        with self._refusing(version):
            weights = await self._staged(version)
            await asyncio.to_thread(self.replicas.compare, weights)
        return await _to_its_end(self._swap(version, weights, started))

    async def _swap(self, version: str, weights: W, started: float) -> Loaded:
        """From waiting for the answers under way until what serves is remembered."""
        with self._refusing(version):
            async with self._gate.exclusive(DRAIN_SECONDS):
                drained = time.perf_counter()
                await self._put(weights)
                previous, self._served = self.version, Served(version, weights)
        done = time.perf_counter()
        return await self._done(version, previous, done - started, done - drained)

    def _stage(self, version: str) -> W:
        return self._build(self.registry.open(version))

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
                    await self._mend_once(self._served.weights)

    async def _mend_once(self, weights: W) -> None:
        try:
            await asyncio.to_thread(self.replicas.mend, weights)
        except Exception:  # else nothing would put a replica back from then on
            log.exception("replicas could not be mended, trying again")

    def _refusal(self, version: str, error: Exception) -> ProblemError:
        if isinstance(error, ReplicasError) and not error.refused:
            return ProblemError(503, "Engine unavailable", str(error), retry_after=1)
        return super()._refusal(version, error)

    async def _put(self, weights: W) -> None:
        try:
            await asyncio.to_thread(self.replicas.put, weights)
            await asyncio.to_thread(self._canary, weights, weights.path)
        except Exception:
            if self._served is not None:
                with suppress(ReplicasError):  # which has set the replica aside, and logged why
                    await asyncio.to_thread(self.replicas.put, self._served.weights)
            raise


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Its result. One that is cancelled waits for it still, and so keeps the lock that it holds."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


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
            try:
                async with asyncio.timeout(timeout):
                    await self._empty.wait()
            except TimeoutError as error:
                raise TimeoutError(f"answers did not end within {timeout:g} s") from error
            yield
        finally:
            self._open.set()

"""Hot swap: what a service that serves a checkpoint does when it is told to serve another.

Verify the files against their mark, build the new weights beside the old, try them on a canary, and
only then put them in place. Requests in flight keep the weights they took; on any failure the old
weights go on serving and the answer says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from fastapi import FastAPI, Response
from prometheus_client import Counter

from agentprm.protocol import LoadCheckpoint, Loaded
from agentprm.registry import CheckpointError, NoCheckpointError, Registry
from agentprm.service import ProblemError, json_response

W = TypeVar("W")

SWAPS = Counter("agentprm_checkpoint_swaps_total", "Swaps by result", ["service", "result"])

log = structlog.get_logger()


@dataclass(frozen=True)
class Served(Generic[W]):
    """Weights and the version they are. Taken as one, so that no answer mixes two."""

    version: str
    weights: W


class Serving(Generic[W]):
    """The checkpoint that `service` (`policy` or `prm`) serves.

    `build` makes weights of a directory and raises on an unfit one; `canary` raises where they
    do not compute. Both run in a thread.
    """

    def __init__(
        self,
        service: str,
        registry: Registry,
        build: Callable[[Path], W],
        canary: Callable[[W], None],
    ) -> None:
        self.service = service
        self.registry = registry
        self._build = build
        self._canary = canary
        self._served: Served[W] | None = None
        self._lock = asyncio.Lock()

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

    async def load(self, version: str) -> Loaded:
        """Serve `version`, or raise a `ProblemError` that says why not and change nothing."""
        async with self._lock:
            started = time.perf_counter()
            try:
                weights = await asyncio.to_thread(self._stage, version)
            except CheckpointError as error:
                SWAPS.labels(self.service, "refused").inc()
                log.warning("checkpoint refused", version=version, reason=str(error))
                status = 404 if isinstance(error, NoCheckpointError) else 409
                raise ProblemError(status, "Checkpoint refused", str(error)) from error
            ready = time.perf_counter()
            previous = self.version
            self._served = Served(version, weights)
            paused = time.perf_counter() - ready
            self._remember(version)
            SWAPS.labels(self.service, "done").inc()
            log.info("serving", version=version, previous=previous, seconds=ready - started)
            return Loaded(
                version=version,
                previous=previous,
                load_seconds=ready - started,
                pause_seconds=paused,
            )

    async def resume(self, version: str | None = None) -> None:
        """At start: serve `version`, or the one served last where that can still be served.

        Raises:
            ProblemError: `version` was given and is refused.
        """
        if version is not None:
            await self.load(version)
            return
        last = self.registry.serving(self.service)
        if last is not None:
            with suppress(ProblemError):  # `load` has logged why; what to serve is told anew
                await self.load(last)

    def _remember(self, version: str) -> None:
        try:
            self.registry.set_serving(self.service, version)
        except OSError as error:  # such as a registry that is mounted read-only
            log.warning("not remembered across restarts", version=version, reason=str(error))

    def _stage(self, version: str) -> W:
        path = self.registry.open(version)
        try:
            weights = self._build(path)
            self._canary(weights)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} does not load: {error}") from error
        return weights


def add_checkpoint_routes(app: FastAPI, serving: Serving[W]) -> None:
    """`POST /v1/checkpoints/load`: swap; repeating the load of what serves already is harmless."""

    @app.post("/v1/checkpoints/load")
    async def _load(request: LoadCheckpoint) -> Response:
        return json_response(await serving.load(request.version))

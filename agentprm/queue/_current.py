"""The run that is worked on now, for workers that serve whichever run there is."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from agentprm.queue._heartbeat import Heartbeat
from agentprm.queue._link import Link, QueueError

_KEY = "agentprm:current"
_REPEAT_SECONDS = 5.0
_PATIENCE = 60.0
"""Seconds in which Redis may be away."""


class CurrentRun:
    """The name of the run that was announced last, kept in Redis.

    Args:
        stopped: set it to end all waiting; calls that waited raise `QueueError`.
    """

    def __init__(self, url: str, *, stopped: threading.Event | None = None) -> None:
        self._link = Link(url, patience=_PATIENCE, stopped=stopped or threading.Event())
        self._heartbeat = Heartbeat(self._repeat, _REPEAT_SECONDS)

    def announce(self, run: str) -> None:
        """From now on workers take the jobs of `run`.

        A Redis that comes back without its data is told again, until this is closed.
        """
        self._link.call(lambda: self._link.redis.set(_KEY, run))
        self._heartbeat.hold(run)

    def read(self) -> str | None:
        """The run's name, or None before the first was announced."""
        name: Any = self._link.call(lambda: self._link.redis.get(_KEY))
        return None if name is None else name.decode()

    def close(self) -> None:
        """Close the connection."""
        self._heartbeat.close()
        self._link.close()

    def _repeat(self, run: str) -> bool:
        with suppress(QueueError):  # the next beat is the retry
            self._link.call(lambda: self._link.redis.set(_KEY, run, nx=True), patience=0.0)
        return True

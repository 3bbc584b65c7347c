"""The run that is worked on now, for workers that serve whichever run there is."""

from __future__ import annotations

import threading
from typing import Any

from agentprm.queue._link import Link

_KEY = "agentprm:current"


class CurrentRun:
    """The name of the run that was announced last, kept in Redis.

    Args:
        stopped: set it to end all waiting; calls that waited raise `QueueError`.
    """

    def __init__(
        self, url: str, *, patience: float = 60.0, stopped: threading.Event | None = None
    ) -> None:
        self._link = Link(url, patience=patience, stopped=stopped or threading.Event())

    def announce(self, run: str) -> None:
        """From now on workers take the jobs of `run`."""
        self._link.call(lambda: self._link.redis.set(_KEY, run))

    def read(self) -> str | None:
        """The run's name, or None before the first was announced."""
        name: Any = self._link.call(lambda: self._link.redis.get(_KEY))
        return None if name is None else name.decode()

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

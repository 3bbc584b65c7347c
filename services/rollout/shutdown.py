"""SIGTERM and SIGINT: an event for what waits, an exception for what plays."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(BaseException):
    """The shutdown, raised within `Shutdown.interrupting`."""


class Shutdown:
    """Whether the process was asked to end.

    The exception is raised only where it is asked for: HTTP calls may be cut off anywhere, calls
    to Redis may not, and those end by the event.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._signalled = False
        self._interrupting = False

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; from the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that the first signal leaves by `Interrupted`."""
        self._interrupting = True
        try:
            if self._signalled:
                raise Interrupted
            yield
        finally:
            self._interrupting = False

    def _on_signal(self, *_: object) -> None:
        if self._signalled:
            return
        self._signalled = True
        # In a thread: this may have interrupted the main thread while it holds the event's lock.
        threading.Thread(target=self.requested.set).start()
        if self._interrupting:
            raise Interrupted

"""Keeps what is held from being claimed by others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

_log = structlog.get_logger()


class Heartbeat:
    """Calls `touch(entry id)` for every entry held, every `interval` seconds, in a thread.

    `touch` says whether the entry is still ours; one that is not is held no longer. Where it fails,
    the next beat is the retry: one entry's error must not cost us all the others.
    """

    def __init__(self, touch: Callable[[str], bool], interval: float) -> None:
        self._touch = touch
        self._interval = interval
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, entry_id: str) -> None:
        """Keep the entry from now on."""
        with self._lock:
            self._held.add(entry_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()

    def release(self, entry_id: str) -> None:
        """No beat reaches the entry after this returns."""
        with self._lock:
            self._held.discard(entry_id)

    def close(self) -> None:
        """Stop; what is still held becomes claimable."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            with self._lock:
                self._held = {entry_id for entry_id in self._held if self._ours(entry_id)}

    def _ours(self, entry_id: str) -> bool:
        try:
            return self._touch(entry_id)
        except Exception:
            with suppress(OSError):  # of a terminal that was closed
                _log.exception("a heartbeat failed", entry=entry_id)
            return True

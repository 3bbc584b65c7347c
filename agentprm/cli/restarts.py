"""How often a process may be started again."""

from __future__ import annotations

import time

MOST = 5
"""Restarts within a window after which one is given up."""


class Restarts:
    """The starts of a process within the last `window` seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self._starts = [time.monotonic()]

    def __len__(self) -> int:
        return len(self._starts)

    def another(self) -> bool:
        """Whether it may be started again now, which then counts."""
        now = time.monotonic()
        self._starts = [start for start in self._starts if now - start < self.window]
        if len(self._starts) > MOST:
            return False
        self._starts.append(now)
        return True

"""Processes that run tests side by side, and must not prepare the same thing at once."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_turn(what: str) -> Iterator[None]:
    """One process of this user at a time prepares `what`; the others wait, and find it there."""
    lock = Path(tempfile.gettempdir()) / f"agentprm-tests-{os.getuid()}-{what}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

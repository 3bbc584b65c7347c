"""Whether anybody still waits for what is computed in this thread.

A batch may take minutes, and whatever comes after waits for it. Who computes it asks between two
steps, however many calls below whoever knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("wanted", default=None)


class NobodyWaits(Exception):
    """All who asked have left."""


@contextmanager
def while_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """What is computed inside the block ends with `NobodyWaits` once it is not `wanted`."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def require_wanted() -> None:
    """Go on only where somebody waits.

    Raises:
        NobodyWaits: nobody does.
    """
    wanted = _wanted.get()
    if wanted is not None and not wanted():
        raise NobodyWaits

"""What was worked out before, in a bounded part of a process's memory."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Memory(Generic[V]):
    """Values up to `capacity` bytes, keys included; what was not used for longest is forgotten.

    The value of a key is always the same. Any thread may ask.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """The value of `key`, where it is known."""
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
            return known

    def put(self, key: Hashable, value: V) -> None:
        """Remember the value of `key`, unless it is larger than all there may be."""
        size = sizeof(key) + sizeof(value)
        with self._lock:
            if key in self._values or size > self._capacity:
                return
            self._values[key] = value
            self._bytes += size
            while self._bytes > self._capacity:
                old_key, old = self._values.popitem(last=False)
                self._bytes -= sizeof(old_key) + sizeof(old)


def sizeof(value: object) -> int:
    """Bytes of a value; of a tuple, with all that is in it."""
    inner = value if isinstance(value, tuple) else ()
    return sys.getsizeof(value) + sum(map(sizeof, inner))

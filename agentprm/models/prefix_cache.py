"""What was computed for conversations, found by their longest known beginning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

BLOCK = 16
"""Tokens a step of the search; prefixes shorter than this are not worth keeping."""


class Known(Protocol):
    """A conversation's tokens; an implementation adds what was computed for them."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids."""


E = TypeVar("E", bound=Known)


class PrefixCache(Generic[E]):
    """Least recently used conversations, at most `capacity` tokens of them.

    An entry serves every beginning of its conversation, so a longer entry replaces the one it
    extends. Beginnings are found by a hash of each whole number of blocks, then compared.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        self._entries: OrderedDict[E, tuple[list[int], int]] = OrderedDict()
        self._by_hash: dict[int, E] = {}

    def find(self, ids: Sequence[int]) -> tuple[E | None, int]:
        """The entry with the longest common beginning, and that length in tokens."""
        entry = self._search(ids)
        if entry is None:
            return None, 0
        self._entries.move_to_end(entry)
        # Of all entries that begin alike the hashes point at the one used last, which goes last.
        self._by_hash.update(dict.fromkeys(self._entries[entry][0], entry))
        return entry, common_length(ids, entry.ids)

    def common(self, ids: Sequence[int]) -> int:
        """The length that `find` tells. It counts as no use, and any thread may ask."""
        entry = self._search(ids)
        return 0 if entry is None else common_length(ids, entry.ids)

    def add(self, entry: E, *, behind: int = 0, replaces: E | None = None) -> None:
        """Keep `entry`; its storage has room for `behind` more tokens than its conversation.

        `replaces` is one whose whole conversation `entry` begins with.
        """
        if replaces is not None and replaces in self._entries:
            self._remove(replaces)
        size = len(entry.ids) + behind
        if size > self.capacity:
            return
        digests = list(_hashes(entry.ids))
        self._entries[entry] = digests, size
        self._by_hash.update(dict.fromkeys(digests, entry))
        self.tokens += size
        while self.tokens > self.capacity:
            self._remove(next(iter(self._entries)))

    def resize(self, entry: E, *, behind: int) -> None:
        """Count `entry`, where it is kept, with the room that its storage has by now."""
        if entry in self._entries:
            self.add(entry, behind=behind, replaces=entry)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_hash.clear()
        self.tokens = 0

    def _search(self, ids: Sequence[int]) -> E | None:
        entry = None
        for digest in _hashes(ids):
            found = self._by_hash.get(digest)
            if found is None:
                break
            entry = found
        return entry

    def _remove(self, entry: E) -> None:
        digests, size = self._entries.pop(entry)
        self.tokens -= size
        for digest in digests:
            if self._by_hash.get(digest) is entry:
                del self._by_hash[digest]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common at their beginnings."""
    shorter = min(len(a), len(b))
    start = 0
    while start < shorter and tuple(a[start : start + 64]) == tuple(b[start : start + 64]):
        start += 64
    for k in range(start, shorter):
        if a[k] != b[k]:
            return k
    return shorter


def _hashes(ids: Sequence[int]) -> Iterator[int]:
    digest = 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        digest = hash((digest, *ids[end - BLOCK : end]))
        yield digest

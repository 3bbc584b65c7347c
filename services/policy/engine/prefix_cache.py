"""Keys and values of conversations, kept from turn to turn and found by their longest prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

BLOCK = 16
"""Tokens a step of the search; prefixes shorter than this are not worth keeping."""

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of every layer, each [heads, tokens, size]."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A conversation's tokens with its keys and values."""

    ids: tuple[int, ...]
    layers: Layers = field(repr=False)


class PrefixCache:
    """Least recently used conversations, at most `capacity` tokens of them.

    An entry serves every beginning of its conversation, so a longer entry replaces the one it
    extends. Beginnings are found by a hash of each whole number of blocks, then compared.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        self._entries: OrderedDict[Entry, list[int]] = OrderedDict()
        self._by_hash: dict[int, Entry] = {}

    def find(self, ids: Sequence[int]) -> tuple[Entry | None, int]:
        """The entry with the longest common beginning, and that length in tokens."""
        entry = None
        for digest in _hashes(ids):
            found = self._by_hash.get(digest)
            if found is None:
                break
            entry = found
        if entry is None:
            return None, 0
        self._entries.move_to_end(entry)
        return entry, common_length(ids, entry.ids)

    def add(self, entry: Entry, *, replaces: Entry | None = None) -> None:
        """Keep `entry`; `replaces` is one whose whole conversation `entry` begins with."""
        if replaces is not None and replaces in self._entries:
            self._remove(replaces)
        if len(entry.ids) > self.capacity:
            return
        digests = list(_hashes(entry.ids))
        self._entries[entry] = digests
        self._by_hash.update(dict.fromkeys(digests, entry))
        self.tokens += len(entry.ids)
        while self.tokens > self.capacity:
            self._remove(next(iter(self._entries)))

    def _remove(self, entry: Entry) -> None:
        self.tokens -= len(entry.ids)
        for digest in self._entries.pop(entry):
            if self._by_hash.get(digest) is entry:
                del self._by_hash[digest]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common at their beginnings."""
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k
    return min(len(a), len(b))


def _hashes(ids: Sequence[int]) -> Iterator[int]:
    digest = 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        digest = hash((digest, *ids[end - BLOCK : end]))
        yield digest

"""Conversations that were computed, kept from turn to turn.

Behind a conversation's own columns its storage still holds what was computed last: sampled or
scored answers. The next turn begins with one of them, and what is there of it is not computed
again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from agentprm.models import segments
from agentprm.models.prefix_cache import PrefixCache
from services.policy.engine.segment import Segment


@dataclass(frozen=True)
class Tail:
    """Tokens in the columns behind a conversation, each with the one before it; -1 is its end."""

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()

    def along(self, ids: Sequence[int]) -> list[int]:
        """The numbers of tokens that follow one another as `ids` does, as far as they do."""
        path: list[int] = []
        last = -1
        for number, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if len(path) == len(ids):
                break
            if parent == last and token == ids[len(path)]:
                path.append(number)
                last = number
        return path


@dataclass(eq=False)
class Store(segments.Store):
    """Keys and values of a conversation, then those of `tail`."""

    tail: Tail = Tail()

    def copy_to(self, other: segments.Store, length: int, path: Sequence[int]) -> None:
        """Put the first `length` columns, then those of `path` behind them, into `other`.

        That may be this store, in which the first ones stay where they are.
        """
        other.reserve(length + len(path))
        chosen = torch.tensor([length + number for number in path])
        in_place = other is self and path == [*range(len(path))]
        for layer, (keys, values) in self.layers.items():
            if other is not self:
                other.write(layer, 0, *self.read(layer, length))
            if path and not in_place:
                columns = chosen.to(keys.device)
                moved = keys.index_select(1, columns), values.index_select(1, columns)
                other.write(layer, length, *moved)


@dataclass(frozen=True, eq=False)
class Entry:
    """A conversation's tokens and where it is stored."""

    ids: tuple[int, ...]
    store: Store = field(repr=False)


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens to compute from `start` on, into `store`, which holds those before."""

    number: int
    ids: list[int]
    store: Store
    start: int
    entry: Entry | None
    common: int
    """How many tokens it has in common with `entry`'s conversation."""

    @property
    def new(self) -> int:
        """Tokens to compute."""
        return len(self.ids) - self.start

    def segment(self, guess: Sequence[int] = ()) -> Segment:
        """The new tokens, to be computed, and `guess` behind them."""
        tokens = [*self.ids[self.start :], *guess]
        positions = range(self.start, self.start + len(tokens))
        return Segment(self.start, self.store, tokens, positions, self.start)


class Kept:
    """The conversations used last with their tails, in at most `columns` of storage.

    What counts is the room that their stores have, a quarter more than their tokens or so: bytes
    are what a device runs out of.
    """

    def __init__(self, columns: int) -> None:
        self._cache: PrefixCache[Entry] = PrefixCache(columns)

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()

    def row(self, number: int, ids: list[int], busy: Collection[Store]) -> Row:
        """What there is to compute of `ids`: its last token at least, whose logits are wanted.

        A conversation that goes on where a kept one ends goes on in its store, unless that is
        among `busy`; else what they have in common is copied. A store's tail is lost with this.
        """
        entry, common = self._cache.find(ids)
        if entry is None:
            return Row(number, ids, Store(), 0, None, 0)
        whole = common == len(entry.ids)
        path = entry.store.tail.along(ids[common:]) if whole else []
        store = entry.store if whole and entry.store not in busy else Store()
        entry.store.copy_to(store, common, path)
        store.tail = Tail()
        return Row(number, ids, store, min(common + len(path), len(ids) - 1), entry, common)

    def keep(self, row: Row, length: int, tail: Tail) -> None:
        """Keep the first `length` tokens of a row, computed by now, and `tail` behind them."""
        own = row.entry is None or row.store is not row.entry.store
        if own and row.common >= length:
            return  # the beginning of another one
        row.store.trim(length + len(tail.tokens))
        row.store.tail = tail
        entry = Entry(tuple(row.ids[:length]), row.store)
        behind = row.store.room - length
        self._cache.add(entry, behind=behind, replaces=None if own else row.entry)

"""Rows as segments of a forward pass: what there is to compute of each, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from agentprm.models import segments
from services.prm.packing import Row


@dataclass(eq=False)
class Store(segments.Store):
    """Keys and values of a conversation, and its logits. The first `length` columns are taken."""

    length: int = 0
    logits: list[float] = field(default_factory=list)

    def take(self, length: int) -> None:
        """Take the columns up to `length`."""
        self.length = length
        self.reserve(length)


@dataclass(eq=False)
class Segment(segments.Segment):
    """The part of a row that is to be computed: from `start` on, into `store`.

    What comes before `start` lies in `store`, or is copied there from `source`, layer by layer:
    it may be computed in the same pass, by a segment further ahead.
    """

    store: Store
    row: Row
    source: Store | None
    _new: list[float] = field(default_factory=list, init=False)

    def __len__(self) -> int:
        return len(self.row) - self.start

    @property
    def chain(self) -> bool:
        """Whether the row has no branches."""
        return not self.row.branches

    def positions(self) -> list[int]:
        """Of each new token; those of every branch go on from the trunk."""
        row = self.row
        branches = [row.trunk + k for length in row.branches for k in range(length)]
        return [*range(self.start, row.trunk), *branches]

    def column_positions(self) -> list[int]:
        """Those of the known tokens, then of the new ones."""
        return [*range(self.start), *self.positions()]

    def sees(self) -> torch.Tensor:
        """Of the new columns the trunk's, and those of one's own branch."""
        sees = torch.ones(len(self), len(self), dtype=torch.bool).tril()
        first = self.row.trunk - self.start
        for begin, end in pairwise(accumulate(self.row.branches, initial=first)):
            sees[end:, begin:end] = False
        return sees

    def keep(self, logits: list[float]) -> None:
        """Take the logits of the new tokens; those of the trunk, and its columns, are stored."""
        self._new = logits
        trunk = self.row.trunk
        if self.source is not None:
            self.store.logits = self.source.logits[: self.start]
        self.store.logits[self.start :] = logits[: trunk - self.start]
        if self.row.branches:
            self.store.length = trunk

    def logits(self) -> list[float]:
        """At the ends of the row."""
        known, start = self.store.logits, self.start
        return [known[end] if end < start else self._new[end - start] for end in self.row.ends]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the new keys and values into the store, behind those of the source."""
        if self.source is not None:
            self.store.write(layer, 0, *self.source.read(layer, self.start))
        super().write(layer, keys, values)

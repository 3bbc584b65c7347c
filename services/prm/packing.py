"""Rows of tokens: several actions behind one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Row:
    """Token ids of one sequence, with the positions whose scores are asked for.

    The first `trunk` tokens are seen by all that follows. After them come branches of the given
    `branches` lengths that do not see each other; a plain conversation has none.
    """

    ids: list[int]
    ends: list[int]
    trunk: int
    branches: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def fork_row(trunk: list[int], branches: Sequence[list[int]]) -> Row:
    """A row of `branches` behind `trunk`, read at the end of each."""
    ids = [*trunk, *(token for branch in branches for token in branch)]
    if len(branches) == 1:
        return Row(ids, [len(ids) - 1], trunk=len(ids))
    lengths = tuple(map(len, branches))
    ends = [len(trunk) + end - 1 for end in accumulate(lengths)]
    return Row(ids, ends, len(trunk), lengths)

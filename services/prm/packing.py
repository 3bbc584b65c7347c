"""Rows of tokens: several actions behind one state, and rows of like length in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

PADDING = 1.3
"""Most tokens with padding, per token without."""


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


def batches(rows: Sequence[Row], most_tokens: int) -> Iterator[list[int]]:
    """Indices of rows to compute together: alike in kind and length, so little is padding.

    No batch has more than `most_tokens`, padding included, unless it is a single row.
    """
    batch: list[int] = []
    real = trunk = tail = 0
    for k in sorted(range(len(rows)), key=lambda k: _shape(rows[k])):
        packed, row_trunk, row_tail = _shape(rows[k])
        real += len(rows[k])
        trunk, tail = max(trunk, row_trunk), max(tail, row_tail)
        padded = (len(batch) + 1) * (trunk + tail)
        mixed = bool(batch) and packed != bool(rows[batch[0]].branches)
        if batch and (mixed or padded > min(most_tokens, PADDING * real)):
            yield batch
            batch, real, trunk, tail = [], len(rows[k]), row_trunk, row_tail
        batch.append(k)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids [rows, longest], padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def tree_mask(rows: Sequence[Row], trunk: int, tail: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the branches see [rows, tail, trunk + tail], and their positions [rows, tail].

    A token sees the trunk of its row and, of its own branch, itself and what came before. The
    positions of each branch go on from the trunk. Padding counts as one more branch.
    """
    branch = torch.full((len(rows), tail), -1)
    positions = torch.zeros(len(rows), tail, dtype=torch.long)
    for k, row in enumerate(rows):
        lengths = torch.tensor(row.branches)
        own = torch.repeat_interleave(torch.arange(len(row.branches)), lengths)
        starts = torch.cumsum(lengths, 0) - lengths
        branch[k, : len(own)] = own
        positions[k, : len(own)] = row.trunk + torch.arange(len(own)) - starts[own]
    sees_trunk = torch.arange(trunk) < torch.tensor([row.trunk for row in rows])[:, None]
    sees_tail = (branch[:, None, :] == branch[:, :, None]).tril()
    return torch.cat([sees_trunk[:, None].expand(-1, tail, -1), sees_tail], dim=-1), positions


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as what is added to attention scores, for all heads [rows, 1, ...]."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]


def _shape(row: Row) -> tuple[bool, int, int]:
    """Whether it is packed, the length of its trunk, and of all its branches together."""
    return bool(row.branches), row.trunk, len(row) - row.trunk

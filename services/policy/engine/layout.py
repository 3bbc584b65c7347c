"""How conversations and trees are laid out as the rows of one forward pass.

Columns are what is known from before, then the new tokens. Every mask and position is explicit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from services.policy.engine.prefix_cache import Entry
from services.policy.engine.tree import Tree

HELD_TOKENS = 131_072
"""Most tokens whose keys and values a batch holds, padding included."""


@dataclass
class Row:
    """A prompt's place in a batch: it has `common` tokens in common with `entry`."""

    number: int
    ids: list[int]
    entry: Entry | None = None
    common: int = 0

    @property
    def hit(self) -> int:
        """Tokens taken from `entry`. The last is computed anew: its logits are wanted."""
        return min(self.common, len(self.ids) - 1)

    @property
    def new(self) -> int:
        """Tokens to compute."""
        return len(self.ids) - self.hit


@dataclass
class Packed:
    """A tree in a batch, for the answers `numbers` of question `question`."""

    row: Row
    tree: Tree
    question: int
    numbers: list[int]

    @property
    def new(self) -> int:
        """Tokens to compute."""
        return len(self.tree.tokens)

    @property
    def hit(self) -> int:
        """Tokens of the prompt that are known."""
        return self.row.hit


@dataclass(frozen=True)
class Layout:
    """Arrays or tensors of new tokens.

    `tokens` and `positions` are [rows, tokens], `mask` is [rows, tokens, columns] and True where
    a token sees a column.
    """

    tokens: Any
    positions: Any
    mask: Any


R = TypeVar("R", Row, Packed)


def batches(rows: Sequence[R], new_tokens: int, room: int = 0) -> Iterator[list[R]]:
    """Rows of similar size together, at most `new_tokens` computed and HELD_TOKENS held at once.

    Both count padding. Each row holds up to `room` further tokens.
    """
    batch: list[R] = []
    for row in sorted(rows, key=lambda row: (row.new, row.hit)):
        width = row.new  # rows come in order of it, so it is the widest
        held = width + room + max([row.hit, *(other.hit for other in batch)])
        count = len(batch) + 1
        if batch and (count * width > new_tokens or count * held > HELD_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def prefill_layout(rows: Sequence[Row], past: int) -> Layout:
    """New tokens of conversations, behind `past` columns, aligned at the right."""
    width = max(row.new for row in rows)
    layout = _empty(len(rows), width, past)
    for number, row in enumerate(rows):
        start = width - row.new
        layout.tokens[number, start:] = row.ids[row.hit :]
        layout.positions[number, start:] = range(row.hit, len(row.ids))
        layout.mask[number, start:, : row.hit] = True
        layout.mask[number, start:, past + start :] = np.tri(row.new, dtype=np.bool_)
    return layout


def tree_layout(items: Sequence[Packed], past: int) -> Layout:
    """Trees behind `past` columns, aligned at the left; a node sees its ancestors only."""
    layout = _empty(len(items), max(item.new for item in items), past)
    for number, item in enumerate(items):
        layout.tokens[number, : item.new] = item.tree.tokens
        layout.positions[number, : item.new] = np.array(item.tree.depths) + item.hit
        layout.mask[number, : item.new, : item.hit] = True
        layout.mask[number, : item.new, past : past + item.new] = item.tree.ancestors()
    return layout


def _empty(rows: int, width: int, past: int) -> Layout:
    """Nothing but padding, which sees itself: a token that sees nothing would become NaN."""
    mask = np.zeros((rows, width, past + width), dtype=np.bool_)
    mask[:, range(width), range(past, past + width)] = True
    zeros = np.zeros((2, rows, width), dtype=np.int64)
    return Layout(zeros[0], zeros[1], mask)

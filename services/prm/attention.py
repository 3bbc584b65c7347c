"""Sequences of any lengths in one forward pass, each behind what is known of it from before.

The new tokens of all sequences lie one after the other in a single row, without padding. The
linear layers do not care; the attention, which is ours, computes each sequence on the keys and
values that are stored for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from services.prm.packing import Row

NAME = "agentprm_segments"
"""The attention implementation's name in transformers' registry."""


@dataclass(eq=False)
class Store:
    """Keys and values of a conversation, of each layer [heads, room, size], and its logits.

    The first `length` columns are taken. Layers that hold fewer than `room` grow to it in place.
    """

    length: int = 0
    room: int = 0
    logits: list[float] = field(default_factory=list)
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def take(self, length: int) -> None:
        """Take the columns up to `length`."""
        self.length = length
        if length > self.room:
            self.room = -(-length * 5 // 4 // 64) * 64  # a quarter more, so that few turns copy

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [heads, tokens, size] behind the first `start` columns."""
        end = start + keys.shape[1]
        held = self.layers.get(layer)
        if held is None or held[0].shape[1] < end:
            shapes = ((x.shape[0], self.room, x.shape[2]) for x in (keys, values))
            grown = tuple(keys.new_empty(shape) for shape in shapes)
            if held is not None:
                for new, old in zip(grown, held, strict=True):
                    new[:, :start] = old[:, :start]
            held = self.layers[layer] = (grown[0], grown[1])
        held[0][:, start:end] = keys
        held[1][:, start:end] = values

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `end` columns."""
        keys, values = self.layers[layer]
        return keys[:, :end], values[:, :end]


@dataclass(eq=False)
class Segment:
    """The part of a row that is to be computed: from `start` on, into `store`.

    What comes before `start` lies in `store`, or is copied there from `source`, layer by layer:
    it may be computed in the same pass, by a segment further ahead.
    """

    row: Row
    start: int
    store: Store
    source: Store | None
    _new: list[float] = field(default_factory=list)
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row) - self.start

    def positions(self) -> list[int]:
        """Of each new token; those of every branch go on from the trunk."""
        row = self.row
        branches = [row.trunk + k for length in row.branches for k in range(length)]
        return [*range(self.start, row.trunk), *branches]

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

    def columns(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the row in this layer, given the new ones."""
        if self.source is not None:
            self.store.write(layer, 0, *self.source.read(layer, self.start))
        self.store.write(layer, self.start, keys, values)
        return self.store.read(layer, len(self.row))

    def mask(self, query: torch.Tensor, window: int | None) -> torch.Tensor | None:
        """What is added to attention scores [new tokens, columns]; None where nothing needs to."""
        if window is not None and window >= len(self.row):
            window = None
        if window not in self._masks:
            self._masks[window] = self._mask(query, window)
        return self._masks[window]

    @property
    def causal(self) -> bool:
        """Whether it has neither a beginning nor branches."""
        return self.start == 0 and not self.row.branches

    def _mask(self, query: torch.Tensor, window: int | None) -> torch.Tensor | None:
        if window is None and (self.causal or (len(self) == 1 and not self.row.branches)):
            return None
        sees = torch.ones(len(self), len(self.row), dtype=torch.bool).tril(self.start)
        for begin, end in pairwise(accumulate(self.row.branches, initial=self.row.trunk)):
            sees[end - self.start :, begin:end] = False
        if window is not None:
            at = torch.tensor([*range(self.start), *self.positions()])
            sees &= at[self.start :, None] - at < window
        added = torch.zeros(sees.shape, dtype=query.dtype)
        return added.masked_fill_(~sees, torch.finfo(query.dtype).min).to(query.device)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: object = None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **__: object,
) -> tuple[torch.Tensor, None]:
    """Attention over `segments`, whose new tokens make up `query`, `key` and `value`.

    Shapes: [1, heads, tokens, size] in, [1, tokens, heads, size] out.
    """
    heads, tokens = query.shape[1:3]
    output = query.new_empty(1, tokens, heads, value.shape[-1])
    begin = 0
    for segment in segments:
        end = begin + len(segment)
        keys, values = segment.columns(
            module.layer_idx, key[0, :, begin:end], value[0, :, begin:end]
        )
        mask = segment.mask(query, sliding_window)
        attended = scaled_dot_product_attention(
            query[:, :, begin:end],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and segment.causal,
            scale=scaling,
            enable_gqa=heads != keys.shape[0],
        )
        output[:, begin:end] = attended.transpose(1, 2)
        begin = end
    return output, None


AttentionInterface.register(NAME, attend)

"""The keys and values of a padded batch.

transformers' own dynamic layer copies everything it holds for each token; this one writes into
storage that grows by a quarter at a time, and hands out views of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, DynamicLayer

from agentprm.models.segments import Store


class _Layer(DynamicLayer):
    """Keys and values [rows, heads, columns, size], of which the first `length` columns count."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.is_initialized = False
        self.length = 0
        self._room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + key_states.shape[2]
        self.reserve(end, key_states, value_states)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, columns: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Room for `columns`, of the rows, heads, sizes and type of `keys` and `values`."""
        if not self.is_initialized:
            self.keys, self.values = (
                x.new_zeros(x.shape[0], x.shape[1], columns + self._room, x.shape[3])
                for x in (keys, values)
            )
            self.dtype, self.device = keys.dtype, keys.device
            self.is_initialized = True
        elif columns > self.keys.shape[2]:
            more = -(-columns * 5 // 4) - self.keys.shape[2]
            self.keys, self.values = (
                torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], more, x.shape[3])], dim=2)
                for x in (self.keys, self.values)
            )

    def get_seq_length(self) -> int:
        return self.length


class BatchKV(Cache):
    """One cache for the rows of a batch, filled with what is stored of each."""

    def __init__(self, layers: int, known: Sequence[tuple[Store, int]], room: int) -> None:
        super().__init__(layers=[_Layer(room) for _ in range(layers)])
        width = max(start for _, start in known)
        if width == 0:
            return
        example = next(store for store, start in known if start)
        for number, layer in enumerate(self.layers):
            keys, values = (
                x.new_empty(len(known), x.shape[0], 0, x.shape[2]) for x in example.layers[number]
            )
            layer.reserve(width, keys, values)
            for row, (store, start) in enumerate(known):
                if start:
                    layer.keys[row, :, :start], layer.values[row, :, :start] = store.read(
                        number, start
                    )
            layer.length = width

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        for layer in self.layers:
            end = layer.length
            layer.keys = layer.keys[:, :, :end].index_select(0, rows)
            layer.values = layer.values[:, :, :end].index_select(0, rows)

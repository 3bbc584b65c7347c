"""Sequences of any lengths in one forward pass, each behind what is known of it from before.

The new tokens of all sequences lie one after the other in a single row, without padding. The
linear layers do not care; the attention, which is ours, computes each sequence on the keys and
values that are stored for it.

It needs torch and transformers: only services that run models import it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "agentprm_segments"
"""The attention implementation's name in transformers' registry."""

ALIGNED = 16
"""Masked attention reads a multiple of so many columns: on CPUs it takes three quarters of the time
that it takes on any other number."""


@dataclass(eq=False)
class Store:
    """Keys and values of a conversation, of each layer [heads, columns, size].

    Layers that hold fewer than `room` columns, a multiple of ALIGNED, grow to it when they are
    written to. No column is ever without a finite value, as masks do not keep out what is not.
    """

    room: int = 0
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def reserve(self, columns: int) -> None:
        """Have room for `columns`, and a quarter more, so that few turns copy."""
        if columns > self.room:
            self.room = -(-columns * 5 // 4 // 64) * 64

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [heads, tokens, size] behind the first `start` columns."""
        end = start + keys.shape[1]
        held = self.layers.get(layer)
        if held is None or held[0].shape[1] < end:
            shapes = ((x.shape[0], self.room, x.shape[2]) for x in (keys, values))
            grown = tuple(keys.new_zeros(shape) for shape in shapes)
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

    def trim(self, columns: int) -> None:
        """Give back what is more than twice the room that `columns` are given."""
        room = self.room
        self.room = 0
        self.reserve(columns)
        if room <= 2 * self.room:
            self.room = room
            return
        self.layers = {
            layer: (keys[:, : self.room].clone(), values[:, : self.room].clone())
            for layer, (keys, values) in self.layers.items()
        }


def bytes_per_token(model: Any) -> int:
    """What a column of a `Store` takes in all layers: the keys and values of one token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


@dataclass(eq=False)
class Segment(ABC):
    """New tokens of a sequence, to be computed behind the first `start` columns of `store`."""

    start: int
    store: Store
    _masks: dict[int | None, torch.Tensor | None] = field(
        default_factory=dict, init=False, repr=False
    )

    @abstractmethod
    def __len__(self) -> int:
        """New tokens."""

    @property
    @abstractmethod
    def chain(self) -> bool:
        """Whether every new token sees all that lies before it: no branches."""

    @abstractmethod
    def sees(self) -> torch.Tensor:
        """[new tokens, last columns]: whether the token sees the column, on the CPU.

        All of them see the columns before these; each sees itself. It is asked for where there
        are branches.
        """

    @abstractmethod
    def column_positions(self) -> Sequence[int]:
        """The position of each column in its sequence; the new tokens are the last columns."""

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the new keys and values [heads, new tokens, size] of this layer into the store."""
        self.store.write(layer, self.start, keys, values)

    def mask(self, query: torch.Tensor, window: int | None) -> torch.Tensor | None:
        """What is added to attention scores [new tokens, columns]; None where nothing needs to.

        The columns are ALIGNED; no token sees those that are too many.
        """
        if window is not None and window >= self.start + len(self):
            window = None
        if window not in self._masks:
            self._masks[window] = self._mask(query, window)
        return self._masks[window]

    @property
    def causal(self) -> bool:
        """Whether it has neither a beginning nor branches."""
        return self.start == 0 and self.chain

    def _mask(self, query: torch.Tensor, window: int | None) -> torch.Tensor | None:
        if window is None and self.chain and (self.start == 0 or len(self) == 1):
            return None
        new, width = len(self), self.start + len(self)
        hidden = torch.finfo(query.dtype).min
        sees = torch.ones(new, new, dtype=torch.bool).tril() if self.chain else self.sees()
        added = torch.zeros(new, -(-width // ALIGNED) * ALIGNED, dtype=query.dtype)
        added[:, width:] = hidden
        added[:, width - sees.shape[1] : width].masked_fill_(~sees, hidden)
        if window is not None:
            at = torch.tensor(self.column_positions())
            added[:, :width].masked_fill_(at[self.start :, None] - at >= window, hidden)
        return added.to(query.device)


def groups_heads(device: torch.device, mask: torch.Tensor | None) -> bool:
    """Whether to give torch keys and values that several heads share as they are.

    It takes them everywhere. On CUDA with a mask, though, it then forms all scores in memory: of
    its kernels that do not form them, some take shared keys and some a mask, and none takes both.
    """
    return mask is None or device.type != "cuda"


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
    lengths = [len(segment) for segment in segments]
    parts = (torch.split(x, lengths, dim=-2) for x in (query, key[0], value[0]))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for segment, queries, *new in zip(segments, *parts, strict=True):
        segment.write(module.layer_idx, *new)
        mask = segment.mask(query, sliding_window)
        width = segment.start + len(segment) if mask is None else mask.shape[1]
        keys, values = segment.store.read(module.layer_idx, width)
        shared = grouped and groups_heads(query.device, mask)
        if grouped and not shared:
            times = query.shape[1] // key.shape[1]
            keys, values = (x.repeat_interleave(times, dim=0) for x in (keys, values))
        attended = scaled_dot_product_attention(
            queries,
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and segment.causal,
            scale=scaling,
            enable_gqa=shared,
        )
        outputs.append(attended.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def takes_segments(body: Any, config: Any) -> bool:
    """Whether attention is exchangeable, and depends on the positions of its own sequence alone.

    Where it is not (a recurrent layer, ALiBi, capped scores, rotations that change with the length
    of the batch), `attend` would compute something else than the model.

    Args:
        body: the model without its head.
        config: the configuration of its text part.
    """
    layers: Iterable[str] = getattr(config, "layer_types", None) or ()
    rotation = repr(getattr(config, "rope_parameters", None))
    return (
        bool(getattr(body, "_supports_attention_backend", False))
        and "position_ids" in inspect.signature(body.forward).parameters
        and all(layer in ("full_attention", "sliding_attention") for layer in layers)
        and getattr(config, "attn_logit_softcapping", None) is None
        and "dynamic" not in rotation
        and "longrope" not in rotation
    )


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Let `model` attend by another implementation, called `name` in transformers' registry.

    At the end of the block it attends as before.
    """
    before = model.config._attn_implementation
    if name == before:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attend)

"""Keys and values of conversations, as they are kept from turn to turn."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from agentprm.prefix_cache import PrefixCache, common_length

__all__ = ["Entry", "Layers", "PrefixCache", "common_length"]

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of every layer, each [heads, tokens, size]."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A conversation's tokens with its keys and values."""

    ids: tuple[int, ...]
    layers: Layers = field(repr=False)

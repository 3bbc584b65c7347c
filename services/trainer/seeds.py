"""Seeds: one number for a run, and from it one for each use, stable across restarts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MAX_SEED = 2**31
"""Seeds are below it."""


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, `MAX_SEED`) for one purpose, independent of those for others."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The items in the order that `seed` gives."""
    result = list(items)
    random.Random(seed).shuffle(result)
    return result

"""What a checkpoint's configuration says of its length."""

from __future__ import annotations

from typing import Any


def max_length(config: Any) -> int:
    """Tokens that the model takes."""
    return int(getattr(config, "max_position_embeddings", None) or 2**20)


def window(config: Any) -> int | None:
    """Over how many tokens attention slides, its own among them, in the layers where it does."""
    if not getattr(config, "use_sliding_window", True):
        return None
    found: int | None = getattr(config, "sliding_window", None)
    return found

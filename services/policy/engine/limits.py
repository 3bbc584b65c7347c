"""What a checkpoint's configuration says of its length."""

from __future__ import annotations

from typing import Any


def max_length(config: Any) -> int:
    """Tokens that the model takes; where attention slides, no more than its window.

    Explicit masks do not slide, so beyond the window they would differ from training.
    """
    lengths = [
        getattr(config, "max_position_embeddings", None),
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None,
    ]
    return min((length for length in lengths if length), default=2**20)

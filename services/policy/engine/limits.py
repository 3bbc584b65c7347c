"""What a checkpoint's configuration says: its length and its end-of-sequence tokens."""

from __future__ import annotations

from typing import Any


def eos_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """The end-of-sequence tokens of the checkpoint's generation settings and of its tokenizer."""
    found: set[int] = set()
    for eos in (generation_config.eos_token_id, tokenizer.eos_token_id):
        found |= set(eos) if isinstance(eos, list) else set() if eos is None else {eos}
    return found


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

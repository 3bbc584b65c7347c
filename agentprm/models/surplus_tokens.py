"""Tokens that a checkpoint's tokenizer knows, and its model does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentprm.registry import CheckpointError


def without_surplus(path: Path, tokenizer: Any, size: int) -> Any:
    """The tokenizer, if it has no id that a model of `size` embeddings lacks.

    Trainers add a padding token and leave the embeddings as they are, since padding is never read
    (open-instruct does, and so the paper's scripts); Gemma 3 1B reads text alone and has the token
    for images of the larger ones. Special tokens that no conversation is made of are taken out
    again: the same letters in a text would be an id that the model cannot look up.

    Raises:
        CheckpointError: other tokens are missing from the model.
    """
    if len(tokenizer) <= size:
        return tokenizer
    surplus = {token: k for token, k in tokenizer.get_vocab().items() if k >= size}
    if any(_read(tokenizer, token, k) for token, k in surplus.items()):
        raise CheckpointError(
            f"{path}: the tokenizer knows {len(tokenizer)} tokens, the model {size}"
        )
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast  # seconds to import

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["id"] < size]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=None if tokenizer.pad_token in surplus else tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )


def _read(tokenizer: Any, token: str, number: int) -> bool:
    """Whether a model may have to read the token: a text, or the chat template, may hold it."""
    if token == tokenizer.pad_token:
        return False
    added = tokenizer.added_tokens_decoder.get(number)
    ends = token in (tokenizer.bos_token, tokenizer.eos_token)
    return added is None or not added.special or ends or token in str(tokenizer.chat_template)

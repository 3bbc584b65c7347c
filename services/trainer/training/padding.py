"""The token for padding of a tokenizer that names none."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from agentprm.registry import CheckpointError

_MADE_FOR_IT = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>")
_SPARE = re.compile(r"[<\[].*(reserved|unused).*[>\]]")


def padding_token(directory: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token of the vocabulary that no conversation is expected to hold.

    One that is made for padding (Llama 3 reserves one), the unknown token, or one that is reserved
    for no purpose. The end token would not do for a PRM: transformers reads Q at the last token
    that is no padding, which then would not be the end of the answer.

    Raises:
        CheckpointError: the vocabulary has none of these.
    """
    vocabulary = tokenizer.get_vocab()
    spare = sorted(filter(_SPARE.fullmatch, vocabulary), key=lambda token: vocabulary[token])
    for token in (*_MADE_FOR_IT, tokenizer.unk_token, *spare):
        if vocabulary.get(token, tokenizer.eos_token_id) != tokenizer.eos_token_id:
            return str(token)
    raise CheckpointError(
        f"{directory}: its tokenizer names no token for padding, and has no spare one. Its end "
        "token would not do, since Q is read there: name a token that no text holds as `pad_token` "
        "in tokenizer_config.json"
    )

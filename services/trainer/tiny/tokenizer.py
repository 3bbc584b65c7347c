"""The tiny model's tokenizer: word-level, lossless on the engine's text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.trainer.tiny import vocabulary as v

# System messages are dropped: a model trained from scratch reads no instructions.
CHAT_TEMPLATE = (
    "{%- for message in messages if message.role != 'system' -%}"
    "{{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def create_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer over `vocabulary.WORDS`; whatever else a text holds becomes `<unk>`."""
    words = {word: i for i, word in enumerate(v.WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=v.UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_pattern()), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=v.PAD,
        unk_token=v.UNKNOWN,
        eos_token=v.END,
        additional_special_tokens=[v.USER, v.ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _pattern() -> str:
    """One word: the longest phrase first, then a whole name, then a whole number."""
    return f"{_any(v.PHRASES)}|(?<![a-z]){_any(v.NAMES)}(?![a-z])|{_any(v.NUMBERS)}(?![0-9])"


def _any(words: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) + ")"

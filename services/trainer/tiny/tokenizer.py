"""The tiny model's tokenizers: the words of ALFWorld, or what is learned from other texts.

Both are lossless, the first on the text of ALFWorld's engine alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from services.trainer.tiny import vocabulary as v

_LEARNED = 1024
"""Most tokens of a tokenizer that is learned: an embedding of each is trained from scratch."""

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
    return _fast(tokenizer, max_length)


def learn_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer of what is frequent in `texts`; any other text it knows by its bytes.

    A digit is a token of its own, so that what is learned of one number holds for another.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_LEARNED,
        special_tokens=list(v.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _fast(tokenizer, max_length)


def _fast(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
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

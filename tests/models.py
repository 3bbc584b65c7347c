"""Tiny models with random weights and a small word-level tokenizer, saved as real checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config

WORDS = re.findall(
    r"\w+",
    """
    find have put take go to open close heat cool clean use examine move from in on with the a you
    are see nothing happens room middle of your task is some it and at arrive mug apple cabinet
    fridge drawer table desk lamp microwave look inventory act text world complete turn told what
    observe answer two lines after few words one command carry out now each knife book shelf
    sinkbasin countertop closed
    """,
)
PIECES = ["REASON:", "ACTION:", "\n", " ", ".", ",", ":", ";", "-", "="]
PHRASES = ["REASON: ", "\nACTION: "]
PATTERN = r"REASON:|ACTION:|\n| ?[A-Za-z]+| ?[0-9]+|."
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def word_tokenizer(*, phrases: bool = False) -> PreTrainedTokenizerFast:
    """Words with their leading space, numbers, marks and line ends; it loses no character.

    With `phrases` the fixed parts of an action are one token each, their last space included.
    """
    special = ["<|pad|>", "<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = [w for word in WORDS for w in (word, f" {word}", word.capitalize())]
    numbers = [n for k in range(41) for n in (str(k), f" {k}")]
    vocabulary = dict.fromkeys([*special, *PIECES, *PHRASES, *words, *numbers])
    tokenizer = Tokenizer(
        models.WordLevel({w: k for k, w in enumerate(vocabulary)}, unk_token="<|unk|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(("REASON: |\nACTION: |" if phrases else "") + PATTERN), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": special[3:]})
    fast.chat_template = TEMPLATE
    return fast


def tiny_causal_lm(
    path: Path,
    seed: int,
    *,
    kind: str = "llama",
    size: int = 32,
    layers: int = 2,
    phrases: bool = False,
    **config: Any,
) -> Path:
    """Save a random model with its tokenizer to `path`.

    A `llama`, `qwen2` (grouped heads), `mistral`, `gpt2`, `gpt_neox`, a `gemma2`, whose capped
    attention scores are not exchangeable, or a `gemma3`, whose attention slides in one of two
    layers.
    """
    tokenizer = word_tokenizer(phrases=phrases)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 3 * size,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kinds = {
        "llama": lambda: LlamaConfig(**settings | config),
        "qwen2": lambda: Qwen2Config(**settings | {"num_key_value_heads": 2} | config),
        "gpt_neox": lambda: GPTNeoXConfig(**settings | config),
        "gpt2": lambda: GPT2Config(**settings | config),
        "mistral": lambda: MistralConfig(**settings | {"num_key_value_heads": 2} | config),
        "gemma2": lambda: Gemma2Config(
            **settings | {"num_key_value_heads": 2, "head_dim": size // 4} | config
        ),
        "gemma3": lambda: Gemma3TextConfig(
            **settings
            | {"num_key_value_heads": 2, "head_dim": size // 4, "sliding_window": 16}
            | {"layer_types": ["sliding_attention", "full_attention"] * (layers // 2)}
            | config
        ),
    }
    model = AutoModelForCausalLM.from_config(kinds[kind]())
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path

"""Tiny one-label models with random weights: real checkpoints that cost milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from agentprm.protocol import Action, Step, Transcript

torch.set_num_threads(1)  # models this small are slower on more

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
_TEXT = """REASON ACTION : . , ; ' - > you are in the middle of a room see nothing happens find
have put go to take from open close heat cool clean use look inventory mug apple knife lamp book
cabinet drawer shelf desk fridge microwave sinkbasin countertop arrive at is closed on it"""
_NUMBERS = [str(n) for n in range(40)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Word level, with a chat template; unknown words become one token each."""
    words = [*_SPECIAL, *_TEXT.split(), *_NUMBERS]
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        additional_special_tokens=_SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_scorer(
    path: Path,
    seed: int,
    architecture: str = "llama",
    *,
    labels: int = 1,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    feedforward: int = 64,
    vocabulary: int = 250,
    positions: int = 1024,
    **more: object,
) -> None:
    """Write a random model of `architecture` with `labels` labels, and its tokenizer, to `path`."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        num_labels=labels,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=_SPECIAL.index("<|end|>"),
        initializer_range=0.3,
        **more,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def episode(turns: int, seed: int = 0) -> Transcript:
    """An episode of about 25 tokens a turn."""
    steps = [
        Step(
            observation=f"you arrive at cabinet {(seed + t) % 40} . on it you see a mug {t % 40} .",
            action=Action(
                reason=f"find mug {(3 * seed + t) % 40}",
                command=f"go to drawer {(seed + 7 * t) % 40}",
            ),
        )
        for t in range(turns)
    ]
    return Transcript(task=f"put a mug {seed % 40} in cabinet", steps=steps)

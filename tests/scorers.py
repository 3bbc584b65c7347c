"""Tiny one-label models with random weights: real checkpoints that cost milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from agentprm.protocol import Action, Step, Transcript
from tests.models import word_tokenizer

torch.set_num_threads(1)  # models this small are slower on more


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
    vocabulary: int | None = None,
    positions: int = 1024,
    **more: object,
) -> None:
    """Write a random model of `architecture` with `labels` labels, and its tokenizer, to `path`."""
    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
        **more,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


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

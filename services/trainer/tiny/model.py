"""The tiny model: an ordinary Hugging Face directory with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, set_seed

from agentprm.config import Scratch
from services.trainer.tiny.tokenizer import create_tokenizer, learn_tokenizer

_MAX_POSITION = 4096


def create_tiny(
    directory: Path,
    seed: int = 0,
    shape: Scratch | None = None,
    texts: Iterable[str] | None = None,
) -> None:
    """Write a Llama with random weights and its tokenizer to `directory`.

    Unless `shape` says otherwise it has about 0.9 million parameters; input and output embeddings
    are tied. Its tokens are the words of ALFWorld, or learned from `texts` where they are given.
    """
    shape = shape or Scratch()
    if texts is None:
        tokenizer = create_tokenizer(_MAX_POSITION)
    else:
        tokenizer = learn_tokenizer(texts, _MAX_POSITION)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=_MAX_POSITION,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

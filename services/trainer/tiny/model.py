"""The tiny model: an ordinary Hugging Face directory with random weights."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, set_seed

from services.trainer.tiny.tokenizer import create_tokenizer


def create_tiny(
    directory: Path,
    seed: int = 0,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    feed_forward: int = 384,
    max_position: int = 4096,
) -> None:
    """Write a Llama with random weights and its tokenizer to `directory`.

    With the defaults it has about 0.9 million parameters, input and output embeddings tied.
    """
    tokenizer = create_tokenizer(max_position)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_position,
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

"""Checkpoints as others publish them: Llama 3.2 at small width, its tokens and its chat template.

Random weights; the tokenizer is a byte-level BPE that is trained here. The configuration is written
as transformers 4 wrote it, and beside the weights lies what trainers and hubs leave there.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
]
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
CORPUS = [
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 2.",
    "You arrive at cabinet 1. On the cabinet 1, you see a mug 1, and an apple 2. Nothing happens.",
    "REASON:\nI should look for a mug, and search the drawers one by one.\nACTION:\ngo to drawer 2",
    "{'observation': 'You open the fridge 1.', 'action': 'take mug 1 from fridge 1'}, system user",
    "Your task is to: put some mug in cabinet. candidate_actions: ['look', 'inventory'] assistant",
]
DATED = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set said = "" %}
{%- if messages[0].role == "system" %}
    {%- set said = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- said + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
    {{- message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
"""Like Llama 3.2's: the date in a system message that is always there, contents trimmed."""

TEMPLATE = """\
{% if mode == 'input' %}
You play a text game, in which you
{{task}}

What you saw and did before:
{{ observation_action_history }}

{
    "observation": {{observation}},
    "candidate_actions": {{candidate_actions}}
}

Say why, then what you do.
REASON:
Why this is the next thing to do.
ACTION:
One of the candidate_actions.
{% elif mode == 'output' %}
REASON:
{{ reason }}
ACTION:
{{ action }}
{% endif %}
"""
"""A prompt of the shape of the published ones: lists printed as they are, lines around it all."""


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE that puts <|begin_of_text|> in front of whatever it encodes, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=SPECIAL[1:4],
    )
    fast.chat_template = DATED
    return fast


def publish(directory: Path, *, prm: bool) -> Path:
    """Write a policy, or a PRM without any of our files, to `directory`."""
    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=96,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        initializer_range=0.2,
        num_labels=1,
        bos_token_id=0,
        eos_token_id=[1, 4],
        pad_token_id=None,
    )
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if prm else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as trainers do; the model lacks it
    tokenizer.save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    written.pop("rope_parameters")
    written["rope_theta"] = 500_000.0
    written["rope_scaling"] = {  # reaches into the short conversations of the tests
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }
    (directory / "config.json").write_text(json.dumps(written))
    (directory / "training_args.bin").write_bytes(b"\x80\x04")
    (directory / "README.md").write_text("A model.")
    (directory / ".gitattributes").write_text("*.safetensors filter=lfs")
    return directory

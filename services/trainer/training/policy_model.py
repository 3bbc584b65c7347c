"""A policy to fit."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_policy(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model in `directory`, on the CPU.

    Raises:
        OSError: its weights are pickled only, or missing.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, use_safetensors=True
    )
    return model

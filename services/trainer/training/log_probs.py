"""Log-probabilities of the tokens of a row under a causal model, in two ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_log_probs(
    model: torch.nn.Module, ids: Tensor, attention: Tensor, wanted: Tensor
) -> Tensor:
    """log p of each token but the first, given those before it; 0 where it is not wanted.

    All are of the shape (rows, tokens), `wanted` of booleans; the result of (rows, tokens - 1). On
    a GPU the model needs TRL's fused head.
    """
    choice = plain_log_probs if ids.device.type == "cpu" else fused_log_probs
    return choice(model, ids, attention, wanted)


def plain_log_probs(
    model: torch.nn.Module, ids: Tensor, attention: Tensor, wanted: Tensor
) -> Tensor:
    """From the logits of all tokens."""
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return -losses.view_as(wanted[:, 1:]) * wanted[:, 1:]


def fused_log_probs(
    model: torch.nn.Module, ids: Tensor, attention: Tensor, wanted: Tensor
) -> Tensor:
    """By TRL's fused head, without the logits in memory; slower where no Triton is."""
    labels = ids.masked_fill(~wanted, -100)
    outputs = model(
        input_ids=ids, attention_mask=attention, labels=labels, use_cache=False, fused_lm_head=True
    )
    log_probs: Tensor = outputs.log_probs
    return log_probs

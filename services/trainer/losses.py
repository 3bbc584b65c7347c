"""The losses that are written here and not taken from a library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_bce(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy against targets in [0, 1] (eq. 2), a mean over the unmasked entries.

    −[Q̂ log σ(z) + (1 − Q̂) log(1 − σ(z))]; its gradient in z is σ(z) − Q̂. All three have one
    shape; where `mask` is False neither logit nor target counts. Without any entry the loss is 0.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return torch.where(mask, losses, 0.0).sum() / mask.sum().clamp(min=1)


def weighted_nll(log_probs: Tensor, weights: Tensor) -> Tensor:
    """−Σ w log p / Σ w over all tokens. Both have one shape; a weight of 0 leaves a token out."""
    return -(log_probs.float() * weights).sum() / weights.sum().clamp(min=torch.finfo().tiny)

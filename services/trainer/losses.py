"""The losses that are written here and not taken from a library.

They are sums: the mean is over an optimizer step, of which a batch is only a part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_bce(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy against targets in [0, 1] (eq. 2), a sum over the unmasked entries.

    −[Q̂ log σ(z) + (1 − Q̂) log(1 − σ(z))]; its gradient in z is σ(z) − Q̂. All three have one
    shape; where `mask` is False neither logit nor target counts.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return torch.where(mask, losses, 0.0).sum()


def weighted_nll(log_probs: Tensor, weights: Tensor) -> Tensor:
    """−Σ w log p over all tokens. Both have one shape; a weight of 0 leaves a token out."""
    return -(log_probs.float() * weights).sum()

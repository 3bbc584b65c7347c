"""The losses that are written here and not taken from a library.

They are sums, over a batch or over each row: the mean is over an optimizer step, of which a batch
is only a part.
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


def bradley_terry(better: Tensor, worse: Tensor, center: float) -> Tensor:
    """−Σ log σ(z − z') over pairs (section 2.3), and `center` Σ (z + z')², which keeps z near 0.

    Both have the shape (pairs).
    """
    losses = -F.logsigmoid(better - worse) + center * (better + worse).square()
    return losses.sum()


def weighted_nll(log_probs: Tensor, weights: Tensor) -> Tensor:
    """−Σ w log p over all tokens. Both have one shape; a weight of 0 leaves a token out."""
    return -(log_probs.float() * weights).sum()


def clipped_policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """−Σ_t min(ρ_t A, min(max(ρ_t, 1 − ε), 1 + ε) A) of each row, with ρ_t = π(x_t) / π_old(x_t).

    Where `old` is the policy of now, the gradient is −A ∇ log π(a). `log_probs`, `old` and `mask`
    have the shape (rows, tokens), `advantages` (rows); `mask` is True at the tokens of the action.
    """
    ratio = torch.where(mask, log_probs - old, 0.0).exp()
    gain = advantages[:, None] * ratio
    held = advantages[:, None] * ratio.clamp(1 - clip, 1 + clip)
    return -torch.where(mask, torch.minimum(gain, held), 0.0).sum(1)


def squared_log_ratio(log_probs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """½ (log π(a) − log π_ref(a))² of each row, the KL penalty of eq. 3 as a loss.

    Averaged over actions drawn from π, its gradient is that of KL(π ‖ π_ref). (The estimator that
    GRPO is published with, r − log r − 1 with r = π_ref / π, has the right value, but as a loss the
    gradient of KL(π_ref ‖ π).) The shapes are those of `clipped_policy_loss`.
    """
    log_ratio = torch.where(mask, log_probs - reference, 0.0).sum(1)
    return log_ratio.square() / 2

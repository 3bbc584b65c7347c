"""Drawing tokens. Each prompt has a random stream of its own, so no batch changes its samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def generator(key: tuple[int, int], purpose: int) -> np.random.Generator:
    """The random stream of (seed, index) for one purpose: 0 samples tokens, 1 draws
    commands, 2 draws among scored candidates.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, purpose])))


def draw_tokens(
    logits: torch.Tensor, temperature: float, uniform: npt.NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn by inverting the distribution function at `uniform`; the likeliest at 0.

    Args:
        logits: [draws, vocabulary].
        temperature: 0 or more.
        uniform: [draws], in [0, 1).

    Returns:
        Tokens [draws] and their log-probabilities at temperature 1 [draws].
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    if temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        # The likeliest at 0, so that no temperature makes all of them infinite.
        behind = log_probs.double() - log_probs.amax(dim=-1, keepdim=True)
        mass = torch.softmax(behind / temperature, dim=-1).cumsum(dim=-1)
        at = torch.as_tensor(uniform, device=mass.device)[..., None] * mass[..., -1:]
        tokens = torch.searchsorted(mass, at, right=True)[..., 0]
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, log_probs.gather(-1, tokens[..., None])[..., 0]


def draw_index(log_weights: Sequence[float], temperature: float, uniform: float) -> int:
    """An index by softmax(`log_weights` / `temperature`); the first of the largest at 0."""
    weights = np.asarray(log_weights, dtype=np.float64)
    if temperature == 0:
        return int(weights.argmax())
    mass = np.exp((weights - weights.max()) / temperature).cumsum()
    return min(int(np.searchsorted(mass, uniform * mass[-1], side="right")), len(weights) - 1)
